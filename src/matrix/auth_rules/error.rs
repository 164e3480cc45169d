//! Why the authorisation rules refuse an event.

use crate::matrix::{
    identifiers::EventId,
    power_levels::{MalformedPowerLevel, PowerLevel},
};

/// The rule that an event breaks. What refuses an event is one of these, whichever of several is found first.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum AuthError {
    /// The create event has prev events, so it is not a room's first event.
    CreateHasPrevEvents,
    /// The create event names a room ID, which in this room version follows from its hash.
    CreateHasRoomId,
    /// The create event's sender is of another server than the room ID.
    CreateForAnotherServer,
    /// The create event's room version is not known.
    UnknownRoomVersion,
    /// The create event names no creator.
    NoCreator,
    /// The create event's additional creators are not a list of user IDs.
    AdditionalCreators,
    /// The room ID is not that of an accepted create event.
    RoomIdOfNoCreateEvent,
    /// An auth event is not known.
    MissingAuthEvent(EventId),
    /// An auth event is not one that auth events selection selects for such an event.
    UnexpectedAuthEvent(EventId),
    /// An auth event has the type and state key of one before it.
    DuplicateAuthEvent(EventId),
    /// An auth event was rejected.
    RejectedAuthEvent(EventId),
    /// An auth event is of another room.
    AuthEventOfAnotherRoom(EventId),
    /// The create event is missing from the auth events, or from the state.
    NoCreateEvent,
    /// The room admits the users of its creator's server only.
    NotFederated,
    /// The aliases are those of another server than the sender's.
    AliasesOfAnotherServer,
    /// The membership event's state key is not a user ID.
    MemberWithoutTarget,
    /// The membership is not one that the room version knows.
    UnknownMembership,
    /// The sender may set this membership for themself only.
    SenderIsNotTarget,
    /// The sender is not in the room.
    SenderNotJoined,
    /// The user is banned.
    TargetBanned,
    /// The user is in the room, or invited, already.
    TargetJoined,
    /// The join rule asks for an invite that the user does not have.
    NotInvited,
    /// The user who is to have authorised the join is not in the room.
    AuthorisingUserNotJoined,
    /// The join rule allows no knocking.
    KnockingNotAllowed,
    /// The third-party invite lacks its signed part, or the user ID or token in it.
    ThirdPartyInviteMalformed,
    /// The third-party invite is for another user.
    ThirdPartyInviteOfAnotherUser,
    /// The room has no third-party invite of this token and sender.
    ThirdPartyInviteUnknown,
    /// No signature of the third-party invite is by one of the keys that the room's event lists.
    ThirdPartyInviteUnsigned,
    /// The user has not the power level that this requires.
    PowerTooLow {
        /// The user's power level.
        power: PowerLevel,
        /// The level that is required.
        required: PowerLevel,
    },
    /// The target's power level is not below the sender's.
    TargetNotOutranked,
    /// The state key is the user ID of another user than the sender.
    StateKeyOfAnotherUser,
    /// A power level, of the event or of the room, is malformed.
    MalformedPowerLevels,
    /// The power levels list someone who has no user ID.
    UsersNotUserIds,
    /// The power levels list a creator, whose power cannot be changed.
    CreatorInUsers,
    /// The event changes a power level that is too high for its sender, or raises one too high.
    LevelTooHigh,
}

impl AuthError {
    /// Refuses what requires a level that the power does not reach.
    pub(super) fn unless_enough(power: &PowerLevel, required: &PowerLevel) -> Result<(), Self> {
        if power >= required {
            Ok(())
        } else {
            Err(Self::PowerTooLow { power: power.clone(), required: required.clone() })
        }
    }
}

impl From<MalformedPowerLevel> for AuthError {
    fn from(MalformedPowerLevel: MalformedPowerLevel) -> Self {
        Self::MalformedPowerLevels
    }
}

impl std::fmt::Display for AuthError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::CreateHasPrevEvents => f.write_str("the create event has prev events"),
            Self::CreateHasRoomId => f.write_str("the create event has a room_id"),
            Self::CreateForAnotherServer => f.write_str("the create event is for a room ID of another server"),
            Self::UnknownRoomVersion => f.write_str("the create event's room_version is not known"),
            Self::NoCreator => f.write_str("the create event has no creator"),
            Self::AdditionalCreators => f.write_str("additional_creators is not a list of user IDs"),
            Self::RoomIdOfNoCreateEvent => f.write_str("the room_id is not that of an accepted create event"),
            Self::MissingAuthEvent(id) => write!(f, "the auth event {id} is not known"),
            Self::UnexpectedAuthEvent(id) => write!(f, "the auth event {id} is not one to select for such an event"),
            Self::DuplicateAuthEvent(id) => write!(f, "the auth event {id} has the type and state key of another"),
            Self::RejectedAuthEvent(id) => write!(f, "the auth event {id} was rejected"),
            Self::AuthEventOfAnotherRoom(id) => write!(f, "the auth event {id} is of another room"),
            Self::NoCreateEvent => f.write_str("there is no create event"),
            Self::NotFederated => f.write_str("the room is not federated and the sender is of another server"),
            Self::AliasesOfAnotherServer => f.write_str("the state key is not the sender's server"),
            Self::MemberWithoutTarget => f.write_str("the state key of the membership is not a user ID"),
            Self::UnknownMembership => f.write_str("the membership is not known"),
            Self::SenderIsNotTarget => f.write_str("the sender may set this membership for themself only"),
            Self::SenderNotJoined => f.write_str("the sender is not in the room"),
            Self::TargetBanned => f.write_str("the user is banned"),
            Self::TargetJoined => f.write_str("the user is in the room, or invited, already"),
            Self::NotInvited => f.write_str("the user is not invited"),
            Self::AuthorisingUserNotJoined => f.write_str("join_authorised_via_users_server is not in the room"),
            Self::KnockingNotAllowed => f.write_str("the join rule allows no knocking"),
            Self::ThirdPartyInviteMalformed => f.write_str("the third_party_invite lacks signed, mxid or token"),
            Self::ThirdPartyInviteOfAnotherUser => f.write_str("the third_party_invite is for another user"),
            Self::ThirdPartyInviteUnknown => f.write_str("the room has no such third-party invite of the sender"),
            Self::ThirdPartyInviteUnsigned => f.write_str("no key of the third-party invite signed it"),
            Self::PowerTooLow { power, required } => write!(f, "the power level is {power} and must be {required}"),
            Self::TargetNotOutranked => f.write_str("the target's power level is not below the sender's"),
            Self::StateKeyOfAnotherUser => f.write_str("the state key is the user ID of another user"),
            Self::MalformedPowerLevels => f.write_str("a power level is malformed"),
            Self::UsersNotUserIds => f.write_str("users of the power levels has a key that is no user ID"),
            Self::CreatorInUsers => f.write_str("users of the power levels has a creator"),
            Self::LevelTooHigh => f.write_str("a level is changed that is above the sender's, or set above it"),
        }
    }
}

impl std::error::Error for AuthError {}
