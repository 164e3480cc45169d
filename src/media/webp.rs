//! WebP: which of a file's chunks make one image, and what decoding that takes.
//!
//! The decoder is given a file that is made here of these chunks alone, as it believes what a file says of the length of its chunks.

use image::metadata::Orientation;

use super::{
    webp_partitions::{self, number},
    webp_tables,
};

/// Which part of the flags of a file says that it is one of several images.
const ANIMATED: u8 = 0x02;
/// The same of an image that shines through.
const TRANSPARENT: u8 = 0x10;

/// One image in a WebP: the only one, or the first of several.
#[derive(Debug)]
pub(super) struct Still<'f> {
    /// How large the picture is of which it is a part.
    pub(super) canvas: (u32, u32),
    /// Where in the picture it is.
    pub(super) at: (u32, u32),
    /// How large it is itself.
    pub(super) size: (u32, u32),
    /// How the camera was held.
    pub(super) turned: Orientation,
    /// Whether others follow.
    pub(super) moves: bool,
    coding: Coding<'f>,
}

/// How an image is coded.
#[derive(Debug, Clone, Copy)]
enum Coding<'f> {
    Lossless(&'f [u8]),
    Lossy {
        image: &'f [u8],
        /// What shines through, which has a coding of its own.
        alpha: Option<&'f [u8]>,
    },
}

/// The chunks of a file: their names and what is in them.
#[derive(Debug, Clone)]
struct Chunks<'f>(&'f [u8]);

impl<'f> Iterator for Chunks<'f> {
    type Item = (&'f [u8], &'f [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (name, rest) = self.0.split_at_checked(4)?;
        let (length, rest) = rest.split_first_chunk::<4>()?;
        // The last one may have been cut off.
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX).min(rest.len());
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest.get(length % 2..).unwrap_or_default();
        Some((name, content))
    }
}

/// The image in a file that begins as a WebP does; `None` where there is none.
pub(super) fn still(file: &[u8]) -> Option<Still<'_>> {
    let chunks = Chunks(file.get(12..)?);
    let (name, head) = chunks.clone().next()?;
    if name != b"VP8X" {
        let coding = coding(chunks)?;
        let size = coding.size()?;
        return Some(Still { canvas: size, at: (0, 0), size, turned: Orientation::NoTransforms, moves: false, coding });
    }
    let canvas = (number(head, 4)? + 1, number(head, 7)? + 1);
    let exif = chunks.clone().find(|(name, _)| *name == b"EXIF");
    let turned = exif.and_then(|(_, exif)| Orientation::from_exif_chunk(exif)).unwrap_or(Orientation::NoTransforms);
    let moves = head.first()? & ANIMATED != 0;
    let (at, coding) = if moves {
        let (_, frame) = chunks.clone().find(|(name, _)| *name == b"ANMF")?;
        ((number(frame, 0)? * 2, number(frame, 3)? * 2), coding(Chunks(frame.get(16..)?))?)
    } else {
        ((0, 0), coding(chunks)?)
    };
    let size = coding.size()?;
    let is_whole = moves || size == canvas;
    let is_within = at.0.checked_add(size.0)? <= canvas.0 && at.1.checked_add(size.1)? <= canvas.1;
    (is_whole && is_within).then_some(Still { canvas, at, size, turned, moves, coding })
}

/// The first image among chunks.
fn coding(chunks: Chunks<'_>) -> Option<Coding<'_>> {
    let mut alpha = None;
    for (name, content) in chunks {
        match name {
            b"VP8L" => return Some(Coding::Lossless(content)),
            b"VP8 " => return Some(Coding::Lossy { image: content, alpha }),
            b"ALPH" => alpha = Some(content),
            _ => {}
        }
    }
    None
}

impl Coding<'_> {
    /// How large the image is, by its own head.
    fn size(&self) -> Option<(u32, u32)> {
        match self {
            Self::Lossless(image) => {
                let [0x2f, head @ ..] = image.first_chunk::<5>()? else { return None };
                let head = u32::from_le_bytes(*head);
                Some(((head & 0x3fff) + 1, (head >> 14 & 0x3fff) + 1))
            }
            Self::Lossy { image, .. } => {
                let [_, _, _, 0x9d, 0x01, 0x2a, size @ ..] = image.first_chunk::<10>()? else { return None };
                let [width, height] = [[size[0], size[1]], [size[2], size[3]]];
                let (width, height) = (u16::from_le_bytes(width) & 0x3fff, u16::from_le_bytes(height) & 0x3fff);
                (width > 0 && height > 0).then_some((width.into(), height.into()))
            }
        }
    }
}

impl Still<'_> {
    /// How many bytes decoding takes, the pixels that come of it included; `None` where its tables or partitions are broken. What is more than
    /// `limit` is not looked at more closely.
    pub(super) fn takes(&self, limit: u64) -> Option<u64> {
        let (width, height) = self.size;
        let pixels = u64::from(width) * u64::from(height);
        let canvas = if self.is_part() { 4 * u64::from(self.canvas.0) * u64::from(self.canvas.1) } else { 0 };
        // What comes of it, and what it is made of.
        let (each, tables) = match self.coding {
            Coding::Lossless(image) => (4 + 4, image.get(5..)),
            Coding::Lossy { alpha: None, .. } => (3 + 2, None),
            // The alpha plane is the green channel of a lossless image, or stored uncompressed.
            Coding::Lossy { alpha: Some(alpha), .. } => match alpha.split_first() {
                Some((head, stream)) if head & 3 == 1 => (4 + 2 + 4 + 1, Some(stream)),
                _ => (4 + 2 + 1, None),
            },
        };
        let decoded = pixels * each;
        let most = match self.coding {
            Coding::Lossless(_) => decoded,
            Coding::Lossy { image, alpha } => {
                webp_partitions::are_there(image).then_some(())?;
                let (channels, length) = (if alpha.is_some() { 4 } else { 3 }, image.len() as u64);
                // The last partition is read to its end before it is kept, into what grows to twice its length.
                let begun = pixels * (2 * channels + 3) / 2 + 3 * length;
                decoded.max(begun).max(pixels * (channels + 2) + length)
            }
        };
        let known = most.saturating_add(canvas).saturating_add(self.length() as u64);
        let Some(stream) = tables.filter(|_| known <= limit) else { return Some(known) };
        Some(known.saturating_add(webp_tables::take(stream, (width, height), limit - known)?))
    }

    /// How many values each of its pixels has, at most.
    pub(super) fn channels(&self) -> u8 {
        match self.coding {
            Coding::Lossy { alpha: None, .. } if !self.is_part() => 3,
            _ => 4,
        }
    }

    /// Whether it is only a part of the picture.
    pub(super) fn is_part(&self) -> bool {
        self.size != self.canvas
    }

    fn length(&self) -> usize {
        match self.coding {
            Coding::Lossless(image) => image.len(),
            Coding::Lossy { image, alpha } => image.len() + alpha.map_or(0, <[u8]>::len),
        }
    }

    /// A file of this image alone.
    pub(super) fn file(&self) -> Vec<u8> {
        let mut file = Vec::with_capacity(self.length() + 64);
        file.extend_from_slice(b"RIFF\0\0\0\0WEBP");
        match self.coding {
            Coding::Lossless(image) => chunk(&mut file, b"VP8L", image),
            Coding::Lossy { image, alpha: None } => chunk(&mut file, b"VP8 ", image),
            Coding::Lossy { image, alpha: Some(alpha) } => {
                let mut head = [TRANSPARENT, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                let sizes = [self.size.0 - 1, self.size.1 - 1].map(u32::to_le_bytes);
                head[4..7].copy_from_slice(&sizes[0][..3]);
                head[7..].copy_from_slice(&sizes[1][..3]);
                chunk(&mut file, b"VP8X", &head);
                chunk(&mut file, b"ALPH", alpha);
                chunk(&mut file, b"VP8 ", image);
            }
        }
        let length = u32::try_from(file.len() - 8).unwrap_or(u32::MAX);
        file[4..8].copy_from_slice(&length.to_le_bytes());
        file
    }
}

fn chunk(file: &mut Vec<u8>, name: &[u8], content: &[u8]) {
    file.extend_from_slice(name);
    file.extend_from_slice(&u32::try_from(content.len()).unwrap_or(u32::MAX).to_le_bytes());
    file.extend_from_slice(content);
    if content.len() % 2 == 1 {
        file.push(0);
    }
}
