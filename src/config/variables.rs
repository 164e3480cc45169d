//! How the values of variables are written, and what is said of one that is malformed.

use crate::{admission::Rate, log::Reason, matrix::identifiers::ServerName};

/// A variable that is missing or malformed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable} {problem}.")]
pub struct ConfigError {
    /// Its name.
    pub variable: &'static str,
    /// What is wrong with it: the rest of a sentence that begins with the name. Never a secret's value.
    pub problem: String,
}

impl Reason for ConfigError {
    fn reason(&self) -> String {
        self.to_string()
    }
}

impl ConfigError {
    pub(super) fn new(variable: &'static str, problem: impl Into<String>) -> Self {
        Self { variable, problem: problem.into() }
    }
}

pub(super) fn read_server_name(variable: &'static str, name: &str) -> Result<ServerName, ConfigError> {
    ServerName::parse(name)
        .map_err(|_| ConfigError::new(variable, format!("is {name:?}, which is not a server name such as example.org")))
}

/// A rate as operators write it: `10/60`, ten at once and ten more a minute; or `off`.
pub(super) fn rate(variable: &'static str, given: Option<String>, default: &str) -> Result<Option<Rate>, ConfigError> {
    let text = given.as_deref().unwrap_or(default);
    if text == "off" {
        return Ok(None);
    }
    let read = || {
        let (burst, seconds) = text.split_once('/')?;
        let rate = Rate { burst: burst.parse().ok()?, seconds: seconds.parse().ok()? };
        (rate.burst > 0 && (1..=86_400).contains(&rate.seconds)).then_some(rate)
    };
    let form =
        || format!("is {text:?}, and must be `off` or so many and again as many in so many seconds, such as {default}");
    read().map(Some).ok_or_else(|| ConfigError::new(variable, form()))
}

/// A number of bytes as operators write it: `100M`, in KiB (`K`), MiB (`M`), GiB (`G`) or TiB (`T`).
pub(super) fn size(variable: &'static str, given: Option<String>, default: &str) -> Result<u64, ConfigError> {
    let text = given.as_deref().unwrap_or(default);
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'K')) => (text.get(..at), 10),
        Some((at, 'M')) => (text.get(..at), 20),
        Some((at, 'G')) => (text.get(..at), 30),
        Some((at, 'T')) => (text.get(..at), 40),
        _ => (Some(text), 0),
    };
    let bytes = digits.and_then(|digits| digits.parse::<u64>().ok()).and_then(|number| number.checked_mul(1 << shift));
    // The database rounds what is larger.
    let bytes = bytes.filter(|bytes| (1..1 << 53).contains(bytes));
    bytes.ok_or_else(|| ConfigError::new(variable, format!("is {text:?}, and must be a size such as {default}")))
}

/// A number of days, or `off`.
pub(super) fn days(variable: &'static str, given: Option<String>, default: &str) -> Result<Option<u32>, ConfigError> {
    let text = given.as_deref().unwrap_or(default);
    if text == "off" {
        return Ok(None);
    }
    let days = text.parse().ok().filter(|days| (1..=36_500).contains(days));
    let form = || format!("is {text:?}, and must be a number of days such as {default}, or `off`");
    days.map(Some).ok_or_else(|| ConfigError::new(variable, form()))
}

/// An `https` URL to which paths are appended.
pub(super) fn base_url(url: &str) -> Result<String, ConfigError> {
    let base = url.trim_end_matches('/');
    let uri: Option<http::Uri> = base.parse().ok();
    let is_base =
        uri.is_some_and(|uri| uri.scheme_str() == Some("https") && uri.host().is_some() && uri.query().is_none());
    if is_base && !base.contains('#') {
        return Ok(base.to_owned());
    }
    let form = format!("is {url:?}, which is not an https URL such as https://matrix.example.org");
    Err(ConfigError::new("CLIENT_BASE_URL", form))
}

/// Something that is on with a 1.
pub(super) fn flag(name: &'static str, text: Option<&str>) -> Result<bool, ConfigError> {
    match text {
        None | Some("0") => Ok(false),
        Some("1") => Ok(true),
        Some(_) => Err(ConfigError::new(name, "must be 1, or left out")),
    }
}

/// Something that is `on` or `off`.
pub(super) fn switch(name: &'static str, text: Option<String>, default: bool) -> Result<bool, ConfigError> {
    match text.as_deref() {
        None => Ok(default),
        Some("on") => Ok(true),
        Some("off") => Ok(false),
        Some(_) => Err(ConfigError::new(name, "must be on or off")),
    }
}
