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
    let scientific = shortest(number);
    // Always `-d.ddde-x` with or without the signs and the fraction.
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    // Writing to a String does not fail.
    let _ = match usize::try_from(exponent) {
        Ok(exponent) if exponent < 16 => {
            let (sign, digits) = sign_and_digits(mantissa);
            let whole = digits.len().min(exponent + 1);
            let (whole, fraction) = digits.split_at(whole);
            let zeros = "0".repeat(exponent + 1 - whole.len());
            write!(out, "{sign}{whole}{zeros}.{}", if fraction.is_empty() { "0" } else { fraction })
        }
        Err(_) if exponent >= -4 => {
            let (sign, digits) = sign_and_digits(mantissa);
            let zeros = "0".repeat(usize::try_from(-exponent - 1).unwrap_or_default());
            write!(out, "{sign}0.{zeros}{digits}")
        }
        _ => {
            let sign = if exponent < 0 { '-' } else { '+' };
            write!(out, "{mantissa}e{sign}{:02}", exponent.unsigned_abs())
        }
    };
}

/// The shortest digits in scientific notation. Where two are equally short and near, Rust takes the larger and Python the
/// even one, which is what rounding to so many digits gives.
fn shortest(number: f64) -> String {
    let shortest = format!("{number:e}");
    let digits = shortest.bytes().take_while(|byte| *byte != b'e').filter(u8::is_ascii_digit).count();
    let rounded = format!("{number:.*e}", digits.saturating_sub(1));
    if rounded.parse() == Ok(number) { rounded } else { shortest }
}

fn sign_and_digits(mantissa: &str) -> (&str, String) {
    let unsigned = mantissa.trim_start_matches('-');
    (if unsigned.len() < mantissa.len() { "-" } else { "" }, unsigned.replace('.', ""))
}
