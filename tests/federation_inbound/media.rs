//! Media of this server's users, as other servers ask for them.

use bytes::Bytes;
use http::Method;
use ruma_common::{api::IncomingResponseExt, http_headers::ContentDispositionType};
use ruma_federation_api::authenticated_media::{FileOrLocation, get_content, get_content_thumbnail};
use serde_json::Value;

use crate::common::{
    network::{Homeserver, World},
    peer::{Peer, request, send},
};

const DOWNLOAD: &str = "/_matrix/federation/v1/media/download";

/// A user's token.
fn register(world: &World, a: &Homeserver) -> String {
    let body = r#"{"username":"alice","password":"secret","auth":{"type":"m.login.dummy"}}"#;
    let (status, answer) = send(world, a, request(Method::POST, "/_matrix/client/v3/register", &[], body));
    assert_eq!(status, 200, "{answer}");
    answer["access_token"].as_str().unwrap().to_owned()
}

/// Sends a client's request.
fn client(world: &World, a: &Homeserver, token: &str, method: Method, target: &str, body: Bytes) -> (u16, Value) {
    let mut request = request(method, target, &[&format!("Bearer {token}")], body);
    request.headers_mut().insert("Content-Type", "image/gif".parse().unwrap());
    send(world, a, request)
}

fn media_id(answer: &Value) -> String {
    answer["content_uri"].as_str().unwrap().strip_prefix("mxc://a.example/").unwrap().to_owned()
}

#[test]
fn a_file_is_sent_behind_its_metadata() {
    let world = World::new();
    let a = world.server("a.example");
    let peer = Peer::new(&world, "peer.example");
    let token = register(&world, &a);
    let bytes: Bytes = (0..50_000u32).map(|n| n as u8).collect();
    for (filename, content) in [("tree%20%C3%A4%0D%0A.gif", bytes), ("empty.gif", Bytes::new())] {
        let target = format!("/_matrix/media/v3/upload?filename={filename}");
        let (_, answer) = client(&world, &a, &token, Method::POST, &target, content.clone());
        let target = format!("{DOWNLOAD}/{}", media_id(&answer));
        let response = world.run(a.handle(peer.request(&a, Method::GET, &target, None)));
        assert_eq!(response.status(), 200);
        let response = response.map(|body| body.to_vec());
        let response = http::Response::from_parts(response.clone().into_parts().0, response.body().as_slice());
        let read = get_content::v1::Response::try_from_http_response(response).unwrap();
        let FileOrLocation::File(file) = read.content else { panic!("no file") };
        assert_eq!(file.file, content);
        assert_eq!(file.content_type.as_deref(), Some("image/gif"));
        let disposition = file.content_disposition.unwrap();
        assert_eq!(disposition.disposition_type, ContentDispositionType::Inline);
        let name = percent_encoding::percent_decode_str(filename).decode_utf8().unwrap().into_owned();
        assert_eq!(disposition.filename, Some(name));
    }
}

#[test]
fn only_a_server_that_signs_is_given_what_is_there() {
    let world = World::new();
    let a = world.server("a.example");
    let peer = Peer::new(&world, "peer.example");
    let token = register(&world, &a);
    let (_, answer) = client(&world, &a, &token, Method::POST, "/_matrix/media/v3/upload", "x".into());
    let target = format!("{DOWNLOAD}/{}", media_id(&answer));
    for headers in [&[][..], &[format!("Bearer {token}").as_str()]] {
        let (status, answer) = send(&world, &a, request(Method::GET, &target, headers, ""));
        assert_eq!((status, answer["errcode"].as_str()), (401, Some("M_UNAUTHORIZED")));
    }
    for (path, status, errcode) in [
        ("nothing", 404, "M_NOT_FOUND"),
        ("..%2F..%2Fetc", 400, "M_INVALID_PARAM"),
        ("abc?timeout_ms=x", 400, "M_INVALID_PARAM"),
    ] {
        let (was, answer) = peer.get(&a, &format!("{DOWNLOAD}/{path}"));
        assert_eq!((was, answer["errcode"].as_str()), (status, Some(errcode)), "{path}");
    }
    // What is reserved and does not come.
    let (_, answer) = client(&world, &a, &token, Method::POST, "/_matrix/media/v1/create", Bytes::new());
    let begun = world.now_ms();
    let (status, answer) = peer.get(&a, &format!("{DOWNLOAD}/{}?timeout_ms=1500", media_id(&answer)));
    assert_eq!((status, answer["errcode"].as_str()), (504, Some("M_NOT_YET_UPLOADED")));
    assert_eq!(world.now_ms() - begun, 1_500);
    // Without a signature, other servers are told that there is nothing.
    let legacy = target.replace("federation/v1/media/download", "media/v3/download/a.example");
    let (status, answer) = send(&world, &a, request(Method::GET, &legacy, &[], ""));
    assert_eq!((status, answer["errcode"].as_str()), (404, Some("M_NOT_FOUND")));
}

#[test]
fn a_thumbnail_is_sent_as_a_file_is() {
    let world = World::new();
    let a = world.server("a.example");
    let peer = Peer::new(&world, "peer.example");
    let token = register(&world, &a);
    let image = image::RgbImage::from_pixel(300, 200, image::Rgb([9, 99, 199]));
    let mut png = std::io::Cursor::new(Vec::new());
    image.write_to(&mut png, image::ImageFormat::Png).unwrap();
    let (_, answer) = client(&world, &a, &token, Method::POST, "/_matrix/media/v3/upload", png.into_inner().into());
    let target = format!("/_matrix/federation/v1/media/thumbnail/{}", media_id(&answer));
    let wanted = format!("{target}?width=96&height=96&method=crop");
    let response = world.run(a.handle(peer.request(&a, Method::GET, &wanted, None)));
    let (parts, body) = response.into_parts();
    let response = http::Response::from_parts(parts, &body[..]);
    let read = get_content_thumbnail::v1::Response::try_from_http_response(response).unwrap();
    let FileOrLocation::File(file) = read.content else { panic!("no file") };
    assert_eq!(file.content_type.as_deref(), Some("image/jpeg"));
    let small = image::load_from_memory(&file.file).unwrap();
    assert_eq!((small.width(), small.height()), (96, 96));
    for (query, status, errcode) in [("", 400, "M_MISSING_PARAM"), ("?width=x&height=1", 400, "M_INVALID_PARAM")] {
        let (was, answer) = peer.get(&a, &format!("{target}{query}"));
        assert_eq!((was, answer["errcode"].as_str()), (status, Some(errcode)), "{query}");
    }
    let (_, answer) = client(&world, &a, &token, Method::POST, "/_matrix/media/v3/upload", "no image".into());
    let target = format!("/_matrix/federation/v1/media/thumbnail/{}?width=32&height=32", media_id(&answer));
    let (status, answer) = peer.get(&a, &target);
    assert_eq!((status, answer["errcode"].as_str()), (400, Some("M_UNKNOWN")));
}
