//! What the malicious server does besides what a server does: it passes on others' events before they do, keeps back its own,
//! and answers questions with anything but the truth.

use http::StatusCode;
use serde_json::{Value, json};
use verge::{
    platform::{Clock, TransportError},
    router::json_response,
};

use crate::{
    common::{network::Passing, peer::encode},
    faults::Fault,
    signing,
    wire::{Network, Outcome, SEND, describe},
    world::{EVIL, HONEST},
};

/// The questions that it lies about. What it says of its own keys is true, and nobody joins through it: joins go through
/// servers that users trust.
const QUESTIONS: [&str; 6] = ["get_missing_events", "backfill", "state_ids", "state", "event_auth", "event"];

/// How it may answer.
#[derive(Debug, Clone, Copy)]
enum Lie {
    Truth,
    Unknown,
    Break,
    Dawdle,
    Empty,
    Part,
    Old,
    Tampered,
}

impl Network {
    /// Passes on what an honest server sends it to the others, before they have it from there.
    pub async fn relay(&self, passing: &Passing) {
        let relays = self.has(Fault::Relay) || self.has(Fault::Forge);
        if !relays || self.dice.percent(40) {
            return;
        }
        let body: Value = serde_json::from_slice(passing.request.body()).unwrap();
        for to in HONEST.into_iter().filter(|to| *to != passing.from && !self.is_away(to)) {
            let mut pdus = body["pdus"].as_array().unwrap().clone();
            pdus.retain(|_| self.dice.percent(70));
            if self.has(Fault::Forge) && (!self.has(Fault::Relay) || self.dice.percent(50)) {
                pdus.iter_mut().for_each(|pdu| self.tamper(pdu));
            }
            if pdus.is_empty() {
                continue;
            }
            let told: Vec<String> = pdus.iter().map(describe).collect();
            self.story.tell(&format!("   {EVIL} relays to {to}: {}", told.join(", ")));
            let target = format!("{SEND}relayed{}", self.dice.count());
            let body = json!({ "origin": EVIL, "origin_server_ts": self.world.now_ms(), "pdus": pdus });
            if let Some(host) = self.world.host(to) {
                host(signing::request(EVIL, to, "PUT", &target, Some(&body))).await;
            }
        }
    }

    /// What becomes of a transaction of its own.
    pub async fn malicious_transaction(&self, passing: Passing) -> Outcome {
        let Passing { from, to, mut request, host } = passing;
        if self.has(Fault::Withhold) && self.dice.percent(60) {
            if self.dice.percent(50) {
                self.tell_transaction(&from, &to, &request, "withheld");
                return Ok(json_response(StatusCode::OK, &json!({ "pdus": {} })));
            }
            request = self.with_pdus(&from, &to, &request, |mut pdus| {
                pdus.retain(|_| self.dice.percent(50));
                pdus
            });
        }
        self.tell_transaction(&from, &to, &request, "given");
        Ok(host(request).await)
    }

    /// What it answers to an honest server.
    pub async fn malicious_answer(&self, passing: Passing) -> Outcome {
        let path = passing.request.uri().path().to_owned();
        let question = QUESTIONS.into_iter().find(|question| path.contains(&format!("/v1/{question}/")));
        let Some(question) = question else { return Ok((passing.host)(passing.request).await) };
        let lie = self.lie();
        self.story.tell(&format!("   {} asks {EVIL} for {question}: {lie:?}", passing.from));
        let refusal = |status| json_response(status, &json!({ "errcode": "M_UNKNOWN", "error": "no" }));
        match lie {
            Lie::Truth => Ok((passing.host)(passing.request).await),
            Lie::Unknown => Ok(refusal(StatusCode::NOT_FOUND)),
            Lie::Break => Ok(refusal(StatusCode::INTERNAL_SERVER_ERROR)),
            Lie::Dawdle => {
                self.world.sleep(25_000).await;
                Err(TransportError::TimedOut)
            }
            Lie::Empty => {
                let empty = match question {
                    "get_missing_events" => json!({ "events": [] }),
                    "event_auth" => json!({ "auth_chain": [] }),
                    "state_ids" => json!({ "pdu_ids": [], "auth_chain_ids": [] }),
                    "state" => json!({ "pdus": [], "auth_chain": [] }),
                    _ => json!({ "origin": EVIL, "origin_server_ts": 1, "pdus": [] }),
                };
                Ok(json_response(StatusCode::OK, &empty))
            }
            Lie::Old => self.old_answer(question, passing).await,
            Lie::Part | Lie::Tampered => self.altered_answer(lie, passing).await,
        }
    }

    fn lie(&self) -> Lie {
        let lies = [
            (Fault::Unknown, Lie::Unknown),
            (Fault::Break, Lie::Break),
            (Fault::Dawdle, Lie::Dawdle),
            (Fault::Empty, Lie::Empty),
            (Fault::Withhold, Lie::Part),
            (Fault::Old, Lie::Old),
            (Fault::Tamper, Lie::Tampered),
        ];
        let mut possible: Vec<Lie> = lies.iter().filter(|(fault, _)| self.has(*fault)).map(|(_, lie)| *lie).collect();
        possible.push(Lie::Truth);
        possible[self.dice.below(possible.len())]
    }

    /// The answer to the same question about an event from long ago.
    async fn old_answer(&self, question: &str, passing: Passing) -> Outcome {
        let Passing { from, to, request, host } = passing;
        let rows =
            self.evil.rows("SELECT e.event_id FROM timeline AS t JOIN events AS e USING (event_nid) ORDER BY t.pos");
        let target = request.uri().path_and_query().unwrap().as_str().to_owned();
        // The same for all questions about one event: one lie, told again and again.
        let about = target
            .rsplit(['/', '='])
            .next()
            .unwrap_or_default()
            .bytes()
            .fold(7, |hash: usize, byte| hash.wrapping_mul(31).wrapping_add(usize::from(byte)));
        // The first events are a room that nobody is in yet.
        let old = &rows[160.min(rows.len() - 1)..];
        let old = encode(&old[about % old.len()][0]);
        let room = target.split('/').nth(5).unwrap_or_default().split('?').next().unwrap_or_default().to_owned();
        let target = match question {
            "event" => format!("/_matrix/federation/v1/event/{old}"),
            "event_auth" => format!("/_matrix/federation/v1/event_auth/{room}/{old}"),
            "state" | "state_ids" => format!("/_matrix/federation/v1/{question}/{room}?event_id={old}"),
            "backfill" => format!("/_matrix/federation/v1/backfill/{room}?v={old}&limit=50"),
            _ => {
                let mut body: Value = serde_json::from_slice(request.body()).unwrap();
                body["latest_events"] = json!([rows[about % rows.len()][0]]);
                return Ok(host(signing::request(&from, &to, "POST", &target, Some(&body))).await);
            }
        };
        Ok(host(signing::request(&from, &to, "GET", &target, None)).await)
    }

    /// Part of the true answer, or altered copies.
    async fn altered_answer(&self, lie: Lie, passing: Passing) -> Outcome {
        let response = (passing.host)(passing.request).await;
        let Ok(mut body) = serde_json::from_slice::<Value>(response.body()) else { return Ok(response) };
        for name in ["events", "pdus", "auth_chain", "pdu_ids", "auth_chain_ids"] {
            let Some(list) = body.get_mut(name).and_then(Value::as_array_mut) else { continue };
            match lie {
                Lie::Tampered => {
                    list.iter_mut()
                        .filter(|item| item.is_object() && self.dice.percent(40))
                        .for_each(|pdu| self.tamper(pdu));
                }
                _ => list.retain(|_| self.dice.percent(70)),
            }
        }
        Ok(json_response(response.status(), &body))
    }

    /// Alters a PDU, in one of the ways that a server must notice.
    fn tamper(&self, pdu: &mut Value) {
        match self.dice.below(5) {
            // The content's hash is wrong, and all that it covers: the event is known by its redacted form.
            0 | 1 => pdu["content"]["body"] = json!("altered"),
            // Another event, which nobody has signed.
            2 => pdu["depth"] = json!(pdu["depth"].as_i64().unwrap_or_default() + 1),
            3 => pdu["hashes"]["sha256"] = json!("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"),
            // The same event, which nobody has signed.
            _ => {
                let signatures = pdu["signatures"].as_object_mut().unwrap();
                for keys in signatures.values_mut() {
                    for signature in keys.as_object_mut().unwrap().values_mut() {
                        let text = signature.as_str().unwrap();
                        let first = if text.starts_with('A') { "B" } else { "A" };
                        *signature = json!(format!("{first}{}", &text[1..]));
                    }
                }
            }
        }
    }
}
