//! Reading `multipart/mixed` as servers send media to each other (Server-Server API, "Content Repository"): a part with JSON,
//! then one with the bytes, or with the address at which they are. It comes piece by piece; no more of it is kept than takes to
//! see where a part ends.

use super::{json, media};

/// The longest text before the first part, the longest head of a part, the longest JSON.
const MAX_BYTES: usize = 16 * 1024;
const MAX_HEADERS: usize = 32;
/// The longest boundary (RFC 2046, section 5.1.1).
const MAX_BOUNDARY: usize = 70;

/// Why a body cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MultipartError {
    /// The content type names no boundary.
    #[error("it is no multipart/mixed with a boundary")]
    Boundary,
    /// A head or the JSON is too long.
    #[error("a part of it has no end")]
    Endless,
    /// It does not consist of the two parts.
    #[error("it does not consist of JSON and content")]
    Malformed,
}

/// What is known of the content before its bytes come.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ContentHead {
    /// `Content-Type`.
    pub content_type: Option<String>,
    /// `Content-Disposition`.
    pub disposition: Option<String>,
    /// `Location`: the bytes are there instead.
    pub location: Option<String>,
}

/// The next thing that a reader has understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// The head of the content.
    Head(ContentHead),
    /// Some of its bytes.
    Bytes(Vec<u8>),
    /// It is whole.
    End,
}

/// Takes a body apart as it comes.
#[derive(Debug)]
pub struct Multipart {
    /// A line break and the boundary: how each part ends.
    delimiter: Vec<u8>,
    pending: Vec<u8>,
    place: Place,
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Preamble,
    JsonHead,
    Json,
    ContentHead,
    Content,
    Epilogue,
}

impl Multipart {
    /// For a body of this content type.
    ///
    /// # Errors
    /// [`MultipartError::Boundary`] where it is none.
    pub fn new(content_type: &str) -> Result<Self, MultipartError> {
        let boundary = media::parameter(content_type, "boundary")
            .filter(|boundary| (1..=MAX_BOUNDARY).contains(&boundary.len()))
            .filter(|_| media::essence(content_type).eq_ignore_ascii_case("multipart/mixed"))
            .ok_or(MultipartError::Boundary)?;
        // The first boundary may be what the body begins with.
        Ok(Self { delimiter: format!("\r\n--{boundary}").into(), pending: b"\r\n".to_vec(), place: Place::Preamble })
    }

    /// Takes the next bytes.
    pub fn receive(&mut self, bytes: &[u8]) {
        if self.place != Place::Epilogue {
            self.pending.extend_from_slice(bytes);
        }
    }

    /// What follows from the bytes that have come; `None` where more of them must come first.
    ///
    /// # Errors
    /// For what is not as it must be, or has no end.
    pub fn piece(&mut self) -> Result<Option<Piece>, MultipartError> {
        loop {
            match self.place {
                Place::Preamble => {
                    if self.part()?.is_none() {
                        return Ok(None);
                    }
                    self.place = Place::JsonHead;
                }
                Place::JsonHead => {
                    if self.head()?.is_none() {
                        return Ok(None);
                    }
                    self.place = Place::Json;
                }
                Place::Json => {
                    let Some(text) = self.part()? else { return Ok(None) };
                    let is_object = json::parse(&text).is_ok_and(|value| value.as_object().is_some());
                    if !is_object {
                        return Err(MultipartError::Malformed);
                    }
                    self.place = Place::ContentHead;
                }
                Place::ContentHead => {
                    let Some(head) = self.head()? else { return Ok(None) };
                    // What follows an address is of no interest.
                    self.place = if head.location.is_some() { Place::Epilogue } else { Place::Content };
                    return Ok(Some(Piece::Head(head)));
                }
                Place::Content => return Ok(self.content()),
                Place::Epilogue => return Ok(Some(Piece::End)),
            }
        }
    }

    /// What stands before the next boundary; both are taken away.
    fn part(&mut self) -> Result<Option<Vec<u8>>, MultipartError> {
        match find(&self.pending, &self.delimiter) {
            Some(at) => {
                let part = self.pending.drain(..at).collect();
                self.pending.drain(..self.delimiter.len());
                Ok(Some(part))
            }
            None if self.pending.len() > MAX_BYTES => Err(MultipartError::Endless),
            None => Ok(None),
        }
    }

    /// The head of a part: the rest of the boundary's line, headers, an empty line.
    fn head(&mut self) -> Result<Option<ContentHead>, MultipartError> {
        let too_long = self.pending.len() > MAX_BYTES;
        let unfinished = || if too_long { Err(MultipartError::Endless) } else { Ok(None) };
        let Some(line) = self.pending.iter().position(|byte| *byte == b'\n') else { return unfinished() };
        let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
        if !self.pending.iter().take(line).all(is_blank) {
            // The last boundary, or one of another multipart that begins alike.
            return Err(MultipartError::Malformed);
        }
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let rest = self.pending.get(line + 1..).unwrap_or_default();
        let (length, headers) = match httparse::parse_headers(rest, &mut headers) {
            Ok(httparse::Status::Complete(found)) => found,
            Ok(httparse::Status::Partial) => return unfinished(),
            Err(_) => return Err(MultipartError::Malformed),
        };
        if length > MAX_BYTES {
            return Err(MultipartError::Endless);
        }
        let value = |name: &str| {
            let header = headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
            header.and_then(|header| std::str::from_utf8(header.value).ok()).map(|value| value.trim().to_owned())
        };
        let head = ContentHead {
            content_type: value("content-type"),
            disposition: value("content-disposition"),
            location: value("location"),
        };
        self.pending.drain(..line + 1 + length);
        Ok(Some(head))
    }

    fn content(&mut self) -> Option<Piece> {
        let whole = find(&self.pending, &self.delimiter);
        // The last bytes may be the beginning of the boundary.
        let length = whole.unwrap_or_else(|| self.pending.len().saturating_sub(self.delimiter.len() - 1));
        if length > 0 {
            return Some(Piece::Bytes(self.pending.drain(..length).collect()));
        }
        whole.map(|_| {
            self.place = Place::Epilogue;
            self.pending = Vec::new();
            Piece::End
        })
    }
}

/// Where `needle`, which begins with a carriage return, is in `bytes`.
fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    let mut at = 0;
    while let Some(next) = bytes.get(at..)?.iter().position(|byte| *byte == b'\r') {
        at += next;
        if bytes.get(at..)?.starts_with(needle) {
            return Some(at);
        }
        at += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// What a body says, fed in pieces of `step` bytes: the head of its content, and the bytes once they are whole.
    fn read(body: &[u8], step: usize) -> Result<(ContentHead, Option<Vec<u8>>), MultipartError> {
        let mut multipart = Multipart::new("multipart/mixed; boundary=\"a b\"")?;
        let (mut head, mut content) = (None, Vec::new());
        for bytes in body.chunks(step) {
            multipart.receive(bytes);
            while let Some(piece) = multipart.piece()? {
                match piece {
                    Piece::Head(found) => head = Some(found),
                    Piece::Bytes(bytes) => content.extend(bytes),
                    Piece::End => return Ok((head.unwrap(), Some(content))),
                }
            }
            assert!(multipart.pending.len() <= MAX_BYTES + step, "{} bytes are kept", multipart.pending.len());
        }
        head.map(|head| (head, None)).ok_or(MultipartError::Malformed)
    }

    #[test]
    fn a_body_is_understood_however_it_is_cut() {
        let content = b"\r\n--a\r\r\n--a \r\n\0\xff\r";
        let whole = [
            &b"preamble\r\n--a b\r\nContent-Type: application/json\r\n\r\n{}\r\n--a b \t\r\n"[..],
            b"content-type: text/plain\r\nX: y\r\nContent-Disposition: inline; filename=x\r\n\r\n",
            content,
            b"\r\n--a b--\r\nepilogue",
        ]
        .concat();
        // Others begin with the boundary, or with a line break, and leave the last two hyphens out.
        let short = [&b"\r\n--a b\r\n\r\n{}\r\n--a b\r\n\r\n"[..], content, b"\r\n--a b"].concat();
        for step in [1, 2, 3, 7, 64, 1_000] {
            let (head, bytes) = read(&whole, step).unwrap();
            assert_eq!(bytes.as_deref(), Some(&content[..]));
            assert_eq!(head.content_type.as_deref(), Some("text/plain"));
            assert_eq!(head.disposition.as_deref(), Some("inline; filename=x"));
            assert_eq!(read(&short, step), Ok((ContentHead::default(), Some(content.to_vec()))));
            assert_eq!(read(&short[2..], step), Ok((ContentHead::default(), Some(content.to_vec()))));
            // Cut off, it is not whole.
            assert_eq!(read(&short[..short.len() - 1], step).unwrap().1, None);
        }
        let empty = b"--a b\r\n\r\n{}\r\n--a b\r\nContent-Type: x/y\r\n\r\n\r\n--a b--";
        assert_eq!(read(empty, 5).unwrap().1.as_deref(), Some(&b""[..]));
    }

    #[test]
    fn an_address_takes_the_place_of_the_bytes() {
        let body = b"--a b\r\n\r\n{}\r\n--a b\r\nLocation: https://cdn.example/x\r\n\r\n\r\n--a b--";
        let (head, bytes) = read(body, 9).unwrap();
        assert_eq!(head.location.as_deref(), Some("https://cdn.example/x"));
        assert_eq!(bytes.as_deref(), Some(&b""[..]));
    }

    #[test]
    fn what_is_forged_is_refused_before_it_is_large() {
        for content_type in [
            "multipart/mixed",
            "text/html; boundary=x",
            "multipart/mixed; boundary=\"\"",
            &format!("multipart/mixed; boundary={}", "x".repeat(71)),
        ] {
            assert_eq!(Multipart::new(content_type).unwrap_err(), MultipartError::Boundary, "{content_type}");
        }
        let long = "x".repeat(100_000);
        for (body, error) in [
            (long.clone(), MultipartError::Endless),
            (format!("--a b\r\n{long}"), MultipartError::Endless),
            (format!("--a b\r\nX: {long}"), MultipartError::Endless),
            (format!("--a b\r\n{}", "X: y\r\n".repeat(20_000)), MultipartError::Malformed),
            (format!("--a b\r\n\r\n{{\"a\":\"{long}"), MultipartError::Endless),
            ("--a b\r\n\r\n[]\r\n--a b\r\n".to_owned(), MultipartError::Malformed),
            ("--a b\r\n\r\n{\r\n--a b\r\n".to_owned(), MultipartError::Malformed),
            ("--a b\r\n\r\n{}\r\n--a b--\r\n".to_owned(), MultipartError::Malformed),
            ("--a bc\r\n\r\n{}".to_owned(), MultipartError::Malformed),
            ("--a b\r\nno header\r\n\r\n".to_owned(), MultipartError::Malformed),
        ] {
            assert_eq!(read(body.as_bytes(), 1_000).unwrap_err(), error, "{:.60}", body);
        }
    }
}
