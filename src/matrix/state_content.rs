//! What the contents of those state events say that decide who is in a room, who may come, and who may read.
//!
//! Spec: Client-Server API, "Room Events" (`m.room.member`, `m.room.join_rules`) and "Room History Visibility".

use super::{
    json::{Object, Value},
    room_version::RoomVersion,
};

/// The state events that tell somebody who is not in a room what it is, besides the memberships of the inviter and the invited
/// user (Client-Server API, "Stripped state").
pub const STRIPPED_STATE: [&str; 7] = [
    "m.room.create",
    "m.room.name",
    "m.room.avatar",
    "m.room.topic",
    "m.room.join_rules",
    "m.room.canonical_alias",
    "m.room.encryption",
];

/// `membership` of `m.room.member`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Membership {
    /// In the room.
    Join,
    /// Invited to it.
    Invite,
    /// Asking to be invited.
    Knock,
    /// Not in it.
    Leave,
    /// Kept out of it.
    Ban,
}

impl Membership {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Join, Self::Invite, Self::Knock, Self::Leave, Self::Ban];

    /// What the content of `m.room.member` states; `None` where that is not one of the protocol's.
    pub fn of(content: &Object) -> Option<Self> {
        Self::parse(content.get("membership")?.as_str()?)
    }

    /// The membership of this name; `None` for another text.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|membership| membership.as_str() == text)
    }

    /// Its name in the protocol.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Join => "join",
            Self::Invite => "invite",
            Self::Knock => "knock",
            Self::Leave => "leave",
            Self::Ban => "ban",
        }
    }
}

impl std::fmt::Display for Membership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `join_rule` of `m.room.join_rules`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JoinRule {
    /// Anybody may join.
    Public,
    /// Those who are invited may join.
    Invite,
    /// Those who are invited may join, and anybody may ask to be.
    Knock,
    /// Members of certain rooms may join, and those who are invited.
    Restricted,
    /// As `Restricted`, and anybody may ask to be invited.
    KnockRestricted,
    /// Nobody may join: `private`, which is reserved, or a rule that the room version does not know.
    Private,
}

impl JoinRule {
    /// The rule that the content of `m.room.join_rules` states in a room of this version; where there is no such event, or none
    /// is stated, `Invite`.
    pub fn of(content: Option<&Object>, version: &RoomVersion) -> Self {
        let Some(stated) = content.and_then(|content| content.get("join_rule")) else { return Self::Invite };
        match Self::named(stated.as_str().unwrap_or_default()) {
            Self::Knock if !version.knock => Self::Private,
            Self::Restricted if !version.restricted => Self::Private,
            Self::KnockRestricted if !version.knock_restricted => Self::Private,
            rule => rule,
        }
    }

    /// The rule of this name in room versions that know it: `Private` where no version does.
    pub fn named(name: &str) -> Self {
        [Self::Public, Self::Invite, Self::Knock, Self::Restricted, Self::KnockRestricted]
            .into_iter()
            .find(|rule| rule.as_str() == name)
            .unwrap_or(Self::Private)
    }

    /// The name of the rule.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Invite => "invite",
            Self::Knock => "knock",
            Self::Restricted => "restricted",
            Self::KnockRestricted => "knock_restricted",
            Self::Private => "private",
        }
    }
}

/// `history_visibility` of `m.room.history_visibility`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HistoryVisibility {
    /// Anybody may read.
    WorldReadable,
    /// Members may read what was before them, too.
    Shared,
    /// Members may read from their invitation on.
    Invited,
    /// Members may read from their join on.
    Joined,
}

impl HistoryVisibility {
    /// Whether an event that was sent under it is to be seen by somebody whose membership was `then`, and who has been in the room
    /// since, if `came_later`.
    pub fn shows(self, then: Membership, came_later: bool) -> bool {
        match self {
            Self::WorldReadable => true,
            Self::Shared => came_later || then == Membership::Join,
            Self::Invited => matches!(then, Membership::Invite | Membership::Join),
            Self::Joined => then == Membership::Join,
        }
    }

    /// The visibility that the content of `m.room.history_visibility` states; `Shared` where there is no such event, or none that
    /// is known.
    pub fn of(content: Option<&Object>) -> Self {
        match content.and_then(|content| content.get("history_visibility")).and_then(Value::as_str) {
            Some("world_readable") => Self::WorldReadable,
            Some("invited") => Self::Invited,
            Some("joined") => Self::Joined,
            _ => Self::Shared,
        }
    }
}
