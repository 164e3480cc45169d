//! Finding the end of what needs no escape, which is most of every JSON text.

const BYTES: u64 = 0x0101_0101_0101_0101;
const HIGH_BITS: u64 = 0x8080_8080_8080_8080;

/// How many bytes stand before the first quote, backslash or control character: the length of `bytes` if there is none.
pub(super) fn plain_length(bytes: &[u8]) -> usize {
    // Eight bytes at a time. In each mask the lowest bit that is set marks a byte that is meant; higher ones may err.
    let (words, rest) = bytes.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let control = word.wrapping_sub(BYTES * 0x20) & !word;
        let found = (control | zero_bytes(word ^ (BYTES * 0x22)) | zero_bytes(word ^ (BYTES * 0x5c))) & HIGH_BITS;
        if found != 0 {
            return index * 8 + (found.trailing_zeros() / 8) as usize;
        }
    }
    let plain = rest.iter().take_while(|byte| **byte >= 0x20 && **byte != b'"' && **byte != b'\\').count();
    words.len() * 8 + plain
}

/// Has the high bit of every byte set that is zero.
fn zero_bytes(word: u64) -> u64 {
    word.wrapping_sub(BYTES) & !word
}

#[cfg(test)]
mod tests {
    use super::plain_length;

    #[test]
    fn every_byte_is_told_apart_in_every_place() {
        for byte in 0..=u8::MAX {
            let plain = byte >= 0x20 && byte != b'"' && byte != b'\\';
            for at in 0..20 {
                for around in [b'a', 0x21, 0x23, 0x5b, 0x5d, 0x7f, 0x80, 0xff] {
                    let mut bytes = [around; 20];
                    bytes[at] = byte;
                    assert_eq!(plain_length(&bytes), if plain { 20 } else { at }, "{byte} at {at} among {around}");
                }
            }
        }
    }
}
