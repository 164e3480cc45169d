//! Reading the members of a request's body, each with the type that the spec gives it; and contents of events made of them.

use crate::{
    error::MatrixError,
    matrix::{
        device_keys::is_device_id,
        json::{Object, Value},
    },
    router::Call,
    server::Server,
    store::accounts::Profile,
};

/// How deep what goes out to other servers for a client may be nested: some fail over what is deeper than their parser of
/// JSON reads, and over all that comes with it.
pub(super) const MAX_DEPTH: usize = 100;

/// The JSON object that a request carried. A member that is `null` counts as missing, as many clients send it so.
#[derive(Debug, Default)]
pub(super) struct Body(Object);

impl Body {
    /// The body of `call`, which must be a JSON object.
    pub(super) async fn of(server: &Server, call: &Call) -> Result<Self, MatrixError> {
        match call.json(&server.admission, server.platform.clock.as_ref()).await? {
            // What is stored is told to other clients, and a number beyond what a double holds they may be unable to read.
            Value::Object(object) if object.check_loose().is_err() => {
                Err(MatrixError::bad_json("A number in the body is too large."))
            }
            Value::Object(object) => Ok(Self(object)),
            _ => Err(MatrixError::bad_json("The body must be a JSON object.")),
        }
    }

    /// As [`Body::of`], where the body holds keys that other servers are told.
    pub(super) async fn of_keys(server: &Server, call: &Call) -> Result<Self, MatrixError> {
        let body = Self::of(server, call).await?;
        if !body.0.is_within_depth(MAX_DEPTH) {
            return Err(MatrixError::bad_json("The body must not be nested deeper than 100 levels."));
        }
        Ok(body)
    }

    /// As [`Body::of`], where the spec lets the body be missing.
    pub(super) async fn optional(server: &Server, call: &Call) -> Result<Self, MatrixError> {
        let bytes = call.bytes(&server.admission, server.platform.clock.as_ref()).await?;
        if bytes.is_empty() { Ok(Self::default()) } else { Self::of(server, call).await }
    }

    /// A part of another body.
    pub(super) fn part(object: &Object) -> Self {
        Self(object.clone())
    }

    /// The whole object.
    pub(super) fn into_object(self) -> Object {
        self.0
    }

    /// Whether there is such a member, be it `null`.
    pub(super) fn has(&self, key: &str) -> bool {
        self.0.get(key).is_some()
    }

    /// A string.
    pub(super) fn text(&self, key: &str) -> Result<Option<&str>, MatrixError> {
        self.typed(key, "a string", Value::as_str)
    }

    /// A string that must be there.
    pub(super) fn required_text(&self, key: &str) -> Result<&str, MatrixError> {
        self.text(key)?.ok_or_else(|| lacks(key))
    }

    /// A boolean; `false` where it is missing.
    pub(super) fn flag(&self, key: &str) -> Result<bool, MatrixError> {
        Ok(self.typed(key, "a boolean", Value::as_bool)?.unwrap_or(false))
    }

    /// An object.
    pub(super) fn object(&self, key: &str) -> Result<Option<&Object>, MatrixError> {
        self.typed(key, "an object", Value::as_object)
    }

    /// An array; empty where it is missing.
    pub(super) fn list(&self, key: &str) -> Result<&[Value], MatrixError> {
        Ok(self.typed(key, "an array", Value::as_array)?.unwrap_or(&[]))
    }

    /// A boolean; `None` where it is missing.
    pub(super) fn maybe(&self, key: &str) -> Result<Option<bool>, MatrixError> {
        self.typed(key, "a boolean", Value::as_bool)
    }

    /// An array of strings; `None` where it is missing.
    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<String>>, MatrixError> {
        let Some(items) = self.typed(key, "an array", Value::as_array)? else { return Ok(None) };
        let texts = items.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<_>>();
        texts.map(Some).ok_or_else(|| MatrixError::bad_json(format!("{key:?} must be an array of strings.")))
    }

    /// An integer.
    pub(super) fn integer(&self, key: &str) -> Result<Option<i64>, MatrixError> {
        self.typed(key, "an integer", Value::as_i64)
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        kind: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, MatrixError> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                let wrong = || MatrixError::bad_json(format!("{key:?} must be {kind}."));
                read(value).map(Some).ok_or_else(wrong)
            }
        }
    }
}

/// Checks a device ID that other servers are told. Some cannot store control characters, and fail over them.
pub(super) fn check_device_id(device_id: &str) -> Result<(), MatrixError> {
    match is_device_id(device_id) {
        true => Ok(()),
        false => {
            Err(MatrixError::invalid_param("A device ID must have between 1 and 255 bytes, and no control characters."))
        }
    }
}

/// What a client is told whose body lacks the member `key`.
pub(super) fn lacks(key: &str) -> MatrixError {
    MatrixError::missing_param(format!("The body lacks {key:?}."))
}

/// `object` with the members of `more`, which take the place of its own.
pub(super) fn merged(mut object: Object, more: Object) -> Object {
    for (key, value) in more {
        object.insert(key, value);
    }
    object
}

/// What a membership event says of its user's profile.
pub(super) fn member_content(profile: &Profile) -> Object {
    let fields = [("displayname", &profile.displayname), ("avatar_url", &profile.avatar_url)];
    fields.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?))).collect()
}
