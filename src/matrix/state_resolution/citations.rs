//! Decides whether an event is in the auth chain of what the forks share, without loading that auth chain.
//!
//! The shared part of the states may hold a hundred thousand events, so it is not walked. Instead the search goes the
//! other way, from the event to the state events that cite it, to those that cite them, and so on, until one of them
//! stands in the shared part. The store keeps these citations (`auth_events` reversed). The search is short: nearly
//! always one of the first events that cite it is there; if none is, nearly always there are only a few to go through,
//! those of branches that lost. Which citations are looked at, and when, makes no difference to the answer.

use super::{
    Ascents, Citation, CitationsWanted, Conflicts, Index, Known, Need, ResolutionError, World, events::Events,
};
use crate::matrix::{
    hash_map::{HashMap, HashSet},
    identifiers::EventId,
    state_trie::StateKeyHash,
};

/// How many citations of an event are read at first, and by what factor more of them each time after.
const FIRST_PAGE: usize = 32;
const PAGE_GROWTH: usize = 8;

/// What was read of citations. It does not depend on what is being resolved.
#[derive(Debug, Default)]
pub(super) struct Citations {
    of: HashMap<Index, Citing>,
    /// Of how many citing events each event of an ascent that is on its way will tell.
    ascent_page: usize,
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

/// What is known of whether an event is in the auth chain of what the forks share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Verdict {
    #[default]
    Open,
    Shared,
    Apart,
}

/// The verdicts that are final, by event. They hold for one resolution.
#[derive(Debug, Default)]
pub(super) struct Verdicts(Vec<Verdict>);

impl Verdicts {
    pub(super) fn of(&self, event: Index) -> Verdict {
        self.0.get(event).copied().unwrap_or_default()
    }

    fn set(&mut self, event: Index, verdict: Verdict) {
        if self.0.len() <= event {
            self.0.resize(event + 1, Verdict::Open);
        }
        if let Some(slot) = self.0.get_mut(event) {
            *slot = verdict;
        }
    }
}

impl Citations {
    /// Takes what was supplied. `visited` are the events of which an ascent told.
    pub(super) fn accept(&mut self, citations: Vec<Citation>, visited: Vec<EventId>, events: &mut Events) {
        for citation in citations {
            let cited = events.index(&citation.cited);
            let citing = events.index(&citation.citing);
            events.set_key(citing, citation.key);
            let known = self.of.entry(cited).or_default();
            known.received += 1;
            // An ascent tells from the first one on, of which some may be known.
            if !known.complete && known.last.as_ref() < Some(&citation.citing) {
                known.events.push(citing);
                known.last = Some(citation.citing);
            }
        }
        for event in visited {
            let known = self.of.entry(events.index(&event)).or_default();
            known.complete |= known.received < self.ascent_page;
            known.page = known.page.max(self.ascent_page);
        }
        for known in self.of.values_mut() {
            if std::mem::take(&mut known.asked) {
                known.complete = known.received < known.page;
            }
            known.received = 0;
        }
    }

    /// Takes in that there is a new event.
    pub(super) fn learn(&mut self, citing: Index, key: StateKeyHash, cited: &[Index], events: &mut Events) {
        events.set_key(citing, key);
        let Some(event_id) = events.event_id(citing) else { return };
        for cited in cited {
            if let Some(known) = self.of.get_mut(cited)
                && (known.complete || known.last.as_ref() >= Some(event_id))
                && !known.events.contains(&citing)
            {
                known.events.push(citing);
            }
        }
    }

    /// Takes in that nothing cites an event.
    pub(super) fn note_uncited(&mut self, event: Index) {
        self.of.entry(event).or_default().complete = true;
    }

    /// Whether all events that cite `event` are known.
    pub(super) fn are_complete(&self, event: Index) -> bool {
        self.of.get(&event).is_some_and(|citing| citing.complete)
    }

    /// Finds verdicts on `suspects`, which are not in the shared part themselves. Returns the events of which it must
    /// be known what else cites them, before those that stay open can be decided.
    pub(super) fn decide(
        &self,
        suspects: &[Index],
        verdicts: &mut Verdicts,
        world: &mut World,
        conflicts: &Conflicts,
        need: &mut Need,
    ) -> Result<Vec<Index>, ResolutionError> {
        // The events that cite a suspect, directly or not, as far as is known; and which of them cite which.
        let mut cites: HashMap<Index, Vec<Index>> = HashMap::default();
        let mut reached: HashSet<Index> = suspects.iter().copied().collect();
        let mut queue = suspects.to_vec();
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
                match verdicts.of(other) {
                    Verdict::Shared => shared.push(other),
                    Verdict::Apart => {}
                    Verdict::Open => match is_shared_state(other, world, conflicts, need)? {
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
        open.extend(&incomplete);
        let open = below(open, &cites);
        for event in reached {
            if shared.contains(&event) {
                verdicts.set(event, Verdict::Shared);
            } else if !open.contains(&event) {
                verdicts.set(event, Verdict::Apart);
            }
        }
        Ok(incomplete)
    }

    /// Asks for the next events that cite `event`.
    pub(super) fn ask(&mut self, event: Index, world: &World, need: &mut Need) {
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

    /// Asks for the events that cite `from`, for those that cite them, and so on: of `limit` events more than
    /// those, `page` for each.
    pub(super) fn ascend(&mut self, from: &[Index], limit: usize, page: usize, world: &World, need: &mut Need) {
        let from: Vec<EventId> = from.iter().filter_map(|event| world.events.event_id(*event)).cloned().collect();
        if from.is_empty() {
            return;
        }
        self.ascent_page = page;
        let limit = limit.saturating_add(from.len());
        need.ascents = Some(Ascents { from, limit, page, root: world.base });
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
