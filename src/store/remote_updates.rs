//! What other servers say has changed of their users' keys. Only of users whose keys are held is anything written.
//!
//! An update that follows the one before it is applied; after any other the list is fetched when somebody asks for it, once,
//! however many updates were missed.

use serde_json::json;

use super::{device_lists::MAX_LIST_BYTES, json_lists, positions::count};
use crate::{
    matrix::json::{Object, Value},
    platform::{Statement, news::Subject},
};

/// The changes of one user's devices that a transaction tells of, one after the other.
#[derive(Debug, Clone)]
pub struct ListUpdate {
    /// The user.
    pub user_id: String,
    /// The numbers before the first of them; who has not heard of any of these lacks something.
    pub prev_id: Vec<i64>,
    /// The number of the last.
    pub stream_id: i64,
    /// The devices' keys; `None` for those that are gone, or have none.
    pub devices: Vec<(String, Option<Object>)>,
    /// Whether something is known to be missing among them.
    pub has_gap: bool,
}

/// New cross-signing keys of a user.
#[derive(Debug, Clone)]
pub struct SigningUpdate {
    /// The user.
    pub user_id: String,
    /// The master key, where it is told.
    pub master_key: Option<String>,
    /// The self-signing key, where it is told.
    pub self_signing_key: Option<String>,
}

/// Whether the update `u` follows what is held in `l`. ?2: how long a list may be.
macro_rules! follows {
    () => {
        "(remote_device_lists.is_current AND u.value ->> 5 = 0 \
          AND length(devices) + length(u.value ->> 4) <= ?2 AND (json_array_length(u.value -> 1) = 0 \
            OR EXISTS (SELECT 1 FROM json_each(u.value -> 1) AS p WHERE p.value = remote_device_lists.stream_id)))"
    };
}

/// ?1: a list of [user, numbers before, number, what is gone, what is new, whether something is missing]. What is gone and what is
/// new are patches, by which whole keys are replaced: first all that change go.
const APPLY: &str = concat!(
    "UPDATE remote_device_lists SET is_current = ",
    follows!(),
    ", devices = CASE WHEN ",
    follows!(),
    " THEN json_patch(json_patch(devices, u.value ->> 3), u.value ->> 4) ELSE devices END, stream_id = u.value ->> 2 \
     FROM json_each(?1) AS u \
     WHERE remote_device_lists.user_id = u.value ->> 0 \
       AND (remote_device_lists.stream_id IS NULL OR remote_device_lists.stream_id < u.value ->> 2)"
);

/// ?1: a list of [user, master key, self-signing key].
const SIGN: &str = "\
    UPDATE remote_device_lists SET master_key = COALESCE(u.value ->> 1, master_key), \
      self_signing_key = COALESCE(u.value ->> 2, self_signing_key) \
    FROM json_each(?1) AS u WHERE remote_device_lists.user_id = u.value ->> 0";

/// ?1: a list of lists that begin with a user whose keys have changed.
const ADVANCE: &str = "\
    UPDATE streams SET position = position + 1 WHERE name = 'device_lists' AND EXISTS ( \
      SELECT 1 FROM json_each(?1) AS u CROSS JOIN remote_device_lists AS l ON l.user_id = u.value ->> 0)";

/// After [`ADVANCE`], with the same list.
const CHANGED: &str = "\
    INSERT INTO device_list_changes (user_id, pos) SELECT l.user_id, s.position FROM json_each(?1) AS u \
      CROSS JOIN remote_device_lists AS l ON l.user_id = u.value ->> 0 \
      CROSS JOIN streams AS s ON s.name = 'device_lists' WHERE true \
    ON CONFLICT (user_id) DO UPDATE SET pos = excluded.pos";

/// Statements that note changes of other servers' users' keys, for the batch of their transaction.
pub fn note(lists: &[ListUpdate], signing: &[SigningUpdate]) -> Vec<Statement> {
    let list = |update: &ListUpdate| {
        let gone: Object = update.devices.iter().map(|(device, _)| (device.as_str(), Value::Null)).collect();
        let new = update.devices.iter().filter_map(|(device, keys)| Some((device.as_str(), keys.clone()?)));
        let new: Object = new.collect();
        // A patch would take what is null for something to be removed.
        let has_gap = update.has_gap || new.values().any(has_null);
        let ListUpdate { user_id, prev_id, stream_id, .. } = update;
        json!([user_id, prev_id, stream_id, gone.to_text(), new.to_text(), i64::from(has_gap)]).to_string()
    };
    let mut statements = Vec::new();
    for list in json_lists(lists.iter().map(list)) {
        statements.push(Statement::new(APPLY, [list.as_str().into(), count(MAX_LIST_BYTES).into()]));
        statements.extend(changed(&list));
    }
    let item = |update: &SigningUpdate| json!([update.user_id, update.master_key, update.self_signing_key]).to_string();
    for list in json_lists(signing.iter().map(item)) {
        statements.push(Statement::new(SIGN, [list.as_str().into()]));
        statements.extend(changed(&list));
    }
    statements
}

/// Notes for syncs that there are changes in a list.
fn changed(list: &str) -> [Statement; 2] {
    let [advance, changed] = [ADVANCE, CHANGED].map(|sql| Statement::new(sql, [list.into()]));
    [advance.concerning([Subject::Keys]), changed]
}

fn has_null(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.iter().any(has_null),
        Value::Object(object) => object.values().any(has_null),
        _ => false,
    }
}
