//! Smaller images, in bounded memory. How large an image will be once it is decoded is known from its head, so that what would
//! take too much is refused before it does.

use std::io::Cursor;

use image::{
    ColorType, ExtendedColorType, ImageDecoder, ImageEncoder, ImageResult, Limits,
    codecs::{
        gif::GifDecoder, jpeg::JpegDecoder, jpeg::JpegEncoder, png::PngDecoder, png::PngEncoder, webp::WebPDecoder,
    },
    metadata::Orientation,
};

use super::{
    metadata, motion,
    webp::{self, Still},
};

/// What decoding an image may take, in bytes.
pub const MAX_DECODING: u64 = 48 * 1024 * 1024;
/// What the pixels of a smaller image may take beside that, in bytes: those of the largest size, and of all but long, narrow images.
pub const MAX_MADE: u64 = 12 * 1024 * 1024;
/// What else of a PNG may be unpacked, such as its color profile, in bytes.
const MAX_METADATA: u64 = 8 * 1024 * 1024;
/// How large at most the first image of what moves is made, where it is not to be made smaller.
const STILL: (u32, u32) = (1_600, 1_200);
/// Of JPEG.
const QUALITY: u8 = 80;

/// How an image is to be made smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// To just these dimensions; what is too much on two sides is cut off.
    Crop,
    /// As a whole, to no less than these dimensions.
    Scale,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// At least so wide.
    pub width: u32,
    /// At least so high.
    pub height: u32,
    /// How it is to be made.
    pub method: Method,
    /// Whether it may be one that moves.
    pub may_move: bool,
}

/// An image that is smaller, or need not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Smaller {
    /// A smaller one.
    Made {
        /// The file.
        bytes: Vec<u8>,
        /// What it is.
        content_type: &'static str,
    },
    /// It is no larger than what is asked for, or too long and narrow to be much smaller; this is what it really is.
    AsItIs(&'static str),
}

/// Why an image is not made smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It is no image, of a kind that is not read here, or broken.
    NoImage,
    /// Decoding it would take too much memory.
    TooLarge,
}

/// Pixels in rows, each of so many bytes.
struct Pixels {
    width: u32,
    height: u32,
    channels: usize,
    bytes: Vec<u8>,
}

impl Pixels {
    /// As a part of a larger picture, through the rest of which all shines.
    fn on_canvas(&self, (width, height): (u32, u32), (left, top): (u32, u32)) -> Self {
        let mut bytes = vec![0; 4 * width as usize * height as usize];
        let rows = bytes.chunks_exact_mut(4 * width as usize).skip(top as usize);
        for (to, from) in rows.zip(self.bytes.chunks_exact(self.channels * self.width as usize)) {
            let pixels = to.chunks_exact_mut(4).skip(left as usize);
            for (to, from) in pixels.zip(from.chunks_exact(self.channels)) {
                to[3] = 255;
                to[..self.channels].copy_from_slice(from);
            }
        }
        Self { width, height, channels: 4, bytes }
    }
}

/// The kind of image that a file is, by what it begins with; what it is said to be does not count.
fn kind(file: &[u8]) -> Option<&'static str> {
    match file {
        [0xff, 0xd8, 0xff, ..] => Some("image/jpeg"),
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some("image/png"),
        [b'G', b'I', b'F', b'8', ..] => Some("image/gif"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some("image/webp"),
        _ => None,
    }
}

/// A smaller image of the one in `file`, or where it moves, of the first one.
///
/// # Errors
/// For what is no image, or too large to be decoded.
pub fn smaller(file: &[u8], wanted: Wanted) -> Result<Smaller, Refusal> {
    let kind = kind(file).ok_or(Refusal::NoImage)?;
    let reader = Cursor::new(file);
    let kept = metadata::kept(kind, file);
    if kept > MAX_DECODING {
        return Err(Refusal::TooLarge);
    }
    match kind {
        "image/jpeg" => {
            // Besides its pixels, decoding takes so many bytes for each.
            let beside = if keeps_coefficients(file) { 8 } else { 0 };
            made(JpegDecoder::new(reader), kind, (kept, beside), false, wanted)
        }
        "image/png" => made(
            PngDecoder::with_limits(reader, limits(MAX_METADATA)),
            kind,
            (kept, 0),
            motion::png_moves(file),
            wanted,
        ),
        "image/gif" => {
            let decoder = GifDecoder::new(reader).and_then(|mut decoder| {
                // A frame may be larger than the image.
                decoder.set_limits(limits(MAX_DECODING.saturating_sub(decoder.total_bytes()).saturating_sub(kept)))?;
                Ok(decoder)
            });
            made(decoder, kind, (kept, 0), motion::gif_moves(file), wanted)
        }
        _ => made_of_webp(&webp::still(file).ok_or(Refusal::NoImage)?, wanted),
    }
}

fn made_of_webp(still: &Still<'_>, wanted: Wanted) -> Result<Smaller, Refusal> {
    let (width, height) = still.canvas;
    let image = Image { width, height, channels: still.channels(), turned: still.turned, moves: still.moves };
    let Some(plan) = Plan::new(image, wanted) else { return Ok(Smaller::AsItIs("image/webp")) };
    if still.takes(MAX_DECODING).ok_or(Refusal::NoImage)? > MAX_DECODING {
        return Err(Refusal::TooLarge);
    }
    let file = still.file();
    let decoder = WebPDecoder::new(Cursor::new(&file[..])).map_err(|error| refusal(&error))?;
    if decoder.dimensions() != still.size {
        return Err(Refusal::NoImage);
    }
    let mut pixels = decoded(decoder)?;
    drop(file);
    if still.is_part() {
        pixels = pixels.on_canvas(still.canvas, still.at);
    }
    shrunk(pixels, &plan, still.turned)
}

fn limits(bytes: u64) -> Limits {
    let mut limits = Limits::default();
    limits.max_alloc = Some(bytes);
    limits
}

/// Beside its pixels, decoding takes so many bytes, and so many for each pixel.
fn made<D: ImageDecoder>(
    decoder: ImageResult<D>,
    kind: &'static str,
    (kept, beside): (u64, u64),
    moves: bool,
    wanted: Wanted,
) -> Result<Smaller, Refusal> {
    let mut decoder = decoder.map_err(|error| refusal(&error))?;
    let (width, height) = decoder.dimensions();
    let turned = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let image = Image { width, height, channels: decoder.color_type().channel_count(), turned, moves };
    let Some(plan) = Plan::new(image, wanted) else { return Ok(Smaller::AsItIs(kind)) };
    let (total, pixels) = (decoder.total_bytes(), u64::from(width) * u64::from(height));
    if total.saturating_add(pixels.saturating_mul(beside)).saturating_add(kept) > MAX_DECODING {
        return Err(Refusal::TooLarge);
    }
    shrunk(decoded(decoder)?, &plan, turned)
}

/// The file's pixels are gone before those that are made of them are turned, so that there never are three copies.
fn shrunk(pixels: Pixels, plan: &Plan, turned: Orientation) -> Result<Smaller, Refusal> {
    let smaller = plan.shrink(&pixels);
    drop(pixels);
    written(turn(smaller, turned))
}

/// The pixels of an image that is not too large.
fn decoded(decoder: impl ImageDecoder) -> Result<Pixels, Refusal> {
    let ((width, height), color) = (decoder.dimensions(), decoder.color_type());
    let mut bytes = vec![0; usize::try_from(decoder.total_bytes()).map_err(|_| Refusal::TooLarge)?];
    decoder.read_image(&mut bytes).map_err(|error| refusal(&error))?;
    let (channels, is_wide) = match color {
        ColorType::L8 => (1, false),
        ColorType::La8 => (2, false),
        ColorType::Rgb8 => (3, false),
        ColorType::Rgba8 => (4, false),
        ColorType::L16 => (1, true),
        ColorType::La16 => (2, true),
        ColorType::Rgb16 => (3, true),
        ColorType::Rgba16 => (4, true),
        _ => return Err(Refusal::NoImage),
    };
    if is_wide {
        // The high byte of each value does.
        let high = usize::from(cfg!(target_endian = "little"));
        let values = bytes.len() / 2;
        for index in 0..values {
            bytes.swap(index, 2 * index + high);
        }
        bytes.truncate(values);
    }
    Ok(Pixels { width, height, channels, bytes })
}

fn refusal(error: &image::ImageError) -> Refusal {
    match error {
        image::ImageError::Limits(_) => Refusal::TooLarge,
        _ => Refusal::NoImage,
    }
}

/// Whether a JPEG is decoded only once all of it is there, for which all its coefficients are kept: it is progressive, or its
/// components come one after the other.
fn keeps_coefficients(file: &[u8]) -> bool {
    let (mut at, mut components) = (2, 0);
    while let Some([0xff, marker, high, low]) = file.get(at..at + 4) {
        let byte = |offset: usize| file.get(at + offset).copied().unwrap_or_default();
        match marker {
            // A frame's head.
            0xc0 | 0xc1 => components = byte(9),
            // The same of others; all that begin with C but these three.
            0xc2..=0xcf if !matches!(marker, 0xc4 | 0xc8 | 0xcc) => return true,
            // The first scan's head.
            0xda => return components == 0 || byte(4) != components,
            0xff => {
                at += 1;
                continue;
            }
            _ => {}
        }
        at += 2 + usize::from(u16::from_be_bytes([*high, *low]));
    }
    // What is not as it must be is taken for the worst.
    true
}

/// What an image's head says of it.
#[derive(Clone, Copy)]
struct Image {
    width: u32,
    height: u32,
    /// At most so many.
    channels: u8,
    turned: Orientation,
    moves: bool,
}

/// Which part of an image becomes which size, before it is turned.
struct Plan {
    left: u32,
    top: u32,
    width: u32,
    height: u32,
    to_width: u32,
    to_height: u32,
}

impl Plan {
    /// `None` where the image may be given as it is: it does not move where it must not, and is not larger than what is asked for, or
    /// so long and narrow that even a smaller one would take too much.
    fn new(image: Image, wanted: Wanted) -> Option<Self> {
        let Image { width, height, channels, turned, moves } = image;
        let still = || (moves && !wanted.may_move).then(|| Self::still(width, height));
        let (to_width, to_height) = match is_on_its_side(turned) {
            true => (wanted.height, wanted.width),
            false => (wanted.width, wanted.height),
        };
        let (w, h, tw, th) = (u64::from(width), u64::from(height), u64::from(to_width), u64::from(to_height));
        if tw == 0 || th == 0 || w <= tw || h <= th {
            return still();
        }
        let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX).max(1);
        // Whether its height decides by how much it shrinks.
        let by_height = th * w >= tw * h;
        let plan = match wanted.method {
            Method::Scale => {
                let (to_width, to_height) =
                    if by_height { ((w * th).div_ceil(h), th) } else { (tw, (h * tw).div_ceil(w)) };
                let (to_width, to_height) = (narrow(to_width.min(w)), narrow(to_height.min(h)));
                Self { left: 0, top: 0, width, height, to_width, to_height }
            }
            Method::Crop => {
                let (cut_width, cut_height) = if by_height { (tw * h / th, h) } else { (w, th * w / tw) };
                let (cut_width, cut_height) = (narrow(cut_width.max(tw).min(w)), narrow(cut_height.max(th).min(h)));
                Self {
                    left: (width - cut_width) / 2,
                    top: (height - cut_height) / 2,
                    width: cut_width,
                    height: cut_height,
                    to_width,
                    to_height,
                }
            }
        };
        let made = u64::from(plan.to_width) * u64::from(plan.to_height) * u64::from(channels);
        if made > MAX_MADE { still() } else { Some(plan) }
    }

    /// Of what would be given as it is, but moves where it must not: the whole of it, in [`STILL`] at most.
    fn still(width: u32, height: u32) -> Self {
        let (w, h, most_w, most_h) = (u64::from(width), u64::from(height), u64::from(STILL.0), u64::from(STILL.1));
        let (to_w, to_h) = match (w <= most_w && h <= most_h, most_h * w <= most_w * h) {
            (true, _) => (w, h),
            (false, true) => (w * most_h / h, most_h),
            (false, false) => (most_w, h * most_w / w),
        };
        let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX).max(1);
        Self { left: 0, top: 0, width, height, to_width: narrow(to_w), to_height: narrow(to_h) }
    }

    /// Each new pixel is the mean of those that it stands for, weighted by how much of them is seen.
    fn shrink(&self, of: &Pixels) -> Pixels {
        let channels = of.channels;
        let colors = if channels.is_multiple_of(2) { channels - 1 } else { channels };
        let mut bytes = Vec::with_capacity(self.to_width as usize * self.to_height as usize * channels);
        let bounds = |index: u32, from: u32, to: u32| {
            let at = |index: u32| (u64::from(index) * u64::from(from) / u64::from(to)) as usize;
            (at(index), at(index + 1).max(at(index) + 1))
        };
        for y in 0..self.to_height {
            let (top, bottom) = bounds(y, self.height, self.to_height);
            for x in 0..self.to_width {
                let (left, right) = bounds(x, self.width, self.to_width);
                let (mut sums, mut seen, mut count) = ([0u64; 3], 0u64, 0u64);
                for row in top..bottom {
                    let row = (row + self.top as usize) * of.width as usize + self.left as usize;
                    let pixels = of.bytes.get((row + left) * channels..(row + right) * channels).unwrap_or_default();
                    for pixel in pixels.chunks_exact(channels) {
                        let (color, alpha) = pixel.split_at(colors);
                        let weight = alpha.first().map_or(255, |alpha| u64::from(*alpha));
                        for (sum, value) in sums.iter_mut().zip(color) {
                            *sum += u64::from(*value) * weight;
                        }
                        seen += weight;
                        count += 1;
                    }
                }
                bytes.extend(sums.iter().take(colors).map(|sum| sum.checked_div(seen).unwrap_or(0) as u8));
                if colors < channels {
                    bytes.push(seen.checked_div(count).unwrap_or(0) as u8);
                }
            }
        }
        Pixels { width: self.to_width, height: self.to_height, channels, bytes }
    }
}

fn is_on_its_side(turned: Orientation) -> bool {
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    matches!(turned, Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH)
}

/// As the camera was held.
fn turn(of: Pixels, turned: Orientation) -> Pixels {
    if turned == Orientation::NoTransforms {
        return of;
    }
    let (last_x, last_y) = (of.width - 1, of.height - 1);
    let (width, height) = if is_on_its_side(turned) { (of.height, of.width) } else { (of.width, of.height) };
    let mut bytes = Vec::with_capacity(of.bytes.len());
    for y in 0..height {
        for x in 0..width {
            let (from_x, from_y) = match turned {
                Orientation::NoTransforms => (x, y),
                Orientation::Rotate90 => (y, last_y - x),
                Orientation::Rotate180 => (last_x - x, last_y - y),
                Orientation::Rotate270 => (last_x - y, x),
                Orientation::FlipHorizontal => (last_x - x, y),
                Orientation::FlipVertical => (x, last_y - y),
                Orientation::Rotate90FlipH => (y, x),
                Orientation::Rotate270FlipH => (last_x - y, last_y - x),
            };
            let at = (from_y as usize * of.width as usize + from_x as usize) * of.channels;
            bytes.extend_from_slice(of.bytes.get(at..at + of.channels).unwrap_or_default());
        }
    }
    Pixels { width, height, channels: of.channels, bytes }
}

/// As JPEG, or where something shines through as PNG.
fn written(pixels: Pixels) -> Result<Smaller, Refusal> {
    let Pixels { width, height, channels, mut bytes } = pixels;
    let shines_through = channels % 2 == 0 && bytes.chunks_exact(channels).any(|pixel| pixel.last() != Some(&255));
    let mut file = Vec::new();
    if shines_through {
        let color = if channels == 2 { ExtendedColorType::La8 } else { ExtendedColorType::Rgba8 };
        PngEncoder::new(&mut file).write_image(&bytes, width, height, color).map_err(|_| Refusal::NoImage)?;
        return Ok(Smaller::Made { bytes: file, content_type: "image/png" });
    }
    let (colors, color) = if channels < 3 { (1, ExtendedColorType::L8) } else { (3, ExtendedColorType::Rgb8) };
    if colors < channels {
        let count = bytes.len() / channels;
        for index in 0..count {
            bytes.copy_within(index * channels..index * channels + colors, index * colors);
        }
        bytes.truncate(count * colors);
    }
    let mut encoder = JpegEncoder::new_with_quality(&mut file, QUALITY);
    encoder.encode(&bytes, width, height, color).map_err(|_| Refusal::NoImage)?;
    Ok(Smaller::Made { bytes: file, content_type: "image/jpeg" })
}
