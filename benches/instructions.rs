//! What must not cost much more than something else, counted in instructions: these are the same whatever else the machine
//! does. Needs valgrind.
//!
//! - A message PDU's whole check beside its bare signature, the one thing in it that cannot be cheaper. The whole check
//!   goes from its text to an event, with its ID, content hash and signature checked, then judged by the list of its auth
//!   events, and by three states: those of its auth events, before it, and now. The bare signature is checked by
//!   `VerifyKey::verify_text`.
//! - The resolution of a fork in a room of 100,000 state events beside the same fork in a room of 1,000.
//!
//! This program runs itself under valgrind, so many times each and then twice as many times: the difference is what is
//! counted, without what comes before. `--json` prints each row as JSON.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

#[path = "inputs/forked_room.rs"]
mod forked_room;
mod inputs;

use std::{
    env,
    hint::black_box,
    io::ErrorKind,
    process::{Child, Command, Stdio},
};

use forked_room::ForkedRoom;
use inputs::{Room, SERVER, as_sent, key_ring, signing_key, version};
use serde_json::json;
use verge::matrix::{event::ReceivedPdu, redaction, signing::signatures_of};

/// How many times the instructions of its bare signature a PDU may cost.
const PDU_AT_MOST: f64 = 2.0;
/// How many times the instructions that it costs in a room of 1,000 state events a fork may cost in a room of 100,000.
const LARGE_ROOM_AT_MOST: f64 = 1.3;

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let [first, times, part @ ..] = arguments.as_slice()
        && first == "--do"
    {
        return do_it(&part.iter().map(String::as_str).collect::<Vec<_>>(), times.parse().unwrap());
    }
    if let Err(error) = Command::new("valgrind").arg("--version").output()
        && error.kind() == ErrorKind::NotFound
    {
        eprintln!("valgrind is not installed, so no instructions are counted.");
        return;
    }
    let as_json = arguments.iter().any(|argument| argument == "--json");
    let print = |what: &str, ours: u64, (than, other): (&str, u64), at_most: f64| {
        if as_json {
            println!("{}", json!({ "what": what, "ours": ours, "than": than, "other": other, "atMost": at_most }));
        } else {
            println!("{what}: {ours}, {than}: {other}, {:.2} times (at most {at_most})", ours as f64 / other as f64);
        }
    };
    for version in ["6", "10", "11", "12"] {
        let what = format!("instructions/v{version}/a PDU of 1 KB");
        let bare = ("its signature", count(&["bare", version], 100));
        print(&what, count(&["whole", version], 100), bare, PDU_AT_MOST);
    }
    for version in ["11", "12"] {
        for (forks, conflicts) in [("2", "10"), ("2", "100"), ("2", "1000"), ("8", "100"), ("8", "1000")] {
            let what = format!("instructions/v{version}/100000 events/{forks} forks/{conflicts}");
            let of_size = |size| count(&["fork", version, size, forks, conflicts], 10);
            print(&what, of_size("100000"), ("in 1000", of_size("1000")), LARGE_ROOM_AT_MOST);
        }
    }
}

/// The instructions of one time.
fn count(part: &[&str], times: u64) -> u64 {
    let (once, twice) = (start(part, times), start(part, 2 * times));
    let once = counted(once);
    (counted(twice) - once) / times
}

fn start(part: &[&str], times: u64) -> Child {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]);
    valgrind.arg(env::current_exe().unwrap()).args(["--do", &times.to_string()]).args(part);
    valgrind.stderr(Stdio::piped()).spawn().unwrap()
}

fn counted(valgrind: Child) -> u64 {
    let output = valgrind.wait_with_output().unwrap();
    let printed = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{printed}");
    let refs = printed.lines().find_map(|line| line.split_once("refs:")).unwrap().1;
    refs.trim().replace(',', "").parse().unwrap()
}

fn do_it(part: &[&str], times: u64) {
    match *part {
        ["fork", version, size, forks, conflicts] => {
            let number = |text: &str| text.parse().unwrap();
            let room = ForkedRoom::new(version, number(size), number(forks), number(conflicts));
            (0..times).for_each(|_| drop(black_box(black_box(&room).resolve())));
        }
        [part, version] => check(part, version, times),
        _ => panic!("{part:?} is no part"),
    }
}

fn check(part: &str, version_id: &str, times: u64) {
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
