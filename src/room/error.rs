//! Why the room layer refuses.

use http::StatusCode;

use crate::{error::MatrixError, matrix::event::PduError, platform::DatabaseError};

/// Why something could not be done in a room.
#[derive(Debug)]
#[non_exhaustive]
pub enum RoomError {
    /// The database failed.
    Database(DatabaseError),
    /// Other commits to the same room came first, again and again.
    Busy,
    /// We do not know the room, or nobody here is in it.
    UnknownRoom,
    /// The room's rules do not allow the event; the sentence says which.
    NotAllowed(String),
    /// The user's join to a restricted room cannot be authorised here: whether they meet its conditions is not known.
    CannotAuthorise,
    /// The user's join to a restricted room cannot be granted here: nobody on this server may invite to it.
    CannotGrant,
    /// The event has not the form that it must have.
    Malformed(PduError),
    /// The request makes no sense in this room; the sentence says why.
    Invalid(String),
    /// The event cites events that we do not hold.
    MissingEvents(Vec<crate::matrix::identifiers::EventId>),
    /// What the database holds contradicts itself; the sentence is for the log.
    Corrupt(String),
}

impl std::fmt::Display for RoomError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Database(error) => error.fmt(f),
            Self::Busy => f.write_str("The room is busy; try again."),
            Self::UnknownRoom => f.write_str("This server is not in that room."),
            Self::NotAllowed(why) => write!(f, "The room does not allow this: {why}."),
            Self::CannotAuthorise => {
                f.write_str("This server cannot tell whether the user may join the room; try another server.")
            }
            Self::CannotGrant => f.write_str("Nobody on this server may invite to the room; try another server."),
            Self::Malformed(error) => write!(f, "The event is malformed: {error}."),
            Self::Invalid(why) => f.write_str(why),
            Self::MissingEvents(_) => f.write_str("The event cites events that this server does not hold."),
            Self::Corrupt(why) => write!(f, "the stored room contradicts itself: {why}"),
        }
    }
}

impl std::error::Error for RoomError {}

impl From<DatabaseError> for RoomError {
    /// A broken constraint comes here only where no race explains it ([`crate::store::commit`]): a fault of ours, which would
    /// repeat itself.
    fn from(error: DatabaseError) -> Self {
        match error {
            DatabaseError::Constraint(_) => Self::Corrupt(error.to_string()),
            error => Self::Database(error),
        }
    }
}

impl From<PduError> for RoomError {
    fn from(error: PduError) -> Self {
        Self::Malformed(error)
    }
}

impl From<RoomError> for MatrixError {
    fn from(error: RoomError) -> Self {
        let message = error.to_string();
        match error {
            RoomError::Database(error) => error.into(),
            RoomError::Busy => Self::new(StatusCode::SERVICE_UNAVAILABLE, "M_UNKNOWN", message),
            RoomError::UnknownRoom => Self::not_found(message),
            RoomError::NotAllowed(_) => Self::forbidden(message),
            RoomError::CannotAuthorise => Self::new(StatusCode::BAD_REQUEST, "M_UNABLE_TO_AUTHORISE_JOIN", message),
            RoomError::CannotGrant => Self::new(StatusCode::BAD_REQUEST, "M_UNABLE_TO_GRANT_JOIN", message),
            RoomError::Malformed(PduError::TooLarge(_)) => Self::too_large(message),
            RoomError::Malformed(_) => Self::bad_json(message),
            RoomError::Invalid(_) => Self::invalid_param(message),
            RoomError::MissingEvents(_) => Self::new(StatusCode::BAD_REQUEST, "M_BAD_STATE", message),
            RoomError::Corrupt(why) => Self::internal().because(why),
        }
    }
}
