//! Whether an image moves: whether there is more than one in its file.

/// Whether a PNG moves, as a chunk before its pixels says.
pub(super) fn png_moves(file: &[u8]) -> bool {
    let mut rest = file.get(8..).unwrap_or_default();
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        match after.get(..4) {
            Some(b"acTL") => return true,
            Some(b"IDAT") | None => return false,
            _ => {}
        }
        // Its name, and its sum at the end.
        let next = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX).saturating_add(8);
        rest = after.get(next..).unwrap_or_default();
    }
    false
}

/// Whether a GIF moves: it has a second image.
pub(super) fn gif_moves(file: &[u8]) -> bool {
    const COLOR_TABLE: u8 = 0x80;
    let table = |flags: u8| if flags & COLOR_TABLE == 0 { 0 } else { 3 << ((flags & 7) + 1) };
    let mut at = 13 + file.get(10).map_or(0, |flags| table(*flags));
    let mut images = 0;
    while let Some(kind) = file.get(at) {
        at += match kind {
            // An extension: its name.
            0x21 => 2,
            // An image: where it is, its colors, how its codes begin.
            0x2c => {
                images += 1;
                11 + file.get(at + 9).map_or(0, |flags| table(*flags))
            }
            _ => break,
        };
        if images > 1 {
            return true;
        }
        // What is in it, up to an empty block.
        while let Some(length) = file.get(at) {
            at += 1 + usize::from(*length);
            if *length == 0 {
                break;
            }
        }
    }
    false
}
