//! Whether events are signed as they must be, and what their content hash makes of them.

use std::collections::BTreeMap;

use ruma_common::{UserId, serde::Base64};
use ruma_signatures::Verified;
use verge::matrix::{
    event::{PduError, ReceivedPdu},
    json::Value,
    redaction,
    room_version::EventIds,
};

use crate::{
    common::{
        generator::{Numbers, Options},
        ruma,
        signed::{Damage, SignedPdu},
        synapse::Answer,
    },
    counts::Counts,
    events::to_ruma,
};

pub(crate) fn compare(
    pdus: &[SignedPdu],
    options: Options,
    synapse: Option<&Answer>,
    counts: &mut Counts,
) -> Result<(), String> {
    for (position, pdu) in pdus.iter().enumerate() {
        let ours = Outcome::ours(pdu);
        let failure = |theirs: &Outcome, oracle: &str| {
            let (damage, signers) = (pdu.damage, &pdu.signers);
            let text = pdu.pdu.to_text();
            format!("signatures, {damage:?} signed by {signers:?}: {ours:?} here, {theirs:?} in {oracle}\n{text}")
        };
        if let Some(synapse) = synapse
            && synapse_reads(pdu)
        {
            let theirs = Outcome::synapse(synapse, position);
            let difference = (!theirs.is_like(&ours)).then(|| Difference::with_synapse(pdu, &ours));
            match difference {
                None => counts.count("signatures checked by Synapse"),
                Some(Some(difference)) => counts.count(format!("difference: {difference:?}")),
                Some(None) => return Err(failure(&theirs, "Synapse")),
            }
        }
        if options.numbers == Numbers::Plain && ruma_reads(pdu) {
            let theirs = Outcome::ruma(pdu);
            let difference = (!theirs.is_like(&ours)).then(|| Difference::with_ruma(pdu, &ours));
            match difference {
                None => counts.count("signatures checked by ruma"),
                Some(Some(difference)) => counts.count(format!("difference: {difference:?}")),
                Some(None) => return Err(failure(&theirs, "ruma")),
            }
        }
        counts.count(format!(
            "{:?} {}",
            pdu.damage,
            if matches!(ours, Outcome::Taken(_)) { "taken" } else { "dropped" }
        ));
    }
    Ok(())
}

/// What becomes of a PDU.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    /// It is dropped, and why.
    Dropped(String),
    /// Its signatures are right; the event as it is taken, whole or redacted.
    Taken(String),
}

impl Outcome {
    fn ours(pdu: &SignedPdu) -> Self {
        let received = ReceivedPdu::from_value(pdu.pdu.clone().into(), pdu.version);
        match received.and_then(|received| received.verify(&pdu.ring())) {
            Ok(event) => Self::Taken(event.json().to_owned()),
            Err(error @ (PduError::NotSigned(_) | PduError::WrongSignature(_))) => Self::Dropped(error.to_string()),
            Err(error) => panic!("{error}: {}", pdu.pdu.to_text()),
        }
    }

    fn synapse(answer: &Answer, position: usize) -> Self {
        match answer.checked(position) {
            Ok(event) => Self::Taken(event.to_owned()),
            Err(reason) => Self::Dropped(reason.to_owned()),
        }
    }

    fn ruma(pdu: &SignedPdu) -> Self {
        let sent = pdu.pdu.get("origin_server_ts").and_then(Value::as_i64).unwrap();
        // Which keys may be used is for ruma's caller to say.
        let valid = |(key_id, (key, until)): (String, (String, i64))| {
            let counts = until >= sent || !pdu.version.enforce_key_validity && pdu.damage != Damage::Expired;
            counts.then(|| (key_id, Base64::parse(key).unwrap()))
        };
        let keys: BTreeMap<_, BTreeMap<_, _>> = pdu
            .keys()
            .into_iter()
            .map(|(server, keys)| (server, keys.into_iter().filter_map(valid).collect()))
            .collect();
        match ruma_signatures::verify_event(&keys, &to_ruma(&pdu.pdu), &ruma::rules(pdu.version)) {
            Ok(Verified::All) => Self::Taken(pdu.pdu.to_text()),
            Ok(Verified::Signatures) => Self::Taken(redaction::redact(&pdu.pdu, pdu.version).to_text()),
            Err(error) => Self::Dropped(error.to_string()),
        }
    }

    fn is_like(&self, other: &Self) -> bool {
        self == other || matches!((self, other), (Self::Dropped(_), Self::Dropped(_)))
    }
}

/// Where an oracle differs from the spec. Each is a case in `matrix_formats::signatures` too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Difference {
    /// In versions 1 to 4 Synapse does not look at when a key expired.
    ExpiredKey,
    /// Synapse asks the authorising user's server for its signature on joins only, the spec on every membership.
    Authoriser,
    /// Synapse drops an event whose content hash is no base64. The spec tells to redact where it is not the right one.
    MalformedHash,
    /// ruma reads no signature and no content hash in the URL-safe alphabet. Synapse does, and a room must not fall apart over it.
    OtherAlphabet,
    /// In versions 1 and 2 ruma asks the server of the event id for its signature on a third-party invite, also where it is the
    /// sender's, which need not sign that.
    IdOfInvite,
    /// Before version 11 redaction makes a third-party invite an ordinary one. Neither oracle then asks the sender's server
    /// for its signature: anybody could invite in anybody's name.
    RedactedInvite,
}

impl Difference {
    fn with_synapse(pdu: &SignedPdu, ours: &Outcome) -> Option<Self> {
        let Outcome::Dropped(reason) = ours else {
            return (pdu.damage == Damage::MalformedHash).then_some(Self::MalformedHash);
        };
        let content = pdu.pdu.get("content")?;
        let authoriser = content.get("join_authorised_via_users_server").and_then(Value::as_str);
        let authoriser = authoriser.and_then(|user| user.split_once(':'));
        if !pdu.version.enforce_key_validity && pdu.damage == Damage::Expired {
            Some(Self::ExpiredKey)
        } else if authoriser.is_some_and(|(_, server)| reason.contains(server)) && pdu.membership() != Some("join") {
            Some(Self::Authoriser)
        } else {
            Self::redacted_invite(pdu, ours)
        }
    }

    fn with_ruma(pdu: &SignedPdu, ours: &Outcome) -> Option<Self> {
        let is_unsigned_invite = pdu.signers.is_empty() && pdu.version.event_ids == EventIds::Given;
        if is_unsigned_invite && matches!(ours, Outcome::Taken(_)) {
            return Some(Self::IdOfInvite);
        }
        if pdu.damage == Damage::OtherAlphabet && matches!(ours, Outcome::Taken(_)) {
            return Some(Self::OtherAlphabet);
        }
        Self::redacted_invite(pdu, ours)
    }

    fn redacted_invite(pdu: &SignedPdu, ours: &Outcome) -> Option<Self> {
        let redacted = redaction::redact(&pdu.pdu, pdu.version);
        let has_invite = |content: &Value| content.get("third_party_invite").is_some();
        let is_invite = pdu.membership() == Some("invite") && pdu.pdu.get("content").is_some_and(has_invite);
        let loses_it = is_invite && !redacted.get("content").is_some_and(has_invite);
        let sender = pdu.pdu.get("sender")?.as_str()?.split_once(':')?.1;
        let for_sender = matches!(ours, Outcome::Dropped(reason) if reason.contains(sender));
        (loses_it && for_sender).then_some(Self::RedactedInvite)
    }
}

/// Synapse drops, before it looks at signatures, what is for the authorisation rules to reject: a membership event without
/// `membership`, and from version 12 on an event that cites the create event.
fn synapse_reads(pdu: &SignedPdu) -> bool {
    let has_membership = pdu.pdu.get("content").is_some_and(|content| content.get("membership").is_some());
    let is_member = pdu.pdu.get("type").and_then(Value::as_str) == Some("m.room.member");
    let room_id = pdu.pdu.get("room_id").and_then(Value::as_str).unwrap_or_default();
    let create = Value::from(room_id.replacen('!', "$", 1));
    let cited = pdu.pdu.get("auth_events").and_then(Value::as_array).unwrap();
    (!is_member || has_membership) && !(pdu.version.room_id_is_create_hash && cited.contains(&create))
}

/// ruma reads neither every historical user ID, nor memberships without `membership`, nor a `third_party_invite` that is no
/// object, and drops an event that has one.
fn ruma_reads(pdu: &SignedPdu) -> bool {
    let is_member = pdu.pdu.get("type").and_then(Value::as_str) == Some("m.room.member");
    let sender = pdu.pdu.get("sender").and_then(Value::as_str).unwrap();
    let invite = pdu.pdu.get("content").and_then(|content| content.get("third_party_invite"));
    <&UserId>::try_from(sender).is_ok()
        && (!is_member || pdu.membership().is_some() && invite.is_none_or(|invite| invite.as_object().is_some()))
}
