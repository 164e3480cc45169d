//! Media of other servers: fetched once, and kept.

use std::{cell::RefCell, rc::Rc};

use bytes::Bytes;
use futures_util::future::join_all;
use http::Request;
use serde_json::{Value, json};
use verge::router::{Response, json_response};

use crate::{
    common::{network::World, peer::Peer},
    home::{Home, User, refused},
};

const DOWNLOAD: &str = "/_matrix/federation/v1/media/download/";
const LEGACY: &str = "/_matrix/media/v3/download/peer.test/";

struct Scene {
    world: World,
    home: Home,
    alice: User,
    peer: Rc<Peer>,
}

fn scene(variables: &[(&str, &str)]) -> Scene {
    let world = World::new();
    let variables: Vec<_> = variables.iter().copied().chain([("REGISTRATION", "open")]).collect();
    let home = Home::with(&world, "hs.test", &variables);
    let alice = home.register("alice");
    let peer = Peer::new(&world, "peer.test");
    Scene { world, home, alice, peer }
}

impl Scene {
    fn download(&self, path: &str) -> Response {
        self.home.raw("GET", &format!("/_matrix/client/v1/media/download/{path}"), Some(&self.alice.token), "")
    }

    fn refused(&self, path: &str) -> (u16, Value) {
        let response = self.download(path);
        (response.status().as_u16(), serde_json::from_slice(response.body()).unwrap())
    }

    /// How often the peer was asked for something whose path begins so.
    fn asked(&self, prefix: &str) -> usize {
        self.peer.received.borrow().iter().filter(|request| request.uri().path().starts_with(prefix)).count()
    }

    /// From now on the peer answers requests for files so.
    fn gives(&self, prefix: &'static str, response: impl Fn() -> Response + 'static) {
        self.peer.answers(move |request| request.uri().path().starts_with(prefix).then(&response));
    }
}

fn multipart(head: &str, content: &[u8]) -> Response {
    let before = format!("--x\r\nContent-Type: application/json\r\n\r\n{{}}\r\n--x\r\n{head}\r\n");
    let body: Bytes = [before.as_bytes(), content, b"\r\n--x--\r\n"].concat().into();
    http::Response::builder().header("Content-Type", "multipart/mixed; boundary=x").body(body).unwrap()
}

fn error(status: u16, errcode: &str) -> Response {
    json_response(http::StatusCode::from_u16(status).unwrap(), &json!({ "errcode": errcode, "error": "no" }))
}

#[test]
fn a_file_is_fetched_once_and_shown_as_it_came() {
    let scene = scene(&[]);
    let content: Vec<u8> = (0..70_000u32).map(|n| n as u8).collect();
    let given = content.clone();
    scene.gives(DOWNLOAD, move || {
        multipart("Content-Type: image/png\r\nContent-Disposition: attachment; filename=a.png\r\n", &given)
    });
    for _ in 0..2 {
        let response = scene.download("peer.test/abc");
        assert_eq!(response.status(), 200, "{:?}", scene.world.logs());
        assert_eq!(response.body()[..], content[..]);
        let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(header("content-type"), "image/png");
        // What to do with it is ours to say.
        assert_eq!(header("content-disposition"), "inline; filename=\"a.png\"");
        assert!(header("content-security-policy").starts_with("sandbox;"));
    }
    assert_eq!(scene.asked(DOWNLOAD), 1);
    let received = scene.peer.received.borrow();
    let request = received.iter().find(|request| request.uri().path().starts_with(DOWNLOAD)).unwrap();
    assert!(request.headers()["authorization"].to_str().unwrap().starts_with("X-Matrix "));
    assert_eq!(request.uri().query(), Some("timeout_ms=20000"));
    drop(received);
    // Where the store has lost it, it is fetched again.
    let shelves = scene.world.shelves("hs.test");
    scene.world.run(async {
        use verge::platform::media::MediaStore;
        shelves.delete(shelves.keys()).await.unwrap();
    });
    assert_eq!(scene.download("peer.test/abc").status(), 200);
    assert_eq!(scene.asked(DOWNLOAD), 2);
}

#[test]
fn many_who_want_it_at_once_cause_one_fetch() {
    let scene = scene(&[]);
    scene.gives(DOWNLOAD, || multipart("", b"shared"));
    scene.world.interleave();
    let get = || {
        let request = Request::get("/_matrix/client/v1/media/download/peer.test/abc");
        let request = request.header("Authorization", format!("Bearer {}", scene.alice.token));
        scene.home.server.handle(request.body(Bytes::new()).unwrap())
    };
    let answers = scene.world.run(join_all((0..10).map(|_| get())));
    for answer in answers {
        assert_eq!((answer.status().as_u16(), &answer.body()[..]), (200, &b"shared"[..]));
    }
    assert_eq!(scene.asked(DOWNLOAD), 1);
}

#[test]
fn an_older_server_is_asked_as_clients_used_to() {
    let scene = scene(&[]);
    // It answers 404 M_UNRECOGNIZED to all that it does not know.
    scene.gives(LEGACY, || {
        let response = http::Response::builder().header("Content-Type", "text/plain");
        response.header("Content-Disposition", "inline; filename=old.txt").body(Bytes::from_static(b"old")).unwrap()
    });
    let response = scene.download("peer.test/abc");
    assert_eq!((response.status().as_u16(), &response.body()[..]), (200, &b"old"[..]));
    assert_eq!(response.headers()["content-disposition"], "inline; filename=\"old.txt\"");
    let received = scene.peer.received.borrow();
    let request = received.iter().find(|request| request.uri().path().starts_with(LEGACY)).unwrap();
    assert_eq!(request.uri().query(), Some("allow_remote=false&allow_redirect=true&timeout_ms=20000"));
    assert!(!request.headers().contains_key("authorization"));
}

#[test]
fn a_server_that_has_the_endpoint_and_not_the_file_is_not_asked_again() {
    let scene = scene(&[]);
    scene.gives(DOWNLOAD, || error(404, "M_NOT_FOUND"));
    refused(&scene.refused("peer.test/abc"), 404, "M_NOT_FOUND");
    assert_eq!(scene.asked(LEGACY), 0);
    // Nor is it for a while, whoever asks.
    refused(&scene.refused("peer.test/abc"), 404, "M_NOT_FOUND");
    assert_eq!(scene.asked(DOWNLOAD), 1);
    scene.world.advance(31_000);
    scene.gives(DOWNLOAD, || multipart("", b"now"));
    assert_eq!(scene.download("peer.test/abc").status(), 200);
}

#[test]
fn what_had_no_room_is_asked_for_again_at_once() {
    let scene = scene(&[]);
    scene.gives(DOWNLOAD, || multipart("", b"content"));
    let shelves = scene.world.shelves("hs.test");
    shelves.has_no_room.set(true);
    refused(&scene.refused("peer.test/abc"), 503, "M_UNKNOWN");
    shelves.has_no_room.set(false);
    assert_eq!(scene.download("peer.test/abc").status(), 200);
    assert_eq!(scene.home.database.rows("SELECT bytes FROM remote_media_kept"), [["7"]]);
}

#[test]
fn what_gave_way_counts_as_what_broke_off() {
    let scene = scene(&[("MEDIA_MAX_SIZE", "1000"), ("REMOTE_MEDIA_QUOTA", "2500")]);
    scene.gives(DOWNLOAD, || multipart("", b"content"));
    let shelves = scene.world.shelves("hs.test");
    shelves.gives_way.set(true);
    // Until there may be room again nobody fetches it anew, nor is it said to be the other server's doing.
    for media_id in ["a", "a", "b"] {
        refused(&scene.refused(&format!("peer.test/{media_id}")), 503, "M_UNKNOWN");
    }
    assert_eq!(scene.asked(DOWNLOAD), 2);
    refused(&scene.refused("peer.test/c"), 429, "M_LIMIT_EXCEEDED");
    assert_eq!(scene.home.database.rows("SELECT bytes FROM remote_media_fetched"), [["2000"]]);
    shelves.gives_way.set(false);
    scene.world.advance(24 * 3_600_000);
    assert_eq!(scene.download("peer.test/a").status(), 200);
}

#[test]
fn who_waits_for_another_who_had_no_room_fetches_for_themself() {
    let scene = scene(&[]);
    scene.world.interleave();
    let shelves = scene.world.shelves("hs.test");
    let get = |media_id: &str| {
        let request = Request::get(format!("/_matrix/client/v1/media/download/peer.test/{media_id}"));
        let request = request.header("Authorization", format!("Bearer {}", scene.alice.token));
        scene.home.server.handle(request.body(Bytes::new()).unwrap())
    };
    let statuses = |media_id: &str| {
        let answers = scene.world.run(join_all((0..3).map(|_| get(media_id))));
        let mut statuses: Vec<_> = answers.iter().map(|answer| answer.status().as_u16()).collect();
        statuses.sort_unstable();
        statuses
    };
    // There is room when the second of them asks.
    shelves.has_no_room.set(true);
    let (asked, room) = (Rc::new(RefCell::new(0)), shelves.has_no_room.clone());
    scene.gives(DOWNLOAD, move || {
        *asked.borrow_mut() += 1;
        room.set(*asked.borrow() == 1);
        multipart("", b"content")
    });
    assert_eq!(statuses("a"), [200, 200, 503]);
    assert_eq!(scene.asked(DOWNLOAD), 2);
    // Where there is none, nobody says that it is the other server's doing.
    let room = shelves.has_no_room.clone();
    scene.gives(DOWNLOAD, move || {
        room.set(true);
        multipart("", b"content")
    });
    assert_eq!(statuses("b"), [503, 503, 503]);
}

#[test]
fn what_a_server_says_is_passed_on() {
    for (given, errcode, status, told) in [
        (404, "M_NOT_FOUND", 404, "M_NOT_FOUND"),
        (504, "M_NOT_YET_UPLOADED", 504, "M_NOT_YET_UPLOADED"),
        (502, "M_TOO_LARGE", 502, "M_TOO_LARGE"),
        (403, "M_FORBIDDEN", 502, "M_UNKNOWN"),
        (500, "M_UNKNOWN", 502, "M_UNKNOWN"),
    ] {
        let scene = scene(&[]);
        scene.gives(DOWNLOAD, move || error(given, errcode));
        refused(&scene.refused("peer.test/abc"), status, told);
    }
    let scene = scene(&[]);
    refused(&scene.refused("nowhere.test/abc"), 502, "M_UNKNOWN");
    refused(&scene.refused("peer.test/..%2Fabc"), 400, "M_INVALID_PARAM");
}

#[test]
fn an_address_is_followed_without_a_signature() {
    let scene = scene(&[]);
    scene.gives(DOWNLOAD, || multipart("Location: https://cdn.test/files/1?token=t\r\n", b""));
    let seen = Rc::new(RefCell::new(Vec::new()));
    let log = seen.clone();
    scene.world.connect(
        "cdn.test",
        Rc::new(move |request| {
            log.borrow_mut().push(request.clone());
            let answer = http::Response::builder();
            let answer = match request.uri().path() {
                "/files/1" => answer.status(307).header("Location", "https://cdn.test/files/2").body(Bytes::new()),
                _ => answer.header("Content-Type", "image/gif").body(Bytes::from_static(b"GIF89a")),
            };
            Box::pin(async move { answer.unwrap() })
        }),
    );
    let response = scene.download("peer.test/abc");
    assert_eq!((response.status().as_u16(), &response.body()[..]), (200, &b"GIF89a"[..]));
    assert_eq!(response.headers()["content-type"], "image/gif");
    let lines: Vec<_> = seen.borrow().iter().map(|request| request.uri().to_string()).collect();
    assert_eq!(lines, ["/files/1?token=t", "/files/2"]);
    assert!(seen.borrow().iter().all(|request| !request.headers().contains_key("authorization")));
}

#[test]
fn addresses_lead_out_only_and_end() {
    for location in [
        "http://cdn.test/1",
        "ftp://cdn.test/1",
        "/relative",
        "https://cdn.test/loop",
        "nonsense",
        "https://user:pw@cdn.test/",
        "",
    ] {
        let scene = scene(&[]);
        scene.gives(DOWNLOAD, move || multipart(&format!("Location: {location}\r\n"), b""));
        let round: fn(verge::router::Request) -> Response = |_| {
            let answer = http::Response::builder().status(302).header("Location", "https://cdn.test/loop");
            answer.body(Bytes::new()).unwrap()
        };
        scene.world.connect("cdn.test", Rc::new(move |request| Box::pin(async move { round(request) })));
        refused(&scene.refused("peer.test/abc"), 502, "M_UNKNOWN");
        assert!(scene.world.traffic().iter().filter(|sent| sent.to == "cdn.test").count() <= 4);
    }
    // A server with a public name is led into no private network.
    let world = World::new();
    let home = Home::with(&world, "hs.example.org", &[("REGISTRATION", "open")]);
    let (alice, peer) = (home.register("alice"), Peer::new(&world, "peer.example.org"));
    let scene = Scene { world, home, alice, peer };
    for location in ["https://127.0.0.1/x", "https://localhost/x", "https://10.0.0.1:8080/x", "https://intranet/x"] {
        scene.gives(DOWNLOAD, move || multipart(&format!("Location: {location}\r\n"), b""));
        refused(&scene.refused("peer.example.org/abc"), 502, "M_UNKNOWN");
        scene.world.advance(60_000);
    }
    let reached: Vec<_> = scene.world.traffic().iter().map(|sent| sent.to.clone()).collect();
    assert!(reached.iter().all(|host| host == "peer.example.org"), "{reached:?}");
}

#[test]
fn what_is_forged_or_cut_off_is_not_kept() {
    let whole = multipart("", b"content");
    let cut: Bytes = whole.body().slice(..whole.body().len() - 10);
    let with = |content_type: &str, body: &[u8]| {
        let response = http::Response::builder().header("Content-Type", content_type);
        response.body(Bytes::copy_from_slice(body)).unwrap()
    };
    let long = "x".repeat(200_000);
    for response in [
        with("multipart/mixed; boundary=x", &cut),
        with("multipart/mixed", whole.body()),
        with("multipart/mixed; boundary=y", whole.body()),
        with("text/html", b"<script>"),
        with("multipart/mixed; boundary=x", format!("--x\r\nA: {long}").as_bytes()),
        with("multipart/mixed; boundary=x", format!("--x\r\n\r\n{{\"a\":\"{long}\"}}").as_bytes()),
        with(
            "multipart/mixed; boundary=x",
            format!("--x\r\n\r\n{{}}\r\n--x\r\n{}", "A: b\r\n".repeat(50_000)).as_bytes(),
        ),
        with("multipart/mixed; boundary=x", b"--x\r\n\r\n{}\r\n--x--"),
        with("multipart/mixed; boundary=x", b""),
    ] {
        let scene = scene(&[]);
        let body = response.body().clone();
        scene.gives(DOWNLOAD, move || response.clone());
        refused(&scene.refused("peer.test/abc"), 502, "M_UNKNOWN");
        assert_eq!(scene.world.shelves("hs.test").keys(), Vec::<String>::new(), "{:.80?}", body);
    }
}

#[test]
fn headers_of_others_do_not_become_ours() {
    let scene = scene(&[]);
    scene.gives(DOWNLOAD, || {
        let head = "Content-Type: text/html\r\nContent-Disposition: inline; filename*=utf-8''a%0D%0AX-Evil%3A%201\r\n\
                    Set-Cookie: a=b\r\nContent-Security-Policy: none\r\n";
        multipart(head, b"<script>alert(1)</script>")
    });
    let response = scene.download("peer.test/abc");
    assert_eq!(response.status(), 200);
    let headers = response.headers();
    assert!(!headers.contains_key("x-evil") && !headers.contains_key("set-cookie"));
    assert_eq!(headers["content-disposition"], "attachment; filename*=utf-8''a%0D%0AX-Evil%3A%201");
    assert_eq!(headers.get_all("content-security-policy").iter().count(), 1);
    // A type that is none is none.
    scene.gives(DOWNLOAD, || multipart("Content-Type: ../../etc\r\n", b"x"));
    assert_eq!(scene.download("peer.test/def").headers()["content-type"], "application/octet-stream");
}

#[test]
fn what_is_too_large_is_not_kept_and_fetches_have_a_rate() {
    let scene = scene(&[("MEDIA_MAX_SIZE", "1000"), ("REMOTE_MEDIA_RATE", "2/60")]);
    scene.gives(DOWNLOAD, || multipart("", &[0; 1_001]));
    refused(&scene.refused("peer.test/large"), 502, "M_TOO_LARGE");
    scene.gives(DOWNLOAD, || multipart("", &[0; 1_000]));
    assert_eq!(scene.download("peer.test/small").status(), 200);
    refused(&scene.refused("peer.test/more"), 429, "M_LIMIT_EXCEEDED");
    // What is here is no fetch.
    assert_eq!(scene.download("peer.test/small").status(), 200);
    assert_eq!(scene.world.shelves("hs.test").keys(), ["remote/peer.test/small"]);
}

#[test]
fn two_of_our_servers_give_each_other_files() {
    let world = World::new();
    let open = [("REGISTRATION", "open")];
    let (one, two) = (Home::with(&world, "one.test", &open), Home::with(&world, "two.test", &open));
    let (alice, bob) = (one.register("alice"), two.register("bob"));
    let content = "Grüße ☂ ".repeat(20_000);
    let response =
        one.raw("POST", "/_matrix/media/v3/upload?filename=%E2%98%82.txt", Some(&alice.token), content.clone());
    let answer: Value = serde_json::from_slice(response.body()).unwrap();
    let path = answer["content_uri"].as_str().unwrap().strip_prefix("mxc://").unwrap().to_owned();
    let target = format!("/_matrix/client/v1/media/download/{path}");
    let response = two.raw("GET", &target, Some(&bob.token), "");
    assert_eq!((response.status().as_u16(), &response.body()[..]), (200, content.as_bytes()), "{:?}", world.logs());
    assert_eq!(response.headers()["content-disposition"], "attachment; filename*=utf-8''%E2%98%82.txt");
    // While the other one is away, too.
    world.disconnect("one.test");
    assert_eq!(two.raw("GET", &target, Some(&bob.token), "").status(), 200);
}

/// How many bytes a peer's files have, by their IDs: `f1000x` has a thousand.
fn file_of(request: &verge::router::Request) -> Option<Response> {
    let media_id = request.uri().path().strip_prefix(DOWNLOAD)?;
    let length = media_id.strip_prefix('f')?.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().ok()?;
    Some(multipart("", &vec![0; length]))
}

#[test]
fn what_is_fetched_for_a_user_in_a_day_is_bounded() {
    let scene = scene(&[("MEDIA_MAX_SIZE", "1000"), ("REMOTE_MEDIA_QUOTA", "2500")]);
    scene.peer.answers(file_of);
    // A new day begins.
    scene.world.advance(86_400_000 - scene.world.now_ms() % 86_400_000);
    for media_id in ["f1000a", "f500b"] {
        assert_eq!(scene.download(&format!("peer.test/{media_id}")).status(), 200, "{:?}", scene.world.logs());
    }
    // One more may have a thousand.
    assert_eq!(scene.download("peer.test/f1c").status(), 200);
    let asked = scene.asked(DOWNLOAD);
    scene.world.advance(3_600_000);
    let answer = scene.refused("peer.test/f1d");
    assert_eq!(answer.1["retry_after_ms"], 23 * 3_600_000);
    refused(&answer, 429, "M_LIMIT_EXCEEDED");
    assert_eq!(scene.asked(DOWNLOAD), asked);
    // What is here is no fetch, others have days of their own, and what they have fetched is here for all.
    assert_eq!(scene.download("peer.test/f1000a").status(), 200);
    let bob = scene.home.register("bob");
    let target = "/_matrix/client/v1/media/download/peer.test/f1d";
    assert_eq!(scene.home.raw("GET", target, Some(&bob.token), "").status(), 200);
    assert_eq!(scene.download("peer.test/f1d").status(), 200);
    refused(&scene.refused("peer.test/f1e"), 429, "M_LIMIT_EXCEEDED");
    scene.world.advance(23 * 3_600_000);
    assert_eq!(scene.download("peer.test/f1e").status(), 200);
}

#[test]
fn what_breaks_off_counts_as_much_as_it_may_have_brought() {
    let scene = scene(&[("MEDIA_MAX_SIZE", "1000"), ("REMOTE_MEDIA_QUOTA", "2500")]);
    breaks_off(&scene);
    for media_id in ["a", "b"] {
        refused(&scene.refused(&format!("peer.test/{media_id}")), 502, "M_UNKNOWN");
    }
    refused(&scene.refused("peer.test/c"), 429, "M_LIMIT_EXCEEDED");
    assert_eq!(scene.home.database.rows("SELECT bytes FROM remote_media_fetched"), [["2000"]]);
    assert_eq!(scene.world.shelves("hs.test").keys(), Vec::<String>::new());
}

/// The file of the other server is cut off before its end.
fn breaks_off(scene: &Scene) {
    let whole = multipart("", &[0; 100]);
    let cut = whole.body().slice(..whole.body().len() - 10);
    scene.gives(DOWNLOAD, move || {
        let response = http::Response::builder().header("Content-Type", "multipart/mixed; boundary=x");
        response.body(cut.clone()).unwrap()
    });
}

#[test]
fn no_server_uses_up_a_user_s_bytes_with_answers_that_break_off() {
    let scene = scene(&[]);
    breaks_off(&scene);
    for number in 0..5 {
        refused(&scene.refused(&format!("peer.test/{number}")), 502, "M_UNKNOWN");
    }
    assert_eq!(scene.home.database.rows("SELECT bytes FROM remote_media_fetched"), [[(5 << 20).to_string()]]);
}

#[test]
fn what_says_that_it_is_too_large_is_not_read() {
    let scene = scene(&[("MEDIA_MAX_SIZE", "1000"), ("REMOTE_MEDIA_QUOTA", "1000")]);
    scene.gives(DOWNLOAD, || {
        let mut response = multipart("", &[0; 80_000]);
        let length = response.body().len();
        response.headers_mut().insert("Content-Length", length.into());
        response
    });
    refused(&scene.refused("peer.test/a"), 502, "M_TOO_LARGE");
    assert_eq!(scene.world.shelves("hs.test").largest_piece.get(), 0);
    // So it does not count, and for an hour nobody asks for it again.
    refused(&scene.refused("peer.test/b"), 502, "M_TOO_LARGE");
    scene.world.advance(3_500_000);
    refused(&scene.refused("peer.test/a"), 502, "M_TOO_LARGE");
    assert_eq!(scene.asked(DOWNLOAD), 2);
    assert_eq!(scene.home.database.rows("SELECT * FROM remote_media_fetched"), Vec::<Vec<String>>::new());
}

#[test]
fn files_on_their_way_count_as_the_largest() {
    let scene = scene(&[("MEDIA_MAX_SIZE", "1000"), ("REMOTE_MEDIA_QUOTA", "3999")]);
    scene.peer.answers(file_of);
    scene.world.interleave();
    let get = |number: usize| {
        let request =
            Request::get(format!("/_matrix/client/v1/media/download/peer.test/f1{}", ["x"].repeat(number).concat()));
        let request = request.header("Authorization", format!("Bearer {}", scene.alice.token));
        scene.home.server.handle(request.body(Bytes::new()).unwrap())
    };
    let answers = scene.world.run(join_all((0..10).map(get)));
    let statuses: Vec<_> = answers.iter().map(|answer| answer.status().as_u16()).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 429).count(), 10 - scene.asked(DOWNLOAD), "{statuses:?}");
    // Three at once fit, and as they come the next ones do.
    assert!((3..10).contains(&scene.asked(DOWNLOAD)), "{statuses:?}");
    for answer in answers.iter().filter(|answer| answer.status() == 429) {
        let answer: Value = serde_json::from_slice(answer.body()).unwrap();
        assert_eq!(answer["retry_after_ms"], 2_000);
    }
    // Whose isolate has died is not on their way for ever.
    let die = "UPDATE remote_media SET size = NULL, fetching_until = ?1, fetching_for = '@alice:hs.test'";
    let until = scene.world.now_ms() + 180_000;
    let statement = verge::platform::Statement::new(die, [until.into()]);
    scene.world.run(scene.home.server.store.query(statement)).unwrap();
    refused(&scene.refused("peer.test/f1new"), 429, "M_LIMIT_EXCEEDED");
    scene.world.advance(180_001);
    assert_eq!(scene.download("peer.test/f1new").status(), 200);
}

#[test]
fn what_was_not_asked_for_for_longest_gives_way() {
    let scene = scene(&[("MEDIA_MAX_SIZE", "1000"), ("REMOTE_MEDIA_SPACE", "2500")]);
    scene.peer.answers(file_of);
    let day = 86_400_000;
    let get = |media_id: &str| assert_eq!(scene.download(&format!("peer.test/{media_id}")).status(), 200);
    let kept = || {
        let rows = scene.home.database.rows("SELECT bytes FROM remote_media_kept");
        let sum = scene.home.database.rows("SELECT COALESCE(SUM(size), 0) FROM remote_media");
        assert_eq!(rows, sum);
        scene.world.shelves("hs.test").keys()
    };
    get("f1000a");
    scene.world.advance(day);
    get("f800b");
    assert_eq!(kept(), ["remote/peer.test/f1000a", "remote/peer.test/f800b"]);
    scene.world.advance(day);
    get("f1000a");
    get("f600c");
    assert_eq!(kept(), ["remote/peer.test/f1000a", "remote/peer.test/f600c"]);
    // Where the store has lost one, that one does not count twice.
    let shelves = scene.world.shelves("hs.test");
    scene.world.run(async {
        use verge::platform::media::MediaStore;
        shelves.delete(vec!["remote/peer.test/f600c".to_owned()]).await.unwrap();
    });
    get("f600c");
    assert_eq!(kept().len(), 2);
    // Nor do those that could not be had.
    refused(&scene.refused("peer.test/f1001d"), 502, "M_TOO_LARGE");
    kept();
    for number in 0..20 {
        scene.world.advance(day);
        get(&format!("f{}e", 100 * (1 + number % 10)));
        kept();
    }
}

#[test]
fn what_could_not_be_had_is_passed_over_where_room_is_made() {
    let scene = scene(&[("MEDIA_MAX_SIZE", "1000"), ("REMOTE_MEDIA_SPACE", "2500")]);
    scene.peer.answers(file_of);
    let failures = || scene.home.database.rows("SELECT COUNT(*) FROM remote_media WHERE failure IS NOT NULL");
    scene.home.database.rows(
        "INSERT INTO remote_media (origin, media_id, fetching_until, failure, last_access_ts) \
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300) \
         SELECT 'peer.test', 'x' || i, 0, 'not_found', 0 FROM n",
    );
    let before = failures();
    for media_id in ["f1000a", "f800b", "f600c"] {
        assert_eq!(scene.download(&format!("peer.test/{media_id}")).status(), 200);
        scene.world.advance(86_400_000);
    }
    assert_eq!(scene.world.shelves("hs.test").keys(), ["remote/peer.test/f600c", "remote/peer.test/f800b"]);
    assert_eq!(failures(), before);
}
