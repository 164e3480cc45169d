//! Media as the protocol has them (Client-Server API, "Content repository"): their IDs, what they are said to be, and how
//! browsers are told to treat them.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// The longest media ID, in bytes.
const MAX_ID: usize = 255;
/// The longest content type, in bytes.
const MAX_CONTENT_TYPE: usize = 255;
/// The longest name of a file, in bytes.
pub const MAX_FILENAME: usize = 1_024;

/// What media are of which nothing better is known.
pub const OCTET_STREAM: &str = "application/octet-stream";

/// The types that a browser may show where they are, as none of them runs scripts ("Serving inline content").
const INLINE: [&str; 26] = [
    "text/css",
    "text/plain",
    "text/csv",
    "application/json",
    "application/ld+json",
    "image/jpeg",
    "image/gif",
    "image/png",
    "image/apng",
    "image/webp",
    "image/avif",
    "video/mp4",
    "video/webm",
    "video/ogg",
    "video/quicktime",
    "audio/mp4",
    "audio/webm",
    "audio/aac",
    "audio/mpeg",
    "audio/ogg",
    "audio/wave",
    "audio/wav",
    "audio/x-wav",
    "audio/x-pn-wav",
    "audio/flac",
    "audio/x-flac",
];

/// Whether `text` may be a media ID: nothing that leads anywhere else in a path ("Security considerations").
pub fn is_media_id(text: &str) -> bool {
    (1..=MAX_ID).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// The content type that somebody gives, where it is one: a type, a subtype, and parameters in visible ASCII.
pub fn content_type(given: Option<&str>) -> &str {
    let is_token =
        |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$&^_.+-".contains(&b));
    let given = given.map(str::trim).filter(|given| given.len() <= MAX_CONTENT_TYPE);
    let given = given.filter(|given| given.bytes().all(|b| b == b' ' || b.is_ascii_graphic()));
    let is_type = |given: &&str| essence(given).split_once('/').is_some_and(|(a, b)| is_token(a) && is_token(b));
    given.filter(is_type).unwrap_or(OCTET_STREAM)
}

/// Type and subtype, without parameters.
pub fn essence(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

/// The value of `Content-Disposition` for a file of this type and name. What a name holds cannot end the header or begin another.
pub fn disposition(content_type: &str, filename: Option<&str>) -> String {
    let essence = essence(content_type);
    let is_inline = INLINE.iter().any(|inline| inline.eq_ignore_ascii_case(essence));
    let kind = if is_inline { "inline" } else { "attachment" };
    let Some(name) = filename.filter(|name| !name.is_empty()) else { return kind.to_owned() };
    if name.bytes().all(|b| (b == b' ' || b.is_ascii_graphic()) && b != b'"' && b != b'\\') {
        return format!("{kind}; filename=\"{name}\"");
    }
    // RFC 8187
    const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    format!("{kind}; filename*=utf-8''{}", utf8_percent_encode(name, ESCAPED))
}

/// The name of the file in a `Content-Disposition`.
pub fn filename(disposition: &str) -> Option<String> {
    let (mut plain, mut extended) = (None, None);
    for (name, value) in parameters(disposition) {
        if name.eq_ignore_ascii_case("filename*") {
            let mut parts = value.splitn(3, '\'');
            let is_utf8 = parts.next().is_some_and(|charset| charset.eq_ignore_ascii_case("utf-8"));
            let text = parts.nth(1).and_then(|text| percent_decode_str(text).decode_utf8().ok());
            extended = text.filter(|_| is_utf8).map(|text| text.into_owned());
        } else if name.eq_ignore_ascii_case("filename") {
            plain = Some(value);
        }
    }
    extended.or(plain).filter(|name| !name.is_empty() && name.len() <= MAX_FILENAME)
}

/// The parameter `name` of a header such as `Content-Type`.
pub fn parameter(header: &str, name: &str) -> Option<String> {
    parameters(header).into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

/// The parameters behind a header's first word, the quotes of their values taken off.
fn parameters(header: &str) -> Vec<(String, String)> {
    let mut parameters = Vec::new();
    let mut rest = header.split_once(';').map_or("", |(_, rest)| rest);
    while let Some((name, after)) = rest.split_once('=') {
        let after = after.trim_start();
        let (value, remainder) = match after.strip_prefix('"') {
            Some(quoted) => unquote(quoted),
            None => match after.split_once(';') {
                Some((value, remainder)) => (value.trim().to_owned(), remainder),
                None => (after.trim().to_owned(), ""),
            },
        };
        parameters.push((name.trim_matches([' ', '\t', ';']).to_owned(), value));
        rest = remainder;
    }
    parameters
}

/// What stands before the closing quote, and what after it.
fn unquote(quoted: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return (value, quoted.get(index + 1..).unwrap_or_default()),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn ids_lead_nowhere_else() {
        assert!(is_media_id("AQwafuaFswefuhsfAFAgsw_-0"));
        for id in ["", "..", "a/b", "a%2Fb", "ä", "a b", "a\n", &"a".repeat(256)] {
            assert!(!is_media_id(id), "{id:?}");
        }
    }

    #[test]
    fn what_is_no_content_type_is_bytes() {
        for given in ["image/png", "text/plain; charset=utf-8", "application/vnd.oasis.opendocument.text"] {
            assert_eq!(content_type(Some(given)), given);
        }
        for given in ["", "image", "image/", "a b/c", "image/png\r\nX-Evil: 1", "text/html\u{0}", &"a/b".repeat(200)] {
            assert_eq!(content_type(Some(given)), OCTET_STREAM, "{given:?}");
        }
        assert_eq!(content_type(None), OCTET_STREAM);
    }

    #[test]
    fn names_are_read_as_they_were_written() {
        let names =
            ["cat.png", "a; b=c.png", "quo\"te\\.png", "Zürich ☂.png", "x\r\nSet-Cookie: a=b", "a'b''c.png", "%41"];
        for name in names {
            let written = disposition("image/png", Some(name));
            assert!(written.starts_with("inline; filename"), "{written}");
            assert!(http::HeaderValue::from_str(&written).is_ok(), "{written}");
            assert_eq!(filename(&written).as_deref(), Some(name), "{written}");
        }
        assert_eq!(filename("attachment"), None);
        assert_eq!(filename("attachment; filename="), None);
        assert_eq!(filename("inline; filename=a.txt; filename*=UTF-8'en'b.txt").as_deref(), Some("b.txt"));
        assert_eq!(filename("inline; filename*=latin-1''x; filename=\"y\"").as_deref(), Some("y"));
        assert_eq!(filename(&format!("inline; filename={}", "a".repeat(2_000))), None);
        assert_eq!(filename("inline; filename=\"unfinished").as_deref(), Some("unfinished"));
    }

    #[test]
    fn only_harmless_types_are_shown_where_they_are() {
        for (content_type, kind) in [
            ("image/PNG", "inline"),
            ("text/plain; charset=utf-8", "inline"),
            ("text/html", "attachment"),
            ("image/svg+xml", "attachment"),
            ("application/xhtml+xml", "attachment"),
            ("image/png-evil", "attachment"),
        ] {
            assert_eq!(disposition(content_type, None), kind, "{content_type}");
        }
    }
}
