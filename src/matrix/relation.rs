//! What an event relates to (Client-Server API, "Forming relationships between events").

use super::{
    event::Event,
    identifiers::{EventId, MAX_LENGTH},
    json::Object,
};

/// That an event relates to another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relation<'e> {
    /// How.
    pub rel_type: &'e str,
    /// To which event, of the same room or not.
    pub parent: &'e str,
}

/// An event that replaces another one.
pub const REPLACE: &str = "m.replace";
/// An event of a thread.
pub const THREAD: &str = "m.thread";
/// An event that refers to another one.
pub const REFERENCE: &str = "m.reference";
/// A reaction.
pub const ANNOTATION: &str = "m.annotation";

impl<'e> Relation<'e> {
    /// What the content of an event says of it. A malformed relation is none, and a plain reply has no type.
    pub fn of_content(content: &'e Object) -> Option<Self> {
        let relates_to = content.get("m.relates_to")?.as_object()?;
        let text = |key: &str| relates_to.get(key)?.as_str();
        let (rel_type, parent) = (text("rel_type")?, text("event_id")?);
        let is_well_formed = (1..=MAX_LENGTH).contains(&rel_type.len()) && EventId::parse(parent).is_ok();
        is_well_formed.then_some(Self { rel_type, parent })
    }

    /// What an event relates to. A redaction has its own way to say what it is about.
    pub fn of(event: &'e Event) -> Option<Self> {
        if event.event_type() == "m.room.redaction" {
            return None;
        }
        Self::of_content(event.content())
    }
}
