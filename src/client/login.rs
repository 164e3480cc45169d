//! Logging in and out (Client-Server API, "Legacy API": "Login"; "Current account information").

use http::StatusCode;
use serde_json::json;

use super::{
    auth::{self, new_token, token_hash, unknown_token},
    body::{Body, check_device_id},
    passwords::Hashing,
    throttle,
};
use crate::{
    admission::Kind,
    error::MatrixError,
    matrix::{
        identifiers::UserId,
        json::{Object, Value},
    },
    platform::Random,
    router::{Call, Handled, ok},
    server::Server,
    store::accounts::{Credentials, NewDevice, Refresh},
};

/// The longest device ID and device name, in bytes.
pub(super) const MAX_DEVICE_TEXT: usize = 255;
/// For so long, in milliseconds, an access token is good that comes with a refresh token: an hour. Others do not expire.
const EXPIRES_IN_MS: i64 = 60 * 60 * 1_000;

/// `GET /login`
pub(super) async fn flows(_: &Server, _: &Call) -> Handled {
    ok(&json!({ "flows": [{ "type": "m.login.password" }] }))
}

/// `POST /login`
pub(super) async fn login(server: &Server, call: &Call) -> Handled {
    throttle::by_address(server, call, Kind::Login, server.config.rates.login)?;
    let body = Body::of(server, call).await?;
    if body.required_text("type")? != "m.login.password" {
        return Err(MatrixError::new(StatusCode::BAD_REQUEST, "M_UNKNOWN", "Unknown login type."));
    }
    let name = user_name(&body)?;
    let password = body.required_text("password")?;
    let device = DeviceWish::read(&body)?;
    let user = local_user(server, &name);
    // Whether there is such a user or not: the answer must not tell.
    let account = user.as_ref().map_or_else(|| name.to_lowercase(), |user| user.localpart().to_owned());
    throttle::by_name(server, Kind::Login, server.config.rates.login, &account)?;
    let stored = match &user {
        Some(user) => server.store.credentials(user.as_str()).await?,
        None => Credentials::Unknown,
    };
    let wrong = || MatrixError::forbidden("The user name or the password is wrong.");
    let matches = Hashing::in_answer_to(call).matches(password, stored.password());
    let (user, password) = match (user, stored) {
        (Some(user), Credentials::Password(hash)) if matches => (user, hash),
        (_, Credentials::Deactivated) => {
            let message = "This account has been deactivated.";
            return Err(MatrixError::new(StatusCode::FORBIDDEN, "M_USER_DEACTIVATED", message));
        }
        _ => return Err(wrong()),
    };
    let (device, tokens) = device.make(server, &user);
    // The password may have changed meanwhile.
    if !server.store.log_in(&device, &password).await? {
        return Err(wrong());
    }
    ok(&tokens.told(server, &device))
}

/// `POST /refresh`
pub(super) async fn refresh(server: &Server, call: &Call) -> Handled {
    throttle::by_address(server, call, Kind::Refresh, server.config.rates.login)?;
    let body = Body::of(server, call).await?;
    let used = token_hash(body.required_text("refresh_token")?);
    let tokens = Tokens::new(server, true);
    let (Some(next), Some(refresh_token)) = (tokens.refresh(server), &tokens.refresh_token) else {
        return Err(MatrixError::internal());
    };
    if !server.store.refresh(&used, &token_hash(&tokens.access_token), &next).await? {
        return Err(unknown_token("The refresh token is unknown or has already been used.", false));
    }
    ok(&json!({
        "access_token": tokens.access_token,
        "refresh_token": refresh_token,
        "expires_in_ms": EXPIRES_IN_MS,
    }))
}

/// `POST /logout`
pub(super) async fn logout(server: &Server, call: &Call) -> Handled {
    let session = auth::session_to_end(server, call).await?;
    delete_devices(server, &session.user, Some(&[&session.device_id])).await?;
    ok(&json!({}))
}

/// `POST /logout/all`
pub(super) async fn logout_all(server: &Server, call: &Call) -> Handled {
    let session = auth::session_to_end(server, call).await?;
    delete_devices(server, &session.user, None).await?;
    ok(&json!({}))
}

/// Deletes devices of a user, or all of them, and tells the servers that share a room.
pub(super) async fn delete_devices(
    server: &Server,
    user: &UserId,
    devices: Option<&[&str]>,
) -> Result<(), MatrixError> {
    let told = server.store.delete_devices(&server.config.server_name, user, devices).await?;
    server.flush_to_all(told);
    Ok(())
}

/// `GET /account/whoami`
pub(super) async fn whoami(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    ok(&json!({ "user_id": session.user, "device_id": session.device_id, "is_guest": false }))
}

/// The tokens that a login is given.
pub(super) struct Tokens {
    access_token: String,
    refresh_token: Option<String>,
}

impl Tokens {
    fn new(server: &Server, has_refresh_token: bool) -> Self {
        let random = &*server.platform.random;
        Self { access_token: new_token(random), refresh_token: has_refresh_token.then(|| new_token(random)) }
    }

    /// What is kept of the refresh token.
    fn refresh(&self, server: &Server) -> Option<Refresh> {
        let expires_ts = server.platform.clock.now_ms().saturating_add(EXPIRES_IN_MS);
        self.refresh_token.as_deref().map(|token| Refresh { refresh_hash: token_hash(token), expires_ts })
    }

    /// What a login or a registration answers.
    pub(super) fn told(&self, server: &Server, device: &NewDevice) -> Object {
        let texts = [
            ("user_id", device.user_id.as_str()),
            ("access_token", &self.access_token),
            ("device_id", &device.device_id),
            ("home_server", server.config.server_name.as_str()),
        ];
        let mut told: Object = texts.into_iter().map(|(name, text)| (name, Value::from(text))).collect();
        if let Some(refresh_token) = &self.refresh_token {
            told.insert("refresh_token", refresh_token.as_str());
            told.insert("expires_in_ms", EXPIRES_IN_MS);
        }
        told
    }
}

/// What a login says about its device.
pub(super) struct DeviceWish {
    has_refresh_token: bool,
    device_id: Option<String>,
    display_name: Option<String>,
}

impl DeviceWish {
    /// Reads `device_id`, `initial_device_display_name` and `refresh_token`.
    pub(super) fn read(body: &Body) -> Result<Self, MatrixError> {
        let bounded = |key: &str| -> Result<Option<String>, MatrixError> {
            let text = body.text(key)?;
            if text.is_some_and(|text| text.is_empty() || text.len() > MAX_DEVICE_TEXT) {
                return Err(MatrixError::invalid_param(format!("{key:?} must have between 1 and 255 bytes.")));
            }
            Ok(text.map(str::to_owned))
        };
        let device_id = bounded("device_id")?;
        device_id.as_deref().map_or(Ok(()), check_device_id)?;
        let display_name = body.text("initial_device_display_name")?.filter(|name| !name.is_empty());
        Ok(Self {
            has_refresh_token: body.flag("refresh_token")?,
            device_id,
            display_name: display_name.map(|name| name.chars().take(MAX_DEVICE_TEXT).collect()),
        })
    }

    /// The device to store, and its new tokens.
    pub(super) fn make(self, server: &Server, user: &UserId) -> (NewDevice, Tokens) {
        let random = &*server.platform.random;
        let tokens = Tokens::new(server, self.has_refresh_token);
        let device = NewDevice {
            user_id: user.as_str().to_owned(),
            device_id: self.device_id.unwrap_or_else(|| random_letters(random, 10)),
            token_hash: token_hash(&tokens.access_token),
            refresh: tokens.refresh(server),
            display_name: self.display_name,
            created_ts: server.platform.clock.now_ms(),
        };
        (device, tokens)
    }
}

/// Random capital letters.
pub(super) fn random_letters(random: &dyn Random, count: usize) -> String {
    let mut bytes = vec![0; count];
    random.fill(&mut bytes);
    // That some letters are a little likelier does not matter: nothing here is secret.
    bytes.into_iter().map(|byte| char::from(b'A' + byte % 26)).collect()
}

/// The user that a login names: in `identifier`, or in `user` as older clients do.
pub(super) fn user_name(body: &Body) -> Result<String, MatrixError> {
    let Some(identifier) = body.object("identifier")? else {
        return body.required_text("user").map(str::to_owned);
    };
    let identifier = Body::part(identifier);
    match identifier.required_text("type")? {
        "m.id.user" => identifier.required_text("user").map(str::to_owned),
        _ => Err(MatrixError::new(StatusCode::BAD_REQUEST, "M_UNKNOWN", "Unknown type of login identifier.")),
    }
}

/// The local user of this name, which is a local part or a whole user ID. Local parts given out here are lower case.
pub(super) fn local_user(server: &Server, name: &str) -> Option<UserId> {
    let own = &server.config.server_name;
    let localpart = match name.strip_prefix('@') {
        Some(id) => id.strip_suffix(own.as_str())?.strip_suffix(':')?,
        None => name,
    };
    let user = UserId::parse(&format!("@{}:{own}", localpart.to_lowercase())).ok()?;
    (user.server_name() == own.as_str()).then_some(user)
}
