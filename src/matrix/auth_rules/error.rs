//! Why the authorisation rules refuse an event.

use crate::matrix::{
    identifiers::EventId,
    power_levels::{MalformedPowerLevel, PowerLevel},
};

/// The rule that an event breaks. What refuses an event is one of these, whichever of several is found first.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// The create event has prev events, so it is not a room's first event.
    #[error("the create event has prev events")]
    CreateHasPrevEvents,
    /// The create event names a room ID, which in this room version follows from its hash.
    #[error("the create event has a room_id")]
    CreateHasRoomId,
    /// The create event's sender is of another server than the room ID.
    #[error("the create event is for a room ID of another server")]
    CreateForAnotherServer,
    /// The create event's room version is not known.
    #[error("the create event's room_version is not known")]
    UnknownRoomVersion,
    /// The create event names no creator.
    #[error("the create event has no creator")]
    NoCreator,
    /// The create event's additional creators are not a list of user IDs.
    #[error("additional_creators is not a list of user IDs")]
    AdditionalCreators,
    /// The room ID is not that of an accepted create event.
    #[error("the room_id is not that of an accepted create event")]
    RoomIdOfNoCreateEvent,
    /// An auth event is not known.
    #[error("the auth event {0} is not known")]
    MissingAuthEvent(EventId),
    /// An auth event is not one that auth events selection selects for such an event.
    #[error("the auth event {0} is not one to select for such an event")]
    UnexpectedAuthEvent(EventId),
    /// An auth event has the type and state key of one before it.
    #[error("the auth event {0} has the type and state key of another")]
    DuplicateAuthEvent(EventId),
    /// An auth event was rejected.
    #[error("the auth event {0} was rejected")]
    RejectedAuthEvent(EventId),
    /// An auth event is of another room.
    #[error("the auth event {0} is of another room")]
    AuthEventOfAnotherRoom(EventId),
    /// The create event is missing from the auth events, or from the state.
    #[error("there is no create event")]
    NoCreateEvent,
    /// The room admits the users of its creator's server only.
    #[error("the room is not federated and the sender is of another server")]
    NotFederated,
    /// The aliases are those of another server than the sender's.
    #[error("the state key is not the sender's server")]
    AliasesOfAnotherServer,
    /// The membership event's state key is not a user ID.
    #[error("the state key of the membership is not a user ID")]
    MemberWithoutTarget,
    /// The membership is not one that the room version knows.
    #[error("the membership is not known")]
    UnknownMembership,
    /// The sender may set this membership for themself only.
    #[error("the sender may set this membership for themself only")]
    SenderIsNotTarget,
    /// The sender is not in the room.
    #[error("the sender is not in the room")]
    SenderNotJoined,
    /// The user is banned.
    #[error("the user is banned")]
    TargetBanned,
    /// The user is in the room, or invited, already.
    #[error("the user is in the room, or invited, already")]
    TargetJoined,
    /// The join rule asks for an invite that the user does not have.
    #[error("the user is not invited")]
    NotInvited,
    /// The user who is to have authorised the join is not in the room.
    #[error("join_authorised_via_users_server is not in the room")]
    AuthorisingUserNotJoined,
    /// The join rule allows no knocking.
    #[error("the join rule allows no knocking")]
    KnockingNotAllowed,
    /// The third-party invite lacks its signed part, or the user ID or token in it.
    #[error("the third_party_invite lacks signed, mxid or token")]
    ThirdPartyInviteMalformed,
    /// The third-party invite is for another user.
    #[error("the third_party_invite is for another user")]
    ThirdPartyInviteOfAnotherUser,
    /// The room has no third-party invite of this token and sender.
    #[error("the room has no such third-party invite of the sender")]
    ThirdPartyInviteUnknown,
    /// No signature of the third-party invite is by one of the keys that the room's event lists.
    #[error("no key of the third-party invite signed it")]
    ThirdPartyInviteUnsigned,
    /// The user has not the power level that this requires.
    #[error("the power level is {power} and must be {required}")]
    PowerTooLow {
        /// The user's power level.
        power: PowerLevel,
        /// The level that is required.
        required: PowerLevel,
    },
    /// The target's power level is not below the sender's.
    #[error("the target's power level is not below the sender's")]
    TargetNotOutranked,
    /// The state key is the user ID of another user than the sender.
    #[error("the state key is the user ID of another user")]
    StateKeyOfAnotherUser,
    /// A power level, of the event or of the room, is malformed.
    #[error("a power level is malformed")]
    MalformedPowerLevels,
    /// The power levels list someone who has no user ID.
    #[error("users of the power levels has a key that is not a user ID")]
    UsersNotUserIds,
    /// The power levels list a creator, whose power cannot be changed.
    #[error("users of the power levels has a creator")]
    CreatorInUsers,
    /// The event changes a power level that is too high for its sender, or raises one too high.
    #[error("a level is changed that is above the sender's, or set above it")]
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
