//! Which statements change nothing, as their text tells.

/// Whether a statement only reads. What may be anything else, by a word in it that may begin a change, is taken to change something.
#[cfg_attr(not(target_arch = "wasm32"), allow(dead_code))]
pub(super) fn only_reads(sql: &str) -> bool {
    let mut words = sql.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty());
    let is_any = |word: &str, of: &[&str]| of.iter().any(|other| word.eq_ignore_ascii_case(other));
    // `WITH` may come before any of them, and `REPLACE` before `INTO`; alone it is a relation's name.
    words.next().is_some_and(|first| is_any(first, &["SELECT", "WITH"]))
        && !words.any(|word| is_any(word, &["INSERT", "INTO", "UPDATE", "DELETE"]))
}

#[cfg(test)]
mod tests {
    use super::only_reads;

    #[test]
    fn what_changes_something_is_never_taken_for_a_read() {
        for sql in [
            "SELECT 1",
            "select deleted, \"updates\" from insertions",
            "  SELECT m.room_id FROM local_memberships AS m WHERE m.user_id = ?1",
            "WITH mine(room_id) AS (SELECT 1) SELECT * FROM mine",
            "SELECT event_id FROM relations WHERE rel_type = 'm.replace'",
        ] {
            assert!(only_reads(sql), "{sql}");
        }
        for sql in [
            "",
            "INSERT INTO t SELECT 1",
            "INSERT INTO t VALUES (1) RETURNING id",
            "update t SET a = 1",
            "DELETE FROM t",
            "CREATE TABLE t AS SELECT 1",
            "PRAGMA user_version = 1",
            "WITH mine AS (SELECT 1) INSERT INTO t SELECT * FROM mine RETURNING id",
            "WITH mine AS (SELECT 1)\nreplace INTO t SELECT * FROM mine",
            "WITH mine AS (SELECT 1)UPDATE t SET a = 1",
            "WITH mine AS (SELECT 1) delete FROM t",
            "SELECT 1;DELETE FROM t",
        ] {
            assert!(!only_reads(sql), "{sql}");
        }
    }
}
