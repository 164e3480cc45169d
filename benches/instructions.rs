//! What a PDU's checks cost beside the one thing in them that cannot be cheaper, counted in instructions: these are the
//! same whatever else the machine does. Needs valgrind.
//!
//! - **whole**: a message PDU from its text to an event, with its ID, content hash and signature checked, then judged by
//!   the list of its auth events, and by three states: those of its auth events, before it, and now.
//! - **bare**: its signature, checked by `VerifyKey::verify_text`.
//!
//! This program runs itself under valgrind, so many times each and then twice as many times: the difference is what is
//! counted, without what comes before. `--json` prints each row as JSON.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

mod inputs;

use std::{env, hint::black_box, io::ErrorKind, process::Command};

use inputs::{Room, SERVER, as_sent, key_ring, signing_key, version};
use serde_json::json;
use verge::matrix::{event::ReceivedPdu, redaction, signing::signatures_of};

const TIMES: u64 = 100;
/// How many times its bare signature a PDU may cost.
const AT_MOST: f64 = 2.0;

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    if let [_, part, version, times] = arguments.as_slice() {
        return do_it(part, version, times.parse().unwrap());
    }
    for version in ["6", "10", "11", "12"] {
        let (Some(whole), Some(bare)) = (count("whole", version), count("bare", version)) else {
            eprintln!("valgrind is not installed, so no instructions are counted.");
            return;
        };
        let what = format!("instructions/v{version}/a PDU of 1 KB");
        if has("--json") {
            println!("{}", json!({ "what": what, "ours": whole, "bare": bare, "atMost": AT_MOST }));
        } else {
            let ratio = whole as f64 / bare as f64;
            println!("{what}: {whole}, of which its signature {bare}: {ratio:.2} times (at most {AT_MOST})");
        }
    }
}

/// The instructions of one time. `None` where there is no valgrind.
fn count(part: &str, version: &str) -> Option<u64> {
    let once = count_all(part, version, TIMES)?;
    Some((count_all(part, version, 2 * TIMES)? - once) / TIMES)
}

fn count_all(part: &str, version: &str, times: u64) -> Option<u64> {
    let program = env::current_exe().unwrap();
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]);
    let output = match valgrind.arg(program).args(["--do", part, version, &times.to_string()]).output() {
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        output => output.unwrap(),
    };
    let printed = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{printed}");
    let refs = printed.lines().find_map(|line| line.split_once("refs:")).unwrap().1;
    Some(refs.trim().replace(',', "").parse().unwrap())
}

fn do_it(part: &str, version_id: &str, times: u64) {
    let version = version(version_id);
    let (room, keys, key) = (Room::new(version, 1, "public"), key_ring(), signing_key().verify_key());
    let pdu = room.message(1_000, 0);
    let text = as_sent(&pdu.clone().into());
    let mut signed = redaction::redact(&pdu, version);
    signed.remove("signatures");
    let signed = signed.to_text();
    let (_, signature) = signatures_of(&pdu, SERVER).next().unwrap();
    for _ in 0..times {
        match part {
            "whole" => {
                let received = ReceivedPdu::parse(black_box(text.as_bytes()), version).unwrap();
                let event = received.verify(&keys).unwrap();
                room.check_auth_events(&event).unwrap();
                for _ in 0..3 {
                    black_box(&room).check_by_state(&event).unwrap();
                }
            }
            "bare" => black_box(&key).verify_text(black_box(&signed), signature).unwrap(),
            _ => panic!("{part} is no part"),
        }
    }
}
