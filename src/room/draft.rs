//! Events before they are made: what a local user, or a server that asks for a template, wants to say.

use crate::matrix::{
    json::{Object, Value},
    state_content::Membership,
};

/// An event that is to be made: what it says, without its place in the room.
#[derive(Debug, Clone)]
pub struct Draft {
    /// `type`
    pub event_type: String,
    /// `state_key`, for a state event.
    pub state_key: Option<String>,
    /// `content`
    pub content: Object,
    /// The event that it redacts; goes where the room version has it.
    pub redacts: Option<String>,
}

impl Draft {
    /// A state event.
    pub fn state(event_type: &str, state_key: &str, content: Object) -> Self {
        Self { event_type: event_type.to_owned(), state_key: Some(state_key.to_owned()), content, redacts: None }
    }

    /// A message event.
    pub fn message(event_type: &str, content: Object) -> Self {
        Self { event_type: event_type.to_owned(), state_key: None, content, redacts: None }
    }

    /// A membership event of `user_id`; `content` holds what else it says.
    pub fn membership(user_id: &str, membership: Membership, mut content: Object) -> Self {
        content.insert("membership", Value::from(membership.as_str()));
        Self::state("m.room.member", user_id, content)
    }
}
