//! Numbers that canonical JSON forbids and room versions 1-5 hash: as Python writes them, since Synapse was
//! what made those rooms.

use std::fmt::Write;

/// Whether the text of a JSON number is an integer's (of any size), as Python tells them apart.
pub(super) fn is_integer(text: &str) -> bool {
    !text.contains(['.', 'e', 'E'])
}

/// Whether the number is a float beyond the range of a double; Python reads that as infinity, which cannot be written.
pub(super) fn is_infinite(text: &str) -> bool {
    !is_integer(text) && !text.parse().is_ok_and(f64::is_finite)
}

/// Appends what Python's `json.dumps(json.loads(text))` gives.
pub(super) fn write(out: &mut String, text: &str) {
    match text.parse::<f64>() {
        _ if text == "-0" => out.push('0'),
        Ok(number) if !is_integer(text) && number.is_finite() => write_repr(out, number),
        // Integers of any size; infinities, which `check_loose` refuses, as they came.
        _ => out.push_str(text),
    }
}

/// Python's `repr` of a float: the shortest digits that read back as the same number, in positional notation
/// between 1e-4 and 1e16, and always marked as a float.
fn write_repr(out: &mut String, number: f64) {
    // Rust's `{:e}` gives the same shortest digits, as `d.ddde±x`.
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    // Writing to a String does not fail.
    let _ = if (-4..16).contains(&exponent) {
        let whole = if number.fract() == 0.0 { ".0" } else { "" };
        write!(out, "{number}{whole}")
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        write!(out, "{digits}e{sign}{:02}", exponent.unsigned_abs())
    };
}
