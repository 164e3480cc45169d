//! What the tables take that a lossless WebP has its decoder make.
//!
//! The head of such an image says how many pixels it has, but not how many prefix codes: those are as many as the largest number
//! in an image within it says, up to 65,536 groups of five, each with tables of some 20 KB. So its transforms are read here,
//! and its codes, but not its pixels (WebP Lossless Bitstream Specification, sections 4 to 6), as the decoder of the crate
//! `image-webp` does it, and what it allocates for them is added up. Nothing is kept but the one small image that is being read.

/// The size of each alphabet but for the color cache: green, red, blue, alpha, distance.
const ALPHABETS: [usize; 5] = [256 + LENGTHS, 256, 256, 256, 40];
/// How many symbols stand for lengths of what is repeated.
const LENGTHS: usize = 24;
const CODE_LENGTH_ORDER: [usize; 19] = [17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
/// Codes that are no longer are looked up in one step.
const TABLE_BITS: usize = 10;
/// What a node takes by which longer ones are found.
const NODE_BYTES: u64 = 16;
/// What a group of codes takes beside its tables, with the room that its list has to grow.
const GROUP_BYTES: u64 = 3 * 5 * 64;

/// Offsets that the nearest distances stand for.
#[rustfmt::skip]
const NEAR: [(i8, i8); 120] = [
    (0, 1),  (1, 0),  (1, 1),  (-1, 1), (0, 2),  (2, 0),  (1, 2),  (-1, 2), (2, 1),  (-2, 1), (2, 2),  (-2, 2),
    (0, 3),  (3, 0),  (1, 3),  (-1, 3), (3, 1),  (-3, 1), (2, 3),  (-2, 3), (3, 2),  (-3, 2), (0, 4),  (4, 0),
    (1, 4),  (-1, 4), (4, 1),  (-4, 1), (3, 3),  (-3, 3), (2, 4),  (-2, 4), (4, 2),  (-4, 2), (0, 5),  (3, 4),
    (-3, 4), (4, 3),  (-4, 3), (5, 0),  (1, 5),  (-1, 5), (5, 1),  (-5, 1), (2, 5),  (-2, 5), (5, 2),  (-5, 2),
    (4, 4),  (-4, 4), (3, 5),  (-3, 5), (5, 3),  (-5, 3), (0, 6),  (6, 0),  (1, 6),  (-1, 6), (6, 1),  (-6, 1),
    (2, 6),  (-2, 6), (6, 2),  (-6, 2), (4, 5),  (-4, 5), (5, 4),  (-5, 4), (3, 6),  (-3, 6), (6, 3),  (-6, 3),
    (0, 7),  (7, 0),  (1, 7),  (-1, 7), (5, 5),  (-5, 5), (7, 1),  (-7, 1), (4, 6),  (-4, 6), (6, 4),  (-6, 4),
    (2, 7),  (-2, 7), (7, 2),  (-7, 2), (3, 7),  (-3, 7), (7, 3),  (-7, 3), (5, 6),  (-5, 6), (6, 5),  (-6, 5),
    (8, 0),  (4, 7),  (-4, 7), (7, 4),  (-7, 4), (8, 1),  (8, 2),  (6, 6),  (-6, 6), (8, 3),  (5, 7),  (-5, 7),
    (7, 5),  (-7, 5), (8, 4),  (6, 7),  (-6, 7), (7, 6),  (-7, 6), (8, 5),  (7, 7),  (-7, 7), (8, 6),  (8, 7),
];

type Color = [u8; 4];

/// How many bytes the tables of an image take of these dimensions, whose stream begins behind its head; `None` where it is broken.
/// What takes more than `limit` is not read to its end.
pub(super) fn take(stream: &[u8], (width, height): (u32, u32), limit: u64) -> Option<u64> {
    let mut reader = Reader { stream, at: 0 };
    let (mut taken, mut width) = (0u64, width);
    let mut seen = [false; 4];
    while reader.bits(1)? == 1 {
        let transform = reader.bits(2)?;
        let seen = seen.get_mut(transform as usize)?;
        if std::mem::replace(seen, true) {
            return None;
        }
        match transform {
            // Predictors, and how colors depend on each other: an image of a pixel for each block.
            0 | 1 => {
                let bits = reader.bits(3)? + 2;
                taken += reader.image(blocks(width, bits), blocks(height, bits))?.len() as u64 * 4;
            }
            2 => {}
            _ => {
                let colors = reader.bits(8)? + 1;
                taken += reader.image(colors, 1)?.len() as u64 * 4;
                // Of few colors several pixels are in one.
                let bits = match colors {
                    0..=2 => 3,
                    3..=4 => 2,
                    5..=16 => 1,
                    _ => 0,
                };
                width = blocks(width, bits);
            }
        }
    }
    let cache = reader.cache()?;
    taken += cache_bytes(cache);
    let mut groups = 1;
    if reader.bits(1)? == 1 {
        let bits = reader.bits(3)? + 2;
        let image = reader.image(blocks(width, bits), blocks(height, bits))?;
        // Red and green are the number of a group.
        let largest = image.iter().map(|[red, green, ..]| u64::from(*red) << 8 | u64::from(*green)).max();
        groups = largest.unwrap_or(0) + 1;
        taken += image.len() as u64 * (4 + 2);
    }
    for _ in 0..groups {
        if taken > limit {
            break;
        }
        taken += GROUP_BYTES;
        for alphabet in reader.group(cache)? {
            taken += alphabet.bytes;
        }
    }
    Some(taken)
}

fn blocks(size: u32, bits: u32) -> u32 {
    (size + (1 << bits) - 1) >> bits
}

fn cache_bytes(cache: Option<u32>) -> u64 {
    cache.map_or(0, |bits| 4 << bits)
}

/// Reads bits, the lowest of each byte first.
struct Reader<'s> {
    stream: &'s [u8],
    /// How many bits were read.
    at: usize,
}

impl Reader<'_> {
    /// A number of at most 24 bits.
    fn bits(&mut self, count: u32) -> Option<u32> {
        let end = self.at + count as usize;
        let bytes = self.stream.get(self.at / 8..end.div_ceil(8))?;
        let mut number = 0u64;
        for (place, byte) in bytes.iter().enumerate() {
            number |= u64::from(*byte) << (8 * place);
        }
        let number = number >> (self.at % 8) & ((1 << count) - 1);
        self.at = end;
        u32::try_from(number).ok()
    }

    /// How many bits the places of the color cache have, where there is one.
    fn cache(&mut self) -> Option<Option<u32>> {
        if self.bits(1)? == 0 {
            return Some(None);
        }
        Some(self.bits(4)?).filter(|bits| (1..=11).contains(bits)).map(Some)
    }

    /// The codes of green, red, blue, alpha and distances.
    fn group(&mut self, cache: Option<u32>) -> Option<[Code; 5]> {
        let more = cache.map_or(0, |bits| 1 << bits);
        let [green, red, blue, alpha, distance] = ALPHABETS;
        Some([self.code(green + more)?, self.code(red)?, self.code(blue)?, self.code(alpha)?, self.code(distance)?])
    }

    /// A prefix code of so many symbols.
    fn code(&mut self, alphabet: usize) -> Option<Code> {
        if self.bits(1)? == 1 {
            let has_two = self.bits(1)? == 1;
            let width = if self.bits(1)? == 1 { 8 } else { 1 };
            let first = u16::try_from(self.bits(width)?).ok()?;
            let second = if has_two { Some(u16::try_from(self.bits(8)?).ok()?) } else { None };
            let symbols: Vec<u16> = [first].into_iter().chain(second).collect();
            let is_within = symbols.iter().all(|symbol| usize::from(*symbol) < alphabet);
            return is_within.then(|| Code::of_few(symbols));
        }
        let mut lengths = [0; 19];
        let given = 4 + self.bits(4)? as usize;
        for place in CODE_LENGTH_ORDER.get(..given)? {
            *lengths.get_mut(*place)? = self.bits(3)? as u8;
        }
        let of_lengths = Code::new(&lengths)?;
        let mut left = if self.bits(1)? == 1 {
            let width = 2 + 2 * self.bits(3)?;
            Some(self.bits(width)? as usize + 2).filter(|symbols| *symbols <= alphabet)?
        } else {
            alphabet
        };
        let mut lengths = Vec::with_capacity(alphabet);
        let mut before = 8;
        while lengths.len() < alphabet && left > 0 {
            left -= 1;
            let (length, times) = match self.symbol(&of_lengths)? {
                16 => (before, self.bits(2)? + 3),
                17 => (0, self.bits(3)? + 3),
                18 => (0, self.bits(7)? + 11),
                length => (u8::try_from(length).ok()?, 1),
            };
            if length != 0 {
                before = length;
            }
            lengths.resize(lengths.len() + times as usize, length);
            if lengths.len() > alphabet {
                return None;
            }
        }
        Code::new(&lengths)
    }

    fn symbol(&mut self, code: &Code) -> Option<u16> {
        if code.symbols.len() == 1 {
            return code.symbols.first().copied();
        }
        // Of the codes of each length, in order, the first one and its place.
        let (mut read, mut first, mut place) = (0usize, 0usize, 0usize);
        for count in code.counts.iter().skip(1) {
            read |= self.bits(1)? as usize;
            if let Some(offset) = read.checked_sub(first).filter(|offset| *offset < usize::from(*count)) {
                return code.symbols.get(place + offset).copied();
            }
            place += usize::from(*count);
            first = (first + usize::from(*count)) << 1;
            read <<= 1;
        }
        None
    }

    /// An image within the image, which has one group of codes.
    fn image(&mut self, width: u32, height: u32) -> Option<Vec<Color>> {
        let cache = self.cache()?;
        let mut cached = cache.map(|bits| (bits, vec![[0; 4]; 1 << bits]));
        let group = self.group(cache)?;
        let [green, red, blue, alpha, distance] = &group;
        let length = width as usize * height as usize;
        let is_plain = [green, red, blue, alpha].iter().all(|code| code.symbols.len() == 1);
        // Its bits are few where its pixels are alike: it grows as they come.
        let mut pixels: Vec<Color> = Vec::new();
        while pixels.len() < length {
            let symbol = usize::from(self.symbol(green)?);
            if symbol < 256 {
                let low = |symbol: u16| symbol as u8;
                let color = [low(self.symbol(red)?), symbol as u8, low(self.symbol(blue)?), low(self.symbol(alpha)?)];
                if is_plain {
                    pixels.resize(length, color);
                    break;
                }
                remember(&mut cached, color);
                pixels.push(color);
            } else if let Some(place) = symbol.checked_sub(256 + LENGTHS) {
                let (_, colors) = cached.as_ref()?;
                pixels.push(*colors.get(place)?);
            } else {
                let times = self.number(symbol - 256)?;
                let back = self.symbol(distance)?;
                let back = distance_of(width, self.number(usize::from(back))?);
                let start = pixels.len().checked_sub(back)?;
                if times > length - pixels.len() {
                    return None;
                }
                for place in start..start + times {
                    let color = *pixels.get(place)?;
                    pixels.push(color);
                    // What is repeated at once is there.
                    if back > 1 {
                        remember(&mut cached, color);
                    }
                }
            }
        }
        Some(pixels)
    }

    /// The number that a symbol for lengths or distances begins.
    fn number(&mut self, symbol: usize) -> Option<usize> {
        if symbol < 4 {
            return Some(symbol + 1);
        }
        let more = (symbol - 2) >> 1;
        Some(((2 + (symbol & 1)) << more) + self.bits(u32::try_from(more).ok()?)? as usize + 1)
    }
}

fn remember(cached: &mut Option<(u32, Vec<Color>)>, color: Color) {
    let Some((bits, colors)) = cached else { return };
    let [red, green, blue, alpha] = color.map(u32::from);
    let hash = 0x1e35_a7bd_u32.wrapping_mul(alpha << 24 | red << 16 | green << 8 | blue) >> (32 - *bits);
    if let Some(place) = colors.get_mut(hash as usize) {
        *place = color;
    }
}

fn distance_of(width: u32, number: usize) -> usize {
    match NEAR.get(number - 1) {
        Some((x, y)) => usize::try_from(i64::from(*x) + i64::from(*y) * i64::from(width)).unwrap_or(0).max(1),
        None => number - NEAR.len(),
    }
}

/// A prefix code.
struct Code {
    /// How many codes there are of each length.
    counts: [u16; 16],
    /// What they stand for, in their order.
    symbols: Vec<u16>,
    /// What the decoder's tables for it take.
    bytes: u64,
}

impl Code {
    /// One symbol, which takes no bit, or two, which take one.
    fn of_few(symbols: Vec<u16>) -> Self {
        let mut counts = [0; 16];
        let is_one = symbols.len() == 1;
        counts[1] = if is_one { 0 } else { 2 };
        Self { counts, symbols, bytes: if is_one { 0 } else { 2 * 4 + 3 * NODE_BYTES } }
    }

    /// The code whose symbols have codes of these lengths; `None` where there is no such code.
    fn new(lengths: &[u8]) -> Option<Self> {
        let mut counts = [0u16; 16];
        for length in lengths.iter().filter(|length| **length > 0) {
            *counts.get_mut(usize::from(*length))? += 1;
        }
        let mut symbols: Vec<(u8, u16)> = Vec::new();
        for (symbol, length) in lengths.iter().enumerate().filter(|(_, length)| **length > 0) {
            symbols.push((*length, u16::try_from(symbol).ok()?));
        }
        if symbols.len() < 2 {
            return symbols.first().map(|(_, symbol)| Self::of_few(vec![*symbol]));
        }
        symbols.sort_unstable();
        let longest = usize::from(symbols.last()?.0);
        let used: usize = symbols.iter().map(|(length, _)| 1 << (longest - usize::from(*length))).sum();
        if used != 1 << longest {
            return None;
        }
        let long: u64 = counts.iter().skip(TABLE_BITS + 1).map(|count| u64::from(*count)).sum();
        let bytes = (4 << longest.min(TABLE_BITS)) + 2 * long * NODE_BYTES;
        Some(Self { counts, symbols: symbols.into_iter().map(|(_, symbol)| symbol).collect(), bytes })
    }
}
