//! The `X-Matrix` scheme: what is written is read again, here and by ruma; what ruma reads is read alike; and nothing
//! verifies but what was signed.

use http::HeaderValue;
use ruma_common::serde::Base64;
use ruma_federation_api::authentication::XMatrix;
use verge::matrix::{
    base64,
    identifiers::ServerName,
    server_keys::{KeyRing, KnownKey},
    x_matrix::{Authorization, SignedRequest, parse_all, verify},
};

use crate::generate::signing_key;

const NOW: i64 = 1_700_000_000_000;

/// Whether the text is the value of a header of this scheme.
pub(crate) fn holds(header: &[u8]) -> bool {
    let ours = parse_all([header]);
    let theirs = HeaderValue::from_bytes(header).ok().and_then(|header| XMatrix::try_from(&header).ok());
    // ruma takes some server names that are none.
    let reads_alike = |theirs: &XMatrix| ServerName::parse(theirs.origin.as_str()).is_ok() && !is_of_several(header);
    if let Some(theirs) = theirs.filter(reads_alike) {
        let ours = ours.as_ref().unwrap_or_else(|error| panic!("{error:?}, but ruma reads {theirs:?}"));
        assert_same(&ours[0], &theirs);
    }
    let Ok([ours]) = ours.as_deref() else { return false };
    only_what_was_signed_verifies(ours);
    true
}

/// Signs a request of the server that a header names, and expects of each header what it is worth.
fn only_what_was_signed_verifies(found: &Authorization) {
    let destination = found.destination.as_deref().filter(|name| ServerName::parse(name).is_ok());
    let request = SignedRequest {
        method: "PUT",
        uri: "/_matrix/federation/v1/send/1",
        origin: found.origin.as_str(),
        destination: destination.unwrap_or("own.example"),
        content: None,
    };
    let text = request.authorization(&signing_key());
    let written = parse_all([text.as_bytes()]).unwrap();
    assert_eq!((written.len(), &written[0].origin), (1, &found.origin));
    assert_eq!(written[0].destination.as_deref(), Some(request.destination));
    assert_eq!(written[0].key_id, signing_key().key_id());
    assert_eq!(verify(&written, &request, &ring(request.origin), NOW), Ok(()));
    assert!(verify(&written, &request, &ring(&format!("not.{}", request.origin)), NOW).is_err());
    assert_same(&written[0], &XMatrix::parse(&text).unwrap());

    // What came in is right only if it is the one signature that there is.
    if verify(std::slice::from_ref(found), &request, &ring(request.origin), NOW).is_ok() {
        assert_eq!(found.key_id, written[0].key_id);
        assert_eq!(base64::decode(&found.signature), base64::decode(&written[0].signature));
        assert!(found.destination.as_deref().is_none_or(|name| name == request.destination));
    }
}

fn assert_same(ours: &Authorization, theirs: &XMatrix) {
    let destination = theirs.destination.as_ref().map(|name| name.as_str());
    assert_eq!((ours.origin.as_str(), ours.destination.as_deref()), (theirs.origin.as_str(), destination));
    assert_eq!(ours.key_id, theirs.key.as_str());
    assert_eq!(Base64::parse(&ours.signature).unwrap(), theirs.sig);
}

/// Whether the value holds credentials of more schemes than one: ruma looks for its own among them, but each has a header of
/// its own (RFC 9110, section 11.6.2). A parameter is a name and an equals sign; a name alone, or two, begin a scheme.
fn is_of_several(header: &[u8]) -> bool {
    let text = String::from_utf8_lossy(header);
    let Some((scheme, parameters)) = text.split_at_checked(8) else { return true };
    let (mut quoted, mut escaped) = (false, false);
    let unquoted = |character| {
        let inside = quoted;
        quoted ^= character == '"' && !escaped;
        escaped = inside && character == '\\' && !escaped;
        if inside { '.' } else { character }
    };
    let parameters: String = parameters.chars().map(unquoted).collect();
    let is_parameter = |part: &str| {
        let name_ends = part.find([' ', '\t', '=']);
        part.is_empty() || name_ends.is_some_and(|end| part[end..].trim_start().starts_with('='))
    };
    !scheme.eq_ignore_ascii_case("x-matrix") || !parameters.split(',').map(str::trim).all(is_parameter)
}

fn ring(server: &str) -> KeyRing {
    let mut ring = KeyRing::new();
    let key = signing_key().verify_key();
    let known = KnownKey { key, valid_until_ts: NOW, expired_ts: None, fetched_ts: NOW };
    ring.insert(server, signing_key().key_id(), known);
    ring
}
