//! What can go wrong in a world, each as a switch: a seed turns on some of those that are allowed.

use std::collections::BTreeSet;

use crate::common::generator::Random;

/// One kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A transaction is answered with 200 on the way, and never arrives.
    Lose,
    /// A transaction arrives, its answer does not.
    Deafen,
    /// Only some PDUs of a transaction arrive.
    Cut,
    /// A transaction arrives twice, or again much later.
    Double,
    /// A server is away for a while; its users go on alone.
    Outage,
    /// Users leave; where all of a server do, they come back through another one.
    Leave,
    /// Honest servers answer some questions of each other with 503.
    Overload,
    /// Whatever runs at the same time is interleaved at random.
    Interleave,
    /// The malicious server passes on what honest servers send it, before they do.
    Relay,
    /// It passes on altered copies.
    Forge,
    /// It makes events that the room's rules forbid, and others that cite them.
    Forbidden,
    /// It keeps its own events from some servers, and gives parts of what it is asked for.
    Withhold,
    /// It answers with 404.
    Unknown,
    /// It answers with 500.
    Break,
    /// It answers after so long that nobody waits.
    Dawdle,
    /// It answers with empty lists.
    Empty,
    /// It answers with what was so long ago.
    Old,
    /// It answers with altered copies.
    Tamper,
    /// It goes on when all else has healed, until nothing is lacking but what it alone has.
    Persist,
}

impl Fault {
    /// All faults, by their names.
    const ALL: [(Self, &str); 19] = [
        (Self::Lose, "lose"),
        (Self::Deafen, "deafen"),
        (Self::Cut, "cut"),
        (Self::Double, "double"),
        (Self::Outage, "outage"),
        (Self::Leave, "leave"),
        (Self::Overload, "overload"),
        (Self::Interleave, "interleave"),
        (Self::Relay, "relay"),
        (Self::Forge, "forge"),
        (Self::Forbidden, "forbidden"),
        (Self::Withhold, "withhold"),
        (Self::Unknown, "unknown"),
        (Self::Break, "break"),
        (Self::Dawdle, "dawdle"),
        (Self::Empty, "empty"),
        (Self::Old, "old"),
        (Self::Tamper, "tamper"),
        (Self::Persist, "persist"),
    ];
}

/// Faults that are on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults(BTreeSet<Fault>);

impl Faults {
    /// Those that `GAPS_FAULTS` names, separated by commas; without it all.
    pub fn allowed() -> Self {
        let named = std::env::var("GAPS_FAULTS").ok();
        let Some(named) = named else {
            return Self(Fault::ALL.iter().map(|(fault, _)| *fault).collect());
        };
        let find = |name: &str| Fault::ALL.iter().find(|(_, known)| *known == name).map(|(fault, _)| *fault);
        let names = named.split(',').filter(|name| !name.is_empty());
        Self(names.map(|name| find(name).unwrap_or_else(|| panic!("no fault is called {name}"))).collect())
    }

    /// Each of these with even odds.
    pub fn some(&self, random: &mut Random) -> Self {
        Self(self.0.iter().copied().filter(|_| random.percent(50)).collect())
    }

    /// Whether `fault` is on.
    pub fn has(&self, fault: Fault) -> bool {
        self.0.contains(&fault)
    }
}

impl std::fmt::Display for Faults {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = Fault::ALL.iter().filter(|(fault, _)| self.has(*fault)).map(|(_, name)| *name);
        f.write_str(&names.collect::<Vec<_>>().join(","))
    }
}
