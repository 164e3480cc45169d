//! The `X-Matrix` scheme, against the spec's text and Synapse's way of writing it.

use http::StatusCode;
use verge::{
    error::MatrixError,
    matrix::{
        json,
        server_keys::{KeyRing, KnownKey},
        signing::SignatureError,
        x_matrix::{Authorization, SignedRequest, XMatrixError, check_destination, parse_all, verify},
    },
};

use crate::generate::signing_key;

const NOW: i64 = 1_700_000_000_000;

fn parse(header: &str) -> Result<Authorization, XMatrixError> {
    parse_all([header.as_bytes()]).map(|mut headers| headers.remove(0))
}

#[test]
fn headers_may_be_written_in_many_ways() {
    let parsed = |destination: Option<&str>| Authorization {
        origin: verge::matrix::identifiers::ServerName::parse("origin.hs.example.com:8448").unwrap(),
        destination: destination.map(str::to_owned),
        key_id: "ed25519:key1".to_owned(),
        signature: "ABCDEF+/".to_owned(),
    };
    let full = Some("destination.hs.example.com");
    for (header, destination) in [
        (
            r#"X-Matrix origin="origin.hs.example.com:8448",destination="destination.hs.example.com",key="ed25519:key1",sig="ABCDEF+/""#,
            full,
        ),
        // Any order, any case, bare values with colons, spaces and tabs around commas, empty elements, unknown parameters.
        ("X-Matrix sig=ABCDEF+/,KEY=ed25519:key1,Origin=origin.hs.example.com:8448", None),
        ("X-Matrix ,origin=origin.hs.example.com:8448,, key=ed25519:key1 , ,sig=ABCDEF+/,", None),
        (
            "x-matrix   origin=origin.hs.example.com:8448 \t,\tkey=ed25519:key1 , sig=ABCDEF+/ , other=\"a,b=\\\"c\"",
            None,
        ),
        (
            r#"X-Matrix origin="or\igin.hs.example.com:8448",key="ed25519\:key1",sig="ABCDEF+/",destination="""#,
            Some(""),
        ),
    ] {
        assert_eq!(parse(header), Ok(parsed(destination)), "{header}");
    }
}

#[test]
fn malformed_headers_are_refused() {
    for header in [
        "X-Matrix ",
        "X-Matrix",
        "X-Matrix origin=a,key=b",
        "X-Matrix ,",
        "X-Matrix origin=a,key=b,sig=c,sig=d",
        "X-Matrix origin=a,key=b,sig=c,SIG=d",
        "X-Matrix origin=a key=b sig=c",
        "X-Matrix origin=\"a,key=b,sig=c",
        "X-Matrix origin=\"a\"b,key=b,sig=c",
        "X-Matrix origin=a\\b,key=b,sig=c",
        "X-Matrix origin=\"a b\",key=b,sig=c",
        "X-Matrix origin=\"\",key=b,sig=c",
        "X-Matrix origin=,key=b,sig=c",
        "X-Matrix origin=a,key=b,sig=c=\"",
        "X-Matrix =a,key=b,sig=c",
        "X-Matrix origin=a,key=b,sig=c,destination=a,destination=b",
    ] {
        assert_eq!(parse(header), Err(XMatrixError::Malformed), "{header}");
    }
    assert_eq!(MatrixError::from(XMatrixError::Malformed).status, StatusCode::BAD_REQUEST);
    for header in ["", "Bearer X-Matrix", "X-Matrixorigin=a,key=b,sig=c"] {
        assert_eq!(parse(header), Err(XMatrixError::Missing), "{header}");
    }
    assert_eq!(parse_all([]), Err(XMatrixError::Missing));
    let two: [&[u8]; 2] = [b"X-Matrix origin=a,key=b,sig=c", b"X-Matrix origin=x,key=b,sig=c"];
    assert_eq!(parse_all(two), Err(XMatrixError::Malformed), "two origins");
    let both: [&[u8]; 2] = [b"Bearer abc", b"X-Matrix origin=a,key=b,sig=c"];
    assert_eq!(parse_all(both).unwrap().len(), 1);
}

#[test]
fn several_headers_may_stand_in_one_value() {
    let header = |key: &str| format!(r#"X-Matrix origin="a",destination="b, X-Matrix c",key="{key}",sig="s""#);
    let (one, two) = (header("ed25519:1"), header("ed25519:2"));
    let apart = parse_all([one.as_bytes(), two.as_bytes()]).unwrap();
    assert_eq!(apart.len(), 2);
    for comma in [", ", ",", " ,\t"] {
        let joined = format!("{one}{comma}{}", two.replace("X-Matrix origin", "x-matrix  origin"));
        assert_eq!(parse_all([joined.as_bytes()]), Ok(apart.clone()), "{joined}");
    }
    // A parameter of that name is none of a header's.
    assert_eq!(parse("X-Matrix origin=a,key=b,X-Matrix =c,sig=d").unwrap().signature, "d");
    for malformed in [
        format!("{one}, X-Matrix"),
        format!("{one}, X-Matrix origin=x,key=b,sig=c"),
        format!("{one}, {}", vec![two; 10].join(", ")),
    ] {
        assert_eq!(parse_all([malformed.as_bytes()]), Err(XMatrixError::Malformed), "{malformed}");
    }
}

fn ring() -> KeyRing {
    let mut ring = KeyRing::new();
    let key = signing_key().verify_key();
    ring.insert("origin", "ed25519:1", KnownKey { key, valid_until_ts: NOW, expired_ts: None, fetched_ts: NOW - 5 });
    ring
}

#[test]
fn requests_are_signed_as_the_spec_shows() {
    let body = json::parse(r#"{"z": [1.50, "é"], "a": null}"#.as_bytes()).unwrap();
    let request = SignedRequest {
        method: "PUT",
        uri: "/_matrix/federation/v1/send/%21a%2f?x=%20&y",
        origin: "origin",
        destination: "destination",
        content: Some(&body),
    };
    let text = r#"{"content":{"a":null,"z":[1.5,"é"]},"destination":"destination","method":"PUT","origin":"origin","uri":"/_matrix/federation/v1/send/%21a%2f?x=%20&y"}"#;
    assert_eq!(request.signed_text(), text);
    let signature = signing_key().sign_text(text);
    let header = request.authorization(&signing_key());
    assert_eq!(
        header,
        format!(r#"X-Matrix origin="origin",key="ed25519:1",sig="{signature}",destination="destination""#)
    );
    let headers = parse_all([header.as_bytes()]).unwrap();
    assert_eq!(verify(&headers, &request, &ring(), NOW), Ok(()));

    let no_body = SignedRequest { content: None, ..request };
    assert!(!no_body.signed_text().contains("content"));
    let wrong = Err(XMatrixError::Signature(SignatureError::Wrong));
    for changed in [no_body, SignedRequest { method: "GET", ..request }, SignedRequest { uri: "/%21a/", ..request }] {
        assert_eq!(verify(&headers, &changed, &ring(), NOW), wrong);
    }
    assert_eq!(verify(&headers, &request, &ring(), NOW + 1), Err(XMatrixError::UnknownKey));
    assert_eq!(verify(&headers, &request, &KeyRing::new(), NOW), Err(XMatrixError::UnknownKey));
    let other = SignedRequest { destination: "other", ..request };
    assert_eq!(verify(&headers, &other, &ring(), NOW), Err(XMatrixError::WrongDestination));
    assert_eq!(check_destination(&headers, "other"), Err(XMatrixError::WrongDestination));
    assert_eq!(MatrixError::from(XMatrixError::WrongDestination).status, StatusCode::UNAUTHORIZED);

    // Older servers leave the destination out of the header, but sign it.
    let mut old = headers.clone();
    old[0].destination = None;
    assert_eq!(verify(&old, &request, &ring(), NOW), Ok(()));
    assert_eq!(verify(&old, &other, &ring(), NOW), wrong);

    // A second signature by an unknown key is skipped, a wrong one by a known key is not.
    let mut two = headers.clone();
    two.push(Authorization { key_id: "ed25519:2".to_owned(), signature: "AAAA".to_owned(), ..headers[0].clone() });
    assert_eq!(verify(&two, &request, &ring(), NOW), Ok(()));
    two.push(Authorization { signature: "AAAA".to_owned(), ..headers[0].clone() });
    assert_eq!(verify(&two, &request, &ring(), NOW), Err(XMatrixError::Signature(SignatureError::Malformed)));
}
