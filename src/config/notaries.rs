//! The notaries that are asked for other servers' keys (Server-Server API, "Querying Keys Through Another Server").

use std::collections::BTreeMap;

use super::variables::{ConfigError, read_server_name};
use crate::matrix::{
    identifiers::ServerName,
    json::{self, Value},
    signing::VerifyKey,
};

/// A server that is asked for other servers' keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedKeyServer {
    /// Its name.
    pub name: ServerName,
    /// Its own keys by key id, where they are pinned; otherwise they are fetched from it.
    pub verify_keys: BTreeMap<String, VerifyKey>,
}

pub(super) fn trusted_key_servers(list: &str) -> Result<Vec<TrustedKeyServer>, ConfigError> {
    const VARIABLE: &str = "TRUSTED_KEY_SERVERS";
    const FORM: &str = "must be a JSON list of server names, or of objects with `server_name` and perhaps `verify_keys` (key id to key)";
    let list = json::parse(list.as_bytes()).map_err(|_| ConfigError::new(VARIABLE, FORM))?;
    let entries = list.as_array().ok_or_else(|| ConfigError::new(VARIABLE, FORM))?;
    let entry = |entry: &Value| -> Result<TrustedKeyServer, ConfigError> {
        let (name, pinned) = match entry.as_str() {
            Some(name) => (name, None),
            None => {
                let name = entry.get("server_name").and_then(Value::as_str);
                (name.ok_or_else(|| ConfigError::new(VARIABLE, FORM))?, entry.get("verify_keys"))
            }
        };
        let mut verify_keys = BTreeMap::new();
        if let Some(pinned) = pinned {
            for (id, key) in pinned.as_object().ok_or_else(|| ConfigError::new(VARIABLE, FORM))?.iter() {
                let key = key.as_str().and_then(VerifyKey::from_base64).ok_or_else(|| {
                    ConfigError::new(VARIABLE, format!("pins under {id:?} no key in unpadded base64"))
                })?;
                verify_keys.insert(id.to_owned(), key);
            }
        }
        Ok(TrustedKeyServer { name: read_server_name(VARIABLE, name)?, verify_keys })
    };
    entries.iter().map(entry).collect()
}
