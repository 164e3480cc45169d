//! What was compared, so that nothing drops out unseen.

use std::{collections::BTreeMap, fmt};

use verge::matrix::auth_rules::AuthState;

use crate::{
    common::{
        rooms::{Room, RoomEvent},
        signed::Damage,
    },
    signatures::{Difference, Outcome},
};

#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) rooms: usize,
    pub(crate) deep: usize,
    pub(crate) resolved_by_synapse: usize,
    pub(crate) resolved_by_ruma: usize,
    pub(crate) signed_for_synapse: usize,
    pub(crate) signed_for_ruma: usize,
    /// By what it is of what.
    events: BTreeMap<&'static str, usize>,
    signed: BTreeMap<(Damage, &'static str), usize>,
    differences: BTreeMap<Difference, usize>,
}

/// What there has to be of each kind at least, in a run of the default size. A third of what there was when it was written,
/// with seed 0.
const ENOUGH: [(&str, usize); 0] = [];

impl Counts {
    pub(crate) fn add(mut self, other: Self) -> Self {
        self.rooms += other.rooms;
        self.deep += other.deep;
        self.resolved_by_synapse += other.resolved_by_synapse;
        self.resolved_by_ruma += other.resolved_by_ruma;
        self.signed_for_synapse += other.signed_for_synapse;
        self.signed_for_ruma += other.signed_for_ruma;
        other.events.into_iter().for_each(|(what, count)| *self.events.entry(what).or_default() += count);
        other.signed.into_iter().for_each(|(what, count)| *self.signed.entry(what).or_default() += count);
        other.differences.into_iter().for_each(|(what, count)| *self.differences.entry(what).or_default() += count);
        self
    }

    /// Counts an event, and what is remarkable about it.
    pub(crate) fn event(&mut self, room: &Room, event: &RoomEvent, by_ruma: bool) {
        let mut count = |what: &'static str| *self.events.entry(what).or_default() += 1;
        let accepted = !event.rejected;
        count(if accepted { "accepted" } else { "rejected" });
        if by_ruma {
            count("judged by ruma");
        }
        let state = room.with_events(&event.state);
        let event = &event.event;
        let content = event.content();
        let target = event.state_key().and_then(|user| state.get("m.room.member", user)?.membership());
        let join_rule = state.get("m.room.join_rules", "").and_then(|rules| rules.content().get("join_rule")?.as_str());
        let is_in = matches!(target, Some("join" | "invite"));
        if event.event_type() == "m.room.member" && accepted {
            match event.membership() {
                Some("join") if !is_in && matches!(join_rule, Some("restricted" | "knock_restricted")) => {
                    count("restricted joins");
                }
                Some("join") if target == Some("invite") => count("joins of the invited"),
                Some("invite") if content.contains_key("third_party_invite") => count("third-party invites redeemed"),
                Some("knock") => count("knocks"),
                Some("ban") => count("bans"),
                Some("leave") if target == Some("ban") => count("bans lifted"),
                Some("leave") if event.state_key() != Some(event.sender().as_str()) => count("kicks"),
                _ => {}
            }
        }
        match event.event_type() {
            "m.room.power_levels" if accepted => count("power levels"),
            "m.room.redaction" if accepted => count("redactions"),
            "m.room.third_party_invite" if accepted => count("third-party invites"),
            "m.room.aliases" if accepted => count("aliases"),
            _ => {}
        }
        if event.auth_events().iter().any(|id| room.auth_event(id).is_none()) {
            count("unknown auth events");
        }
        if event.auth_events().iter().any(|id| room.foreign.iter().any(|foreign| foreign.event_id() == id)) {
            count("foreign auth events");
        }
        if event.oversized_member().is_some() {
            count("overlong members");
        }
        if event.prev_events().len() > 5 {
            count("more than 5 prev events");
        }
    }

    pub(crate) fn merge(&mut self, states: usize, has_rejected: bool) {
        let mut count = |what: &'static str| *self.events.entry(what).or_default() += 1;
        if states > 64 {
            count("merges of more than 64 states");
        }
        if has_rejected {
            count("merges with a rejected event");
        }
    }

    pub(crate) fn signed(&mut self, damage: Damage, outcome: &Outcome) {
        let outcome = match outcome {
            Outcome::Dropped(_) => "dropped",
            Outcome::Taken(_) => "taken",
        };
        *self.signed.entry((damage, outcome)).or_default() += 1;
    }

    pub(crate) fn difference(&mut self, difference: Difference) {
        *self.differences.entry(difference).or_default() += 1;
    }

    /// Fails where less was compared than there should be.
    pub(crate) fn assert_enough(&self, with_synapse: bool) {
        for (what, least) in ENOUGH {
            let count = self.events.get(what).copied().unwrap_or_default();
            assert!(count >= least, "{what}: {count}, not {least}");
        }
        assert!(!with_synapse || self.resolved_by_synapse > 0);
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} rooms, {} of them deep", self.rooms, self.deep)?;
        writeln!(f, "states resolved by Synapse {}, by ruma {}", self.resolved_by_synapse, self.resolved_by_ruma)?;
        writeln!(f, "signatures checked by Synapse {}, by ruma {}", self.signed_for_synapse, self.signed_for_ruma)?;
        for (what, count) in &self.events {
            writeln!(f, "{what}: {count}")?;
        }
        for ((damage, outcome), count) in &self.signed {
            writeln!(f, "{damage:?} {outcome}: {count}")?;
        }
        for (difference, count) in &self.differences {
            writeln!(f, "{difference:?}: {count}")?;
        }
        Ok(())
    }
}
