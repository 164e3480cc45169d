//! What the errors of either engine mean. They are told apart by their text only, which holds SQLite's own.

use super::moving::marker::NOT_LIVE;
use crate::platform::DatabaseError;

/// Why a database that is not live is not used, for the operator.
const ELSEWHERE: &str =
    "the data is moving to the other engine or has moved there; ENGINE must name the one where it is";

/// Texts of errors that would come again for ever: SQLite's codes where they are handed on, else its sentences, and D1's own.
const REFUSALS: [&str; 12] = [
    "SQLITE_TOOBIG",
    "too big",
    "SQLITE_MISMATCH",
    "datatype mismatch",
    "SQLITE_RANGE",
    "malformed JSON",
    "too many SQL variables",
    "statement too long",
    "Expression tree is too large",
    "LIKE or GLOB pattern too complex",
    "D1_TYPE_ERROR",
    "Wrong number of parameter bindings",
];

/// The kind of error that a message tells of. What is not known may pass: a table that is not there, too, for the
/// operator applies the migrations when it is noticed, and until then nothing may be lost.
pub(super) fn kind(message: String) -> DatabaseError {
    if message.contains(NOT_LIVE) {
        DatabaseError::Unavailable(ELSEWHERE.to_owned())
    } else if message.contains("constraint failed") || message.contains("SQLITE_CONSTRAINT") {
        DatabaseError::Constraint(message)
    } else if REFUSALS.iter().any(|refusal| message.contains(refusal)) {
        DatabaseError::Refused(message)
    } else {
        DatabaseError::Unavailable(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_will_never_work_is_told_from_what_may_pass() {
        for message in [
            "D1_ERROR: string or blob too big: SQLITE_TOOBIG",
            "D1_ERROR: malformed JSON: SQLITE_ERROR",
            "D1_ERROR: too many SQL variables at offset 700: SQLITE_ERROR",
            "D1_ERROR: datatype mismatch: SQLITE_MISMATCH",
            "D1_TYPE_ERROR: Type 'bigint' not supported for value '1'",
        ] {
            assert!(matches!(kind(message.to_owned()), DatabaseError::Refused(_)), "{message}");
        }
        for message in [
            "D1_ERROR: D1 DB is overloaded. Requests queued for too long.",
            "D1_ERROR: Network connection lost.",
            "D1_ERROR: D1 DB storage operation exceeded timeout which caused object to be reset.",
            "D1_ERROR: D1 DB reset because its code was updated.",
            "D1_ERROR: Exceeded maximum DB size.",
            "D1_ERROR: no such table: walks: SQLITE_ERROR",
            "D1_ERROR: no such column: behind at offset 7: SQLITE_ERROR",
            "internal error",
        ] {
            assert!(matches!(kind(message.to_owned()), DatabaseError::Unavailable(_)), "{message}");
        }
        let moved = "D1_ERROR: this database is not live: SQLITE_CONSTRAINT (extended: SQLITE_CONSTRAINT_TRIGGER)";
        assert_eq!(kind(moved.to_owned()), DatabaseError::Unavailable(ELSEWHERE.to_owned()));
        let lost = "D1_ERROR: NOT NULL constraint failed: rooms.version: SQLITE_CONSTRAINT";
        assert!(matches!(kind(lost.to_owned()), DatabaseError::Constraint(_)));
    }
}
