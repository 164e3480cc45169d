//! Every merge of generated rooms, resolved by us, by ruma and by Synapse.
//!
//! `VERGE_MERGES` is the number of rooms for each version (60 by default), `VERGE_SEED` the first seed. A failure
//! names the version and the seed, and shows as few of the room's events as it takes.

use std::collections::BTreeSet;

use verge::matrix::{
    json::Value,
    room_version::{RoomVersion, StateResolution},
    state_resolution::{StateEvent, memory::Memory},
    state_trie::{NodeId, StateKeyHash},
};

use crate::{
    by_ruma::{PlainState, RumaRoom},
    common::{
        rooms::{Numbers, Room, State},
        setting, shrink,
        synapse::Synapse,
    },
};

#[test]
fn merges_of_generated_rooms_resolve_as_in_ruma_and_synapse() {
    let (rooms, first) = (setting("VERGE_MERGES", 60), setting("VERGE_SEED", 0));
    let mut synapse = Synapse::start();
    let mut counts = Counts::default();
    for version in RoomVersion::all() {
        for seed in first..first + rooms {
            let room = Room::generate(version, seed, 20 + seed as usize % 60, Numbers::Plain);
            if let Err(disagreement) = compare(&room, synapse.as_mut(), &mut counts) {
                let compare = |room: &Room| compare(room, synapse.as_mut(), &mut Counts::default()).err();
                shrink::report(room, disagreement, compare);
            }
        }
    }
    let Counts { merges, by_ruma, by_synapse, known } = counts;
    println!(
        "{merges} merges, {by_ruma} compared with ruma, {known} of them known to differ, {by_synapse} with Synapse"
    );
    assert!(known <= by_ruma / 40, "too many differ from ruma");
}

/// What was compared.
#[derive(Default)]
struct Counts {
    merges: usize,
    by_ruma: usize,
    by_synapse: usize,
    /// Of those by ruma, the ones that are known to differ.
    known: usize,
}

/// Compares every merge of a room.
fn compare(room: &Room, synapse: Option<&mut Synapse>, counts: &mut Counts) -> Result<(), String> {
    let forks: Vec<Vec<&State>> = forks(room);
    let answer = synapse.map(|synapse| synapse.judge(room, &forks));
    let memory = memory(room);
    let ruma = RumaRoom::new(room.version, room.events.iter().map(|event| (&event.event, event.rejected)));
    for (position, states) in forks.iter().enumerate() {
        let states: Vec<PlainState> = states.iter().map(|state| plain(room, state)).collect();
        let ours = resolve(&memory, room, &states);
        counts.merges += 1;
        let disagreement = |oracle: &str, theirs: Result<PlainState, String>| {
            let what = theirs.map_or_else(|error| error, |theirs| difference(&ours, &theirs));
            Err(format!("{oracle}, merge {position}: {what}"))
        };
        if room.version.state_resolution != StateResolution::V1
            && let Some(ruma) = &ruma
        {
            counts.by_ruma += 1;
            let theirs = ruma.resolve(&states);
            match theirs.as_ref() == Ok(&ours) {
                true => {}
                false if ruma_judges_otherwise(room, &states) => counts.known += 1,
                false => return disagreement("ruma", theirs),
            }
        }
        if let Some(answer) = &answer
            && !keeps_others_out(room)
        {
            counts.by_synapse += 1;
            let theirs = answer.resolved(position).map_err(str::to_owned);
            let theirs = theirs.map(|all| all.into_iter().map(|(t, k, id)| ((t, k), id)).collect());
            if theirs.as_ref() != Ok(&ours) {
                return disagreement("Synapse", theirs);
            }
        }
    }
    Ok(())
}

fn difference(ours: &PlainState, theirs: &PlainState) -> String {
    let only = |a: &PlainState, b: &PlainState| {
        a.iter()
            .filter(|(key, id)| b.get(*key) != Some(*id))
            .map(|(key, id)| format!("{key:?} {id}"))
            .collect::<Vec<_>>()
    };
    format!("here {:?}, there {:?}", only(ours, theirs), only(theirs, ours))
}

/// Whether the room is closed to other servers. Synapse then refuses memberships whose *target* is of another server, where
/// the spec asks for the sender (`tests/auth_rules`), and so resolves differently.
fn keeps_others_out(room: &Room) -> bool {
    room.events[0].event.content().get("m.federate") == Some(&Value::Bool(false))
}

/// Whether ruma's authorisation rules may judge an event of this merge otherwise than the spec, or where it is silent
/// Synapse, does (`tests/auth_rules` has a case for each). That is no matter of state resolution.
fn ruma_judges_otherwise(room: &Room, states: &[PlainState]) -> bool {
    let power_levels =
        || room.events.iter().map(|event| &event.event).filter(|event| event.is_state("m.room.power_levels", ""));
    let properties: BTreeSet<Vec<&str>> = power_levels()
        .map(|event| event.content().iter().map(|(name, _)| name).filter(|name| NAMED_LEVELS.contains(name)).collect())
        .collect();
    let no_join_rules = |state: &PlainState| !state.contains_key(&("m.room.join_rules".to_owned(), String::new()));
    // A room without join rules; a property of the power levels that was added or removed; a malformed one.
    states.iter().any(no_join_rules)
        || properties.len() > 1
        || power_levels().any(|event| {
            let level = |name: &&str| event.content().get(name).is_some_and(|level| level.as_i64().is_none());
            let notifications = event.content().get("notifications").is_some();
            NAMED_LEVELS.iter().any(level) || notifications && !room.version.notifications_auth_rule
        })
}

const NAMED_LEVELS: [&str; 7] = ["users_default", "events_default", "state_default", "ban", "redact", "kick", "invite"];

/// The states of every merge, and those after all events that nothing follows.
fn forks(room: &Room) -> Vec<Vec<&State>> {
    let mut forks: Vec<Vec<&State>> = room
        .events
        .iter()
        .filter(|event| event.states.len() > 1)
        .map(|event| event.states.iter().map(|state| &**state).collect())
        .collect();
    // Any states of a room may meet: early and late ones too.
    let all: Vec<&State> = room.events.iter().map(|event| &*event.after).collect();
    for step in [3, 7, 11] {
        forks.push(all.iter().copied().skip(step).step_by(step * 2).collect());
    }
    forks.retain(|states| !states.is_empty());
    forks
}

pub(crate) fn memory(room: &Room) -> Memory {
    let mut memory = Memory::default();
    for event in &room.events {
        memory.insert(StateEvent { event: event.event.clone(), rejected: event.rejected });
    }
    memory
}

pub(crate) fn plain(room: &Room, state: &State) -> PlainState {
    let id = |position: &usize| room.events[*position].event.event_id().to_string();
    state.iter().map(|(key, position)| (key.clone(), id(position))).collect()
}

fn resolve(memory: &Memory, room: &Room, states: &[PlainState]) -> PlainState {
    resolve_plain(memory.clone(), room.version, room.events[0].event.room_id(), states)
}

/// Resolves, and reads the result back through the trie.
pub(crate) fn resolve_plain(
    mut memory: Memory,
    version: &'static RoomVersion,
    room_id: &verge::matrix::identifiers::RoomId,
    states: &[PlainState],
) -> PlainState {
    let entry = |((t, k), id): (&(String, String), &String)| (StateKeyHash::new(t, k), id.as_str().into());
    let roots: Vec<NodeId> = states.iter().map(|state| memory.snapshot(state.iter().map(entry))).collect();
    let (resolved, _) = memory.resolve(version, room_id, &roots).unwrap();
    memory.add_nodes(&resolved.nodes);
    memory
        .state(resolved.root)
        .into_iter()
        .map(|event| {
            let key = (event.event.event_type().to_owned(), event.event.state_key().unwrap().to_owned());
            (key, event.event.event_id().to_string())
        })
        .collect()
}
