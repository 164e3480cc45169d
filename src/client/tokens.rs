//! Points in time, as clients hand them back: `next_batch`, `prev_batch`, `start`, `end` (Client-Server API,
//! "Syncing", "Getting events for a room").
//!
//! A token is a set of named positions: `s1_e12_a3` says format 1, position 12 in the stream of events, 3 in that of account
//! data. `k` is one in the changes of users' keys, `i` in the messages to devices; `t`, `c` and `p` are positions in those of typing,
//! receipts and presence; `u` is the time until which one of those is typing whom the client was told of. Positions of further
//! streams (another database) can join it: a token without a name that the server knows stands at that stream's beginning.
//!
//! A sync that was cut says what is still to come: `s1_e12_r5_m2161` means position 12 for the rooms up to the one whose ID
//! is `2161` in hex digits, and 5 for the rest. `_w` says that their whole state is. `x` is where the state of that room was cut: its
//! root and the ID of the last event that was told of it, in hex digits too.

use crate::{
    error::MatrixError,
    matrix::state_trie::NodeId,
    store::{
        positions::{AccountDataPos, DeviceListsPos, PresencePos, ReceiptsPos, TimelinePos, ToDevicePos, TypingPos},
        snapshots::StateCut,
        sync_fleeting::FleetingAt,
    },
};

/// The largest number: within what the database holds exactly.
const MAX: i64 = (1 << 53) - 1;

/// A point in time: after everything up to its positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Token {
    /// In the timelines; negative in history that was fetched later.
    pub(super) events: TimelinePos,
    /// In account data.
    pub(super) account_data: AccountDataPos,
    /// In the changes of users' keys.
    pub(super) device_lists: DeviceListsPos,
    /// In typing, receipts and presence.
    pub(super) fleeting: FleetingAt,
    /// In the messages to devices.
    pub(super) to_device: ToDevicePos,
}

impl Token {
    /// A point in a room's timeline.
    pub(super) fn at(events: TimelinePos) -> Self {
        Self { events, ..Self::default() }
    }

    /// Reads a token.
    ///
    /// # Errors
    /// 400 `M_INVALID_PARAM` for anything that this server did not write.
    pub(super) fn parse(text: &str) -> Result<Self, MatrixError> {
        Self::read(text).ok_or_else(|| MatrixError::invalid_param("The token is not one of this server's."))
    }

    fn read(text: &str) -> Option<Self> {
        SyncToken::read(text).map(|token| token.at)
    }
}

/// Where a sync ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct SyncToken {
    /// Up to where rooms were told.
    pub(super) at: Token,
    /// The rooms that were not.
    pub(super) rest: Option<Rest>,
}

/// Rooms that did not fit into an answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Rest {
    /// The position up to which they are known.
    pub(super) since: TimelinePos,
    /// The ID of the last room that did fit.
    pub(super) after: String,
    /// Whether their whole state is to come.
    pub(super) whole: bool,
    /// Where the state of that room was cut, if it was: the rest of it is to come.
    pub(super) cut: Option<StateCut>,
}

impl SyncToken {
    /// Reads a token.
    ///
    /// # Errors
    /// 400 `M_INVALID_PARAM` for anything that this server did not write.
    pub(super) fn parse(text: &str) -> Result<Self, MatrixError> {
        Self::read(text).ok_or_else(|| MatrixError::invalid_param("The token is not one of this server's."))
    }

    fn read(text: &str) -> Option<Self> {
        let mut parts = text.split('_');
        if parts.next()? != "s1" {
            return None;
        }
        let (mut token, mut rest) = (Token::default(), Rest::default());
        let mut seen = Vec::new();
        for part in parts {
            let name = part.get(..1)?;
            if seen.contains(&name) {
                return None;
            }
            seen.push(name);
            let value = part.get(1..)?;
            let number = || value.parse().ok().filter(|number| (-MAX..=MAX).contains(number));
            match name {
                "e" => token.events = TimelinePos::new(number()?),
                "a" => token.account_data = AccountDataPos::new(number()?),
                "k" => token.device_lists = DeviceListsPos::new(number()?),
                "t" => token.fleeting.typing = TypingPos::new(number()?),
                "u" => token.fleeting.typing_until = number()?,
                "c" => token.fleeting.receipts = ReceiptsPos::new(number()?),
                "p" => token.fleeting.presence = PresencePos::new(number()?),
                "i" => token.to_device = ToDevicePos::new(number()?),
                "r" => rest.since = TimelinePos::new(number()?),
                "m" => rest.after = from_hex(value)?,
                "x" => rest.cut = Some(read_cut(value)?),
                "w" if value.is_empty() => rest.whole = true,
                _ => return None,
            }
        }
        let has = |name: &&str| seen.contains(name);
        let is_cut = ["r", "m"].iter().all(has);
        let is_whole = !["r", "m", "w", "x"].iter().any(has);
        (has(&"e") && (is_cut || is_whole)).then(|| Self { at: token, rest: is_cut.then_some(rest) })
    }
}

impl std::fmt::Display for SyncToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.at)?;
        if let Some(rest) = &self.rest {
            write!(f, "_r{}_m{}", rest.since.get(), hex(&rest.after))?;
            if rest.whole {
                f.write_str("_w")?;
            }
            if let Some(cut) = &rest.cut {
                write!(f, "_x{}", hex(&format!("{} {}", cut.root, cut.event_id)))?;
            }
        }
        Ok(())
    }
}

fn read_cut(value: &str) -> Option<StateCut> {
    let text = from_hex(value)?;
    let (root, event_id) = text.split_once(' ')?;
    Some(StateCut { root: NodeId::parse(root)?, event_id: event_id.to_owned() })
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<String> {
    let digits: Vec<u8> = text.chars().map(|digit| u8::try_from(digit.to_digit(16)?).ok()).collect::<Option<_>>()?;
    let bytes = digits.chunks(2).map(|pair| match pair {
        [high, low] => Some(high << 4 | low),
        _ => None,
    });
    String::from_utf8(bytes.collect::<Option<_>>()?).ok()
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "s1_e{}", self.events.get())?;
        let FleetingAt { typing, typing_until, receipts, presence } = self.fleeting;
        let others = [
            ("a", self.account_data.get()),
            ("k", self.device_lists.get()),
            ("i", self.to_device.get()),
            ("t", typing.get()),
            ("u", typing_until),
            ("c", receipts.get()),
            ("p", presence.get()),
        ];
        others
            .into_iter()
            .filter(|(_, number)| *number != 0)
            .try_for_each(|(name, number)| write!(f, "_{name}{number}"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn tokens_come_back_as_they_were() {
        let fleeting = FleetingAt {
            typing: TypingPos::new(4),
            typing_until: 1_800_000_000_000,
            receipts: ReceiptsPos::new(5),
            presence: PresencePos::new(6),
        };
        let full = Token {
            events: TimelinePos::new(12),
            account_data: AccountDataPos::new(3),
            device_lists: DeviceListsPos::new(7),
            to_device: ToDevicePos::new(8),
            fleeting,
        };
        let old = Token::at(TimelinePos::new(-77));
        for token in [Token::default(), old, full, Token { account_data: AccountDataPos::START, ..full }] {
            assert_eq!(Token::parse(&token.to_string()).unwrap(), token);
        }
    }

    #[test]
    fn a_cut_sync_goes_on_where_it_was_cut_and_pages_start_there() {
        let cut = StateCut { root: NodeId::EMPTY, event_id: "$event_id:a.example".to_owned() };
        let rest =
            Rest { since: TimelinePos::new(5), after: "!örtlich_x:a.example".to_owned(), whole: true, cut: None };
        for rest in [rest.clone(), Rest { cut: Some(cut), ..rest.clone() }, Rest { whole: false, ..rest }] {
            let at = Token {
                account_data: AccountDataPos::new(3),
                device_lists: DeviceListsPos::new(4),
                ..Token::at(TimelinePos::new(12))
            };
            let token = SyncToken { at, rest: Some(rest) };
            assert_eq!(SyncToken::parse(&token.to_string()).unwrap(), token);
            assert_eq!(Token::parse(&token.to_string()).unwrap(), token.at);
        }
    }

    #[test]
    fn what_this_server_did_not_write_is_refused() {
        let foreign = [
            "",
            "s1",
            "s1_",
            "s1_e",
            "s1_a1",
            "s2_e1",
            "s1_e1_e2",
            "s1_e1_x2",
            "s1_e1.5",
            "s1_e99999999999999999",
            "s1_e9007199254740992",
            "s72594_4483_1934",
            "s1_é1",
            "s1_e1_r2",
            "s1_e1_m21",
            "s1_e1_w",
            "s1_e1_r2_m2",
            "s1_e1_r2_mff",
            "s1_e1_r2_m21_w1",
            "s1_e1_r2_m21_x",
            "s1_e1_x21",
            "null",
        ];
        for text in foreign {
            let error = Token::parse(text).unwrap_err();
            assert_eq!((error.status.as_u16(), error.errcode), (400, "M_INVALID_PARAM"), "{text}");
        }
    }
}
