//! Finding users (Client-Server API, "User Directory"): those who share a room with who searches, and members of rooms that
//! everybody may enter or read, as far as this server is in them.

use http::StatusCode;

use super::{auth, body::Body};
use crate::{
    error::MatrixError,
    matrix::{
        json::{Object, Value},
        state_content::{HistoryVisibility, JoinRule},
        state_trie::{NodeId, StateKeyHash},
    },
    router::{Call, Handled, raw_json_response},
    server::Server,
    store::{snapshots::StateReads, user_directory::FoundUser},
};

/// How many users are told where the client does not say, and at most.
const LIMIT: (i64, i64) = (10, 100);
/// The longest term, in bytes.
const MAX_TERM: usize = 255;

/// `POST /user_directory/search`
pub(super) async fn search(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let body = Body::of(server, call).await?;
    let term = body.required_text("search_term")?.trim().to_lowercase();
    let limit = body.integer("limit")?.unwrap_or(LIMIT.0).clamp(0, LIMIT.1);
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut users = Vec::new();
    if !term.is_empty() && term.len() <= MAX_TERM {
        let user = session.user.as_str();
        let (mut rooms, others) = server.store.rooms_to_search(&server.config.server_name, user).await?;
        rooms.extend(open(server, others).await?);
        rooms.dedup();
        let mut letters = term.chars();
        let title: String = letters.next().into_iter().flat_map(char::to_uppercase).chain(letters).collect();
        let texts = [term.clone(), term.to_uppercase(), title].map(|text| text.to_ascii_lowercase());
        users = server.store.members_named(&rooms, &texts, user).await?;
        users.sort_by_cached_key(|user| (rank(user, &term), user.displayname.is_none(), user.user_id.clone()));
    }
    let limited = users.len() > limit;
    let told = users.into_iter().take(limit).map(|user| {
        let mut object = Object::from_iter([("user_id", Value::from(user.user_id))]);
        let fields = [("display_name", user.displayname), ("avatar_url", user.avatar_url)];
        for (name, value) in fields {
            if let Some(value) = value {
                object.insert(name, value);
            }
        }
        Value::Object(object)
    });
    let answer = Object::from_iter([("results", Value::Array(told.collect())), ("limited", Value::from(limited))]);
    Ok(raw_json_response(StatusCode::OK, answer.to_text()))
}

/// Those of the states by which everybody may enter the room or read it.
async fn open(server: &Server, states: Vec<NodeId>) -> Result<Vec<NodeId>, MatrixError> {
    let keys = ["m.room.join_rules", "m.room.history_visibility"].map(|kind| StateKeyHash::new(kind, ""));
    let at = states.iter().flat_map(|state| keys.map(|key| (*state, key))).collect();
    let found = server.store.read_states(&StateReads { at, ..StateReads::default() }).await?;
    let [rules, visibility] = keys;
    let is_open = |state: &NodeId| {
        let content = |key| found.at(*state, key).map(|seen| seen.event.content());
        let rule = content(rules).and_then(|content| content.get("join_rule")?.as_str());
        rule.map(JoinRule::named) == Some(JoinRule::Public)
            || HistoryVisibility::of(content(visibility)) == HistoryVisibility::WorldReadable
    };
    Ok(states.into_iter().filter(is_open).collect())
}

/// How well a user fits the term, which is in lower case: less is better.
fn rank(user: &FoundUser, term: &str) -> u8 {
    let id = user.user_id.to_lowercase();
    let localpart = id.trim_start_matches('@').split(':').next().unwrap_or_default();
    let name = user.displayname.as_deref().unwrap_or_default().to_lowercase();
    match () {
        () if id == term || localpart == term.trim_start_matches('@') || name == term => 0,
        () if localpart.starts_with(term) || name.starts_with(term) => 1,
        () if name.split_whitespace().any(|word| word.starts_with(term)) => 2,
        () => 3,
    }
}
