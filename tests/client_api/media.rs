//! Media of this server's own users.

use bytes::Bytes;
use http::{HeaderMap, Request};
use serde_json::{Value, json};
use verge::router::{RequestBody, Response};

use crate::{
    common::{media::Pieces, network::World},
    home::{Home, User, quote, refused},
};

/// A server with these settings, and a user.
fn home_with(variables: &[(&str, &str)]) -> (Home, User) {
    let variables: Vec<_> = variables.iter().copied().chain([("REGISTRATION", "open")]).collect();
    let home = Home::with(&World::new(), "hs.test", &variables);
    let alice = home.register("alice");
    (home, alice)
}

/// Sends a request with headers, and a body that may come piece by piece.
fn send(home: &Home, user: &User, method: &str, target: &str, headers: &[(&str, &str)], body: RequestBody) -> Response {
    let mut request = Request::builder().method(method).uri(target);
    request = request.header("Authorization", format!("Bearer {}", user.token));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    home.world.run(home.server.handle(request.body(body).unwrap()))
}

fn answer(response: &Response) -> (u16, Value) {
    (response.status().as_u16(), serde_json::from_slice(response.body()).unwrap())
}

fn whole(bytes: &[u8]) -> RequestBody {
    RequestBody::Read(Bytes::copy_from_slice(bytes))
}

/// Uploads, and answers with the media ID.
fn upload(home: &Home, user: &User, content_type: &str, filename: Option<&str>, bytes: &[u8]) -> String {
    let query = filename.map_or_else(String::new, |name| format!("?filename={}", quote(name)));
    let target = format!("/_matrix/media/v3/upload{query}");
    let response = send(home, user, "POST", &target, &[("Content-Type", content_type)], whole(bytes));
    let (status, answer) = answer(&response);
    assert_eq!(status, 200, "{answer}");
    let uri = answer["content_uri"].as_str().unwrap();
    uri.strip_prefix("mxc://hs.test/").unwrap_or_else(|| panic!("{uri}")).to_owned()
}

/// Reserves an ID; where to upload to it.
fn reserve(home: &Home, user: &User) -> String {
    let (_, created) = answer(&home.raw("POST", "/_matrix/media/v1/create", Some(&user.token), ""));
    let media_id = created["content_uri"].as_str().unwrap().strip_prefix("mxc://hs.test/").unwrap();
    format!("/_matrix/media/v3/upload/hs.test/{media_id}")
}

fn download(home: &Home, user: &User, media_id: &str, headers: &[(&str, &str)]) -> Response {
    let target = format!("/_matrix/client/v1/media/download/hs.test/{media_id}");
    send(home, user, "GET", &target, headers, whole(b""))
}

fn header<'r>(headers: &'r HeaderMap, name: &str) -> &'r str {
    headers.get(name).unwrap_or_else(|| panic!("{name} is missing")).to_str().unwrap()
}

#[test]
fn what_is_uploaded_is_downloaded_as_it_was() {
    let (home, alice) = home_with(&[]);
    let bob = home.register("bob");
    let bytes: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
    let media_id = upload(&home, &alice, "image/png", Some("Zürich.png"), &bytes);
    let response = download(&home, &bob, &media_id, &[]);
    assert_eq!(response.status(), 200);
    assert_eq!(response.body()[..], bytes[..]);
    let headers = response.headers();
    assert_eq!(header(headers, "content-type"), "image/png");
    assert_eq!(header(headers, "content-disposition"), "inline; filename*=utf-8''Z%C3%BCrich.png");
    assert!(header(headers, "content-security-policy").starts_with("sandbox; default-src 'none'; script-src 'none';"));
    assert_eq!(header(headers, "cross-origin-resource-policy"), "cross-origin");
    assert_eq!(header(headers, "x-content-type-options"), "nosniff");
    assert_eq!(header(headers, "access-control-allow-origin"), "*");
    assert!(header(headers, "cache-control").starts_with("private"));
    // Under another name.
    let target = format!("/_matrix/client/v1/media/download/hs.test/{media_id}/other%22.png");
    let response = send(&home, &bob, "GET", &target, &[], whole(b""));
    assert_eq!(header(response.headers(), "content-disposition"), "inline; filename*=utf-8''other%22.png");
    // Without a type and a name; empty.
    let response = send(&home, &alice, "POST", "/_matrix/media/r0/upload", &[], whole(b""));
    let media_id = answer(&response).1["content_uri"].as_str().unwrap().replace("mxc://hs.test/", "");
    let response = download(&home, &alice, &media_id, &[]);
    assert_eq!((response.status().as_u16(), response.body().len()), (200, 0));
    assert_eq!(header(response.headers(), "content-type"), "application/octet-stream");
    assert_eq!(header(response.headers(), "content-disposition"), "attachment");
}

#[test]
fn only_who_is_logged_in_uploads_and_downloads() {
    let (home, alice) = home_with(&[]);
    let media_id = upload(&home, &alice, "text/plain", None, b"secret");
    let target = format!("/_matrix/client/v1/media/download/hs.test/{media_id}");
    for (method, target) in [
        ("POST", "/_matrix/media/v3/upload"),
        ("PUT", &format!("/_matrix/media/v3/upload/hs.test/{media_id}")),
        ("POST", "/_matrix/media/v1/create"),
        ("GET", "/_matrix/client/v1/media/config"),
        ("GET", "/_matrix/media/v3/config"),
        ("GET", &target),
        ("GET", &format!("{target}/name.txt")),
    ] {
        let response = home.raw(method, target, None, "");
        refused(&answer(&response), 401, "M_MISSING_TOKEN");
        let response = home.raw(method, target, Some("wrong"), "");
        refused(&answer(&response), 401, "M_UNKNOWN_TOKEN");
    }
    // The endpoints that ask for no token give nothing.
    for kind in ["download", "thumbnail"] {
        let target = format!("/_matrix/media/v3/{kind}/hs.test/{media_id}?width=1&height=1");
        refused(&answer(&home.raw("GET", &target, None, "")), 404, "M_NOT_FOUND");
        refused(&answer(&home.raw("GET", &target.replace("v3", "r0"), Some(&alice.token), "")), 404, "M_NOT_FOUND");
    }
    let target = format!("/_matrix/media/v3/download/hs.test/{media_id}/name.txt");
    refused(&answer(&home.raw("GET", &target, None, "")), 404, "M_NOT_FOUND");
}

#[test]
fn nothing_runs_in_a_browser_whatever_it_is_called() {
    let (home, alice) = home_with(&[]);
    let html = b"<html><script>alert(1)</script>";
    for (content_type, kind, served) in [
        // Shown as a broken image: the type is not guessed.
        ("image/png", "inline", "image/png"),
        ("text/html", "attachment", "text/html"),
        ("image/svg+xml", "attachment", "image/svg+xml"),
        ("text/html; charset=\"utf-8\"", "attachment", "text/html; charset=\"utf-8\""),
        ("nonsense", "attachment", "application/octet-stream"),
    ] {
        let media_id = upload(&home, &alice, content_type, Some("a\r\nX-Evil: yes\r\n\r\n<script>"), html);
        let response = download(&home, &alice, &media_id, &[]);
        assert_eq!(response.headers().get("x-evil"), None);
        assert_eq!(header(response.headers(), "content-type"), served);
        let disposition = header(response.headers(), "content-disposition");
        assert!(disposition.starts_with(&format!("{kind}; filename*=utf-8''a%0D%0AX-Evil")), "{disposition}");
    }
    let target = format!("/_matrix/media/v3/upload?filename={}", "x".repeat(2_000));
    refused(&answer(&send(&home, &alice, "POST", &target, &[], whole(b"x"))), 400, "M_INVALID_PARAM");
}

#[test]
fn a_part_is_given_and_what_is_known_is_not_sent_again() {
    let (home, alice) = home_with(&[]);
    let media_id = upload(&home, &alice, "text/plain", None, b"0123456789");
    let etag = header(download(&home, &alice, &media_id, &[]).headers(), "etag").to_owned();
    for (range, status, body, content_range) in [
        ("bytes=0-3", 206, "0123", "bytes 0-3/10"),
        ("bytes=7-", 206, "789", "bytes 7-9/10"),
        ("bytes=-2", 206, "89", "bytes 8-9/10"),
        ("bytes=8-99999999999999999999", 206, "89", "bytes 8-9/10"),
        ("bytes=-100", 206, "0123456789", "bytes 0-9/10"),
        ("bytes=10-", 416, "", "bytes */10"),
        ("bytes=-0", 416, "", "bytes */10"),
        ("bytes=3-1", 200, "0123456789", ""),
        ("bytes=0-1,3-4", 200, "0123456789", ""),
        ("lines=1-2", 200, "0123456789", ""),
        ("bytes=a-b", 200, "0123456789", ""),
    ] {
        let response = download(&home, &alice, &media_id, &[("Range", range)]);
        assert_eq!((response.status().as_u16(), &response.body()[..]), (status, body.as_bytes()), "{range}");
        let given = response.headers().get("content-range").map_or("", |value| value.to_str().unwrap());
        assert_eq!(given, content_range, "{range}");
    }
    let parts = [("Range", "bytes=0-3"), ("If-Range", "\"another\"")];
    assert_eq!(download(&home, &alice, &media_id, &parts).status(), 200);
    let parts = [("Range", "bytes=0-3"), ("If-Range", etag.as_str())];
    assert_eq!(download(&home, &alice, &media_id, &parts).status(), 206);
    for tag in [etag.clone(), "*".to_owned(), format!("\"x\", W/{etag}")] {
        let response = download(&home, &alice, &media_id, &[("If-None-Match", &tag)]);
        assert_eq!((response.status().as_u16(), response.body().len()), (304, 0), "{tag}");
    }
    assert_eq!(download(&home, &alice, &media_id, &[("If-None-Match", "\"x\"")]).status(), 200);
}

#[test]
fn an_id_is_made_first_and_filled_later() {
    let (home, alice) = home_with(&[]);
    let bob = home.register("bob");
    let (status, created) = answer(&home.raw("POST", "/_matrix/media/v1/create", Some(&alice.token), ""));
    assert_eq!(status, 200, "{created}");
    let expires = created["unused_expires_at"].as_i64().unwrap();
    assert_eq!(expires, home.world.now_ms() + 24 * 3_600_000);
    let media_id = created["content_uri"].as_str().unwrap().strip_prefix("mxc://hs.test/").unwrap().to_owned();
    let target = format!("/_matrix/media/v3/upload/hs.test/{media_id}");
    // Nobody waits for it without a token; but for how long that is so they are told.
    let begun = home.world.now_ms();
    for (kind, server, status, errcode) in [
        ("download", "hs.test", 504, "M_NOT_YET_UPLOADED"),
        ("thumbnail", "hs.test", 504, "M_NOT_YET_UPLOADED"),
        ("download", "other.test", 404, "M_NOT_FOUND"),
    ] {
        let target = format!("/_matrix/media/v3/{kind}/{server}/{media_id}?width=1&height=1");
        refused(&answer(&home.raw("GET", &target, None, "")), status, errcode);
    }
    assert_eq!(home.world.now_ms(), begun);
    // Who wants it waits, as long as they like, within bounds.
    let download = format!("/_matrix/client/v1/media/download/hs.test/{media_id}");
    refused(&answer(&home.raw("GET", &download, Some(&bob.token), "")), 504, "M_NOT_YET_UPLOADED");
    assert_eq!(home.world.now_ms() - begun, 20_000);
    let wait = format!("{download}?timeout_ms=99999999999");
    refused(&answer(&home.raw("GET", &wait, Some(&bob.token), "")), 504, "M_NOT_YET_UPLOADED");
    assert_eq!(home.world.now_ms() - begun, 80_000);
    let wrong = format!("{download}?timeout_ms=-1");
    refused(&answer(&home.raw("GET", &wrong, Some(&bob.token), "")), 400, "M_INVALID_PARAM");
    // It is Alice's.
    refused(&answer(&send(&home, &bob, "PUT", &target, &[], whole(b"x"))), 403, "M_FORBIDDEN");
    let elsewhere = format!("/_matrix/media/v3/upload/other.test/{media_id}");
    refused(&answer(&send(&home, &alice, "PUT", &elsewhere, &[], whole(b"x"))), 404, "M_NOT_FOUND");
    // Cut off, it may be uploaded again.
    let cut_off = RequestBody::Unread(Box::new(Pieces::cut_off(Bytes::from_static(b"half"), 2)));
    refused(&answer(&send(&home, &alice, "PUT", &target, &[], cut_off)), 400, "M_UNKNOWN");
    assert_eq!(home.world.shelves("hs.test").keys(), Vec::<String>::new());
    // Who waits gets it.
    let (downloaded, uploaded) = {
        let request = |method: &str, target: &str, user: &User| {
            Request::builder()
                .method(method)
                .uri(target)
                .header("Authorization", format!("Bearer {}", user.token))
                .header("Content-Type", "text/plain")
        };
        let wait = request("GET", &download, &bob).body(whole(b"")).unwrap();
        let put = request("PUT", &format!("{target}?filename=a.txt"), &alice).body(whole(b"later")).unwrap();
        home.world.run(futures_util::future::join(home.server.handle(wait), async {
            home.server.platform.clock.sleep(3_000).await;
            home.server.handle(put).await
        }))
    };
    assert_eq!(answer(&uploaded), (200, json!({})));
    assert_eq!((downloaded.status().as_u16(), &downloaded.body()[..]), (200, &b"later"[..]));
    assert_eq!(header(downloaded.headers(), "content-disposition"), "inline; filename=\"a.txt\"");
    // Only once.
    refused(&answer(&send(&home, &alice, "PUT", &target, &[], whole(b"x"))), 409, "M_CANNOT_OVERWRITE_MEDIA");
    let unknown = "/_matrix/media/v3/upload/hs.test/abc";
    refused(&answer(&send(&home, &alice, "PUT", unknown, &[], whole(b"x"))), 404, "M_NOT_FOUND");
}

#[test]
fn what_is_reserved_expires_and_is_bounded() {
    let (home, alice) = home_with(&[]);
    let create = || answer(&home.raw("POST", "/_matrix/media/v1/create", Some(&alice.token), ""));
    let (_, created) = create();
    let media_id = created["content_uri"].as_str().unwrap().strip_prefix("mxc://hs.test/").unwrap().to_owned();
    for _ in 1..100 {
        assert_eq!(create().0, 200);
    }
    refused(&create(), 429, "M_LIMIT_EXCEEDED");
    home.world.advance(24 * 3_600_000);
    assert_eq!(create().0, 200);
    let target = format!("/_matrix/media/v3/upload/hs.test/{media_id}");
    refused(&answer(&send(&home, &alice, "PUT", &target, &[], whole(b"x"))), 404, "M_NOT_FOUND");
    let download = format!("/_matrix/client/v1/media/download/hs.test/{media_id}");
    refused(&answer(&home.raw("GET", &download, Some(&alice.token), "")), 404, "M_NOT_FOUND");
}

#[test]
fn two_uploads_to_one_id_are_never_mixed() {
    let (home, alice) = home_with(&[]);
    let (_, created) = answer(&home.raw("POST", "/_matrix/media/v1/create", Some(&alice.token), ""));
    let media_id = created["content_uri"].as_str().unwrap().strip_prefix("mxc://hs.test/").unwrap().to_owned();
    home.world.interleave();
    let put = |bytes: &[u8]| {
        let request = Request::put(format!("/_matrix/media/v3/upload/hs.test/{media_id}"));
        let request = request.header("Authorization", format!("Bearer {}", alice.token));
        home.server.handle(request.body(whole(bytes)).unwrap())
    };
    let answers = home.world.run(futures_util::future::join_all([put(b"one"), put(b"two"), put(b"three")]));
    let mut statuses: Vec<_> = answers.iter().map(|answer| answer.status().as_u16()).collect();
    let winner = statuses.iter().position(|status| *status == 200).unwrap();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 409, 409]);
    let response = download(&home, &alice, &media_id, &[]);
    assert_eq!(response.body()[..], [&b"one"[..], b"two", b"three"][winner][..]);
}

#[test]
fn size_and_quota_are_held() {
    let (home, alice) = home_with(&[("MEDIA_MAX_SIZE", "1000"), ("MEDIA_QUOTA", "2500")]);
    let config = home.raw("GET", "/_matrix/client/v1/media/config", Some(&alice.token), "");
    assert_eq!(answer(&config), (200, json!({ "m.upload.size": 1_000 })));
    let post = |body: RequestBody, headers: &[(&str, &str)]| {
        answer(&send(&home, &alice, "POST", "/_matrix/media/v3/upload", headers, body))
    };
    let pieces = |length: usize| RequestBody::Unread(Box::new(Pieces::new(vec![7; length].into(), 64)));
    refused(&post(whole(&[0; 1_001]), &[]), 413, "M_TOO_LARGE");
    // What is said beforehand is believed, and what is not said is counted.
    refused(&post(pieces(10), &[("Content-Length", "1001")]), 413, "M_TOO_LARGE");
    refused(&post(pieces(1_001), &[]), 413, "M_TOO_LARGE");
    refused(&post(pieces(900), &[("Content-Length", "901")]), 400, "M_UNKNOWN");
    let cut_off = RequestBody::Unread(Box::new(Pieces::cut_off(vec![0; 500].into(), 64)));
    refused(&post(cut_off, &[]), 400, "M_UNKNOWN");
    // Nothing of it is left.
    assert_eq!(home.world.shelves("hs.test").keys(), Vec::<String>::new());
    assert_eq!(home.database.rows("SELECT * FROM local_media"), Vec::<Vec<String>>::new());
    for _ in 0..2 {
        assert_eq!(post(pieces(1_000), &[]).0, 200);
    }
    refused(&post(pieces(600), &[("Content-Length", "600")]), 403, "M_FORBIDDEN");
    refused(&post(pieces(600), &[]), 403, "M_FORBIDDEN");
    assert_eq!(home.world.shelves("hs.test").keys().len(), 2);
    assert_eq!(post(pieces(500), &[]).0, 200);
    refused(&post(pieces(1), &[]), 403, "M_FORBIDDEN");
    assert_eq!(home.database.rows("SELECT bytes FROM media_usage"), [["2500"]]);
    // Others have quotas of their own.
    let bob = home.register("bob");
    upload(&home, &bob, "text/plain", None, &[0; 1_000]);
    // All of it came in pieces.
    assert!(home.world.shelves("hs.test").largest_piece.get() <= 1_000);
}

#[test]
fn uploads_at_once_do_not_pass_the_quota() {
    let (home, alice) = home_with(&[("MEDIA_QUOTA", "1000")]);
    home.world.interleave();
    let post = || {
        let request =
            Request::post("/_matrix/media/v3/upload").header("Authorization", format!("Bearer {}", alice.token));
        home.server.handle(request.body(whole(&[0; 400])).unwrap())
    };
    let answers = home.world.run(futures_util::future::join_all((0..8).map(|_| post())));
    let taken = answers.iter().filter(|answer| answer.status() == 200).count();
    assert_eq!(taken, 2);
    assert_eq!(home.world.shelves("hs.test").keys().len(), 2);
    assert_eq!(home.database.rows("SELECT bytes FROM media_usage"), [["800"]]);
    assert_eq!(home.database.rows("SELECT COUNT(*) FROM local_media"), [["2"]]);
}

#[test]
fn uploads_have_a_rate() {
    let (home, alice) = home_with(&[("UPLOAD_RATE", "2/60")]);
    upload(&home, &alice, "text/plain", None, b"1");
    assert_eq!(home.raw("POST", "/_matrix/media/v1/create", Some(&alice.token), "").status(), 200);
    let response = send(&home, &alice, "POST", "/_matrix/media/v3/upload", &[], whole(b"2"));
    refused(&answer(&response), 429, "M_LIMIT_EXCEEDED");
    home.world.advance(30_000);
    upload(&home, &alice, "text/plain", None, b"2");
}

#[test]
fn names_that_are_none_are_refused() {
    let (home, alice) = home_with(&[]);
    for (path, status, errcode) in [
        ("hs.test/nothing", 404, "M_NOT_FOUND"),
        ("hs.test/..%2F..%2Fetc", 400, "M_INVALID_PARAM"),
        ("hs.test/a.b", 400, "M_INVALID_PARAM"),
        ("hs.test/", 400, "M_INVALID_PARAM"),
        ("not%20a%20name/abc", 400, "M_INVALID_PARAM"),
    ] {
        let target = format!("/_matrix/client/v1/media/download/{path}");
        refused(&answer(&home.raw("GET", &target, Some(&alice.token), "")), status, errcode);
    }
}

#[test]
fn a_store_that_fails_is_told_and_leaves_nothing() {
    let (home, alice) = home_with(&[]);
    let media_id = upload(&home, &alice, "text/plain", None, b"here");
    home.world.shelves("hs.test").fails.set(true);
    let response = send(&home, &alice, "POST", "/_matrix/media/v3/upload", &[], whole(b"x"));
    refused(&answer(&response), 503, "M_UNKNOWN");
    refused(&answer(&download(&home, &alice, &media_id, &[])), 503, "M_UNKNOWN");
    assert!(home.world.logs().iter().any(|line| line.contains("the media store fails")), "{:?}", home.world.logs());
    home.world.shelves("hs.test").fails.set(false);
    assert_eq!(download(&home, &alice, &media_id, &[]).status(), 200);
    // Whether the store has kept anything is not known until it answers again.
    home.world.advance(3_600_000);
    home.world.run(home.server.scheduled());
    assert_eq!(home.database.rows("SELECT COUNT(*) FROM local_media"), [["1"]]);
}

/// By its row what is left is found, so that comes after the bytes.
#[test]
fn what_the_store_has_kept_without_an_answer_is_deleted() {
    for (deletes_nothing, is_reserved) in [(false, false), (false, true), (true, false), (true, true)] {
        let (home, alice) = home_with(&[]);
        let shelves = home.world.shelves("hs.test");
        shelves.loses_answers.set(true);
        shelves.deletes_nothing.set(deletes_nothing);
        let (method, target) = match is_reserved {
            true => ("PUT", reserve(&home, &alice)),
            false => ("POST", "/_matrix/media/v3/upload".to_owned()),
        };
        refused(&answer(&send(&home, &alice, method, &target, &[], whole(b"lost"))), 503, "M_UNKNOWN");
        assert_eq!(shelves.keys().is_empty(), !deletes_nothing, "{:?}", home.world.logs());
        shelves.deletes_nothing.set(false);
        for _ in 0..25 {
            home.world.advance(3_600_000);
            home.world.run(home.server.scheduled());
            home.world.settle();
        }
        assert_eq!(shelves.keys(), Vec::<String>::new(), "reserved: {is_reserved}");
        assert_eq!(home.database.rows("SELECT COUNT(*) FROM local_media"), [["0"]]);
    }
}

#[test]
fn an_upload_that_fails_at_its_end_leaves_its_id_to_the_next() {
    let (home, alice) = home_with(&[]);
    let target = reserve(&home, &alice);
    // Only what ends an upload has its name.
    *home.database.refuses.borrow_mut() = Some("name.txt".to_owned());
    let named = format!("{target}?filename=name.txt");
    assert_ne!(send(&home, &alice, "PUT", &named, &[], whole(b"first")).status(), 200);
    *home.database.refuses.borrow_mut() = None;
    assert_eq!(answer(&send(&home, &alice, "PUT", &named, &[], whole(b"second"))), (200, json!({})));
    let media_id = target.rsplit('/').next().unwrap();
    assert_eq!(download(&home, &alice, media_id, &[]).body()[..], b"second"[..]);
}

/// A deployment without a bucket says so to its users; all else works.
#[test]
fn without_a_bucket_there_are_no_media() {
    let world = World::new();
    let home = Home::without_media(&world, "hs.test");
    let alice = home.register("alice");
    for (method, target) in [
        ("POST", "/_matrix/media/v3/upload"),
        ("POST", "/_matrix/media/v1/create"),
        ("GET", "/_matrix/client/v1/media/download/other.test/abcdefgh"),
        ("GET", "/_matrix/client/v1/media/thumbnail/other.test/abcdefgh?width=32&height=32"),
    ] {
        let response = send(&home, &alice, method, target, &[("Content-Type", "text/plain")], whole(b"bytes"));
        refused(&answer(&response), 501, "M_UNKNOWN");
    }
    assert_eq!(home.database.rows("SELECT count(*) FROM local_media"), [["0"]]);
    let room = home.room(&alice, json!({}));
    home.say(&alice, &room, "hello", "1");
}
