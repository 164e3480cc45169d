#![allow(clippy::unwrap_used)]

use super::*;

const RATE: Rate = Rate { burst: 10, seconds: 60 };

#[test]
fn workers_are_told_apart_by_their_zones() {
    let network = |address: &str, zone: &str| {
        let mut headers = HeaderMap::new();
        headers.insert("cf-connecting-ip", address.parse().unwrap());
        headers.insert("cf-worker", zone.parse().unwrap());
        network_of_request(&headers)
    };
    assert_ne!(network(ADDRESS_OF_WORKERS, "one.example"), network(ADDRESS_OF_WORKERS, "two.example"));
    // Anybody else may send what they like under that name.
    assert_eq!(network("2001:db8::1", "one.example"), network("2001:db8::1", "two.example"));
}

#[test]
fn a_bucket_empties_and_fills_again() {
    let admission = Admission::default();
    for _ in 0..10 {
        assert_eq!(admission.take(Kind::Login, "a", RATE, 0, 1_000), Turn::Now);
    }
    assert_eq!(admission.take(Kind::Login, "a", RATE, 0, 1_000), Turn::Refused(6_000));
    // Being refused costs nothing, and others are not concerned.
    assert_eq!(admission.take(Kind::Login, "a", RATE, 0, 1_000), Turn::Refused(6_000));
    assert_eq!(admission.take(Kind::Login, "b", RATE, 0, 1_000), Turn::Now);
    assert_eq!(admission.take(Kind::Federation, "a", RATE, 0, 1_000), Turn::Now);
    assert_eq!(admission.take(Kind::Login, "a", RATE, 0, 7_000), Turn::Now);
    assert_eq!(admission.take(Kind::Login, "a", RATE, 0, 7_000), Turn::Refused(6_000));
    // The clock may stand or go back.
    assert_eq!(admission.take(Kind::Login, "a", RATE, 0, 0), Turn::Refused(6_000));
}

#[test]
fn who_is_patient_waits_in_turn() {
    let admission = Admission::default();
    for _ in 0..10 {
        admission.take(Kind::Federation, "a", RATE, 13_000, 0);
    }
    assert_eq!(admission.take(Kind::Federation, "a", RATE, 13_000, 0), Turn::After(6_000));
    assert_eq!(admission.take(Kind::Federation, "a", RATE, 13_000, 0), Turn::After(12_000));
    assert_eq!(admission.take(Kind::Federation, "a", RATE, 13_000, 0), Turn::Refused(18_000));
    // One at a time is never refused, whatever the rate.
    let mut now = 0;
    for _ in 0..100 {
        let turn = admission.take(Kind::Federation, "b", RATE, 6_000, now);
        assert!(!matches!(turn, Turn::Refused(_)), "refused at {now}");
        if let Turn::After(ms) = turn {
            now += i64::from(ms);
        }
    }
    assert_eq!(now, 90 * 6_000);
}

#[test]
fn names_without_end_take_bounded_memory() {
    let admission = Admission::default();
    for i in 0..3 * MAX_BUCKETS {
        admission.take(Kind::Login, &i.to_string(), RATE, 0, 0);
        assert!(admission.buckets[Kind::Login as usize].borrow().len() <= MAX_BUCKETS);
    }
}

#[test]
fn bytes_in_work_are_bounded_and_come_back() {
    const MIB: usize = 1024 * 1024;
    let admission = Admission::default();
    let large = admission.reserve_to_read(100 * MIB, Whose::default(), 0).unwrap();
    assert!(admission.reserve(1, 0).is_none());
    assert!(large.is_read(MIB, 0));
    let more: Vec<_> = (0..12).map(|_| admission.reserve(MIB, 0).unwrap()).collect();
    assert!(admission.reserve(MIB, 0).is_none());
    // It has become no larger than there is room for.
    assert!(large.is_read(MIB, 0) && !large.is_read(2 * MIB, 0));
    drop(more);
    drop(large);
    let cut_off = admission.reserve(13 * MIB, 0).unwrap();
    assert!(admission.reserve(MIB, LONGEST_WORK_MS - 1).is_none());
    let next = admission.reserve(13 * MIB, LONGEST_WORK_MS).unwrap();
    // One that was given up lets go of nothing that is another's.
    drop(cut_off);
    assert!(admission.reserve(MIB, LONGEST_WORK_MS).is_none());
    drop(next);
}

/// A sender that hangs up takes room no longer than a body may be read.
#[test]
fn a_body_that_never_came_is_forgotten_first() {
    const MIB: usize = 1024 * 1024;
    let admission = Admission::default();
    let reads = |now| admission.reserve_to_read(40 * MIB, Whose::default(), now);
    let cut_off = reads(0).unwrap();
    assert!(reads(LONGEST_READ_MS - 1).is_none());
    let other = reads(LONGEST_READ_MS).unwrap();
    // Where it came late all the same, it needs room again; what was read in time is in work for longer.
    assert!(!cut_off.is_read(MIB, LONGEST_READ_MS));
    assert!(other.is_read(12 * MIB, LONGEST_READ_MS));
    assert!(reads(2 * LONGEST_READ_MS).is_none());
    drop(other);
    assert!(cut_off.is_read(MIB, LONGEST_READ_MS));
    assert!(reads(2 * LONGEST_READ_MS).is_none());
}

#[test]
fn answers_leave_room_for_bodies_and_count_while_they_grow() {
    const MIB: usize = 1024 * 1024;
    let admission = Admission::default();
    let answer = |mib: usize, now| admission.reserve_memory(mib * MIB, now);
    let first = answer(50, 0).unwrap();
    assert!(answer(11, 0).is_none());
    let second = answer(10, 0).unwrap();
    assert!(admission.reserve(3 * MIB, 0).is_some());
    drop(second);
    assert!(first.hold(60 * MIB, LONGEST_ANSWER_MS - 1));
    // Its time begins anew with what it has taken last, and when it is over.
    assert!(answer(1, LONGEST_ANSWER_MS).is_none());
    let long_after = 3 * LONGEST_ANSWER_MS;
    let third = answer(20, long_after).unwrap();
    assert!(!first.hold(60 * MIB, long_after) && first.hold(40 * MIB, long_after));
    drop(third);
    // One may take all that there is.
    assert!(first.hold_at_least(80 * MIB, long_after));
}

#[test]
fn of_one_name_or_network_there_is_less_in_work_than_there_is_room_for() {
    const MIB: usize = 1024 * 1024;
    let whose = |origin: &str, network: &str| Whose { origin: origin.to_owned(), network: network.to_owned() };
    let admission = Admission::default();
    let reads = |origin: &str, network: &str, mib| admission.reserve_to_read(mib * MIB, whose(origin, network), 0);
    let first = reads("one", "a", 13).unwrap();
    assert!(reads("one", "b", 8).is_none() && reads("two", "a", 1).is_none());
    // There is room beside it, of the same name also, and for those of whom neither is known.
    let beside = [reads("one", "b", 7), reads("two", "b", 6), reads("", "", 1)];
    assert!(beside.iter().all(Option::is_some));
    // The longest has room as long as it is the only one of theirs.
    assert!(!first.is_read(13 * MIB, 0));
    drop(beside);
    assert!(first.is_read(13 * MIB, 0));
    assert!(reads("two", "b", 1).is_some() && reads("two", "b", 2).is_none());
}

#[test]
fn addresses_stand_for_networks() {
    assert_eq!(network_of("203.0.113.7"), "203.0.113.7");
    assert_eq!(network_of("2001:db8:1:2:3:4:5:6"), network_of("2001:db8:1:2::1"));
    assert_ne!(network_of("2001:db8:1:2::1"), network_of("2001:db8:1:3::1"));
    assert_eq!(network_of("junk"), network_of(""));
}
