//! Why the room layer refuses.

use http::StatusCode;

use crate::{
    error::MatrixError,
    log::Reason,
    matrix::{event::PduError, identifiers::EventId},
    platform::DatabaseError,
};

/// Why something could not be done in a room.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RoomError {
    /// The database failed.
    #[error(transparent)]
    Database(DatabaseError),
    /// Other commits to the same room came first, again and again.
    #[error("The room is busy; try again.")]
    Busy,
    /// We do not know the room, or nobody here is in it.
    #[error("This server is not in that room.")]
    UnknownRoom,
    /// The room's rules do not allow the event; the sentence says which.
    #[error("The room does not allow this: {0}.")]
    NotAllowed(String),
    /// The room's policy server has not signed the event.
    #[error("The event cannot be sent: {0}.")]
    Unsigned(#[from] Unsigned),
    /// The room's server ACL keeps the server out that asks.
    #[error("Your server is denied access to the room by its server ACL.")]
    Denied,
    /// The user's join to a restricted room cannot be authorised here: whether they meet its conditions is not known.
    #[error("This server cannot tell whether the user may join the room; try another server.")]
    CannotAuthorise,
    /// The user's join to a restricted room cannot be granted here: nobody on this server may invite to it.
    #[error("Nobody on this server may invite to the room; try another server.")]
    CannotGrant,
    /// The event has not the form that it must have.
    #[error("The event is malformed: {0}.")]
    Malformed(#[from] PduError),
    /// The request makes no sense in this room; the sentence says why.
    #[error("{0}")]
    Invalid(String),
    /// The user has annotated the event in the same way before.
    #[error("You have already added this annotation.")]
    Duplicate,
    /// We have joined the room, and who else is in it is not known yet.
    #[error("Who is in the room is not known here yet; try again later.")]
    MembersUnknown,
    /// More invites wait for an answer than we keep, of the user or of the inviting server.
    #[error("This user, or your server, has too many unanswered invites.")]
    TooManyInvites,
    /// What a server that joins would be told of the room is more than one answer has room for.
    #[error("This is more than this server can give in one answer; ask another server.")]
    TooLarge,
    /// The event cites events that we do not hold.
    #[error("The event cites events that this server does not hold.")]
    MissingEvents(Vec<EventId>),
    /// What the database holds contradicts itself; the sentence is for the log.
    #[error("the stored room contradicts itself: {0}")]
    Corrupt(String),
}

/// Why an event has not the signature of the room's policy server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsigned {
    /// The policy server answered with this error.
    #[error("the room's policy server refuses to sign it")]
    Refused {
        /// The HTTP status, of a client error.
        status: StatusCode,
        /// `errcode`.
        errcode: String,
        /// `error`.
        error: String,
    },
    /// The policy server was not reached, or gave no answer that can be used.
    #[error("the room's policy server cannot be asked")]
    Away,
}

impl From<Unsigned> for MatrixError {
    /// The error of the policy server itself, where it gave one ("Validating Policy Server signatures").
    fn from(unsigned: Unsigned) -> Self {
        match unsigned {
            Unsigned::Refused { status, errcode, error } => {
                Self::new(status, "M_FORBIDDEN", error).with("errcode", errcode)
            }
            Unsigned::Away => Self::bad_gateway("The room's policy server cannot be asked whether it allows this."),
        }
    }
}

impl Reason for RoomError {
    fn reason(&self) -> String {
        self.to_string()
    }
}

impl From<DatabaseError> for RoomError {
    /// A broken constraint comes here only where no race explains it ([`crate::store::commit`]). It is a fault of ours as a row is
    /// that cannot be read: it would repeat itself.
    fn from(error: DatabaseError) -> Self {
        match error {
            DatabaseError::Constraint(_) | DatabaseError::Shape(_) => Self::Corrupt(error.to_string()),
            error => Self::Database(error),
        }
    }
}

impl From<RoomError> for MatrixError {
    fn from(error: RoomError) -> Self {
        let message = error.to_string();
        match error {
            RoomError::Database(error) => error.into(),
            RoomError::Busy => Self::unavailable(message),
            RoomError::UnknownRoom => Self::not_found(message),
            // It is not the time to say when to ask again: it will still be too much then.
            RoomError::TooLarge => Self::new(StatusCode::SERVICE_UNAVAILABLE, "M_UNKNOWN", message),
            RoomError::MembersUnknown => Self::gateway_timeout(message),
            RoomError::NotAllowed(_) | RoomError::Denied | RoomError::TooManyInvites => Self::forbidden(message),
            RoomError::Unsigned(unsigned) => unsigned.into(),
            RoomError::CannotAuthorise => Self::new(StatusCode::BAD_REQUEST, "M_UNABLE_TO_AUTHORISE_JOIN", message),
            RoomError::CannotGrant => Self::new(StatusCode::BAD_REQUEST, "M_UNABLE_TO_GRANT_JOIN", message),
            RoomError::Malformed(PduError::TooLarge(_)) => Self::too_large(message),
            RoomError::Malformed(_) => Self::bad_json(message),
            RoomError::Invalid(_) => Self::invalid_param(message),
            RoomError::Duplicate => Self::new(StatusCode::BAD_REQUEST, "M_DUPLICATE_ANNOTATION", message),
            RoomError::MissingEvents(_) => Self::new(StatusCode::BAD_REQUEST, "M_BAD_STATE", message),
            RoomError::Corrupt(_) => Self::internal().because(&error),
        }
    }
}
