//! The room before an event, read as it comes: the answers of `send_join` and `state`, which may be of any size
//! (Server-Server API, "Joining Rooms", "Retrieving events").

use std::collections::VecDeque;

use bytes::Bytes;

use super::{
    endpoints::{KIB, MIB, missing},
    requests::{Limits, OpenBody, RequestError},
};
use crate::matrix::{
    identifiers::ServerName,
    json_stream::{ObjectReader, Piece, Wanted as WantedMembers},
};

/// The state of a room, which is read as it comes.
pub(super) const JOIN: Limits = Limits { timeout_ms: 120_000, max_response_bytes: 256 * MIB };

/// How long one server may let us wait for all of it when its head is there, in milliseconds.
pub(super) const BODY_MS: u32 = 8 * 60 * 1_000;

/// The answer of `send_join`, or of `state`, as it comes: the room before an event, in any order. PDUs are unverified.
pub struct RoomBefore {
    wanted: WantedMembers,
    body: OpenBody,
    unread: Bytes,
    reader: ObjectReader,
    pieces: VecDeque<Piece>,
}

/// A part of such an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JoinPiece {
    /// The join event, with the resident server's signature where the join is restricted.
    Join(Vec<u8>),
    /// An event of the state before.
    State(Vec<u8>),
    /// An event of the auth chain of the state and the event.
    AuthChain(Vec<u8>),
    /// Members are missing from the state.
    MembersOmitted,
    /// The servers in the room; what is no name is left out.
    Servers(Vec<ServerName>),
}

impl RoomBefore {
    pub(super) const SEND_JOIN: WantedMembers = WantedMembers {
        items_of: &["state", "auth_chain"],
        whole: &["event", "members_omitted", "servers_in_room"],
        // Some 20,000 servers. An event is shorter by far, with whatever is not part of it.
        max_text: 512 * KIB,
    };
    pub(super) const STATE: WantedMembers =
        WantedMembers { items_of: &["pdus", "auth_chain"], whole: &[], max_text: Self::SEND_JOIN.max_text };

    pub(super) fn new(wanted: WantedMembers, body: OpenBody) -> Self {
        Self { wanted, body, unread: Bytes::new(), reader: ObjectReader::new(wanted), pieces: VecDeque::new() }
    }

    /// What has come is worth waiting for more: the time for all of it begins anew.
    pub fn go_on(&mut self) {
        self.body.go_on();
    }

    /// The next part; `None` at the end.
    ///
    /// # Errors
    /// Where the answer breaks off or is not one.
    pub async fn next(&mut self) -> Result<Option<JoinPiece>, RequestError> {
        let bad = |error: &dyn std::fmt::Display| RequestError::BadResponse(error.to_string());
        loop {
            if let Some(Piece { member, text }) = self.pieces.pop_front() {
                return Ok(Some(match member {
                    "state" | "pdus" => JoinPiece::State(text),
                    "auth_chain" => JoinPiece::AuthChain(text),
                    "event" => JoinPiece::Join(text),
                    "servers_in_room" => JoinPiece::Servers(server_names(&text)),
                    _ if text == b"true" => JoinPiece::MembersOmitted,
                    _ => continue,
                }));
            }
            if self.unread.is_empty() {
                match self.body.next().await? {
                    Some(bytes) => self.unread = bytes,
                    None => {
                        self.reader.end().map_err(|error| bad(&error))?;
                        let lacks = self.wanted.items_of.iter().find(|name| !self.reader.has_read(name));
                        return lacks.map_or(Ok(None), |name| Err(missing(name)));
                    }
                }
            }
            let bytes = self.unread.split_to(self.unread.len().min(64 * KIB));
            let mut pieces = Vec::new();
            self.reader.read(&bytes, &mut pieces).map_err(|error| bad(&error))?;
            self.pieces.extend(pieces);
        }
    }
}

/// The names of servers in a JSON list; none where it is something else, as of servers that do not say.
fn server_names(text: &[u8]) -> Vec<ServerName> {
    let names: Vec<String> = serde_json::from_slice(text).unwrap_or_default();
    names.iter().filter_map(|name| ServerName::parse(name).ok()).collect()
}
