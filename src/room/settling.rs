//! Judging again what rests on other servers' claims of a room's state, once the history is held that shows what the state was.
//!
//! The state before an event is *firm* where all of its previous events are held with a firm state after each; the state that
//! came with our join is firm, for all that we know rests on it. A state that is claimed stands in for the firm one only for as
//! long as history is lacking. Here the events that rest on claims are judged anew in the order of the graph: each as soon as
//! its previous events have a state, and again when that of one of them changes. In the end the states, the verdicts that go
//! against somebody and the room's current state are what they would be had nothing been lost.
//!
//! What was accepted, and is forbidden by the firm state, becomes rejected; what was rejected or soft-failed, and is allowed, is
//! shown. That is committed a hundred events at a time, each time moving the room's version: whoever judges by the old states
//! at the same time loses.

use std::collections::HashSet;

use super::{
    RoomError, Rooms,
    checks::auth_keys,
    claimed_graph::{Graph, SLICE},
    extremities::behind,
    judge::{Judgement, Source, creation},
    settled::{Left, Settled},
    view::{StateAt, TypeAndKey, View},
    withdrawn::Withdrawn,
};
use crate::{
    matrix::{
        event::Event,
        identifiers::{EventId, RoomId},
        state_trie::NodeId,
    },
    platform::turns::turn,
    store::{
        commit::{Committed, Guard, NewEvent, Place, RejectedAt},
        events::StoredEvent,
        rooms::{Extremity, Room},
        unsettled::{Node, Standing},
    },
};

/// How many slices are judged at a time.
const MAX_SLICES: usize = 8;

/// How often all is gone through: what is found of the current state decides what was soft-failed.
const MAX_PASSES: usize = 4;

impl Rooms {
    /// Judges again what rests on claims in the room, as far as the history is held. `attempt` says how often that was begun: of very
    /// much each begins somewhere else.
    ///
    /// # Errors
    /// [`RoomError::UnknownRoom`], [`RoomError::Busy`], and where the database fails.
    pub async fn settle(&self, room_id: &RoomId, attempt: usize) -> Result<Settled, RoomError> {
        self.doubt_vouched(room_id).await?;
        let mut slices = MAX_SLICES;
        for pass in 0..MAX_PASSES {
            let mut graph = self.claimed_graph(room_id, attempt).await?;
            if pass == 0 && graph.order.len() > MAX_SLICES * SLICE {
                graph.begin_at(attempt.saturating_mul(MAX_SLICES * SLICE));
            }
            let (mut changed, mut begin) = (HashSet::new(), 0);
            loop {
                let (slice, end) = graph.slice(begin, &changed);
                begin = end;
                if slice.is_empty() {
                    break;
                }
                let Some(left) = slices.checked_sub(1) else { return Ok(graph.settled(Some(Left::More))) };
                turn(self.clock.as_ref(), MAX_SLICES - slices, 1).await;
                slices = left;
                changed.extend(self.until_committed(async || self.settle_slice(room_id, &slice, &graph).await).await?);
            }
            if changed.is_empty() {
                self.store.stand_nowhere(&graph.withdrawn.ids()).await?;
                return Ok(graph.settled(None));
            }
        }
        Ok(self.claimed_graph(room_id, attempt).await?.settled(Some(Left::More)))
    }

    async fn claimed_graph(&self, room_id: &RoomId, attempt: usize) -> Result<Graph, RoomError> {
        let room = self.room(room_id).await?.ok_or(RoomError::UnknownRoom)?;
        let mut nodes = self.store.claimed_graph(room_id).await?;
        self.know_creation(&room, &mut nodes).await?;
        let mut graph = Graph::new(nodes, room.extremities.into_iter().map(|one| one.event_id), attempt);
        let claimed = |id: &EventId| graph.only_claimed(id).and_then(|node| node.state_before);
        let claims = graph
            .order
            .iter()
            .flat_map(|id| claimed(id).into_iter().chain(graph.beside(id)).map(move |root| (id, root)));
        let claims: Vec<(&EventId, NodeId)> = claims.collect();
        if !claims.is_empty() {
            let withdrawn = Withdrawn::new(self.store.rejected_state(room_id).await?);
            let mut view = View::new(&self.store, self.server_name());
            let holding = withdrawn.standing_in(&mut view, claims.iter().map(|(_, root)| *root)).await?;
            let holding = claims.into_iter().filter(|(_, root)| holding.contains(root));
            graph.holding = holding.map(|(id, _)| id.clone()).collect();
            graph.withdrawn = withdrawn;
        }
        Ok(graph)
    }

    /// Makes known what the state is after the room's create event, which the room may hold as a part of the state alone: what cites
    /// it late rests on no claim about it.
    pub(super) async fn know_creation(&self, room: &Room, nodes: &mut [Node]) -> Result<(), RoomError> {
        if nodes.iter().any(|node| node.previous.is_empty() && node.state_after.is_none()) {
            let mut view = View::new(&self.store, self.server_name());
            let create = creation(&mut view, room.state).await?;
            for node in nodes.iter_mut().filter(|node| node.state_after.is_none()) {
                if let Some((_, after)) = create.as_ref().filter(|(id, _)| *id == node.event_id) {
                    node.standing = Standing::Accepted;
                    (node.state_before, node.state_after) = (Some(NodeId::EMPTY), Some(*after));
                }
            }
        }
        Ok(())
    }

    /// Judges some events again. Answers with those of which anything is different now.
    async fn settle_slice(
        &self,
        room_id: &RoomId,
        slice: &[EventId],
        graph: &Graph,
    ) -> Result<Committed<Vec<EventId>>, RoomError> {
        let mut view = View::new(&self.store, self.server_name());
        view.load_events(slice).await?;
        let events: Vec<Event> = slice.iter().filter_map(|id| view.text(id).cloned()).collect();
        let keys: HashSet<TypeAndKey> = events.iter().flat_map(auth_keys).collect();
        let keys: Vec<TypeAndKey> = keys.into_iter().collect();
        let previous: Vec<EventId> =
            slice.iter().filter_map(|id| graph.nodes.get(id)).flat_map(|node| node.previous.clone()).collect();
        let auth = events.iter().flat_map(|event| event.auth_events().iter().cloned());
        let cited = auth.chain(previous.iter().cloned()).chain([room_id.create_event_id()]).collect();
        let room = view.load_rooms(vec![room_id.clone()], &keys, cited, previous).await?.pop();
        let mut judgement = Judgement::new(room.ok_or(RoomError::UnknownRoom)?);
        let mut changed = Vec::new();
        for id in slice {
            if judgement.settle(&mut view, id, graph).await? {
                changed.push(id.clone());
            }
        }
        judgement.drop_built_upon(&mut view, graph).await?;
        judgement.follow_extremities(&mut view).await?;
        if judgement.is_unchanged() && judgement.extremities == judgement.room.extremities {
            return Ok(Committed::Done(changed));
        }
        let guard = Guard::Moves(judgement.room.version);
        let mut commit = self.commit_of(&mut view, judgement).await?;
        commit.guard = guard;
        commit.is_settling = true;
        Ok(self.store.commit(&[commit], Vec::new()).await?.with(changed))
    }
}

impl Judgement {
    /// Judges an event again by the states after its previous events, and by what was claimed beside these. Whether anything of it is
    /// different now.
    async fn settle(&mut self, view: &mut View<'_>, id: &EventId, graph: &Graph) -> Result<bool, RoomError> {
        let Some(node) = graph.nodes.get(id) else { return Ok(false) };
        let claimed = graph.beside(id);
        let beside = match claimed {
            Some(claimed) => Some(graph.withdrawn.taken_out_of(view, claimed).await?),
            None => None,
        };
        let has_said_too_much = beside != claimed;
        self.beside.extend(beside.filter(|_| has_said_too_much).map(|root| (id.clone(), root)));
        let is_different = match graph.ready.contains(id) {
            true => self.judge_again(view, node, beside, graph).await?,
            false => self.withdraw(view, id, graph).await?,
        };
        Ok(is_different || has_said_too_much)
    }

    /// Judges an event whose previous events have a state, and what is claimed `beside` these.
    async fn judge_again(
        &mut self,
        view: &mut View<'_>,
        node: &Node,
        beside: Option<NodeId>,
        graph: &Graph,
    ) -> Result<bool, RoomError> {
        let id = &node.event_id;
        view.load_events(&node.previous).await?;
        self.know_creation(view, &node.previous).await?;
        let states: Vec<StateAt> = node.previous.iter().filter_map(|id| view.state_after(id)).collect();
        if states.len() < node.previous.len() {
            return Ok(false);
        }
        let stands = view.stored(id).is_some_and(|known| known.stands() && known.state_after.is_some());
        let is_firm = states.iter().all(|state| !state.claimed);
        let beside = beside.filter(|_| !is_firm);
        let roots = states.iter().map(|state| state.root).chain(beside).collect();
        if (stands || is_firm) && view.resolve(&self.room, roots).await?.is_none() {
            // More than can be resolved. What stands keeps its state: the current one is another each time.
            return Ok(false);
        }
        let before = self.state_before(view, &node.previous, beside).await?;
        let is_same = |known: Option<StateAt>, found: Option<StateAt>| {
            known.map(|state| (state.root, state.claimed)) == found.map(|state| (state.root, state.claimed))
        };
        let known = view.state_after(id);
        let was_rejected = view.rejected(id).cloned();
        let is_final = was_rejected.as_ref().is_some_and(|rejected| !rejected.provisional);
        let is_altered = was_rejected.as_ref().is_some_and(|rejected| rejected.is_altered());
        // A whole copy may take part in the state after it yet.
        let if_rejected = StateAt { claimed: before.claimed || is_altered, ..before };
        let judgeable =
            view.text(id).filter(|event| !is_final && event.auth_events().iter().all(|id| view.knows(id))).cloned();
        let Some(event) = judgeable else {
            if was_rejected.is_some() && !is_same(known, Some(if_rejected)) {
                self.place_rejected(view, id, if_rejected);
                return Ok(true);
            }
            return Ok(false);
        };
        match self.broken_rule(view, &event, before).await? {
            Some(rejection) => {
                let same_verdict = was_rejected.is_some_and(|known| known.provisional == rejection.provisional);
                if same_verdict && is_same(known, Some(if_rejected)) {
                    return Ok(false);
                }
                self.leave_extremity(view, &event, graph).await?;
                self.reject(view, &event, before, &rejection);
                Ok(true)
            }
            None => {
                let known = view.stored(id).cloned();
                self.allow(view, &event, before, known, graph.adopted.contains(id)).await
            }
        }
    }

    /// Takes what was withdrawn out of the state that is claimed before an event, and judges it by what is left. Whether anything of
    /// it is different now.
    async fn withdraw(&mut self, view: &mut View<'_>, id: &EventId, graph: &Graph) -> Result<bool, RoomError> {
        let was_rejected = view.rejected(id).cloned();
        let known = view.stored(id).cloned();
        let claimed = match &was_rejected {
            Some(rejected) => rejected.state_before,
            None => known.as_ref().and_then(|known| known.state_before),
        };
        let Some(claimed) = claimed else { return Ok(false) };
        let before = StateAt { root: graph.withdrawn.taken_out_of(view, claimed).await?, claimed: true };
        if before.root == claimed {
            return Ok(false);
        }
        let is_final = was_rejected.as_ref().is_some_and(|rejected| !rejected.provisional);
        let Some(event) = view.text(id).filter(|_| !is_final).cloned() else {
            self.place_rejected(view, id, before);
            return Ok(true);
        };
        // A claim alone rejects nothing of which only the state around it is known.
        let is_edge = known.as_ref().is_some_and(|known| known.outlier);
        match self.broken_rule(view, &event, before).await?.filter(|rejection| !(is_edge && rejection.provisional)) {
            Some(rejection) => {
                self.leave_extremity(view, &event, graph).await?;
                self.reject(view, &event, before, &rejection);
            }
            None => match known.filter(|known| !known.soft_failed) {
                Some(known) => {
                    let after = view.with_event(before.root, &event).await?;
                    let known = StoredEvent {
                        claimed: true,
                        state_before: Some(before.root),
                        state_after: Some(after),
                        ..known
                    };
                    let place = if is_edge { Place::Edge } else { Place::Hidden };
                    self.new.push(NewEvent {
                        event,
                        place,
                        soft_failed: false,
                        claimed: true,
                        state_before: known.state_before,
                        state_after: known.state_after,
                        outbox: None,
                    });
                    view.put(known);
                }
                None => {
                    let known = view.stored(id).cloned();
                    self.allow(view, &event, before, known, graph.adopted.contains(id)).await?;
                }
            },
        }
        Ok(true)
    }

    /// Notes at what state a rejected event stands.
    fn place_rejected(&mut self, view: &mut View<'_>, id: &EventId, before: StateAt) {
        view.place_rejected(id, before);
        let StateAt { root, claimed } = before;
        self.rejected_at.push(RejectedAt { event_id: id.clone(), state_before: root, claimed });
    }

    /// Notes that `event` is allowed by the state `before` it; `known` is what was thought of it, if it was not rejected. Whether
    /// that is anything new.
    async fn allow(
        &mut self,
        view: &mut View<'_>,
        event: &Event,
        before: StateAt,
        known: Option<StoredEvent>,
        adopted: bool,
    ) -> Result<bool, RoomError> {
        let is_edge = known.as_ref().is_some_and(|known| known.outlier);
        let stands = known.as_ref().is_some_and(StoredEvent::stands);
        let after = view.with_event(before.root, event).await?;
        let is_same = |claimed: bool| {
            known.as_ref().is_some_and(|known| {
                (known.state_before, known.state_after, known.claimed) == (Some(before.root), Some(after), claimed)
            })
        };
        let soft_failed = match stands || (adopted && is_edge) {
            true => false,
            false => self.is_soft_failed(view, event, before, adopted).await?,
        };
        if !stands && (!adopted || soft_failed) {
            if soft_failed && !is_edge {
                let claimed = before.claimed || self.rests_on_claims(view).await?;
                if is_same(claimed) {
                    return Ok(false);
                }
            }
            self.take(view, event, before, soft_failed, &Source::Transaction).await?;
            return Ok(true);
        }
        // The gap before an edge is filled when somebody pages back to it.
        let place = match (stands, is_edge) {
            (true, _) => Place::Hidden,
            (false, true) => Place::Edge,
            (false, false) => Place::Newest,
        };
        if place != Place::Newest && is_same(before.claimed) {
            return Ok(false);
        }
        self.copies.extend(view.copies([event].into_iter()));
        let was_rejected = view.put(StoredEvent {
            event: event.clone(),
            outlier: place == Place::Edge,
            rejected: false,
            soft_failed: false,
            redacted_by: known.and_then(|known| known.redacted_by),
            claimed: before.claimed,
            state_before: Some(before.root),
            state_after: Some(after),
        });
        if was_rejected {
            self.readmitted.push(event.event_id().clone());
        }
        if place == Place::Newest {
            self.note_edges(view, event);
            self.states.push(self.state);
            self.redact(view, event, Some(before.root)).await?;
        }
        self.new.push(NewEvent {
            event: event.clone(),
            place,
            soft_failed: false,
            claimed: before.claimed,
            state_before: Some(before.root),
            state_after: Some(after),
            outbox: None,
        });
        Ok(true)
    }

    /// Puts what `event` builds upon in its place, if it is a forward extremity: it is rejected now.
    async fn leave_extremity(&mut self, view: &mut View<'_>, event: &Event, graph: &Graph) -> Result<(), RoomError> {
        let before = self.extremities.len();
        self.extremities.retain(|one| one.event_id != *event.event_id());
        if self.extremities.len() == before {
            return Ok(());
        }
        let firm = self.firm_extremities(view).await?;
        let built_upon = graph.reachable(firm.into_iter());
        let behind = behind(view, event).await?;
        view.load_events(&behind).await?;
        let stand = |id: &EventId| view.stored(id).filter(|stored| !stored.soft_failed && stored.state_after.is_some());
        let next = behind.iter().filter(|id| !built_upon.contains(*id)).filter_map(stand);
        let mut next: Vec<StoredEvent> = next.cloned().collect();
        if next.iter().any(|stored| !stored.outlier) || !self.extremities.is_empty() {
            next.retain(|stored| !stored.outlier);
        }
        if next.len() + self.extremities.len() > 1 {
            // The graph does not hold what is between two events that rest on nothing claimed.
            let above: Vec<EventId> = self.extremities.iter().map(|one| one.event_id.clone()).collect();
            let built_upon = view.built_upon(event.room_id(), &above, &next).await?;
            next.retain(|stored| !built_upon.contains(stored.event.event_id().as_str()));
        }
        self.extremities.extend(next.into_iter().map(|next| Extremity::of(&next.event)));
        Ok(())
    }

    /// Drops forward extremities that others are built upon, as the history between them shows. What is behind one whose state is
    /// still claimed stays: it may be no part of that.
    async fn drop_built_upon(&mut self, view: &mut View<'_>, graph: &Graph) -> Result<(), RoomError> {
        let firm = self.firm_extremities(view).await?;
        let cited = firm.iter().filter_map(|id| graph.nodes.get(id)).flat_map(|node| node.previous.clone());
        let built_upon = graph.reachable(cited);
        self.extremities.retain(|one| !built_upon.contains(&one.event_id));
        Ok(())
    }

    /// The forward extremities whose state rests on no claim.
    async fn firm_extremities(&self, view: &mut View<'_>) -> Result<Vec<EventId>, RoomError> {
        let mut ids = self.load_extremities(view).await?;
        ids.retain(|id| view.state_after(id).is_some_and(|state| !state.claimed));
        Ok(ids)
    }

    /// Makes the current state what the forward extremities, whose states may be others now, resolve to.
    pub(super) async fn follow_extremities(&mut self, view: &mut View<'_>) -> Result<(), RoomError> {
        if self.is_unchanged() && self.extremities == self.room.extremities {
            return Ok(());
        }
        let Some(state) = self.state_of_extremities(view).await?.filter(|state| *state != self.state) else {
            return Ok(());
        };
        self.state = state;
        match self.states.last_mut() {
            Some(last) => *last = state,
            None => self.states.push(state),
        }
        Ok(())
    }
}
