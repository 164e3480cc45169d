//! Joins to restricted rooms (Server-Server API, "Restricted rooms"): the resident server checks the conditions of the
//! join rules, names one of its users who could have invited, and countersigns.

use super::{
    Extent, Room, RoomError, Rooms,
    acl::{ACL, acl_of},
};
use crate::matrix::{
    auth_events::AUTHORISED_VIA,
    event::Event,
    identifiers::{RoomId, ServerName, UserId},
    json::{Object, Value},
    power_levels::{Level, PowerLevels},
    server_acl::ServerAcl,
    state_content::{JoinRule, Membership},
};

/// The most conditions that are looked at: each may be a room to read.
const MAX_CONDITIONS: usize = 50;

/// A room as somebody finds it who wants to join, and what its state says of that.
#[derive(Debug)]
pub struct Entrance {
    /// The room.
    pub room: Room,
    user: UserId,
    state: Vec<Event>,
    acl: ServerAcl,
}

impl Entrance {
    /// The user's membership, where they have one.
    pub fn membership(&self) -> Option<Membership> {
        self.find("m.room.member").and_then(Event::membership)
    }

    /// The room that it says to go on with.
    pub fn predecessor(&self) -> Option<RoomId> {
        let predecessor = self.find("m.room.create")?.content().get("predecessor")?;
        RoomId::parse(predecessor.get("room_id")?.as_str()?).ok()
    }

    /// Lets `server` ask about it.
    ///
    /// # Errors
    /// [`RoomError::Denied`] where the room's ACL keeps it out.
    pub fn admit(&self, server: &ServerName) -> Result<(), RoomError> {
        if self.acl.allows(server) { Ok(()) } else { Err(RoomError::Denied) }
    }

    /// Whether the user's membership is not known here: then another server must let them in.
    pub fn is_unsure(&self) -> bool {
        self.room.extent == Extent::Partial && self.find("m.room.member").is_none()
    }

    /// Whether the user is in the room, which this server is in.
    pub fn is_in(&self) -> bool {
        self.room.local_joined > 0 && self.membership() == Some(Membership::Join)
    }

    fn find(&self, event_type: &str) -> Option<&Event> {
        self.state.iter().find(|event| event.event_type() == event_type)
    }
}

impl Rooms {
    /// The room as `user` finds it, if we know it. One round trip.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn entrance(&self, room_id: &RoomId, user: &UserId) -> Result<Option<Entrance>, RoomError> {
        let keys = [
            ("m.room.create", ""),
            ("m.room.join_rules", ""),
            ("m.room.power_levels", ""),
            ("m.room.member", user.as_str()),
            ACL,
        ];
        let Some((room, stored)) = self.current_stored(room_id, &keys).await? else { return Ok(None) };
        let acl = acl_of(stored.iter().find(|stored| stored.event.is_state(ACL.0, ACL.1)));
        let state = stored.into_iter().map(|stored| stored.event).collect();
        Ok(Some(Entrance { room, user: user.clone(), state, acl }))
    }

    /// What the content of the user's join must hold besides the membership.
    ///
    /// # Errors
    /// Where the room is restricted and we cannot vouch for the user: [`RoomError::NotAllowed`] where they meet no condition,
    /// [`RoomError::CannotAuthorise`] where we cannot tell, [`RoomError::CannotGrant`] where nobody here may invite.
    pub async fn content_of_join(&self, entrance: &Entrance) -> Result<Object, RoomError> {
        let voucher = self.voucher(entrance).await?;
        Ok(voucher.map(|voucher| (AUTHORISED_VIA, Value::from(&voucher))).into_iter().collect())
    }

    /// Whether we have to sign a membership event of `sender`, because it says that one of our users vouches for it; that is
    /// checked again.
    ///
    /// # Errors
    /// [`RoomError::Invalid`] where another server would have to vouch; else as [`Rooms::content_of_join`].
    pub async fn must_countersign(&self, room: &Room, sender: &UserId, content: &Object) -> Result<bool, RoomError> {
        let Some(named) = content.get(AUTHORISED_VIA) else { return Ok(false) };
        let is_join = Membership::of(content) == Some(Membership::Join);
        if !is_join || !room.room_version.restricted {
            return Ok(false);
        }
        let named = named.as_str().and_then(|named| UserId::parse(named).ok());
        if named.is_none_or(|named| named.server_name() != self.server_name().as_str()) {
            return Err(RoomError::Invalid(format!("`{AUTHORISED_VIA}` names no user of this server.")));
        }
        let entrance = self.entrance(&room.room_id, sender).await?.ok_or(RoomError::UnknownRoom)?;
        self.voucher(&entrance).await?;
        Ok(true)
    }

    /// The local user who vouches for the user's join; `None` where nobody has to.
    async fn voucher(&self, entrance: &Entrance) -> Result<Option<UserId>, RoomError> {
        let room = &entrance.room;
        if !room.room_version.restricted {
            return Ok(None);
        }
        let Some(rules) = entrance.find("m.room.join_rules") else { return Ok(None) };
        let rule = JoinRule::of(Some(rules.content()), room.room_version);
        // Those who are invited or in the room need nobody; those who are banned are refused by the auth rules.
        if !matches!(rule, JoinRule::Restricted | JoinRule::KnockRestricted)
            || matches!(entrance.membership(), Some(Membership::Join | Membership::Invite | Membership::Ban))
        {
            return Ok(None);
        }
        self.check_conditions(rules, &entrance.user).await?;
        let create = entrance
            .find("m.room.create")
            .ok_or_else(|| RoomError::Corrupt("a state without a create event".to_owned()))?;
        let levels = PowerLevels::from_state(create, entrance.find("m.room.power_levels"));
        for local in self.store.local_members(&room.room_id).await? {
            if levels.allow(local.as_str(), Level::Invite) {
                return Ok(Some(local));
            }
        }
        Err(RoomError::CannotGrant)
    }

    /// Errs unless `user` meets one of the conditions of `rules`.
    async fn check_conditions(&self, rules: &Event, user: &UserId) -> Result<(), RoomError> {
        let conditions = rules.content().get("allow").and_then(Value::as_array).unwrap_or_default();
        let rooms = conditions
            .iter()
            .filter(|condition| condition.get("type").and_then(Value::as_str) == Some("m.room_membership"));
        let rooms = rooms.filter_map(|condition| RoomId::parse(condition.get("room_id")?.as_str()?).ok());
        let mut all_known = true;
        for room_id in rooms.take(MAX_CONDITIONS) {
            match self.current(&room_id, &[("m.room.member", user.as_str())]).await? {
                Some((room, state)) if room.local_joined > 0 => {
                    if state.iter().any(|event| event.membership() == Some(Membership::Join)) {
                        return Ok(());
                    }
                    if state.is_empty() && room.extent == Extent::Partial {
                        all_known = false;
                    }
                }
                _ => all_known = false,
            }
        }
        if all_known {
            let why = "the user is in none of the rooms whose members may join it";
            return Err(RoomError::NotAllowed(why.to_owned()));
        }
        Err(RoomError::CannotAuthorise)
    }
}
