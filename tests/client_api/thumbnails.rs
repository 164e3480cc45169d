//! Thumbnails, and what is forgotten of media.

use std::io::Cursor;

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures_util::future::{join, join_all};
use http::Request;
use image::{ImageFormat, ImageReader, Rgb, RgbImage, Rgba, RgbaImage};
use serde_json::Value;
use verge::{
    platform::Clock,
    router::{RequestBody, Response},
};

use crate::{
    common::{network::World, peer::Peer, webp::FILES},
    home::{Home, User, refused},
};

fn home() -> (Home, User) {
    let home = Home::with(&World::new(), "hs.test", &[("REGISTRATION", "open")]);
    let alice = home.register("alice");
    (home, alice)
}

/// The left half red, the right half blue.
fn halves(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, _| if x < width / 2 { Rgb([250, 0, 0]) } else { Rgb([0, 0, 250]) })
}

fn file(image: &RgbImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn upload(home: &Home, user: &User, content_type: &str, bytes: Vec<u8>) -> String {
    let request = Request::post("/_matrix/media/v3/upload").header("Content-Type", content_type);
    let request = request.header("Authorization", format!("Bearer {}", user.token));
    let response = home.world.run(home.server.handle(request.body(RequestBody::Read(bytes.into())).unwrap()));
    let answer: Value = serde_json::from_slice(response.body()).unwrap();
    answer["content_uri"].as_str().unwrap_or_else(|| panic!("{answer}")).replace("mxc://", "")
}

fn thumbnail(home: &Home, user: &User, path: &str, query: &str) -> Response {
    home.raw("GET", &format!("/_matrix/client/v1/media/thumbnail/{path}?{query}"), Some(&user.token), "")
}

fn decoded(response: &Response) -> RgbaImage {
    assert_eq!(response.status(), 200, "{:?}", response.body());
    let reader = ImageReader::new(Cursor::new(response.body())).with_guessed_format().unwrap();
    reader.decode().unwrap().into_rgba8()
}

fn answer(response: &Response) -> (u16, Value) {
    (response.status().as_u16(), serde_json::from_slice(response.body()).unwrap())
}

fn is_red(pixel: &Rgba<u8>) -> bool {
    pixel[0] > 200 && pixel[2] < 60
}

#[test]
fn every_kind_of_image_becomes_smaller() {
    let (home, alice) = home();
    for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Gif] {
        let path = upload(&home, &alice, "image/png", file(&halves(1_000, 500), format));
        for (query, width, height) in [
            ("width=32&height=32&method=crop", 32, 32),
            ("width=90&height=40&method=crop", 96, 96),
            ("width=320&height=240&method=scale", 480, 240),
            ("width=1&height=1", 480, 240),
            ("width=321&height=10&method=scale", 960, 480),
            // Larger than it is: as it is.
            ("width=800&height=600&method=scale", 1_000, 500),
            ("width=5000&height=5000&method=crop", 1_000, 500),
        ] {
            let response = thumbnail(&home, &alice, &path, query);
            let image = decoded(&response);
            assert_eq!(image.dimensions(), (width, height), "{format:?} {query}");
            assert!(is_red(image.get_pixel(2, 2)) && !is_red(image.get_pixel(width - 3, 2)), "{format:?} {query}");
            let disposition = response.headers()["content-disposition"].to_str().unwrap();
            assert!(disposition.starts_with("inline"), "{disposition}");
            assert!(response.headers().contains_key("content-security-policy"));
            let content_type = response.headers()["content-type"].to_str().unwrap();
            let expected = if width < 1_000 { "image/jpeg" } else { format.to_mime_type() };
            assert_eq!(content_type, expected);
        }
    }
}

/// A lossy WebP of 200 by 100 pixels, the left half red, written by libwebp.
fn lossy_webp() -> Vec<u8> {
    const FILE: &str = "\
        UklGRrYAAABXRUJQVlA4IKoAAAAwCwCdASrIAGQAPtFor1IoJiQiosgBABoJZ27hdVD1AAatjyD5AKUB9gFf/7gAAReJswdgz9HD5H+FB9mvuIYyXIXf\
        wJjh/V2iGJD/Cksj2C/oj7QrdohgBdwot0Lv0j++AAD+/nyq8UEKcg/9CTXdk7/Fs3a2latPfooenX+0q8eAtvwP4wXzjY2ZcxzvzVq9JsE70g2QDswc\
        j6ZnEIirLbjKoAybi7AAAA==";
    STANDARD.decode(FILE).unwrap()
}

#[test]
fn every_kind_of_webp_becomes_smaller() {
    let (home, alice) = home();
    let ours = file(&halves(300, 200), ImageFormat::WebP);
    let files = FILES.map(|(name, bytes)| (name, bytes.to_vec()));
    for (name, bytes) in [("lossy", lossy_webp()), ("ours", ours)].into_iter().chain(files) {
        let path = upload(&home, &alice, "application/x-unknown", bytes);
        let response = thumbnail(&home, &alice, &path, "width=96&height=96&method=crop");
        let image = decoded(&response);
        assert_eq!(image.dimensions(), (96, 96), "{name}");
        // In those through which something shines, a strip on the left does.
        let (left, right) = (image.get_pixel(33, 90), image.get_pixel(93, 90));
        assert!(is_red(left) && !is_red(right) && right[2] > 150, "{name}: {left:?} {right:?}");
        let shines_through = name.ends_with("alpha");
        assert_eq!(image.get_pixel(2, 90)[3] == 0, shines_through, "{name}");
        let kind = if shines_through { "image/png" } else { "image/jpeg" };
        assert_eq!(response.headers()["content-type"], kind, "{name}");
    }
}

/// A GIF of two images.
fn moving_gif() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = image::codecs::gif::GifEncoder::new(&mut bytes);
    for (red, blue) in [(250, 0), (0, 250)] {
        let frame = RgbaImage::from_pixel(40, 30, Rgba([red, 0, blue, 255]));
        encoder.encode_frame(image::Frame::new(frame)).unwrap();
    }
    drop(encoder);
    bytes
}

#[test]
fn a_thumbnail_moves_only_where_it_may() {
    let (home, alice) = home();
    let animated = FILES.into_iter().find(|(name, _)| *name == "animated").unwrap().1;
    for (kind, bytes) in [("image/gif", moving_gif()), ("image/webp", animated.to_vec())] {
        let path = upload(&home, &alice, kind, bytes.clone());
        for size in ["width=320&height=240&method=scale", "width=5000&height=5000"] {
            let moves = thumbnail(&home, &alice, &path, &format!("{size}&animated=true"));
            assert_eq!((moves.status().as_u16(), &moves.body()[..]), (200, &bytes[..]), "{kind} {size}");
            for query in [size.to_owned(), format!("{size}&animated=false")] {
                let still = thumbnail(&home, &alice, &path, &query);
                assert_eq!(still.headers()["content-type"], "image/jpeg", "{kind} {query}");
                assert!(is_red(decoded(&still).get_pixel(10, 10)), "the first image");
            }
        }
        refused(&answer(&thumbnail(&home, &alice, &path, "width=32&height=32&animated=yes")), 400, "M_INVALID_PARAM");
    }
    // What does not move is given as it is, whatever it may.
    let still = file(&halves(40, 30), ImageFormat::Gif);
    let path = upload(&home, &alice, "image/gif", still.clone());
    for animated in ["true", "false"] {
        let response = thumbnail(&home, &alice, &path, &format!("width=320&height=240&animated={animated}"));
        assert_eq!(response.body()[..], still[..]);
    }
    // All that is made is kept, and known by its key.
    let keys = home.world.shelves("hs.test").keys();
    let kept = keys.iter().filter(|key| key.starts_with("thumbnail/"));
    let ending = |end: &str| kept.clone().filter(|key| key.ends_with(end)).count();
    assert_eq!((ending("/320x240-scale"), ending("/still"), kept.clone().count()), (2, 2, 4), "{keys:?}");
}

#[test]
fn a_still_is_made_once() {
    let (home, alice) = home();
    let shelves = home.world.shelves("hs.test");
    // No codes are so long as those of its first image are said to be.
    let mut broken = moving_gif();
    let head = broken.windows(9).position(|head| head == [0x2c, 0, 0, 0, 0, 40, 0, 30, 0]).unwrap();
    let colors = 3 << ((broken[head + 9] & 7) + 1);
    broken[head + 10 + colors] = 200;
    for (bytes, status) in [(moving_gif(), 200), (broken, 400)] {
        let path = upload(&home, &alice, "image/gif", bytes.clone());
        let still = || thumbnail(&home, &alice, &path, "width=5000&height=5000");
        let first = still();
        assert_eq!(first.status(), status, "{:?}", first.body());
        // It is not made of the file again, which only is given where it may move.
        let moves = thumbnail(&home, &alice, &path, "width=5000&height=5000&animated=true");
        assert_eq!(moves.body()[..], bytes[..]);
        let key = format!("thumbnail/{}/still", path.replace("hs.test", "local"));
        assert_eq!(shelves.object(&key).is_some_and(|kept| kept.is_empty()), status == 400, "{:?}", shelves.keys());
        let again = still();
        assert_eq!((again.status(), again.body()), (first.status(), first.body()));
    }
}

#[test]
fn what_a_webp_says_of_its_chunks_is_not_believed() {
    let (home, alice) = home();
    let size = "width=32&height=32&method=crop";
    let wrapped = |chunks: &[u8]| {
        let head = [&b"WEBPVP8X\x0a\0\0\0\x08\0\0\0"[..], &[199, 0, 0, 99, 0, 0], chunks].concat();
        let length = u32::try_from(head.len()).unwrap().to_le_bytes();
        [&b"RIFF"[..], &length, &head].concat()
    };
    // Four gigabytes are said to follow, and nothing does.
    let (image, long) = (lossy_webp(), b"EXIF\xf0\xff\xff\xff");
    let path = upload(&home, &alice, "image/webp", wrapped(&[&image[12..], &long[..]].concat()));
    assert_eq!(decoded(&thumbnail(&home, &alice, &path, size)).dimensions(), (32, 32));
    for chunks in [&long[..], b"", b"VP8L\xff\xff\xff\xff/", b"ANMF\x10\0\0\0", b"VP8 \0\0\0\0", b"ALPH\0\0\0\0VP8 "] {
        let path = upload(&home, &alice, "image/webp", wrapped(chunks));
        refused(&answer(&thumbnail(&home, &alice, &path, size)), 400, "M_UNKNOWN");
    }
}

#[test]
fn a_thumbnail_is_made_once() {
    let (home, alice) = home();
    let path = upload(&home, &alice, "image/png", file(&halves(400, 400), ImageFormat::Png));
    let first = thumbnail(&home, &alice, &path, "width=32&height=32&method=crop");
    let keys = home.world.shelves("hs.test").keys();
    assert_eq!(keys.iter().filter(|key| key.starts_with("thumbnail/")).count(), 1, "{keys:?}");
    let again = thumbnail(&home, &alice, &path, "width=30&height=30&method=crop");
    assert_eq!(first.body(), again.body());
    assert_eq!(home.world.shelves("hs.test").keys(), keys);
    let etag = again.headers()["etag"].to_str().unwrap().to_owned();
    let target = format!("/_matrix/client/v1/media/thumbnail/{path}?width=32&height=32&method=crop");
    let request = Request::get(target).header("Authorization", format!("Bearer {}", alice.token));
    let request = request.header("If-None-Match", etag).body(Bytes::new()).unwrap();
    assert_eq!(home.world.run(home.server.handle(request)).status(), 304);
}

#[test]
fn thumbnails_are_made_while_others_wait_for_their_files() {
    let (home, alice) = home();
    let paths = [(); 8].map(|()| upload(&home, &alice, "image/png", file(&halves(400, 400), ImageFormat::Png)));
    home.world.shelves("hs.test").turns.set(20);
    let ask = |path: &String| {
        let target = format!("/_matrix/client/v1/media/thumbnail/{path}?width=32&height=32&method=crop");
        let request = Request::get(target).header("Authorization", format!("Bearer {}", alice.token));
        home.server.handle(request.body(Bytes::new()).unwrap())
    };
    let answers = home.world.run(join_all(paths.iter().map(ask)));
    assert_eq!(answers.iter().map(|answer| answer.status().as_u16()).collect::<Vec<_>>(), [200; 8]);
    // Where other work leaves no room, they wait for it, but not for ever.
    let (begun, more) =
        (home.world.now_ms(), upload(&home, &alice, "image/png", file(&halves(400, 400), ImageFormat::Png)));
    let in_work = home.homeserver().admission.reserve(4 << 20, begun).unwrap();
    let later = async {
        home.world.sleep(5_000).await;
        drop(in_work);
    };
    let (answer, ()) = home.world.run(join(ask(&more), later));
    assert_eq!((answer.status().as_u16(), (5_000..6_000).contains(&(home.world.now_ms() - begun))), (200, true));
    let _in_work = home.homeserver().admission.reserve(4 << 20, home.world.now_ms()).unwrap();
    let another = upload(&home, &alice, "image/png", file(&halves(400, 400), ImageFormat::Png));
    let answer = home.world.run(ask(&another));
    assert_eq!((answer.status().as_u16(), answer.headers()["retry-after"].as_bytes()), (503, &b"1"[..]));
}

#[test]
fn what_shines_through_goes_on_to_do_so() {
    let (home, alice) = home();
    let image = RgbaImage::from_fn(200, 200, |x, _| Rgba([9, 200, 9, if x < 100 { 0 } else { 255 }]));
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, ImageFormat::Png).unwrap();
    let path = upload(&home, &alice, "image/png", bytes.into_inner());
    let response = thumbnail(&home, &alice, &path, "width=96&height=96&method=crop");
    assert_eq!(response.headers()["content-type"], "image/png");
    let small = decoded(&response);
    assert_eq!((small.get_pixel(1, 1)[3], *small.get_pixel(90, 1)), (0, Rgba([9, 200, 9, 255])));
}

#[test]
fn a_photo_stands_upright() {
    let (home, alice) = home();
    let plain = file(&halves(400, 200), ImageFormat::Jpeg);
    // An EXIF segment that says: turn it clockwise.
    let mut exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0".to_vec();
    let length = u16::try_from(exif.len() + 2).unwrap().to_be_bytes();
    let mut turned = plain[..2].to_vec();
    turned.extend([0xff, 0xe1, length[0], length[1]]);
    turned.append(&mut exif);
    turned.extend(&plain[2..]);
    let path = upload(&home, &alice, "image/jpeg", turned);
    let image = decoded(&thumbnail(&home, &alice, &path, "width=96&height=96&method=crop"));
    // The left of what was taken is on top.
    assert!(is_red(image.get_pixel(5, 5)) && is_red(image.get_pixel(90, 5)), "the top is red");
    assert!(!is_red(image.get_pixel(5, 90)), "the bottom is blue");
}

/// A PNG that says it is so large, with next to no data.
fn bomb(width: u32, height: u32) -> Vec<u8> {
    fn chunk(name: &[u8; 4], data: &[u8]) -> Vec<u8> {
        let mut crc = !0u32;
        for byte in name.iter().chain(data) {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
            }
        }
        [&u32::try_from(data.len()).unwrap().to_be_bytes()[..], name, data, &(!crc).to_be_bytes()].concat()
    }
    let head = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
    let signature = b"\x89PNG\r\n\x1a\n".to_vec();
    [signature, chunk(b"IHDR", &head), chunk(b"IDAT", &[0x78, 0x9c, 3, 0, 0, 0, 0, 1]), chunk(b"IEND", b"")].concat()
}

#[test]
fn bombs_and_what_is_no_image_are_refused() {
    let (home, alice) = home();
    let size = "width=32&height=32&method=crop";
    for (width, height) in [(60_000, 60_000), (1_000_000, 100), (5_000, 5_000), (2_147_483_647, 2_147_483_647)] {
        let path = upload(&home, &alice, "image/png", bomb(width, height));
        let (status, answer) = answer(&thumbnail(&home, &alice, &path, size));
        assert!(matches!(status, 400 | 413), "{width} x {height}: {status} {answer}");
        let expected = if width == 2_147_483_647 { status } else { 413 };
        assert_eq!(status, expected, "{width} x {height}: {answer}");
    }
    // A file that says it is small, with an image in it that says it is not.
    let image = &lossy_webp()[12..];
    let large = [&image[..14], &[0xff, 0x3f, 0xff, 0x3f], &image[18..]].concat();
    let head = [&b"WEBPVP8X\x0a\0\0\0\0\0\0\0"[..], &[199, 0, 0, 99, 0, 0], &large].concat();
    let length = u32::try_from(head.len()).unwrap().to_le_bytes();
    let path = upload(&home, &alice, "image/webp", [&b"RIFF"[..], &length, &head].concat());
    refused(&answer(&thumbnail(&home, &alice, &path, size)), 400, "M_UNKNOWN");
    let path = upload(&home, &alice, "image/webp", [&b"RIFF\0\0\0\0WEBP"[..], &large].concat());
    refused(&answer(&thumbnail(&home, &alice, &path, size)), 413, "M_TOO_LARGE");
    let mut cut = file(&halves(400, 400), ImageFormat::Png);
    cut.truncate(cut.len() / 2);
    for bytes in [b"<html><script>".to_vec(), b"<svg/>".to_vec(), Vec::new(), b"\x89PNG\r\n\x1a\n".to_vec(), cut] {
        let path = upload(&home, &alice, "image/png", bytes);
        refused(&answer(&thumbnail(&home, &alice, &path, size)), 400, "M_UNKNOWN");
    }
    let mut long = file(&halves(400, 400), ImageFormat::Png);
    long.resize(21 * 1024 * 1024, 0);
    let path = upload(&home, &alice, "image/png", long);
    refused(&answer(&thumbnail(&home, &alice, &path, size)), 413, "M_TOO_LARGE");
    // That something is no image is known the next time, and nothing else is kept.
    let shelves = home.world.shelves("hs.test");
    let kept = shelves.keys().into_iter().filter(|key| !key.starts_with("local/"));
    assert!(kept.clone().count() >= 5);
    assert!(kept.clone().all(|key| shelves.object(&key).is_some_and(|bytes| bytes.is_empty())), "{:?}", shelves.keys());
    let path = upload(&home, &alice, "image/png", b"no image".to_vec());
    for _ in 0..2 {
        refused(&answer(&thumbnail(&home, &alice, &path, size)), 400, "M_UNKNOWN");
    }
}

#[test]
fn what_is_asked_for_must_make_sense() {
    let (home, alice) = home();
    let path = upload(&home, &alice, "image/png", file(&halves(400, 400), ImageFormat::Png));
    for (query, errcode) in [
        ("", "M_MISSING_PARAM"),
        ("width=32", "M_MISSING_PARAM"),
        ("width=32&height=-1", "M_INVALID_PARAM"),
        ("width=0&height=32", "M_INVALID_PARAM"),
        ("width=1.5&height=32", "M_INVALID_PARAM"),
        ("width=32&height=32&method=stretch", "M_INVALID_PARAM"),
    ] {
        refused(&answer(&thumbnail(&home, &alice, &path, query)), 400, errcode);
    }
    refused(&answer(&thumbnail(&home, &alice, "hs.test/none", "width=32&height=32")), 404, "M_NOT_FOUND");
    let target = format!("/_matrix/client/v1/media/thumbnail/{path}?width=32&height=32");
    refused(&answer(&home.raw("GET", &target, None, "")), 401, "M_MISSING_TOKEN");
}

#[test]
fn unused_media_of_others_are_forgotten_and_own_ones_stay() {
    let world = World::new();
    let home = Home::with(&world, "hs.test", &[("REGISTRATION", "open"), ("REMOTE_MEDIA_DAYS", "3")]);
    let (alice, peer) = (home.register("alice"), Peer::new(&world, "peer.test"));
    let image = moving_gif();
    let body = [&b"--x\r\n\r\n{}\r\n--x\r\nContent-Type: image/gif\r\n\r\n"[..], &image, b"\r\n--x--"].concat();
    peer.answers(move |request| {
        let response = http::Response::builder().header("Content-Type", "multipart/mixed; boundary=x");
        let is_file = request.uri().path().starts_with("/_matrix/federation/v1/media/download/");
        is_file.then(|| response.body(Bytes::from(body.clone())).unwrap())
    });
    let own = upload(&home, &alice, "image/gif", image.clone());
    let created = home.raw("POST", "/_matrix/media/v1/create", Some(&alice.token), "");
    assert_eq!(created.status(), 200);
    let crop = "width=32&height=32&method=crop";
    for path in ["peer.test/used", "peer.test/unused", own.as_str()] {
        assert_eq!(thumbnail(&home, &alice, path, crop).status(), 200, "{:?}", world.logs());
        assert_eq!(thumbnail(&home, &alice, path, "width=5000&height=5000").status(), 200, "{:?}", world.logs());
    }
    let next_hour = || {
        let hour = 3_600_000;
        world.advance(hour - world.now_ms() % hour);
        world.run(home.server.scheduled());
    };
    world.advance(2 * 86_400_000);
    assert_eq!(thumbnail(&home, &alice, "peer.test/used", crop).status(), 200);
    world.advance(86_400_000);
    next_hour();
    let media_id = own.strip_prefix("hs.test/").unwrap();
    let of = |path: &str| [path.to_owned(), format!("thumbnail/{path}/32x32-crop"), format!("thumbnail/{path}/still")];
    let mut expected = [of(&format!("local/{media_id}")), of("remote/peer.test/used")].concat();
    expected.sort();
    assert_eq!(world.shelves("hs.test").keys(), expected, "{:?}", world.logs());
    assert_eq!(home.database.rows("SELECT media_id FROM remote_media"), [["used"]]);
    // The ID that was reserved and never filled, too.
    assert_eq!(home.database.rows("SELECT COUNT(*) FROM local_media"), [["1"]]);
    // What was forgotten can be had again.
    assert_eq!(thumbnail(&home, &alice, "peer.test/unused", crop).status(), 200);
}

#[test]
fn what_an_upload_left_that_was_cut_off_is_deleted() {
    let (home, alice) = home();
    let world = &home.world;
    // The bytes were stored, and then the database was away.
    upload(&home, &alice, "image/png", b"x".to_vec());
    world
        .run(
            home.server.store.query(verge::platform::Statement::new(
                "UPDATE local_media SET size = NULL, upload_until = until_ts",
                [],
            )),
        )
        .unwrap();
    assert_eq!(world.shelves("hs.test").keys().len(), 1);
    world.advance(3_600_000 - world.now_ms() % 3_600_000 + 3_600_000);
    world.run(home.server.scheduled());
    assert_eq!(world.shelves("hs.test").keys(), Vec::<String>::new());
    assert_eq!(home.database.rows("SELECT * FROM local_media"), Vec::<Vec<String>>::new());
}
