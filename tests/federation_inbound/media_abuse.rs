//! What media cost that are not what they should be: calls, written rows without those of indexes, and bytes that come in.
//! `ARCHITECTURE.md` has the figures as a table.

use std::rc::Rc;

use bytes::Bytes;
use http::Request;
use verge::router::{RequestBody, Response};

use crate::{
    abuse::{Cost, cost},
    common::{
        media::{Pieces, Shelves},
        network::{Homeserver, World},
        peer::{Peer, request, send},
        sqlite::Sqlite,
    },
};

/// The largest file that the server takes, and the pieces in which bytes come.
const MAX_SIZE: u64 = 100_000;
const PIECE: usize = 1_000;

struct Scene {
    world: World,
    a: Homeserver,
    token: String,
    peer: Rc<Peer>,
    shelves: Shelves,
}

fn scene() -> Scene {
    let world = World::new();
    let a = world.server_over("a.example", Sqlite::in_memory(), &[("MEDIA_MAX_SIZE", "100000")]);
    let body = r#"{"username":"alice","password":"secret","auth":{"type":"m.login.dummy"}}"#;
    let (_, answer) = send(&world, &a, request(http::Method::POST, "/_matrix/client/v3/register", &[], body));
    let token = answer["access_token"].as_str().unwrap().to_owned();
    let peer = Peer::new(&world, "peer.example");
    let shelves = world.shelves("a.example");
    Scene { world, a, token, peer, shelves }
}

impl Scene {
    fn ask(&self, method: &str, target: &str, headers: &[(&str, &str)], body: RequestBody) -> Response {
        let request = Request::builder().method(method).uri(target);
        let request = request.header("Authorization", format!("Bearer {}", self.token));
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        self.world.run(self.a.handle(request.body(body).unwrap()))
    }

    fn get(&self, target: &str) -> Response {
        self.ask("GET", target, &[], RequestBody::Read(Bytes::new()))
    }

    /// What a request costs that is answered so, and how many bytes come in for it.
    fn costs(&self, status: u16, ask: impl FnOnce() -> Response) -> (Cost, u64) {
        let so_far = self.shelves.came_in.get();
        let spent = cost(&self.world, &self.a, || {
            let response = ask();
            assert_eq!(response.status(), status, "{:?} {:?}", response.body(), self.world.logs());
        });
        (spent, self.shelves.came_in.get() - so_far)
    }

    fn upload(&self, headers: &[(&str, &str)], pieces: Pieces) -> Response {
        self.ask("POST", "/_matrix/media/v3/upload", headers, RequestBody::Unread(Box::new(pieces)))
    }

    fn download(&self, media_id: &str) -> Response {
        self.get(&format!("/_matrix/client/v1/media/download/{media_id}"))
    }
}

const fn of(calls: u64, rows: u64) -> Cost {
    Cost { calls, rows }
}

/// What is too long is noticed with the piece that is too much.
const TOO_LONG: u64 = MAX_SIZE + PIECE as u64;

#[test]
fn uploads_that_are_too_large_or_cut_off_leave_nothing() {
    let scene = scene();
    let large = || Pieces::new(vec![0; 1_000_000].into(), PIECE);
    assert_eq!(scene.costs(413, || scene.upload(&[("Content-Length", "1000000")], large())), (of(1, 0), 0));
    assert_eq!(scene.costs(413, || scene.upload(&[], large())), (of(3, 2), TOO_LONG));
    let half = || Pieces::cut_off(vec![0; 50_000].into(), PIECE);
    assert_eq!(scene.costs(400, || scene.upload(&[("Content-Length", "99999")], half())), (of(3, 2), 50_000));
    assert_eq!(scene.costs(400, || scene.upload(&[], half())), (of(3, 2), 50_000));
    assert_eq!(scene.shelves.keys(), Vec::<String>::new());
    for table in ["local_media", "media_usage"] {
        assert_eq!(scene.a.database.rows(&format!("SELECT * FROM {table}")), Vec::<Vec<String>>::new(), "{table}");
    }
}

#[test]
fn a_polyglot_is_a_file_to_be_saved() {
    let scene = scene();
    // An image by what it begins with (one of 10,799 by 26,684 pixels), a page and a script by what follows, and an archive by how it ends.
    let polyglot = Bytes::from_static(
        b"GIF89a/*<html><body><script>alert(1)</script></body></html>*/=1;alert(2)//PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
    );
    for (content_type, disposition) in [
        ("image/gif", "inline"),
        ("text/html", "attachment"),
        ("image/svg+xml", "attachment"),
        ("application/javascript", "attachment"),
        ("application/xhtml+xml", "attachment"),
        ("image/gif, text/html", "attachment"),
    ] {
        let mut answer = serde_json::Value::Null;
        let spent = scene.costs(200, || {
            let response = scene.upload(&[("Content-Type", content_type)], Pieces::new(polyglot.clone(), PIECE));
            answer = serde_json::from_slice(response.body()).unwrap();
            response
        });
        assert_eq!(spent, (of(3, 4), polyglot.len() as u64), "{content_type}");
        let media_id = answer["content_uri"].as_str().unwrap().strip_prefix("mxc://").unwrap().to_owned();
        let response = scene.download(&media_id);
        let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
        assert!(header("content-disposition").starts_with(disposition), "{content_type}");
        assert_eq!(header("x-content-type-options"), "nosniff");
        assert!(header("content-security-policy").starts_with("sandbox; default-src 'none'; script-src 'none';"));
        // What it says that it is would be too large.
        let target = format!("/_matrix/client/v1/media/thumbnail/{media_id}?width=32&height=32&method=crop");
        for _ in 0..2 {
            assert_eq!(scene.costs(413, || scene.get(&target)), (of(2, 0), 0), "{content_type}");
        }
    }
}

#[test]
fn files_of_others_that_are_too_large_or_cut_off_leave_nothing() {
    let scene = scene();
    let multipart = |length: usize| [&b"--x\r\n\r\n{}\r\n--x\r\n\r\n"[..], &vec![0; length], b"\r\n--x--"].concat();
    let (whole, mut cut) = (multipart(1_000_000), multipart(50_000));
    cut.truncate(40_000);
    let (whole, cut) = (Bytes::from(whole), Bytes::from(cut));
    scene.peer.answers(move |request| {
        let media_id = request.uri().path().strip_prefix("/_matrix/federation/v1/media/download/")?;
        let response = http::Response::builder().header("Content-Type", "multipart/mixed; boundary=x");
        let response = if media_id == "said" { response.header("Content-Length", whole.len()) } else { response };
        Some(response.body(if media_id == "cut" { cut.clone() } else { whole.clone() }).unwrap())
    });
    let ask = |media_id: &str| {
        scene.costs(502, || {
            let response = scene.download(&format!("peer.example/{media_id}"));
            let text = String::from_utf8_lossy(response.body()).into_owned();
            assert_eq!(text.contains("M_TOO_LARGE"), media_id != "cut", "{text}");
            response
        })
    };
    // How the server is reached is known by then.
    assert_eq!(scene.download("peer.example/first").status(), 502);
    let (spent, came) = ask("said");
    assert_eq!((spent, came), (of(4, 2), 0));
    let (spent, came) = ask("unsaid");
    assert_eq!(spent, of(4, 3));
    let (spent, came_of_cut) = ask("cut");
    assert_eq!(spent, of(4, 3));
    assert!((MAX_SIZE..=MAX_SIZE + 10_000).contains(&came) && came_of_cut < 40_000, "{came} {came_of_cut}");
    for media_id in ["said", "unsaid", "cut"] {
        assert_eq!(ask(media_id), (of(2, 0), 0), "{media_id}");
    }
    assert_eq!(scene.shelves.keys(), Vec::<String>::new());
    assert_eq!(scene.a.database.rows("SELECT * FROM remote_media_kept"), Vec::<Vec<String>>::new());
    // What came counts for who asked for it: two that were too large, and one that broke off.
    assert_eq!(scene.a.database.rows("SELECT bytes FROM remote_media_fetched"), [["300000"]]);
}
