//! The configuration of one homeserver, from the variables and secrets of its deployment.
//!
//! The README describes each variable to operators. Everything but `ENGINE` and `MOVE_SECRET`, which `edge` reads, is checked here, once, so
//! that a mistake is a sentence in the log at the first request and not a surprise later. No error and no debug output ever shows a
//! secret.

mod dns_over_https;
mod notaries;
mod variables;

use std::fmt;

pub use dns_over_https::DnsOverHttps;
use dns_over_https::{DEFAULT_DNS_OVER_HTTPS, resolver};
pub use notaries::TrustedKeyServer;
use notaries::trusted_key_servers;
use sha2::{Digest, Sha256};
pub use variables::ConfigError;
use variables::{base_url, days, flag, rate, read_server_name, size, switch};

use crate::{
    admission::Rate,
    matrix::{
        identifiers::ServerName,
        json::{self, Object},
        policy_server::PolicyRule,
        room_version::RoomVersion,
        server_keys::{self, OldKey},
        signing::{POLICY_KEY_ID, SigningKey},
    },
};

/// The configuration of one homeserver.
#[derive(Debug)]
pub struct Config {
    /// `SERVER_NAME`: the name that stands in this server's user ids, for ever.
    pub server_name: ServerName,
    /// `WELL_KNOWN_SERVER`: what `/.well-known/matrix/server` delegates to; the name's host with `:443` by default,
    /// because a Worker is reached there.
    pub well_known_server: ServerName,
    /// `CLIENT_BASE_URL`: where clients reach this server, without a slash at its end; by default where other servers do.
    pub client_base_url: String,
    /// `REGISTRATION`: who may register; nobody by default.
    pub registration: Registration,
    /// `DEFAULT_ROOM_VERSION`: the version of rooms that are created without naming one.
    pub default_room_version: &'static RoomVersion,
    /// `TRUSTED_KEY_SERVERS`: notaries that are asked for keys their origin does not give; none by default.
    pub trusted_key_servers: Vec<TrustedKeyServer>,
    /// `DNS_OVER_HTTPS`: the `https` URL of the resolver for SRV records.
    pub dns_over_https: DnsOverHttps,
    /// `SIGNING_KEY`: signs this server's events and requests.
    pub signing_key: SigningKey,
    /// `FASTER_JOINS`: whether other servers are asked to leave members out of what they answer to our joins.
    pub faster_joins: bool,
    /// `LOG_COSTS`: whether each request is logged with what it cost.
    pub log_costs: bool,
    /// What this server is as a policy server; it is none by default.
    pub policy: Option<PolicyConfig>,
    /// How often strangers may ask.
    pub rates: Rates,
    /// What is kept of media.
    pub media: MediaConfig,
    /// `OLD_SIGNING_KEYS`: key ids and keys that this server signed with before; published as `old_verify_keys`.
    pub old_signing_keys: Vec<(Box<str>, OldKey)>,
}

/// What a server is as the policy server of rooms.
#[derive(Debug)]
pub struct PolicyConfig {
    /// `POLICY_SIGNING_KEY`: signs what is recommended. Not the key that signs events and requests: rooms name it.
    pub key: SigningKey,
    /// `POLICY_BLOCKED_SERVERS` and `POLICY_BLOCKED_WORDS`: what is not recommended.
    pub rule: PolicyRule,
}

/// What is kept of media.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MediaConfig {
    /// `MEDIA_MAX_SIZE`: the largest file, in bytes.
    pub max_size: u64,
    /// `MEDIA_QUOTA`: how many bytes of each local user are kept.
    pub quota: u64,
    /// `REMOTE_MEDIA_DAYS`: after so many days without use, other servers' media are forgotten; `None`: never.
    pub remote_days: Option<u32>,
    /// `REMOTE_MEDIA_QUOTA`: how many bytes of other servers' media each local user may have fetched in a day; no less than `max_size`.
    pub remote_quota: u64,
    /// `REMOTE_MEDIA_SPACE`: how many bytes of other servers' media are kept; no less than `max_size`.
    pub remote_space: u64,
}

/// How often may be asked what costs this server much; `None`: as often as one likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    /// `LOGIN_RATE`: log-ins from an address, and to an account; refreshed tokens from an address; questions whether a name is free.
    pub login: Option<Rate>,
    /// `REGISTRATION_RATE`: requests to register from an address; each registration takes two or three.
    pub registration: Option<Rate>,
    /// `TOKEN_VALIDITY_RATE`: questions from an address whether a registration token is valid.
    pub token_validity: Option<Rate>,
    /// `FEDERATION_RATE`: signed requests of an origin.
    pub federation: Option<Rate>,
    /// `NOTARY_RATE`: servers that an address has us ask for their keys; by itself, servers that an address says it is.
    pub notary: Option<Rate>,
    /// `PROFILE_RATE`: other servers' users' profiles that an address has us ask for without a token; by itself, pages of the room
    /// directory without one.
    pub remote_profile: Option<Rate>,
    /// `UPLOAD_RATE`: uploads of a user, and media IDs that they reserve.
    pub upload: Option<Rate>,
    /// `REMOTE_MEDIA_RATE`: other servers' media that a user has us fetch.
    pub remote_media: Option<Rate>,
}

/// Who may register an account.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Registration {
    /// Nobody.
    Closed,
    /// Anybody who knows this token (`REGISTRATION_TOKEN`), with `m.login.registration_token`.
    Token(String),
    /// Everybody, with `m.login.dummy`.
    Open,
}

impl Config {
    /// The configuration in what `variable` answers by name. A variable that is empty counts as not set.
    ///
    /// # Errors
    /// [`ConfigError`] for the first variable that is missing or malformed.
    pub fn parse(variable: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let variable =
            |name: &str| variable(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        let required = |name: &'static str, example: &str| {
            variable(name).ok_or_else(|| ConfigError::new(name, format!("is not set; it is needed, such as {example}")))
        };
        let server_name = read_server_name("SERVER_NAME", &required("SERVER_NAME", "example.org")?)?;
        let well_known_server = match variable("WELL_KNOWN_SERVER") {
            Some(name) => read_server_name("WELL_KNOWN_SERVER", &name)?,
            None => read_server_name("SERVER_NAME", &format!("{}:443", host(&server_name)))?,
        };
        let client_base_url = match variable("CLIENT_BASE_URL") {
            Some(url) => base_url(&url)?,
            None => {
                let name = well_known_server.as_str();
                format!("https://{}", name.strip_suffix(":443").unwrap_or(name))
            }
        };
        let signing_key = required("SIGNING_KEY", "the line that `npm run keygen` prints")?;
        Ok(Self {
            server_name,
            well_known_server,
            client_base_url,
            registration: registration(variable("REGISTRATION").as_deref(), variable("REGISTRATION_TOKEN"))?,
            default_room_version: room_version(variable("DEFAULT_ROOM_VERSION").as_deref().unwrap_or("12"))?,
            trusted_key_servers: match variable("TRUSTED_KEY_SERVERS") {
                Some(list) => trusted_key_servers(&list)?,
                None => Vec::new(),
            },
            dns_over_https: resolver(variable("DNS_OVER_HTTPS").as_deref().unwrap_or(DEFAULT_DNS_OVER_HTTPS))?,
            signing_key: SigningKey::from_line(&signing_key).map_err(|_| {
                let form = "is not a line of the form `ed25519 a_AbCd <unpadded base64 of 32 bytes>`";
                ConfigError::new("SIGNING_KEY", form)
            })?,
            faster_joins: switch("FASTER_JOINS", variable("FASTER_JOINS"), true)?,
            log_costs: flag("LOG_COSTS", variable("LOG_COSTS").as_deref())?,
            policy: policy(
                variable("POLICY_SIGNING_KEY"),
                variable("POLICY_BLOCKED_SERVERS"),
                variable("POLICY_BLOCKED_WORDS"),
            )?,
            rates: Rates {
                login: rate("LOGIN_RATE", variable("LOGIN_RATE"), "10/60")?,
                registration: rate("REGISTRATION_RATE", variable("REGISTRATION_RATE"), "15/300")?,
                token_validity: rate("TOKEN_VALIDITY_RATE", variable("TOKEN_VALIDITY_RATE"), "5/60")?,
                federation: rate("FEDERATION_RATE", variable("FEDERATION_RATE"), "500/10")?,
                notary: rate("NOTARY_RATE", variable("NOTARY_RATE"), "60/60")?,
                remote_profile: rate("PROFILE_RATE", variable("PROFILE_RATE"), "60/60")?,
                upload: rate("UPLOAD_RATE", variable("UPLOAD_RATE"), "60/60")?,
                remote_media: rate("REMOTE_MEDIA_RATE", variable("REMOTE_MEDIA_RATE"), "300/60")?,
            },
            media: media(&variable)?,
            old_signing_keys: match variable("OLD_SIGNING_KEYS") {
                Some(keys) => old_signing_keys(&keys)?,
                None => Vec::new(),
            },
        })
    }
}

/// What is kept of media.
fn media(variable: &impl Fn(&str) -> Option<String>) -> Result<MediaConfig, ConfigError> {
    let max_size = size("MEDIA_MAX_SIZE", variable("MEDIA_MAX_SIZE"), "100M")?;
    // One file must have room, or nothing could ever be fetched.
    let for_one = |name: &'static str, default: &str| match size(name, variable(name), default)? {
        bytes if bytes >= max_size => Ok(bytes),
        _ if variable(name).is_none() => Ok(max_size),
        _ => Err(ConfigError::new(name, "is less than MEDIA_MAX_SIZE, so that no file could be fetched")),
    };
    Ok(MediaConfig {
        max_size,
        quota: size("MEDIA_QUOTA", variable("MEDIA_QUOTA"), "10G")?,
        remote_days: days("REMOTE_MEDIA_DAYS", variable("REMOTE_MEDIA_DAYS"), "30")?,
        remote_quota: for_one("REMOTE_MEDIA_QUOTA", "10G")?,
        remote_space: for_one("REMOTE_MEDIA_SPACE", "100G")?,
    })
}

/// Whether a secret was given, in a time that says nothing about where the two differ.
pub fn is_same_secret(given: &str, expected: &str) -> bool {
    Sha256::digest(given.as_bytes()) == Sha256::digest(expected.as_bytes())
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "Closed",
            Self::Token(_) => "Token(…)",
            Self::Open => "Open",
        })
    }
}

/// What makes this server a policy server: its key for that. The lists are separated by commas.
fn policy(
    key: Option<String>,
    servers: Option<String>,
    words: Option<String>,
) -> Result<Option<PolicyConfig>, ConfigError> {
    let list = |text: Option<String>| {
        let text = text.unwrap_or_default().to_lowercase();
        text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(Into::into).collect::<Vec<Box<str>>>()
    };
    let rule = PolicyRule { blocked_servers: list(servers), blocked_words: list(words) };
    let Some(key) = key else {
        return match rule == PolicyRule::default() {
            true => Ok(None),
            false => Err(ConfigError::new("POLICY_SIGNING_KEY", "is not set, without which nothing is blocked")),
        };
    };
    let key = SigningKey::from_line(&key).ok().filter(|key| key.key_id() == POLICY_KEY_ID);
    let form = "is not a line of the form `ed25519 policy_server <unpadded base64 of 32 bytes>`";
    let key = key.ok_or_else(|| ConfigError::new("POLICY_SIGNING_KEY", form))?;
    Ok(Some(PolicyConfig { key, rule }))
}

/// The host as it stands in the name, an IPv6 literal in its brackets.
fn host(name: &ServerName) -> &str {
    let name = name.as_str();
    match name.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => host,
        _ => name,
    }
}

fn registration(mode: Option<&str>, token: Option<String>) -> Result<Registration, ConfigError> {
    match mode {
        None | Some("closed") => Ok(Registration::Closed),
        Some("open") => Ok(Registration::Open),
        Some("token") => match token {
            // The characters and the length that the specification allows a token.
            Some(token)
                if token.len() <= 64 && token.bytes().all(|b| b.is_ascii_alphanumeric() || b"._~-".contains(&b)) =>
            {
                Ok(Registration::Token(token))
            }
            Some(_) => {
                let rule = "must consist of at most 64 letters, digits, `.`, `_`, `~` and `-`";
                Err(ConfigError::new("REGISTRATION_TOKEN", rule))
            }
            None => Err(ConfigError::new("REGISTRATION_TOKEN", "is not set, although REGISTRATION is `token`")),
        },
        Some(other) => {
            Err(ConfigError::new("REGISTRATION", format!("is {other:?}, and must be `closed`, `token` or `open`")))
        }
    }
}

fn room_version(version: &str) -> Result<&'static RoomVersion, ConfigError> {
    RoomVersion::get(version).ok_or_else(|| {
        ConfigError::new("DEFAULT_ROOM_VERSION", format!("is {version:?}, which is not a room version of this server"))
    })
}

fn old_signing_keys(keys: &str) -> Result<Vec<(Box<str>, OldKey)>, ConfigError> {
    let form = "must be JSON such as {\"ed25519:a_AbCd\": {\"key\": \"<base64>\", \"expired_ts\": 1700000000000}}";
    let listed = json::parse(keys.as_bytes()).map_err(|_| ConfigError::new("OLD_SIGNING_KEYS", form))?;
    let response = Object::from_iter([("old_verify_keys", listed)]);
    server_keys::read_old_keys(&response).map_err(|_| ConfigError::new("OLD_SIGNING_KEYS", form))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// The specification's test key (appendices, "Cryptographic Test Vectors").
    const SIGNING_KEY: &str = "ed25519 1 YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1";
    const PUBLIC_KEY: &str = "XGX0JRS2Af3be3knz2fBiRbApjm2Dh61gXDJA8kcJNI";

    fn parse(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let minimal = [("SERVER_NAME", "example.org"), ("SIGNING_KEY", SIGNING_KEY)];
        let find =
            |name: &str| variables.iter().chain(&minimal).find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        Config::parse(find)
    }

    #[test]
    fn what_is_not_set_has_its_default() {
        let config = parse(&[("REGISTRATION", ""), ("OLD_SIGNING_KEYS", " ")]).unwrap();
        assert_eq!(config.well_known_server.as_str(), "example.org:443");
        assert_eq!(config.registration, Registration::Closed);
        assert_eq!(config.default_room_version.id, "12");
        assert_eq!(config.dns_over_https, DnsOverHttps::parse(DEFAULT_DNS_OVER_HTTPS).unwrap());
        assert!(config.trusted_key_servers.is_empty() && config.old_signing_keys.is_empty());
        let media = MediaConfig {
            max_size: 104_857_600,
            quota: 10_737_418_240,
            remote_days: Some(30),
            remote_quota: 10_737_418_240,
            remote_space: 107_374_182_400,
        };
        assert_eq!(config.media, media);
        let set = [("MEDIA_MAX_SIZE", "7"), ("MEDIA_QUOTA", "2K"), ("REMOTE_MEDIA_DAYS", "off")];
        let config = parse(&[&set[..], &[("REMOTE_MEDIA_QUOTA", "7"), ("REMOTE_MEDIA_SPACE", "1K")]].concat()).unwrap();
        let media = MediaConfig { max_size: 7, quota: 2_048, remote_days: None, remote_quota: 7, remote_space: 1_024 };
        assert_eq!(config.media, media);
        // What is not set has room for the largest file.
        let config = parse(&[("MEDIA_MAX_SIZE", "1T")]).unwrap();
        assert_eq!((config.media.remote_quota, config.media.remote_space), (1 << 40, 1 << 40));
    }

    #[test]
    fn the_default_delegation_keeps_the_host_of_every_kind_of_name() {
        for (name, delegation) in [
            ("localhost:8448", "localhost:443"),
            ("1.2.3.4", "1.2.3.4:443"),
            ("[2001:db8::1]", "[2001:db8::1]:443"),
            ("[2001:db8::1]:8448", "[2001:db8::1]:443"),
        ] {
            assert_eq!(parse(&[("SERVER_NAME", name)]).unwrap().well_known_server.as_str(), delegation);
        }
        let config = parse(&[("WELL_KNOWN_SERVER", "matrix.example.org:8443")]).unwrap();
        assert_eq!(config.well_known_server.as_str(), "matrix.example.org:8443");
    }

    #[test]
    fn keys_and_notaries_are_read() {
        let old = format!(r#"{{"ed25519:old": {{"key": "{PUBLIC_KEY}", "expired_ts": 1700000000000}}}}"#);
        let notaries = format!(
            r#"["matrix.org", {{"server_name": "keys.example.org", "verify_keys": {{"ed25519:1": "{PUBLIC_KEY}"}}}}]"#
        );
        let config = parse(&[("OLD_SIGNING_KEYS", &old), ("TRUSTED_KEY_SERVERS", &notaries)]).unwrap();
        assert_eq!(config.old_signing_keys[0].0.as_ref(), "ed25519:old");
        assert_eq!(config.old_signing_keys[0].1.expired_ts, 1_700_000_000_000);
        assert_eq!(config.signing_key.verify_key(), config.old_signing_keys[0].1.key);
        assert_eq!(config.trusted_key_servers[0].name.as_str(), "matrix.org");
        assert_eq!(config.trusted_key_servers[1].verify_keys["ed25519:1"], config.signing_key.verify_key());
    }

    #[test]
    fn a_malformed_variable_is_named() {
        for (name, value) in [
            ("SERVER_NAME", "https://example.org"),
            ("SERVER_NAME", ""),
            ("WELL_KNOWN_SERVER", "exa mple.org"),
            ("REGISTRATION", "yes"),
            ("CLIENT_BASE_URL", "http://matrix.example.org"),
            ("LOG_COSTS", "on"),
            ("LOGIN_RATE", "0/60"),
            ("LOGIN_RATE", "10"),
            ("FEDERATION_RATE", "10/0"),
            ("REGISTRATION_RATE", "often"),
            ("MEDIA_MAX_SIZE", "100 MB"),
            ("MEDIA_MAX_SIZE", "0"),
            ("MEDIA_QUOTA", "off"),
            ("MEDIA_QUOTA", "99999999T"),
            ("REMOTE_MEDIA_DAYS", "0"),
            ("REMOTE_MEDIA_QUOTA", "1M"),
            ("REMOTE_MEDIA_SPACE", "99M"),
            ("REMOTE_MEDIA_SPACE", "off"),
            ("CLIENT_BASE_URL", "matrix.example.org"),
            ("CLIENT_BASE_URL", "https://matrix.example.org/?x"),
            ("DEFAULT_ROOM_VERSION", "99"),
            ("DNS_OVER_HTTPS", "http://example.org/dns-query"),
            ("TRUSTED_KEY_SERVERS", "matrix.org"),
            ("TRUSTED_KEY_SERVERS", r#"[{"verify_keys": {}}]"#),
            ("TRUSTED_KEY_SERVERS", r#"[{"server_name": "a", "verify_keys": {"ed25519:1": "short"}}]"#),
            ("SIGNING_KEY", ""),
            ("SIGNING_KEY", "ed25519 1"),
            ("SIGNING_KEY", "ed25519 1 short"),
            ("OLD_SIGNING_KEYS", "[]"),
            ("OLD_SIGNING_KEYS", r#"{"ed25519:old": {"expired_ts": 1}}"#),
        ] {
            assert_eq!(parse(&[(name, value)]).unwrap_err().variable, name, "{value}");
        }
        assert_eq!(parse(&[("REGISTRATION", "token")]).unwrap_err().variable, "REGISTRATION_TOKEN");
    }

    #[test]
    fn secrets_are_never_shown() {
        let token = [("REGISTRATION", "token"), ("REGISTRATION_TOKEN", "s3cret")];
        let shown = format!("{:?}", parse(&token).unwrap());
        assert!(!shown.contains("s3cret") && !shown.contains("YJDBA9"), "{shown}");
        let broken = format!("{SIGNING_KEY} s3cret");
        let errors = [
            parse(&[("SIGNING_KEY", &broken)]),
            parse(&[("REGISTRATION", "token"), ("REGISTRATION_TOKEN", "s3cret?")]),
        ];
        for error in errors {
            let error = error.unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(!shown.contains("s3cret") && !shown.contains("YJDBA9"), "{shown}");
        }
    }
}
