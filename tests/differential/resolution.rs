//! How states resolve.

use std::collections::BTreeSet;

use verge::matrix::{
    event::Event, identifiers::EventId, json::Value, power_levels::Level, room_version::StateResolution,
    state_content::Membership,
};

use crate::{
    by_ruma::{PlainState, RumaRoom},
    common::{
        generator::{Numbers, Options, Random},
        rooms::{Key, Resolver, Room, State},
        synapse::Answer,
    },
    counts::Counts,
};

/// States to resolve.
pub(crate) struct Merge {
    pub(crate) states: Vec<State>,
    /// Events of the room that are to count as rejected, though they are not.
    rejected: BTreeSet<usize>,
}

/// The states that meet in a room, and some that could.
pub(crate) fn merges(room: &Room) -> Vec<Merge> {
    let honest = |states: Vec<State>| Merge { states, rejected: BTreeSet::new() };
    let meeting = room.events.iter().filter(|event| event.states.len() > 1);
    let mut merges: Vec<Merge> =
        meeting.map(|event| honest(event.states.iter().map(|state| (**state).clone()).collect())).collect();
    // Early and late states too; and in wide rooms, which have many tips, all at once.
    let all = || room.events.iter().map(|event| (*event.after).clone());
    for step in [3, 7, 11] {
        merges.push(honest(all().skip(step).step_by(step * 2).collect()));
    }
    if room.events.iter().any(|event| event.states.len() > USUAL_MEETING) {
        merges.push(honest(all().collect()));
    }
    merges.extend(with_rejected(room));
    merges.retain(|merge| !merge.states.is_empty());
    merges
}

/// More states than meet at an event of most rooms.
const USUAL_MEETING: usize = 5;

/// Two states, in which stand up to three events that were rejected for the states before them. Not join rules or power
/// levels: others could then not cite them, and ruma differs where there are none.
fn with_rejected(room: &Room) -> Option<Merge> {
    let mut random = Random::new(room.seed);
    let states = [(); 2].map(|()| (*random.pick(&room.events).after).clone());
    let is_base = |key: &Key| matches!(&*key.0, "m.room.create" | "m.room.join_rules" | "m.room.power_levels");
    let candidates: Vec<usize> =
        states.iter().flatten().filter(|(key, _)| !is_base(key)).map(|(_, position)| *position).collect();
    if candidates.is_empty() {
        return None;
    }
    let rejected = (0..=random.below(3)).map(|_| *random.pick(&candidates)).collect();
    Some(Merge { states: states.into(), rejected })
}

pub(crate) fn compare(
    room: &Room,
    options: Options,
    merges: &[Merge],
    synapse: Option<&Answer>,
    counts: &mut Counts,
) -> Result<(), String> {
    let mut resolver = Resolver::new(room, &BTreeSet::new());
    let with_ruma =
        options.complete && options.numbers == Numbers::Plain && room.version.state_resolution != StateResolution::V1;
    let ruma = |rejected: &BTreeSet<usize>| {
        let events = room.events.iter().enumerate();
        let events = events.map(|(at, event)| (&event.event, event.rejected || rejected.contains(&at)));
        with_ruma.then(|| RumaRoom::new(room.version, events)).flatten()
    };
    let ruma_room = ruma(&BTreeSet::new());
    for (position, merge) in merges.iter().enumerate() {
        let states: Vec<&State> = merge.states.iter().collect();
        let ours = match merge.rejected.is_empty() {
            true => resolver.resolve(room, &states),
            false => Resolver::new(room, &merge.rejected).resolve(room, &states),
        };
        let ours = room.plain(&ours);
        let compare = |oracle: &str, theirs: Result<PlainState, String>| match theirs {
            Ok(theirs) if theirs == ours => Ok(()),
            Ok(theirs) => Err(format!("{oracle}, merge {position}: {}", difference(&ours, &theirs))),
            Err(error) => Err(format!("{oracle}, merge {position}: {error}")),
        };
        let with_rejected = if merge.rejected.is_empty() { None } else { ruma(&merge.rejected) };
        if let Some(ruma) = with_rejected.as_ref().or(ruma_room.as_ref())
            && is_complete(room, merge)
        {
            let states: Vec<PlainState> = states.iter().map(|state| room.plain(state)).collect();
            compare("ruma", ruma.resolve(&states))?;
            counts.count("states resolved by ruma");
            if !merge.rejected.is_empty() {
                counts.count("merges with a rejected event");
            }
        }
        if let Some(answer) = synapse
            && synapse_follows(room, merge)
        {
            let theirs = answer.resolved(position).map_err(str::to_owned);
            compare("Synapse", theirs.map(|all| all.into_iter().map(|(t, k, id)| ((t, k), id)).collect()))?;
            counts.count("states resolved by Synapse");
            if merge.states.len() > 64 {
                counts.count("merges of more than 64 states by Synapse");
            }
        }
    }
    Ok(())
}

/// Whether it is never in question what something absent counts as: there are join rules and power levels in every state,
/// power levels name every level, and who comes in cites the join rules. ruma's authorisation rules then say what the spec,
/// or where it is silent Synapse, says.
fn is_complete(room: &Room, merge: &Merge) -> bool {
    let has = |state: &State, event_type: &str| state.contains_key(&(event_type.to_owned(), String::new()));
    let is_rules =
        |id: &EventId| room.auth_event(id).is_some_and(|cited| cited.event.is_state("m.room.join_rules", ""));
    let is_complete = |event: &Event| match event.event_type() {
        "m.room.power_levels" => Level::ALL.iter().all(|level| event.content().contains_key(level.name())),
        "m.room.member"
            if matches!(event.membership(), Some(Membership::Join | Membership::Invite | Membership::Knock)) =>
        {
            let is_first = event.prev_events() == std::slice::from_ref(room.events[0].event.event_id());
            is_first || event.auth_events().iter().any(is_rules)
        }
        _ => true,
    };
    merge.states.iter().all(|state| has(state, "m.room.join_rules") && has(state, "m.room.power_levels"))
        && room.events.iter().filter(|event| !event.rejected).all(|event| is_complete(&event.event))
}

/// Where Synapse does what the spec says. In a room that is closed to other servers it refuses memberships whose *target* is
/// of another server, and a rejected event stays out however the states resolve.
fn synapse_follows(room: &Room, merge: &Merge) -> bool {
    let is_closed = room.events[0].event.content().get("m.federate") == Some(&Value::Bool(false));
    !is_closed && merge.rejected.is_empty()
}

fn difference(ours: &PlainState, theirs: &PlainState) -> String {
    let only = |a: &PlainState, b: &PlainState| {
        let differing = a.iter().filter(|(key, id)| b.get(*key) != Some(*id));
        differing.map(|(key, id)| format!("{key:?} {id}")).collect::<Vec<_>>()
    };
    format!("here {:?}, there {:?}", only(ours, theirs), only(theirs, ours))
}
