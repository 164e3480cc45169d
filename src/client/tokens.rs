//! Points in time, as clients hand them back: `next_batch`, `prev_batch`, `start`, `end`.
//!
//! A token is a set of named positions: `s1_e12_a3` says format 1, position 12 in the stream of events, 3 in that of account
//! data. Positions of further streams (to-device messages, receipts, another database) can join it: a token without a
//! name that the server knows stands at that stream's beginning.

use crate::error::MatrixError;

/// The largest position: within what the database holds exactly.
const MAX: i64 = (1 << 53) - 1;

/// A point in time: after everything up to its positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Token {
    /// In the timelines; negative in history that was fetched later.
    pub(super) events: i64,
    /// In account data.
    pub(super) account_data: i64,
}

impl Token {
    /// A point in a room's timeline.
    pub(super) fn at(events: i64) -> Self {
        Self { events, account_data: 0 }
    }

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
        let mut token = Self::default();
        let mut seen = Vec::new();
        for part in parts {
            let name = part.get(..1)?;
            let position: i64 = part.get(1..)?.parse().ok()?;
            if !(-MAX..=MAX).contains(&position) || seen.contains(&name) {
                return None;
            }
            seen.push(name);
            match name {
                "e" => token.events = position,
                "a" => token.account_data = position,
                _ => return None,
            }
        }
        seen.contains(&"e").then_some(token)
    }
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "s1_e{}", self.events)?;
        if self.account_data != 0 {
            write!(f, "_a{}", self.account_data)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn tokens_come_back_as_they_were() {
        for token in [Token::at(0), Token::at(-77), Token { events: 12, account_data: 3 }] {
            assert_eq!(Token::parse(&token.to_string()).unwrap(), token);
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
            "null",
        ];
        for text in foreign {
            let error = Token::parse(text).unwrap_err();
            assert_eq!((error.status.as_u16(), error.errcode), (400, "M_INVALID_PARAM"), "{text}");
        }
    }
}
