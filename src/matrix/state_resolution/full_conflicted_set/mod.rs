//! The full conflicted set: the conflicted state set, the auth difference and, in algorithm 2.1, the conflicted state
//! subgraph.
//!
//! The auth difference is found from the events in which the states differ, not from their whole auth chains. Let *U* be
//! the events that stand in all states and *D<sub>i</sub>* the further ones of state *i*. The auth chain of *i* is that of
//! *U* and that of *D<sub>i</sub>* together, so the difference is made of the events that are not in the chain of *U*, and
//! are in the chains of some *D<sub>i</sub>* but not of all. If an event is in the chain of *U*, so is all that it cites:
//! the walk from the *D<sub>i</sub>* ends there.
//!
//! The walk goes level by level at first, which as a rule is all there is to it. Chains may be as long as somebody likes,
//! a member's profile changes for one, so from the fourth round on it asks for many events at once, however many levels
//! these are, and for more each time: how often it asks does not depend on their length.

use super::{
    Conflicts, Index, Interrupt, Known, MAX_OUTLINES, Need, ResolutionError, StateResolution, World,
    citations::{self, Citations, Verdict, Verdicts},
};
use crate::matrix::hash_map::HashSet;

/// In how many rounds the walk goes level by level.
const LEVEL_BY_LEVEL: u32 = 3;

/// Of the rounds after that: how many events more to ask for in either direction, and how many citations of each.
const LEAPS: [(usize, usize); 6] = [
    (1_024, 32),
    (32_768, 256),
    (MAX_OUTLINES, 2_048),
    (MAX_OUTLINES, 16_384),
    (MAX_OUTLINES, 131_072),
    (MAX_OUTLINES, 131_072),
];

#[derive(Debug, Default)]
pub(super) struct FullConflictedSet {
    places: Vec<Place>,
    verdicts: Verdicts,
    /// Events whose place is to be found in the next round.
    queue: Vec<Index>,
    rounds: u32,
    begun: bool,
    chains_asked: bool,
    subgraph: Option<Vec<Index>>,
    found: Option<Vec<Index>>,
}

/// Where an event stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Place {
    /// The walk has not come to it.
    #[default]
    Unseen,
    /// The walk has come to it, but it is not decided.
    Open,
    /// In the auth chain of what all states share.
    Shared,
    /// Not in it.
    Apart,
    /// In the conflicted state set; whether it is in that chain as well does not matter.
    Conflicted,
}

impl FullConflictedSet {
    /// The full conflicted set, without the events that do not exist.
    pub(super) fn find(
        &mut self,
        world: &mut World,
        citations: &mut Citations,
        conflicts: &Conflicts,
    ) -> Result<&[Index], Interrupt> {
        if self.found.is_none() {
            let conflicted = conflicts.events();
            if world.version.state_resolution == StateResolution::V2_1 && self.subgraph.is_none() {
                self.ask_chains(&conflicted, world)?;
                if world.is_cut {
                    return Err(ResolutionError::TooLarge.into());
                }
                self.subgraph = Some(conflicted_state_subgraph(&conflicted, world));
            }
            self.walk(&conflicted, world, citations, conflicts)?;
            let mut found = self.auth_difference(world, conflicts);
            found.extend(self.subgraph.take().unwrap_or_default());
            found.extend(conflicted);
            found.retain(|event| world.events.exists(*event));
            found.sort_unstable();
            found.dedup();
            self.found = Some(found);
        }
        Ok(self.found.as_deref().unwrap_or_default())
    }

    /// The auth chains of the conflicted events, which the subgraph is a part of, as far as they are not known.
    fn ask_chains(&mut self, conflicted: &[Index], world: &mut World) -> Result<(), Interrupt> {
        let mut need = Need::default();
        if !std::mem::replace(&mut self.chains_asked, true) {
            let (roots, count) = (conflicted.iter().copied(), world.events.len());
            let mut unknown = citing_first(roots, count, |event| world.events.auth_events(event), |_| true);
            unknown.retain(|event| !world.events.is_outlined(*event));
            world.events.want_chains(&unknown, MAX_OUTLINES, &mut need);
        }
        world.ask(need)
    }

    /// Finds the place of everything that the conflicted events cite, as far as it is not in the shared auth chain.
    fn walk(
        &mut self,
        conflicted: &[Index],
        world: &mut World,
        citations: &mut Citations,
        conflicts: &Conflicts,
    ) -> Result<(), Interrupt> {
        if !self.begun {
            self.begun = true;
            self.queue.extend(conflicted);
            for event in conflicted {
                self.put(*event, Place::Conflicted);
            }
        }
        let mut need = Need::default();
        let (mut suspects, mut waiting) = (Vec::new(), Vec::new());
        let (mut unknown, mut uncited) = (Vec::new(), Vec::new());
        loop {
            while let Some(event) = self.queue.pop() {
                if !world.events.is_outlined(event) {
                    unknown.push(event);
                    waiting.push(event);
                    continue;
                }
                match self.place(event) {
                    Place::Open => match citations::is_shared_state(event, world, conflicts, &mut need)? {
                        Known::Yes(true) => self.put(event, Place::Shared),
                        Known::Yes(false) => suspects.push(event),
                        Known::NotYet => waiting.push(event),
                    },
                    Place::Conflicted | Place::Apart => {
                        for cited in world.events.auth_events(event) {
                            if self.place(*cited) == Place::Unseen {
                                self.put(*cited, Place::Open);
                                self.queue.push(*cited);
                            }
                        }
                    }
                    Place::Unseen | Place::Shared => {}
                }
            }
            if suspects.is_empty() {
                break;
            }
            let undecided: Vec<Index> =
                suspects.iter().copied().filter(|event| self.verdicts.of(*event) == Verdict::Open).collect();
            uncited.extend(citations.decide(&undecided, &mut self.verdicts, world, conflicts, &mut need)?);
            for event in std::mem::take(&mut suspects) {
                match self.verdicts.of(event) {
                    Verdict::Shared => self.put(event, Place::Shared),
                    Verdict::Apart => {
                        self.put(event, Place::Apart);
                        self.queue.push(event);
                    }
                    Verdict::Open => waiting.push(event),
                }
            }
        }
        self.queue = waiting;
        if self.queue.is_empty() {
            return Ok(());
        }
        // Reading the conflicted events is no level yet.
        if !unknown.iter().any(|event| self.place(*event) == Place::Conflicted) {
            self.rounds += 1;
        }
        match self.rounds.checked_sub(LEVEL_BY_LEVEL + 1) {
            None => {
                // What first pages of citations have not decided is likely to be apart, so that what it cites comes next.
                if self.rounds > 1 {
                    let ahead = self.queue.iter().flat_map(|event| world.events.auth_events(*event));
                    unknown.extend(ahead.filter(|cited| !world.events.is_outlined(**cited)));
                }
                for event in unknown {
                    world.events.want(event);
                }
                for event in uncited {
                    citations.ask(event, world, &mut need);
                }
            }
            Some(leap) => {
                let (limit, page) = *LEAPS.get(leap as usize).ok_or(ResolutionError::TooLarge)?;
                self.look_ahead(limit, &mut unknown, &mut uncited, world, citations, conflicts, &mut need)?;
                world.events.want_chains(&unknown, limit, &mut need);
                citations.ascend(&uncited, limit, page, world, &mut need);
            }
        }
        world.ask(need)
    }

    /// Adds what will have to be known of the events below those that wait, should these be apart from the shared chain.
    #[expect(clippy::too_many_arguments, reason = "it is a part of the walk, with what the walk has in hand")]
    fn look_ahead(
        &self,
        limit: usize,
        unknown: &mut Vec<Index>,
        uncited: &mut Vec<Index>,
        world: &mut World,
        citations: &Citations,
        conflicts: &Conflicts,
        need: &mut Need,
    ) -> Result<(), ResolutionError> {
        let mut seen: HashSet<Index> = self.queue.iter().chain(uncited.iter()).copied().collect();
        let most = seen.len().saturating_add(limit);
        let mut ahead = self.queue.clone();
        let mut next = 0;
        while let Some(event) = ahead.get(next).copied() {
            next += 1;
            for cited in world.events.auth_events(event).to_vec() {
                if seen.len() >= most || !seen.insert(cited) {
                    continue;
                }
                if !world.events.is_outlined(cited) {
                    unknown.push(cited);
                    continue;
                }
                let shared = match self.verdicts.of(cited) {
                    Verdict::Shared => Known::Yes(true),
                    Verdict::Apart => Known::Yes(false),
                    Verdict::Open => citations::is_shared_state(cited, world, conflicts, need)?,
                };
                if matches!(shared, Known::Yes(false)) {
                    ahead.push(cited);
                    if self.verdicts.of(cited) == Verdict::Open && !citations.are_complete(cited) {
                        uncited.push(cited);
                    }
                }
            }
        }
        uncited.sort_unstable();
        uncited.dedup();
        Ok(())
    }

    fn place(&self, event: Index) -> Place {
        self.places.get(event).copied().unwrap_or_default()
    }

    fn put(&mut self, event: Index, place: Place) {
        if self.places.len() <= event {
            self.places.resize(event + 1, Place::Unseen);
        }
        if let Some(slot) = self.places.get_mut(event) {
            *slot = place;
        }
    }

    /// Which of the events apart from the shared chain are in the chains of some states but not of all.
    fn auth_difference(&self, world: &World, conflicts: &Conflicts) -> Vec<Index> {
        let is_member = |event: Index| matches!(self.place(event), Place::Apart | Place::Conflicted);
        let roots = conflicts.events.iter().flatten().copied();
        let order = citing_first(roots, self.places.len(), |event| world.events.auth_events(event), is_member);
        // For each event as many words as it takes to have a bit for each state.
        let words = conflicts.forks.div_ceil(64);
        let mut reached_by = vec![0_u64; words * self.places.len()];
        for values in conflicts.events.chunks_exact(conflicts.forks.max(1)) {
            for (fork, event) in values.iter().enumerate() {
                if let Some(word) = event.and_then(|event| reached_by.get_mut(event * words + fork / 64)) {
                    *word |= 1 << (fork % 64);
                }
            }
        }
        // Once is enough, but for citations that go round in a circle.
        let mut changed = true;
        while changed {
            changed = false;
            for event in &order {
                for cited in world.events.auth_events(*event).iter().filter(|cited| is_member(**cited)) {
                    for word in 0..words {
                        let bits = reached_by.get(event * words + word).copied().unwrap_or(0);
                        if let Some(target) = reached_by.get_mut(cited * words + word) {
                            changed |= *target | bits != *target;
                            *target |= bits;
                        }
                    }
                }
            }
        }
        let reached_by_all = |event: &Index| {
            let words = reached_by.get(event * words..(event + 1) * words).unwrap_or_default();
            words.iter().map(|word| word.count_ones() as usize).sum::<usize>() == conflicts.forks
        };
        order.into_iter().filter(|event| self.place(*event) == Place::Apart && !reached_by_all(event)).collect()
    }
}

/// The events on all paths of citations from one conflicted event to another, endpoints included. Their auth chains must
/// be there.
fn conflicted_state_subgraph(conflicted: &[Index], world: &World) -> Vec<Index> {
    let count = world.events.len();
    let order = citing_first(conflicted.iter().copied(), count, |event| world.events.auth_events(event), |_| true);
    let mut leads_to_conflicted = vec![false; count];
    for event in conflicted {
        if let Some(leads) = leads_to_conflicted.get_mut(*event) {
            *leads = true;
        }
    }
    let mut changed = true;
    while changed {
        changed = false;
        for event in order.iter().rev() {
            let leads = |event: &Index| leads_to_conflicted.get(*event).copied().unwrap_or(false);
            if !leads(event) && world.events.auth_events(*event).iter().any(leads) {
                if let Some(leads) = leads_to_conflicted.get_mut(*event) {
                    *leads = true;
                }
                changed = true;
            }
        }
    }
    order.into_iter().filter(|event| leads_to_conflicted.get(*event) == Some(&true)).collect()
}

/// All events that can be reached from `roots` through events for which `enter` holds, each before those it cites (unless
/// they cite each other in a circle). `count` is above every index.
fn citing_first<'a>(
    roots: impl Iterator<Item = Index>,
    count: usize,
    cited: impl Fn(Index) -> &'a [Index],
    enter: impl Fn(Index) -> bool,
) -> Vec<Index> {
    let mut seen = vec![false; count];
    let mut first_time = |event: Index| match seen.get_mut(event) {
        Some(seen) if enter(event) => !std::mem::replace(seen, true),
        _ => false,
    };
    let mut order = Vec::new();
    for root in roots {
        if !first_time(root) {
            continue;
        }
        let mut stack = vec![(root, cited(root).iter())];
        while let Some((event, rest)) = stack.last_mut() {
            match rest.next() {
                Some(next) => {
                    if first_time(*next) {
                        stack.push((*next, cited(*next).iter()));
                    }
                }
                None => {
                    order.push(*event);
                    stack.pop();
                }
            }
        }
    }
    order.reverse();
    order
}

#[cfg(test)]
mod tests;
