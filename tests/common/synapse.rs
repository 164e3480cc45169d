//! Synapse's own code as an oracle: `tests/oracle/synapse_oracle.py`, run by a Python that has it.

use std::{
    env,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use serde_json::{Value, json};
use verge::matrix::room_version::RoomVersion;

use super::{
    rooms::{Room, State},
    signed::SignedPdu,
};

/// A Python process that answers one request after another.
pub struct Synapse {
    process: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Synapse {
    /// Starts the process. `None` where `VERGE_SYNAPSE_PYTHON` does not say with which Python, which fails the test under
    /// `VERGE_REQUIRE_ORACLES=1`.
    pub fn start() -> Option<Self> {
        let Ok(python) = env::var("VERGE_SYNAPSE_PYTHON") else {
            let required = env::var("VERGE_REQUIRE_ORACLES").is_ok_and(|required| required == "1");
            assert!(!required, "VERGE_SYNAPSE_PYTHON must name a Python that has matrix-synapse; `npm test` sets it");
            // Past the capture of test output: it is to be seen.
            let _ = writeln!(std::io::stderr(), "NOT COMPARED with Synapse: VERGE_SYNAPSE_PYTHON names no Python");
            return None;
        };
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/oracle/synapse_oracle.py");
        let mut process = Command::new(&python)
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{python} does not start: {error}"));
        let requests = process.stdin.take().unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap());
        Some(Self { process, requests, answers })
    }

    /// What Synapse says of each event of a room, of the resolution of each list of states, and of signed PDUs.
    pub fn judge(&mut self, room: &Room, resolve: &[Vec<&State>], signed: &[SignedPdu]) -> Answer {
        let positions = |state: &State| state.values().copied().collect::<Vec<_>>();
        let own = room.events.iter().map(
            |event| json!({ "json": event.event.json(), "rejected": event.rejected, "state": positions(&event.state) }),
        );
        let foreign =
            room.foreign.iter().map(|event| json!({ "json": event.json(), "rejected": false, "state": null }));
        let events: Vec<_> = own.chain(foreign).collect();
        let resolve: Vec<Vec<_>> =
            resolve.iter().map(|states| states.iter().map(|state| positions(state)).collect()).collect();
        let pdus: Vec<_> =
            signed.iter().map(|signed| json!({ "json": signed.pdu.to_text(), "keys": signed.keys() })).collect();
        self.ask(&json!({ "version": room.version.id, "events": events, "resolve": resolve, "pdus": pdus }))
    }

    /// What Synapse says of PDUs that stand by themselves, as texts.
    pub fn check(&mut self, version: &RoomVersion, pdus: &[String]) -> Answer {
        let pdus: Vec<_> = pdus.iter().map(|text| json!({ "json": text, "keys": null })).collect();
        self.ask(&json!({ "version": version.id, "events": [], "resolve": [], "pdus": pdus }))
    }

    /// The answer to a request as the script describes it.
    pub fn ask(&mut self, request: &Value) -> Answer {
        writeln!(self.requests, "{request}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        let answer =
            serde_json::from_str(&line).unwrap_or_else(|error| panic!("the oracle answered {line:?}: {error}"));
        Answer(answer)
    }
}

impl Drop for Synapse {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What Synapse says of a room.
pub struct Answer(Value);

impl Answer {
    /// A text that it computed for an event: `id`, `hash` or `redacted`.
    pub fn text(&self, position: usize, name: &str) -> &str {
        self.0["events"][position][name].as_str().unwrap()
    }

    /// The keys that auth events selection selects, in order. `None` where it fails, which refuses the event.
    pub fn keys(&self, position: usize) -> Option<Vec<(String, String)>> {
        pairs(&self.0["events"][position]["keys"])
    }

    /// Why a set of rules, `independent` or `dependent` of state, refuses an event.
    pub fn refusal(&self, position: usize, rules: &str) -> Option<&str> {
        self.0["events"][position][rules].as_str()
    }

    /// Whether a PDU has the right format: why it is rejected, if it is, or why it is dropped.
    pub fn format(&self, position: usize) -> Result<Option<&str>, &str> {
        let pdu = &self.0["pdus"][position];
        match pdu["dropped"].as_str() {
            Some(reason) => Err(reason),
            None => Ok(pdu["rejected"].as_str()),
        }
    }

    /// What becomes of a signed PDU: the event that is taken, whole or redacted, or why it is dropped.
    pub fn checked(&self, position: usize) -> Result<&str, &str> {
        let pdu = &self.0["pdus"][position];
        match pdu["dropped"].as_str().or(pdu["unsigned"].as_str()) {
            Some(reason) => Err(reason),
            None => pdu["checked"].as_str().ok_or("the content hash cannot be checked"),
        }
    }

    /// The resolution of a list of states: keys and event IDs, in order.
    pub fn resolved(&self, position: usize) -> Result<Vec<(String, String, String)>, &str> {
        let resolved = &self.0["resolved"][position];
        if let Some(error) = resolved["error"].as_str() {
            return Err(error);
        }
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        Ok(resolved
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| (text(&entry[0]), text(&entry[1]), text(&entry[2])))
            .collect())
    }
}

fn pairs(list: &Value) -> Option<Vec<(String, String)>> {
    let text = |value: &Value| value.as_str().map(str::to_owned).unwrap_or_else(|| value.to_string());
    Some(list.as_array()?.iter().map(|pair| (text(&pair[0]), text(&pair[1]))).collect())
}
