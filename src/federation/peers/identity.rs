//! Identity servers, as far as third-party invites need them (Identity Service API: "Association lookup", "Invitation
//! storage", "Key management"). They are not homeservers: nothing is signed, and their names are not discovered.
//!
//! A client, or an event of a room, says which one is asked. So all of it is bounded, goes to networks that this server may
//! reach ([`super::destination`]), and follows no redirect.

use bytes::Bytes;
use http::{Method, StatusCode, header};
use sha2::{Digest, Sha256};

use super::{
    destination::{Destination, DiscoveryError, Name, Scope},
    requests::with_query,
};
use crate::{
    config::Config,
    log::Reason,
    matrix::{
        base64,
        identifiers::UserId,
        json::{self, Object, Value},
        third_party_invite::OfferedKey,
    },
    platform::{Platform, TransportError},
};

const API: &str = "/_matrix/identity/v2";
/// How long an identity server may take for one answer, in milliseconds, and how long that may be.
const TIMEOUT_MS: u32 = 10_000;
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// The longest names and URLs that are taken of an identity server, and the most keys.
const MAX_TEXT: usize = 255;
const MAX_URL: usize = 2_048;
const MAX_KEYS: usize = 10;

/// Speaks to identity servers on behalf of one homeserver.
pub struct IdentityServers<'a> {
    platform: &'a Platform,
    scope: Scope,
}

/// An identity server that a client names, with the access token that it has there.
#[derive(Clone)]
pub struct IdentityServer {
    name: Name,
    access_token: String,
}

/// An invite that an identity server keeps until somebody shows that the identifier is theirs.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredInvite {
    /// What the `m.room.third_party_invite` is known by.
    pub token: String,
    /// What it says.
    pub content: Object,
}

/// Why an identity server did not do what it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// Its name or URL leads nowhere.
    #[error(transparent)]
    Name(#[from] DiscoveryError),
    /// It was not reached, or gave no whole answer in time.
    #[error("the identity server cannot be reached: {0}")]
    Unreachable(String),
    /// It answered with an error.
    #[error("the identity server answers {} {errcode}", .status.as_u16())]
    Status {
        /// The HTTP status.
        status: StatusCode,
        /// `errcode`; empty where the answer is no Matrix error.
        errcode: String,
        /// `error`; empty where the answer is no Matrix error.
        error: String,
    },
    /// It answered with something else than the specification's answer.
    #[error("the identity server's answer cannot be used: {0}")]
    BadResponse(&'static str),
}

impl Reason for IdentityError {
    fn reason(&self) -> String {
        match self {
            // The name or URL is what somebody wrote.
            Self::Name(_) => "the identity server's name leads nowhere".to_owned(),
            error => error.to_string(),
        }
    }

    fn said(&self) -> Option<&str> {
        match self {
            Self::Status { error, .. } => Some(error),
            _ => None,
        }
    }
}

impl IdentityServer {
    /// The identity server `name`, a host with or without a port.
    ///
    /// # Errors
    /// Where it is no such name.
    pub fn new(name: &str, access_token: &str) -> Result<Self, IdentityError> {
        Ok(Self { name: Name::parse(name)?, access_token: access_token.to_owned() })
    }
}

impl<'a> IdentityServers<'a> {
    /// For the homeserver of this configuration.
    pub fn new(platform: &'a Platform, config: &Config) -> Self {
        let scope = Name::parse(config.server_name.as_str()).map_or(Scope::Public, |name| name.scope());
        Self { platform, scope }
    }

    /// The user whose the identifier is, if the identity server knows one.
    ///
    /// # Errors
    /// As [`IdentityError`] says.
    pub async fn lookup(
        &self,
        server: &IdentityServer,
        medium: &str,
        address: &str,
    ) -> Result<Option<UserId>, IdentityError> {
        let details = self.ask(server, Method::GET, "hash_details", None).await?;
        let pepper = details.get("lookup_pepper").and_then(Value::as_str);
        let pepper = pepper.ok_or(IdentityError::BadResponse("`lookup_pepper` is missing"))?;
        let algorithms = details.get("algorithms").and_then(Value::as_array).unwrap_or_default();
        if !algorithms.iter().any(|algorithm| algorithm.as_str() == Some("sha256")) {
            return Err(IdentityError::BadResponse("it does not hash by sha256"));
        }
        let hash = base64::encode_url_safe(&Sha256::digest(format!("{address} {medium} {pepper}")));
        let body = Object::from_iter([
            ("addresses", Value::Array(vec![Value::from(hash.as_str())])),
            ("algorithm", Value::from("sha256")),
            ("pepper", Value::from(pepper)),
        ]);
        let answer = self.ask(server, Method::POST, "lookup", Some(&body)).await?;
        let mappings = answer.get("mappings").and_then(Value::as_object);
        let mappings = mappings.ok_or(IdentityError::BadResponse("`mappings` is missing"))?;
        let Some(user) = mappings.get(&hash) else { return Ok(None) };
        let user = user.as_str().and_then(|user| UserId::parse(user).ok());
        user.map(Some).ok_or(IdentityError::BadResponse("what the identifier belongs to is no user"))
    }

    /// Has the identity server keep an invite, and tell whoever the identifier belongs to. `invite` is the request's body.
    ///
    /// # Errors
    /// As [`IdentityError`] says.
    pub async fn store_invite(&self, server: &IdentityServer, invite: &Object) -> Result<StoredInvite, IdentityError> {
        let answer = self.ask(server, Method::POST, "store-invite", Some(invite)).await?;
        stored_invite(&answer).ok_or(IdentityError::BadResponse("it is not a stored invite"))
    }

    /// Whether a key is still valid, by what it says itself.
    ///
    /// # Errors
    /// As [`IdentityError`] says.
    pub async fn is_valid(&self, key: OfferedKey<'_>) -> Result<bool, IdentityError> {
        let Some(url) = key.key_validity_url else { return Ok(true) };
        let no_url = || IdentityError::Name(DiscoveryError::InvalidName("key_validity_url".to_owned()));
        let uri: http::Uri = url.parse().map_err(|_| no_url())?;
        let (Some("https"), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return Err(no_url()) };
        let name = Name::parse(authority.as_str())?;
        let asked = with_query(String::new(), [("public_key", key.public_key)]);
        let target = match uri.query() {
            None => format!("{}{asked}", uri.path()),
            Some(query) => format!("{}?{query}&{}", uri.path(), asked.trim_start_matches('?')),
        };
        let answer = self.send(&name, http::Request::get(target), Bytes::new()).await?;
        answer.get("valid").and_then(Value::as_bool).ok_or(IdentityError::BadResponse("`valid` is missing"))
    }

    async fn ask(
        &self,
        server: &IdentityServer,
        method: Method,
        endpoint: &str,
        body: Option<&Object>,
    ) -> Result<Object, IdentityError> {
        let mut request = http::Request::builder()
            .method(method)
            .uri(format!("{API}/{endpoint}"))
            .header(header::AUTHORIZATION, format!("Bearer {}", server.access_token));
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        self.send(&server.name, request, body.map(|body| Bytes::from(body.to_text())).unwrap_or_default()).await
    }

    async fn send(&self, name: &Name, request: http::request::Builder, body: Bytes) -> Result<Object, IdentityError> {
        self.scope.check(name)?;
        let invalid = |_| IdentityError::BadResponse("there is no such request");
        let request = request.body(body).map_err(invalid)?;
        let destination = Destination::of_web(name);
        let request = destination.request(request, TIMEOUT_MS, MAX_ANSWER_BYTES);
        let response = self.platform.transport.send(request).await.map_err(|error| match error {
            TransportError::TooLarge => IdentityError::BadResponse("it is too large"),
            error => IdentityError::Unreachable(error.to_string()),
        })?;
        let body = json::parse(response.body()).ok().and_then(Value::into_object);
        if response.status() == StatusCode::OK {
            return body.ok_or(IdentityError::BadResponse("it is not an object"));
        }
        let body = body.unwrap_or_default();
        let text = |name| body.get(name).and_then(Value::as_str).unwrap_or_default().chars().take(500).collect();
        Err(IdentityError::Status { status: response.status(), errcode: text("errcode"), error: text("error") })
    }
}

/// The answer of `store-invite`, as the event has it: the first key stands beside the list too, as older servers want it.
fn stored_invite(answer: &Object) -> Option<StoredInvite> {
    let text = |object: &Object, name: &str, longest: usize| -> Option<String> {
        let text = object.get(name)?.as_str()?;
        (text.len() <= longest).then(|| text.to_owned())
    };
    let token = text(answer, "token", MAX_TEXT)?;
    let is_token = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'=' | b'_' | b'-');
    if token.is_empty() || !token.bytes().all(is_token) {
        return None;
    }
    let keys = answer.get("public_keys")?.as_array().filter(|keys| keys.len() <= MAX_KEYS)?;
    let keys = keys.iter().map(|key| {
        let key = key.as_object()?;
        let (public_key, url) = (text(key, "public_key", MAX_TEXT)?, text(key, "key_validity_url", MAX_URL)?);
        Some(Object::from_iter([("key_validity_url", url), ("public_key", public_key)]))
    });
    let keys = keys.collect::<Option<Vec<Object>>>()?;
    let mut content = keys.first()?.clone();
    content.insert("display_name", text(answer, "display_name", MAX_TEXT)?);
    content.insert("public_keys", Value::Array(keys.into_iter().map(Value::Object).collect()));
    Some(StoredInvite { token, content })
}
