//! EDUs that must reach their destination ([`EduType::is_durable`]): rows for each destination, in the order in which they are
//! sent by the transaction queue ([`super::queue`]), which deletes them when they were taken.

use serde_json::json;

use super::{json_lists, queue::is_free};
use crate::{
    matrix::{edu::EduType, identifiers::ServerName, json::Object},
    platform::Statement,
};

/// An EDU to a destination.
#[derive(Debug, Clone)]
pub struct DurableEdu {
    /// Whom it is for.
    pub destination: ServerName,
    /// Its type.
    pub edu_type: EduType,
    /// What it is about, where a destination that was away need only be told the newest.
    pub about: Option<String>,
    /// Its content.
    pub content: Object,
}

/// ?1: a list of [destination, type, about]. What is in flight stays as it is.
const SUPERSEDE: &str = "\
    DELETE FROM edu_outbox WHERE (destination, pos) IN ( \
      SELECT o.destination, o.pos FROM json_each(?1) AS new LEFT JOIN destinations AS d ON d.destination = new.value ->> 0 \
        CROSS JOIN edu_outbox AS o ON o.destination = new.value ->> 0 AND o.pos > COALESCE(d.txn_edus, 0) \
      WHERE o.about = new.value ->> 2 AND o.edu_type = new.value ->> 1)";

/// How many EDUs may wait for a destination; what takes the place of another one is not bounded by it.
const MOST_WAITING: i64 = 20_000;

/// ?1: a list of [destination, type, about, content], ?2: how many may wait for a destination. Reads a row for each that waits.
const APPEND: &str = "\
    INSERT INTO edu_outbox (destination, pos, edu_type, about, content) \
    SELECT value ->> 0, (SELECT position FROM streams WHERE name = 'edu_outbox') + key + 1, value ->> 1, value ->> 2, \
      value ->> 3 FROM json_each(?1) \
    WHERE value ->> 2 IS NOT NULL \
      OR (SELECT count(*) FROM (SELECT 1 FROM edu_outbox AS o WHERE o.destination = value ->> 0 LIMIT ?2)) < ?2";

/// After [`APPEND`], with the same list.
const ADVANCE: &str = "UPDATE streams SET position = position + json_array_length(?1) WHERE name = 'edu_outbox'";

/// Destinations that EDUs wait for, one after the other by the primary key, without those that are marked as behind. ?1: this
/// server's name, ?2: now, ?3: how many at most.
pub(super) const LACKING_EDUS: &str = concat!(
    "WITH RECURSIVE waiting(destination) AS ( \
       SELECT * FROM (SELECT destination FROM edu_outbox WHERE destination > '' ORDER BY destination LIMIT 1) \
       UNION ALL SELECT (SELECT o.destination FROM edu_outbox AS o WHERE o.destination > waiting.destination \
         ORDER BY o.destination LIMIT 1) FROM waiting WHERE waiting.destination IS NOT NULL ) \
     SELECT waiting.destination FROM waiting LEFT JOIN destinations AS d ON d.destination = waiting.destination \
     WHERE waiting.destination <> ?1 AND COALESCE(d.behind, 0) = 0 AND ",
    is_free!(),
    " LIMIT ?3"
);

/// Statements that append EDUs, in this order, for the batch of what they tell of. Afterwards the caller starts the sending.
pub fn append(edus: &[DurableEdu]) -> Vec<Statement> {
    let collapsing = edus.iter().filter_map(|edu| {
        let about = edu.about.as_deref()?;
        Some(json!([edu.destination.as_str(), edu.edu_type.as_str(), about]).to_string())
    });
    let superseded = json_lists(collapsing).into_iter().map(|list| Statement::new(SUPERSEDE, [list.into()]));
    let mut statements: Vec<Statement> = superseded.collect();
    let rows = edus.iter().map(|edu| {
        let content = edu.content.to_text();
        json!([edu.destination.as_str(), edu.edu_type.as_str(), edu.about, content]).to_string()
    });
    for list in json_lists(rows) {
        statements.push(Statement::new(APPEND, [list.as_str().into(), MOST_WAITING.into()]));
        statements.push(Statement::new(ADVANCE, [list.into()]));
    }
    statements
}
