//! An image takes no more memory than it may, whatever else its file holds, and whatever that says of its own length.

use verge::media::pixels::{MAX_DECODING, MAX_MADE, Refusal, Smaller, smaller};

use crate::{MIB, SMALL, measured};

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
