//! Request authentication: the `Authorization: X-Matrix` header, and what it signs.
//!
//! Spec: Server-Server API, "Request Authentication". The path and query that are signed are those of the
//! wire, byte by byte; nothing here parses or rebuilds a URL.

use super::{
    identifiers::ServerName,
    json::{Value, write_string, write_value},
    server_keys::KeyRing,
    signing::{SignatureError, SigningKey},
};

const SCHEME: &str = "X-Matrix";
/// The most such headers on one request; several come only from servers that sign with several keys.
const MAX_HEADERS: usize = 10;

/// One parsed header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorization {
    /// `origin`: the sending server.
    pub origin: ServerName,
    /// `destination`: the server that the request is for; older servers do not say.
    pub destination: Option<String>,
    /// `key`: the signing key identifier.
    pub key_id: String,
    /// `sig`: the signature in base64.
    pub signature: String,
}

/// The parts of a request that are signed.
#[derive(Debug, Clone, Copy)]
pub struct SignedRequest<'a> {
    /// The HTTP method, such as `PUT`.
    pub method: &'a str,
    /// Path and query exactly as on the wire.
    pub uri: &'a str,
    /// The sending server.
    pub origin: &'a str,
    /// The receiving server.
    pub destination: &'a str,
    /// The body, if there is one.
    pub content: Option<&'a Value>,
}

/// Why a request is not authenticated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum XMatrixError {
    /// There is no such header.
    #[error("The request has no X-Matrix Authorization header.")]
    Missing,
    /// A header is malformed, or headers name different origins.
    #[error("The Authorization header is malformed.")]
    Malformed,
    /// The request is for another server.
    #[error("The request is meant for another server.")]
    WrongDestination,
    /// No signature is by a key that we know and that is valid now.
    #[error("The request is not signed with a key that is known and valid now.")]
    UnknownKey,
    /// A signature by a known key is malformed or wrong.
    #[error("The request is not signed by its origin: {0}.")]
    Signature(SignatureError),
}

/// Parses all `Authorization` headers of a request; those of other schemes are skipped. Several may stand in one value, with
/// commas between them, which is how some platforms hand over a name that was sent more than once (RFC 9110, section 5.3).
///
/// # Errors
/// Where none is left, one is malformed, or they do not all name the same origin.
pub fn parse_all<'a>(headers: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<Authorization>, XMatrixError> {
    let mut parsed: Vec<Authorization> = Vec::new();
    for header in headers {
        let mut rest = strip_scheme(header);
        while let Some(parameters) = rest {
            let (authorization, next) = parse_parameters(parameters).ok_or(XMatrixError::Malformed)?;
            if parsed.first().is_some_and(|first| first.origin != authorization.origin) || parsed.len() == MAX_HEADERS {
                return Err(XMatrixError::Malformed);
            }
            parsed.push(authorization);
            rest = next;
        }
    }
    if parsed.is_empty() { Err(XMatrixError::Missing) } else { Ok(parsed) }
}

/// Checks that the headers name no destination but `own_name`. To be done before any key is fetched.
///
/// # Errors
/// Where one is meant for another server.
pub fn check_destination(headers: &[Authorization], own_name: &str) -> Result<(), XMatrixError> {
    let is_ours = |header: &Authorization| header.destination.as_deref().is_none_or(|name| name == own_name);
    if headers.iter().all(is_ours) { Ok(()) } else { Err(XMatrixError::WrongDestination) }
}

/// Whether any of the keys that `headers` name is known and valid at `now`: else no body need be read.
///
/// # Errors
/// [`XMatrixError::UnknownKey`] where none is.
pub fn check_keys(headers: &[Authorization], keys: &KeyRing, now: i64) -> Result<(), XMatrixError> {
    let is_valid = |header: &Authorization| {
        keys.get(header.origin.as_str(), &header.key_id).is_some_and(|known| known.is_valid_now(now))
    };
    if headers.iter().any(is_valid) { Ok(()) } else { Err(XMatrixError::UnknownKey) }
}

/// Checks the signatures of a request at `now`: every one by a key that is known and valid must be right, and there must be one.
///
/// # Errors
/// Where one of these does not hold.
pub fn verify(
    headers: &[Authorization],
    request: &SignedRequest<'_>,
    keys: &KeyRing,
    now: i64,
) -> Result<(), XMatrixError> {
    check_destination(headers, request.destination)?;
    let text = request.signed_text();
    let mut verified = Err(XMatrixError::UnknownKey);
    for header in headers {
        if header.origin != request.origin {
            return Err(XMatrixError::Malformed);
        }
        if let Some(known) = keys.get(request.origin, &header.key_id).filter(|known| known.is_valid_now(now)) {
            known.key.verify_text(&text, &header.signature).map_err(XMatrixError::Signature)?;
            verified = Ok(());
        }
    }
    verified
}

impl SignedRequest<'_> {
    /// The canonical JSON that is signed. Written straight to text, as bodies may be large.
    pub fn signed_text(&self) -> String {
        let mut out = String::with_capacity(1024);
        out.push('{');
        if let Some(content) = self.content {
            out.push_str("\"content\":");
            write_value(&mut out, content);
            out.push(',');
        }
        // In the order of the keys.
        let members =
            [("destination", self.destination), ("method", self.method), ("origin", self.origin), ("uri", self.uri)];
        for (index, (key, text)) in members.into_iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            write_string(&mut out, key);
            out.push(':');
            write_string(&mut out, text);
        }
        out.push('}');
        out
    }

    /// The value of the `Authorization` header that authenticates this request.
    pub fn authorization(&self, key: &SigningKey) -> String {
        // Every value is quoted and the order is Synapse's: some servers parse by nothing better than that.
        format!(
            "{SCHEME} origin=\"{}\",key=\"{}\",sig=\"{}\",destination=\"{}\"",
            self.origin,
            key.key_id(),
            key.sign_text(&self.signed_text()),
            self.destination
        )
    }
}

/// What follows the scheme and its spaces, if the scheme is ours.
fn strip_scheme(header: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = header.split_at_checked(SCHEME.len())?;
    (scheme.eq_ignore_ascii_case(SCHEME.as_bytes()) && matches!(rest.first(), None | Some(b' '))).then_some(rest)
}

/// One header's parameters, and what follows the scheme of the next header, where one stands in the same value.
fn parse_parameters(parameters: &[u8]) -> Option<(Authorization, Option<&[u8]>)> {
    let mut parser = Parser { rest: std::str::from_utf8(parameters).ok()? };
    let (mut origin, mut destination, mut key, mut signature) = (None, None, None, None);
    let next = loop {
        // Empty elements of a list are skipped (RFC 9110, section 5.6.1.2).
        parser.take_while(|c| is_blank(c) || c == ',');
        if parser.rest.is_empty() {
            break None;
        }
        // A parameter may be called as the scheme is; then it has a value.
        let next = strip_scheme(parser.rest.as_bytes());
        if next.is_some_and(|next| next.trim_ascii_start().first() != Some(&b'=')) {
            break next;
        }
        let (name, value) = parser.parameter()?;
        let slot = match name.to_ascii_lowercase().as_str() {
            "origin" => Some(&mut origin),
            "destination" => Some(&mut destination),
            "key" => Some(&mut key),
            "sig" => Some(&mut signature),
            _ => None,
        };
        if slot.is_some_and(|slot| slot.replace(value).is_some()) {
            return None;
        }
        parser.skip_blanks();
        if !parser.rest.is_empty() {
            parser.expect(',')?;
        }
    };
    let origin = ServerName::parse(&origin?).ok()?;
    Some((Authorization { origin, destination, key_id: key?, signature: signature? }, next))
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    /// A name, `=`, and a value that is bare or quoted.
    fn parameter(&mut self) -> Option<(&'a str, String)> {
        let name = self.take_while(is_token);
        if name.is_empty() {
            return None;
        }
        self.skip_blanks();
        self.expect('=')?;
        self.skip_blanks();
        if self.expect('"').is_some() {
            return Some((name, self.quoted()?));
        }
        // Base64 and server names hold characters that a token may not; older servers leave them bare nevertheless.
        let value = self.take_while(|c| is_token(c) || matches!(c, ':' | '/' | '=' | '[' | ']'));
        (!value.is_empty()).then(|| (name, value.to_owned()))
    }

    /// The rest of a quoted string, with its escapes undone.
    fn quoted(&mut self) -> Option<String> {
        let mut value = String::new();
        let mut characters = self.rest.chars();
        loop {
            match characters.next()? {
                '"' => break,
                '\\' => value.push(characters.next()?),
                other => value.push(other),
            }
        }
        self.rest = characters.as_str();
        Some(value)
    }

    fn skip_blanks(&mut self) {
        self.take_while(is_blank);
    }

    fn expect(&mut self, character: char) -> Option<()> {
        self.rest = self.rest.strip_prefix(character)?;
        Some(())
    }

    fn take_while(&mut self, accept: impl Fn(char) -> bool) -> &'a str {
        let (taken, rest) = self.rest.split_at(self.rest.find(|c| !accept(c)).unwrap_or(self.rest.len()));
        self.rest = rest;
        taken
    }
}

fn is_blank(character: char) -> bool {
    matches!(character, ' ' | '\t')
}

/// A character of a token: RFC 9110, section 5.6.2.
fn is_token(character: char) -> bool {
    character.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(character)
}
