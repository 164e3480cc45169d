//! What a user does not want to see: whose events (Client-Server API, "Ignoring Users"), and whether any invites ("Invite
//! permission").

use std::collections::BTreeSet;

use super::{positions::TimelinePos, written};
use crate::{
    matrix::{
        event::Event,
        json::{self, Value},
    },
    platform::{DatabaseError, Rows, Statement},
};

/// The type of account data that names them.
pub(super) const IGNORED: &str = "m.ignored_user_list";

/// The type of account data that says who may invite the user.
pub(super) const INVITE_PERMISSION: &str = "m.invite_permission_config";

/// ?1 user, ?2 and ?4 types, ?3: the 'events' position up to which there is nothing new; then nothing is read.
const SELECT: &str = "\
    SELECT a.event_type, a.content FROM streams AS s CROSS JOIN account_data AS a \
    WHERE s.name = 'events' AND s.position > ?3 AND a.user_id = ?1 AND a.room_id = '' AND a.event_type IN (?2, ?4)";

/// Whether `e` is hidden from the user ?5, to whom their own events are never.
macro_rules! is_ignored {
    () => {
        "(e.state_key IS NULL AND e.sender <> ?5 AND e.sender IN (SELECT i.key FROM account_data AS a \
          CROSS JOIN json_each(a.content, '$.ignored_users') AS i \
          WHERE a.user_id = ?5 AND a.room_id = '' AND a.event_type = 'm.ignored_user_list'))"
    };
}
pub(super) use is_ignored;

/// The users whom a user ignores.
#[derive(Debug, Default)]
pub struct IgnoredUsers(BTreeSet<String>);

impl IgnoredUsers {
    /// Reads what `user_id` keeps.
    ///
    /// # Errors
    /// Where it cannot be read. It may hold anything that clients put there; whoever finds no list in it ignores nobody.
    pub fn of(user_id: &str, content: &str) -> Result<Self, DatabaseError> {
        let content = written(content, |text| json::parse(text.as_bytes()))?.into_object();
        let list = content.and_then(|mut content| content.remove("ignored_users")?.into_object()).unwrap_or_default();
        Ok(Self(list.keys().filter(|ignored| *ignored != user_id).map(str::to_owned).collect()))
    }

    /// Whether this user is ignored.
    pub fn has(&self, user_id: &str) -> bool {
        self.0.contains(user_id)
    }

    /// Whether an event of this sender is hidden: the state of rooms is the same for all.
    pub fn hides(&self, sender: &str, is_state: bool) -> bool {
        !is_state && self.has(sender)
    }
}

/// Whether a user wants to be invited.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum InvitePermission {
    /// By everybody.
    #[default]
    Granted,
    /// By nobody.
    Blocked,
}

impl InvitePermission {
    /// Reads what the user keeps. A value that is not known is none.
    pub fn of(content: &str) -> Self {
        let config = json::parse(content.as_bytes()).ok();
        match config.as_ref().and_then(|config| config.get("default_action")).and_then(Value::as_str) {
            Some("block") => Self::Blocked,
            _ => Self::Granted,
        }
    }
}

/// What a user does not want to see.
#[derive(Debug, Default)]
pub struct Unwanted {
    /// Whom the user ignores.
    pub ignored: IgnoredUsers,
    /// Whether the user wants to be invited.
    pub invites: InvitePermission,
}

impl Unwanted {
    /// Whether an event is not shown.
    pub fn hides(&self, event: &Event) -> bool {
        self.ignored.hides(event.sender().as_str(), event.state_key().is_some())
    }

    /// Whether an invite is not shown that comes from this user, if it is known who that is.
    pub fn hides_invite(&self, inviter: Option<&str>) -> bool {
        self.invites == InvitePermission::Blocked || inviter.is_some_and(|inviter| self.ignored.has(inviter))
    }
}

/// Asks for what a user does not want to see, where anything is new in the stream of events since that position.
pub(super) fn ask(user_id: &str, since: TimelinePos) -> Statement {
    Statement::new(SELECT, [user_id.into(), IGNORED.into(), since.into(), INVITE_PERMISSION.into()])
}

/// The answer to [`ask`].
pub(super) fn read(user_id: &str, rows: &Rows) -> Result<Unwanted, DatabaseError> {
    let mut unwanted = Unwanted::default();
    for row in rows {
        let (event_type, content) = (row.text(0)?, row.text(1)?);
        match event_type {
            IGNORED => unwanted.ignored = IgnoredUsers::of(user_id, content)?,
            _ => unwanted.invites = InvitePermission::of(content),
        }
    }
    Ok(unwanted)
}
