//! An image takes no more memory than it may, whatever else its file holds, and whatever that says of its own length.

use image::codecs::{jpeg::JpegEncoder, png::PngEncoder};
use verge::media::pixels::{MAX_DECODING, MAX_MADE, Refusal, Smaller, smaller};

use crate::{MIB, SMALL, measured, plain};

/// What may be taken beside the file: its pixels, and a copy of it that is gone before smaller ones are made.
const MOST: usize = (MAX_DECODING + MAX_MADE) as usize + MIB;

fn is_made(file: &[u8], name: &str) {
    let (outcome, most, _) = measured(|| smaller(file, SMALL));
    assert!(matches!(outcome, Ok(Smaller::Made { .. })), "{name}: {outcome:?}");
    assert!(most < MOST, "{name}: {} KiB", most / 1024);
}

/// Before anything is taken for it.
fn is_refused(file: &[u8], name: &str, why: Refusal) {
    let (outcome, most, _) = measured(|| smaller(file, SMALL));
    assert_eq!(outcome, Err(why), "{name}: {} KiB", most / 1024);
    assert!(most < MIB / 4 || why == Refusal::TooLarge && most < MOST / 2, "{name}: {} KiB", most / 1024);
}

/// A JPEG with so many segments that begin like this, each of so many bytes.
fn jpeg(image: &[u8], (marker, begin): (u8, &[u8]), count: usize, bytes: usize) -> Vec<u8> {
    let length = u16::try_from(bytes).unwrap().to_be_bytes();
    let mut segment = [&[0xff, marker, length[0], length[1]], begin].concat();
    segment.resize(bytes + 2, 0);
    [&image[..2], &segment.repeat(count), &image[2..]].concat()
}

#[test]
fn what_a_jpeg_has_beside_its_pixels_counts() {
    let profile = (0xe2, &b"ICC_PROFILE\0"[..]);
    let extended = (0xe1, &b"http://ns.adobe.com/xmp/extension/\0"[..]);
    let gains = (0xe2, &b"urn:iso:std:iso:ts:21496:-1\0"[..]);
    let [small, large] = [(400, 300), (4_624, 3_472)].map(|size| {
        let mut image = Vec::new();
        plain(JpegEncoder::new(&mut image), size, false);
        image
    });
    for (name, kind) in [("profile", profile), ("extended", extended), ("gains", gains)] {
        is_refused(&jpeg(&large, kind, 170, 65_535), name, Refusal::TooLarge);
        is_made(&jpeg(&small, kind, 170, 65_535), name);
    }
    // The largest photo.
    is_made(&jpeg(&large, profile, 2, 4_000), "photo");
    // Each takes more than it is long.
    is_refused(&jpeg(&small, profile, 600_000, 17), "short ones", Refusal::TooLarge);
}

/// A lossy WebP whose first partition has these bytes, and nothing but zeros then, before all else.
fn webp((width, height): (u16, u16), first: [u8; 2], rest: &[u8]) -> Vec<u8> {
    let length = 2_000_u32;
    let tag = (length << 5 | 1 << 4).to_le_bytes();
    let size = [width.to_le_bytes(), height.to_le_bytes()].concat();
    let head = [&tag[..3], &[0x9d, 0x01, 0x2a], &size, &first, &vec![0; length as usize - 2]].concat();
    let length = u32::try_from(head.len() + rest.len()).unwrap().to_le_bytes();
    [&b"RIFF\0\0\0\0WEBPVP8 "[..], &length, &head, rest].concat()
}

#[test]
fn what_a_webp_says_of_its_partitions_is_not_believed() {
    // The first partition says that there are eight others, or one; the lengths of all but the last one come next.
    let (eight, one) = ([0, 3], [0, 0]);
    let of = |lengths: [u32; 7], bytes: usize| {
        let lengths = lengths.iter().flat_map(|length| length.to_le_bytes()[..3].to_vec());
        webp((160, 120), eight, &lengths.chain(vec![0; bytes]).collect::<Vec<_>>())
    };
    is_made(&of([1_000; 7], 8_000), "eight");
    is_made(&webp((160, 120), one, &[0; 8_000]), "one");
    is_refused(&of([0xff_ffff; 7], 8_000), "long", Refusal::NoImage);
    is_refused(&of([1_000, 1_000, 1_000, 1_000, 1_000, 1_000, 0xff_ffff], 8_000), "a long one", Refusal::NoImage);
    is_refused(&of([1_000; 7], 6_999), "more than there is", Refusal::NoImage);
    is_refused(&webp((160, 120), eight, &[0; 20]), "no lengths", Refusal::NoImage);
    is_refused(&webp((160, 120), one, &[])[..1_000], "a part of the first", Refusal::NoImage);
}

#[test]
fn what_a_webp_has_in_its_partitions_counts() {
    is_refused(&webp((3_200, 2_400), [0, 0], &vec![0; 11 * MIB]), "large", Refusal::TooLarge);
    is_made(&webp((160, 120), [0, 0], &vec![0; 11 * MIB]), "small");
}

#[test]
fn what_a_png_says_of_itself_counts() {
    let mut image = Vec::new();
    plain(PngEncoder::new(&mut image), (400, 300), false);
    // A text without a word: its name, and the end of that.
    let text = [0, 0, 0, 2, b't', b'E', b'X', b't', b'a', 0, 0x90, 0xc5, 0x84, 0x6a];
    let with = |count: usize| [&image[..33], &text.repeat(count), &image[33..]].concat();
    is_made(&with(100), "some");
    is_refused(&with(800_000), "many", Refusal::TooLarge);
}

#[test]
fn what_a_gif_says_of_itself_counts() {
    let of = |(width, height): (u16, u16), name: &[u8; 11], bytes: usize| {
        let size = [width.to_le_bytes(), height.to_le_bytes()].concat();
        let palette = [0x80, 0, 0, 0, 0, 0, 255, 255, 255];
        let block = [&[255][..], &[9; 255]].concat().repeat(bytes / 256);
        let frame = [0x2c, 0, 0, 0, 0, 1, 0, 1, 0, 0, 2, 2, 0x44, 1, 0, 0x3b];
        [b"GIF89a", &size[..], &palette, &[0x21, 0xff, 11], name, &block, &[0], &frame].concat()
    };
    for name in [b"XMP DataXMP", b"ICCRGBG1012"] {
        is_refused(&of((3_500, 3_400), name, 11 * MIB), "large", Refusal::TooLarge);
        is_made(&of((500, 400), name, 11 * MIB), "small");
        is_made(&of((3_500, 3_400), name, 10_000), "honest");
    }
}
