//! Whether the partitions of a lossy WebP are as long as they are said to be (RFC 6386, sections 9 and 19.2).
//!
//! The decoder allocates what it is told of each, up to 16 MB, before it reads it.

/// What comes before the first partition of a key frame.
const HEAD: usize = 10;

/// Whether this is a key frame all of whose partitions are there.
pub(super) fn are_there(frame: &[u8]) -> bool {
    lengths(frame).is_some_and(|(said, left)| said <= left)
}

/// How long all partitions but the first and the last one are said to be, and how much there is.
fn lengths(frame: &[u8]) -> Option<(usize, usize)> {
    let head = number(frame, 0)? as usize;
    let (first, rest) = frame.get(HEAD..)?.split_at_checked(head >> 5)?;
    let (lengths, rest) = rest.split_at_checked(3 * (Bools::new(first).partitions() - 1))?;
    let said = (0..lengths.len()).step_by(3).filter_map(|at| number(lengths, at)).map(|length| length as usize).sum();
    (head & 1 == 0).then_some((said, rest.len()))
}

/// A number of three bytes.
pub(super) fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let [a, b, c] = *bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes([a, b, c, 0]))
}

/// Reads the head of the first partition, in which all bits are as likely as not (section 7.3).
struct Bools<'f> {
    bytes: std::slice::Iter<'f, u8>,
    value: u32,
    range: u32,
    shifts: u32,
}

impl<'f> Bools<'f> {
    fn new(bytes: &'f [u8]) -> Self {
        let mut bools = Self { bytes: bytes.iter(), value: 0, range: 255, shifts: 0 };
        bools.value = bools.byte() << 8 | bools.byte();
        bools
    }

    /// Zeros follow the end.
    fn byte(&mut self) -> u32 {
        self.bytes.next().copied().unwrap_or_default().into()
    }

    fn bit(&mut self) -> bool {
        let split = 1 + (self.range - 1) / 2;
        let is_set = self.value >= split << 8;
        if is_set {
            self.range -= split;
            self.value -= split << 8;
        } else {
            self.range = split;
        }
        while self.range < 128 {
            self.range <<= 1;
            self.value <<= 1;
            self.shifts += 1;
            if self.shifts.is_multiple_of(8) {
                self.value |= self.byte();
            }
        }
        is_set
    }

    fn skip(&mut self, bits: usize) {
        (0..bits).for_each(|_| _ = self.bit());
    }

    /// So many numbers of so many bits, each of which may be missing.
    fn skip_numbers(&mut self, count: usize, bits: usize) {
        for _ in 0..count {
            if self.bit() {
                self.skip(bits);
            }
        }
    }

    /// How many partitions there are beside the first one.
    fn partitions(&mut self) -> usize {
        // The space of colors, and whether they are clamped.
        self.skip(2);
        // Segments.
        if self.bit() {
            let (has_map, has_data) = (self.bit(), self.bit());
            if has_data {
                self.skip(1);
                // With their signs.
                self.skip_numbers(4, 7 + 1);
                self.skip_numbers(4, 6 + 1);
            }
            if has_map {
                self.skip_numbers(3, 8);
            }
        }
        // The filter: its kind, level and sharpness, and what it is adjusted by.
        self.skip(1 + 6 + 3);
        if self.bit() && self.bit() {
            self.skip_numbers(8, 6 + 1);
        }
        1 << (usize::from(self.bit()) << 1 | usize::from(self.bit()))
    }
}
