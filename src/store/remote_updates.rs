//! What other servers say has changed of their users' keys. Only of users whose keys are held is anything written.
//!
//! An update that follows the one before it is applied; after any other, an earlier one among them, the list is fetched when
//! somebody asks for it, once, however many updates were missed.

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
    /// The numbers before the first of them; who has not heard of any of these lacks something, and so does everybody
    /// where there are none.
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

/// Whether the update `u` is news of what is held in `l`. A number that is lower than the newest is too: that server counts anew, as
/// it does once it was restored from a backup or installed anew. So is whatever names no number before it, as with Conduit
/// and its descendants: they give each change the same number, and mean that the list is to be fetched.
macro_rules! is_new_list {
    () => {
        "(l.stream_id IS NULL OR l.stream_id <> u.value ->> 2 OR json_array_length(u.value -> 1) = 0)"
    };
}

/// Whether the update `u` follows what is held in `l`. ?2: how long a list may be.
macro_rules! follows {
    () => {
        "(l.is_current AND u.value ->> 5 = 0 AND COALESCE(l.stream_id < u.value ->> 2, 1) \
          AND length(l.devices) + length(u.value ->> 4) <= ?2 \
          AND EXISTS (SELECT 1 FROM json_each(u.value -> 1) AS p WHERE p.value = l.stream_id))"
    };
}

/// ?1: a list of [user, numbers before, number, what is gone, what is new, whether something is missing]. What is gone and what is
/// new are patches, by which whole keys are replaced: first all that change go.
const APPLY: &str = concat!(
    "UPDATE remote_device_lists AS l SET is_current = ",
    follows!(),
    ", devices = CASE WHEN ",
    follows!(),
    " THEN json_patch(json_patch(l.devices, u.value ->> 3), u.value ->> 4) ELSE l.devices END, stream_id = u.value ->> 2 \
     FROM json_each(?1) AS u WHERE l.user_id = u.value ->> 0 AND ",
    is_new_list!()
);

/// Whether the keys in the update `u` are others than those that are held in `l`.
macro_rules! are_new_keys {
    () => {
        "(COALESCE(u.value ->> 1, l.master_key) IS NOT l.master_key \
          OR COALESCE(u.value ->> 2, l.self_signing_key) IS NOT l.self_signing_key)"
    };
}

/// ?1: a list of [user, master key, self-signing key].
const SIGN: &str = concat!(
    "UPDATE remote_device_lists AS l SET master_key = COALESCE(u.value ->> 1, l.master_key), \
       self_signing_key = COALESCE(u.value ->> 2, l.self_signing_key) \
     FROM json_each(?1) AS u WHERE l.user_id = u.value ->> 0 AND ",
    are_new_keys!()
);

/// Moves the stream on, if an update in ?1 is news by `$is_news`: a list of updates that begin with their users, and have not been
/// applied yet.
macro_rules! advance {
    ($is_news:expr) => {
        concat!(
            "UPDATE streams SET position = position + 1 WHERE name = 'device_lists' AND EXISTS ( \
               SELECT 1 FROM json_each(?1) AS u CROSS JOIN remote_device_lists AS l ON l.user_id = u.value ->> 0 WHERE ",
            $is_news,
            ") RETURNING position"
        )
    };
}

/// After `advance!`, with the same list.
macro_rules! changed {
    ($is_news:expr) => {
        concat!(
            "INSERT INTO device_list_changes (user_id, pos) SELECT l.user_id, s.position FROM json_each(?1) AS u \
               CROSS JOIN remote_device_lists AS l ON l.user_id = u.value ->> 0 \
               CROSS JOIN streams AS s ON s.name = 'device_lists' WHERE ",
            $is_news,
            " ON CONFLICT (user_id) DO UPDATE SET pos = excluded.pos"
        )
    };
}

const ADVANCE_FOR_LISTS: &str = advance!(is_new_list!());

const LISTS_CHANGED: &str = changed!(is_new_list!());

const ADVANCE_FOR_KEYS: &str = advance!(are_new_keys!());

const KEYS_CHANGED: &str = changed!(are_new_keys!());

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
        statements.extend(note_news([ADVANCE_FOR_LISTS, LISTS_CHANGED], &list));
        statements.push(Statement::new(APPLY, [list.into(), count(MAX_LIST_BYTES).into()]));
    }
    let item = |update: &SigningUpdate| json!([update.user_id, update.master_key, update.self_signing_key]).to_string();
    for list in json_lists(signing.iter().map(item)) {
        statements.extend(note_news([ADVANCE_FOR_KEYS, KEYS_CHANGED], &list));
        statements.push(Statement::new(SIGN, [list.into()]));
    }
    statements
}

/// Notes for syncs what is new in a list, before it is applied.
fn note_news(sql: [&'static str; 2], list: &str) -> [Statement; 2] {
    let [advance, changed] = sql.map(|sql| Statement::new(sql, [list.into()]));
    [advance.concerning_if_any([Subject::Keys]), changed]
}

fn has_null(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.iter().any(has_null),
        Value::Object(object) => object.values().any(has_null),
        _ => false,
    }
}
