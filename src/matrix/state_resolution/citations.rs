//! Decides whether an event is in the auth chain of what the forks share, without loading that auth chain.
//!
//! The shared part of the states may hold a hundred thousand events, so it is not walked. Instead the search goes the
//! other way, from the event to the state events that cite it, to those that cite them, and so on, until one of them
//! stands in the shared part. The store keeps these citations (`auth_events` reversed). The search is short: nearly
//! always one of the first events that cite it is there; if none is, nearly always there are only a few to go through,
//! those of branches that lost. Which citations are looked at, and when, makes no difference to the answer.

use super::{Citation, CitationsWanted, Conflicts, Index, Known, Need, ResolutionError, World, events::Events};
use crate::matrix::{
    hash_map::{HashMap, HashSet},
    identifiers::EventId,
};

/// How many citations of an event are read at first, and by what factor more of them each time after.
const FIRST_PAGE: usize = 32;
const PAGE_GROWTH: usize = 8;

#[derive(Debug, Default)]
pub(super) struct Citations {
    of: HashMap<Index, Citing>,
}

/// What is known of the events that cite one event.
#[derive(Debug, Default)]
struct Citing {
    events: Vec<Index>,
    last: Option<EventId>,
    page: usize,
    received: usize,
    /// A page is on its way.
    asked: bool,
    complete: bool,
}

/// What became of the events in question.
#[derive(Debug, Default)]
pub(super) struct Verdicts {
    /// In the auth chain of what the forks share.
    pub(super) shared: Vec<Index>,
    /// Not in it.
    pub(super) apart: Vec<Index>,
    /// Not decided; the need says what is missing.
    pub(super) open: Vec<Index>,
}

impl Citations {
    pub(super) fn accept(&mut self, citations: Vec<Citation>, events: &mut Events) {
        for citation in citations {
            let cited = events.index(&citation.cited);
            let citing = events.index(&citation.citing);
            events.set_key(citing, citation.key);
            let known = self.of.entry(cited).or_default();
            known.events.push(citing);
            known.received += 1;
            known.last = known.last.take().max(Some(citation.citing));
        }
        for known in self.of.values_mut().filter(|known| known.asked) {
            known.asked = false;
            known.complete = known.received < known.page;
            known.received = 0;
        }
    }

    /// Decides for each of `suspects`, which are not in the shared part themselves. `known` tells of events that were
    /// decided before.
    pub(super) fn decide(
        &mut self,
        suspects: Vec<Index>,
        known: impl Fn(Index) -> Option<bool>,
        world: &mut World,
        conflicts: &Conflicts,
        need: &mut Need,
    ) -> Result<Verdicts, ResolutionError> {
        // The events that cite a suspect, directly or not, as far as is known; and which of them cite which.
        let mut cites: HashMap<Index, Vec<Index>> = HashMap::default();
        let mut reached: HashSet<Index> = suspects.iter().copied().collect();
        let mut queue = suspects.clone();
        let (mut shared, mut incomplete, mut open) = (Vec::new(), Vec::new(), Vec::new());
        while let Some(event) = queue.pop() {
            let Some(citing) = self.of.get(&event).filter(|citing| !citing.asked) else {
                incomplete.push(event);
                continue;
            };
            if !citing.complete {
                incomplete.push(event);
            }
            for other in citing.events.iter().copied() {
                cites.entry(other).or_default().push(event);
                if !reached.insert(other) {
                    continue;
                }
                match known(other) {
                    Some(true) => shared.push(other),
                    Some(false) => {}
                    None => match is_shared_state(other, world, conflicts, need)? {
                        Known::Yes(true) => shared.push(other),
                        Known::Yes(false) if world.events.is_uncitable(other) => {}
                        Known::Yes(false) => queue.push(other),
                        Known::NotYet => open.push(other),
                    },
                }
            }
        }
        let shared = below(shared, &cites);
        incomplete.retain(|event| !shared.contains(event));
        for event in &incomplete {
            self.ask(*event, world, need);
        }
        open.extend(incomplete);
        let open = below(open, &cites);
        let mut verdicts = Verdicts::default();
        for suspect in suspects {
            if shared.contains(&suspect) {
                verdicts.shared.push(suspect);
            } else if open.contains(&suspect) {
                verdicts.open.push(suspect);
            } else {
                verdicts.apart.push(suspect);
            }
        }
        Ok(verdicts)
    }

    /// Asks for the next events that cite `event`.
    fn ask(&mut self, event: Index, world: &World, need: &mut Need) {
        let Some(cited) = world.events.event_id(event).cloned() else { return };
        let citing = self.of.entry(event).or_default();
        if citing.complete || citing.asked {
            return;
        }
        citing.page = if citing.page == 0 { FIRST_PAGE } else { citing.page.saturating_mul(PAGE_GROWTH) };
        citing.asked = true;
        need.citations.push(CitationsWanted {
            cited,
            after: citing.last.clone(),
            limit: citing.page,
            root: world.base,
        });
    }
}

/// Whether the event stands in all states.
pub(super) fn is_shared_state(
    event: Index,
    world: &mut World,
    conflicts: &Conflicts,
    need: &mut Need,
) -> Result<Known<bool>, ResolutionError> {
    match world.events.key(event) {
        Some(key) if !conflicts.contains(&key) => Ok(match world.in_base(key, need)? {
            Known::Yes(in_base) => Known::Yes(in_base == Some(event)),
            Known::NotYet => Known::NotYet,
        }),
        _ => Ok(Known::Yes(false)),
    }
}

/// `events`, and all that they cite, as far as `cites` tells.
fn below(events: Vec<Index>, cites: &HashMap<Index, Vec<Index>>) -> HashSet<Index> {
    let mut found: HashSet<Index> = events.iter().copied().collect();
    let mut queue = events;
    while let Some(event) = queue.pop() {
        for cited in cites.get(&event).into_iter().flatten() {
            if found.insert(*cited) {
                queue.push(*cited);
            }
        }
    }
    found
}
