//! What a decoder keeps of a file beside its pixels, of which an image's head says nothing: profiles of colors, and descriptions.

use std::io::BufRead;

/// What the segments of a JPEG begin with of which all are kept; of others the last one of its kind is, or none.
const SEGMENTS: [&[u8]; 3] =
    [b"ICC_PROFILE\0", b"http://ns.adobe.com/xmp/extension/\0", b"urn:iso:std:iso:ts:21496:-1\0"];
/// What one of them takes at most: its 64 KiB, and as much again where it is put together with others.
const SEGMENT_BYTES: u64 = 2 * 64 * 1024;
/// The names of a PNG's chunks of text, and what each takes at most beside its bytes, which are bounded by themselves.
const TEXTS: [&[u8]; 3] = [b"tEXt", b"zTXt", b"iTXt"];
const TEXT_BYTES: u64 = 512;
/// What of a GIF is kept however long it is.
const EXTENSIONS: [&[u8]; 2] = [b"XMP DataXMP", b"ICCRGBG1012"];

/// How many bytes a decoder keeps of the metadata of a file of this kind, at most.
pub(super) fn kept(kind: &str, file: &[u8]) -> u64 {
    match kind {
        "image/jpeg" => count(file, &SEGMENTS).saturating_mul(SEGMENT_BYTES),
        "image/png" => count(file, &TEXTS).saturating_mul(TEXT_BYTES),
        // It is copied to where there is twice as much room, whenever there is no more.
        "image/gif" if count(file, &EXTENSIONS) > 0 => 3 * file.len() as u64,
        // Of a WebP it is left out.
        _ => 0,
    }
}

/// How often one of these names is found, wherever that is.
fn count(file: &[u8], names: &[&[u8]]) -> u64 {
    names.iter().map(|name| count_of(file, name)).sum()
}

fn count_of(mut file: &[u8], name: &[u8]) -> u64 {
    let Some((first, others)) = name.split_first() else { return 0 };
    let mut count = 0;
    while file.skip_until(*first).is_ok_and(|skipped| skipped > 0) {
        count += u64::from(file.starts_with(others));
    }
    count
}
