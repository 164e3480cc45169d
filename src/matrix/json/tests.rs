#![allow(clippy::unwrap_used)]

use super::*;

fn canonical(text: &str) -> String {
    parse(text.as_bytes()).unwrap().to_text()
}

#[test]
fn floats_are_written_as_python_writes_them() {
    // Each right side is the output of CPython's json.dumps(json.loads(left)).
    for (text, expected) in [
        ("-0", "0"),
        ("-0.0", "-0.0"),
        ("0.0", "0.0"),
        ("1.0", "1.0"),
        ("1e10", "10000000000.0"),
        ("1e15", "1000000000000000.0"),
        ("1e16", "1e+16"),
        ("1.5e300", "1.5e+300"),
        ("123456789012345678.0", "1.2345678901234568e+17"),
        ("0.0001", "0.0001"),
        ("0.00001", "1e-05"),
        ("0.1", "0.1"),
        ("1.10", "1.1"),
        ("5e-324", "5e-324"),
        ("-12.5E-1", "-1.25"),
        // Exactly between two shortest forms: the even one.
        ("-1438329554779821.3", "-1438329554779821.2"),
        ("0.5", "0.5"),
        ("-100.0", "-100.0"),
        ("0.00012345", "0.00012345"),
        ("1.7976931348623157e308", "1.7976931348623157e+308"),
        ("9007199254740993.0", "9007199254740992.0"),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
    ] {
        assert_eq!(canonical(text), expected, "{text}");
    }
}
