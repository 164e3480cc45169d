//! Policy servers: which one a room names, what it has signed, and the rule by which this server is one.
//!
//! Spec: Client-Server API, "Policy Servers"; Server-Server API, "Policy Servers".

use super::{
    event::Event,
    glob,
    identifiers::ServerName,
    json::Value,
    signing::{POLICY_KEY_ID, VerifyKey},
};

/// The type of the state event, with an empty state key, by which a room names its policy server.
pub const POLICY: &str = "m.room.policy";

/// The policy server that a room names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyServer {
    /// Its name. A room uses it while this server has joined members there.
    pub via: ServerName,
    /// The key with which it signs for this room.
    pub key: VerifyKey,
}

impl PolicyServer {
    /// The policy server that an `m.room.policy` event names; `None` where it lacks something of what it must have.
    pub fn of(event: &Event) -> Option<Self> {
        let content = event.content();
        let via = ServerName::parse(content.get("via")?.as_str()?).ok()?;
        let key = content.get("public_keys")?.get("ed25519")?.as_str()?;
        // The examples of the spec have it in the URL-safe alphabet, which is read like the other.
        Some(Self { via, key: VerifyKey::from_base64(key)? })
    }

    /// Whether the event may be taken in as far as policy servers go: it is signed by this one, or needs no such signature.
    pub fn lets_in(&self, event: &Event) -> bool {
        is_exempt(event) || event.has_signature(self.via.as_str(), POLICY_KEY_ID, &self.key)
    }
}

/// Whether policy servers are not asked about the event: it is the one that names a policy server or none, so that a room gets rid
/// of one that is down.
pub fn is_exempt(event: &Event) -> bool {
    event.is_state(POLICY, "")
}

/// What an operator does not want in the rooms whose policy server this one is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PolicyRule {
    /// Globs of the names of servers, without ports, whose users' events are refused.
    pub blocked_servers: Vec<Box<str>>,
    /// Words in lower case that no text of an event may have in it.
    pub blocked_words: Vec<Box<str>>,
}

impl PolicyRule {
    /// Why the event is refused, if it is.
    pub fn refusal(&self, event: &Event) -> Option<&'static str> {
        let server = ServerName::parse(event.sender().server_name()).ok();
        let server = server.and_then(|server| glob::Text::new(server.host()));
        let is_blocked = |server: glob::Text| self.blocked_servers.iter().any(|pattern| server.matches(pattern));
        if server.is_none_or(is_blocked) {
            return Some("Events of this server are not allowed here.");
        }
        if event.is_altered() {
            return Some("The content of the event is not what its sender signed.");
        }
        (!self.blocked_words.is_empty() && self.has_blocked_word(event))
            .then_some("The event has a word that is not allowed here.")
    }

    fn has_blocked_word(&self, event: &Event) -> bool {
        let mut values: Vec<&Value> = event.content().values().collect();
        while let Some(value) = values.pop() {
            match value {
                Value::String(text) => {
                    let text = text.to_lowercase();
                    if self.blocked_words.iter().any(|word| has_word(&text, word)) {
                        return true;
                    }
                }
                Value::Array(items) => values.extend(items.iter()),
                Value::Object(members) => values.extend(members.values()),
                _ => {}
            }
        }
        false
    }
}

/// Whether `word` stands in `text`, not as a part of a longer word.
fn has_word(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(start, found)| {
        let before = text.get(..start).and_then(|before| before.chars().next_back());
        let after = text.get(start + found.len()..).and_then(|after| after.chars().next());
        [before, after].into_iter().flatten().all(|neighbour| !neighbour.is_alphanumeric())
    })
}
