//! The constraints that a batch may break though nothing is wrong: somebody else came first. Any other broken constraint is a
//! fault of ours.

use crate::platform::DatabaseError;

/// What somebody else did first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Race {
    /// Moved the room that a commit was made from.
    RoomMoved,
    /// Made the room.
    RoomMade,
    /// Answered the other server's transaction.
    Answered,
    /// Made the event of the client's request.
    Sent,
    /// Ended the join.
    JoinEnded,
    /// Took the user ID.
    UserTaken,
    /// Changed the password.
    PasswordChanged,
    /// Deleted the device.
    DeviceGone,
    /// Gave keys to a device that is to be deleted.
    KeysPublished,
    /// Uploaded another master key.
    OtherMasterKey,
    /// Logged in with a device that is called as a cross-signing key.
    DeviceOfThatName,
    /// Made another dehydrated device.
    OtherDehydrated,
    /// Took the alias.
    AliasTaken,
    /// Sent the messages to devices.
    SentToDevice,
}

impl Race {
    /// Those that another commit wins.
    pub(super) const OF_COMMITS: [Self; 5] =
        [Self::RoomMoved, Self::RoomMade, Self::Answered, Self::Sent, Self::JoinEnded];

    /// The sentence by which SQLite names the constraint; D1 gives no code, but hands it on.
    fn sentence(self) -> &'static str {
        match self {
            Self::RoomMoved => "NOT NULL constraint failed: rooms.version",
            Self::RoomMade => "UNIQUE constraint failed: rooms.room_id",
            Self::Answered => "NOT NULL constraint failed: transactions.response",
            Self::Sent => "UNIQUE constraint failed: client_transactions.user_id, client_transactions.device_id",
            Self::JoinEnded => "NOT NULL constraint failed: large_joins.join_id",
            Self::UserTaken => "UNIQUE constraint failed: users.user_id",
            Self::PasswordChanged => "NOT NULL constraint failed: users.password",
            Self::DeviceGone => "NOT NULL constraint failed: device_keys.device_id",
            Self::KeysPublished => "NOT NULL constraint failed: device_keys.keys",
            Self::OtherMasterKey => "NOT NULL constraint failed: cross_signing_keys.key",
            Self::DeviceOfThatName => "NOT NULL constraint failed: cross_signing_keys.usage",
            Self::OtherDehydrated => "NOT NULL constraint failed: dehydrated_devices.device_id",
            Self::SentToDevice => "UNIQUE constraint failed: sent_to_device.user_id, sent_to_device.device_id",
            Self::AliasTaken => "UNIQUE constraint failed: room_aliases.alias",
        }
    }

    /// Whether this is why a batch failed.
    pub(super) fn has_lost(self, error: &DatabaseError) -> bool {
        matches!(error, DatabaseError::Constraint(why) if why.contains(self.sentence()))
    }
}
