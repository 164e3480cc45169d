//! What was compared, so that nothing drops out unseen.

use std::{collections::BTreeMap, fmt};

use verge::matrix::{auth_rules::AuthState, state_content::Membership};

use crate::common::rooms::{Room, RoomEvent};

/// How often something came up, by what it is.
#[derive(Debug, Default)]
pub(crate) struct Counts(BTreeMap<String, usize>);

/// What there has to be of each kind at least in a run of the default size: about a third of what there is with seed 0.
const ENOUGH: [(&str, usize); 39] = [
    ("accepted", 14_000),
    ("aliases", 270),
    ("bans", 800),
    ("bans lifted", 60),
    ("deep rooms", 40),
    ("events judged by ruma", 33_000),
    ("foreign auth events", 350),
    ("joins of the invited", 140),
    ("kicks", 640),
    ("knocks", 110),
    ("merges of more than 64 states by Synapse", 20),
    ("merges with a rejected event", 400),
    ("more than 5 prev events", 40),
    ("overlong members", 70),
    ("power levels", 3_200),
    ("redactions", 480),
    ("rejected", 23_000),
    ("restricted joins", 60),
    ("signatures checked by Synapse", 9_000),
    ("signatures checked by ruma", 8_400),
    ("states resolved by Synapse", 4_100),
    ("states resolved by ruma", 3_000),
    ("third-party invites", 520),
    ("third-party invites redeemed", 45),
    ("unknown auth events", 350),
    ("Content taken", 390),
    ("Expired dropped", 360),
    ("Excuse dropped", 40),
    ("JustExpired taken", 370),
    ("JustValid taken", 370),
    ("MalformedHash taken", 360),
    ("MalformedSignature dropped", 340),
    ("None taken", 2_400),
    ("NotValid dropped", 200),
    ("OtherAlphabet taken", 360),
    ("Redacted taken", 370),
    ("SecondWrong dropped", 380),
    ("UnknownKey dropped", 360),
    ("Unsigned dropped", 360),
];

impl Counts {
    pub(crate) fn add(mut self, other: Self) -> Self {
        other.0.into_iter().for_each(|(what, count)| *self.0.entry(what).or_default() += count);
        self
    }

    pub(crate) fn count(&mut self, what: impl Into<String>) {
        *self.0.entry(what.into()).or_default() += 1;
    }

    /// Counts an event, and what is remarkable about it.
    pub(crate) fn event(&mut self, room: &Room, event: &RoomEvent, by_ruma: bool) {
        let mut count = |what: &'static str| self.count(what);
        let accepted = !event.rejected;
        count(if accepted { "accepted" } else { "rejected" });
        if by_ruma {
            count("events judged by ruma");
        }
        let state = room.with_events(&event.state);
        let event = &event.event;
        let content = event.content();
        let target =
            event.state_key().and_then(|user| state.get("m.room.member", user)?.membership().map(Membership::as_str));
        let join_rule = state.get("m.room.join_rules", "").and_then(|rules| rules.content().get("join_rule")?.as_str());
        let is_in = matches!(target, Some("join" | "invite"));
        if event.event_type() == "m.room.member" && accepted {
            match event.membership().map(Membership::as_str) {
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

    /// Fails where less was compared than there should be.
    pub(crate) fn assert_enough(&self, with_synapse: bool) {
        for (what, least) in ENOUGH {
            let count = self.0.get(what).copied().unwrap_or_default();
            assert!(count >= least || !with_synapse && what.contains("Synapse"), "{what}: {count}, not {least}");
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(what, count)| writeln!(f, "{what}: {count}"))
    }
}
