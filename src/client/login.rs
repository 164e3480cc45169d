//! Logging in and out (Client-Server API, "Legacy authentication API": login, logout; "Account management": whoami).

use http::StatusCode;
use serde_json::json;

use super::{
    auth::{self, new_token, token_hash},
    body::Body,
    passwords, throttle,
};
use crate::{
    admission::Kind,
    error::MatrixError,
    matrix::identifiers::UserId,
    platform::Random,
    router::{Call, Handled, ok},
    server::Server,
    store::accounts::NewDevice,
};

/// The longest device ID and device name, in bytes.
pub(super) const MAX_DEVICE_TEXT: usize = 255;

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
    throttle::by_name(server, Kind::Login, server.config.rates.login, &name.to_lowercase())?;
    let stored = match &user {
        Some(user) => server.store.password_hash(user.as_str()).await?,
        None => None,
    };
    let (Some(user), true) = (user, passwords::matches(password, stored.as_deref())) else {
        return Err(MatrixError::forbidden("The user name or the password is wrong."));
    };
    let (device, token) = device.make(server, &user);
    server.store.log_in(&device).await?;
    ok(&json!({
        "user_id": user,
        "access_token": token,
        "device_id": device.device_id,
        "home_server": server.config.server_name,
    }))
}

/// `POST /logout`
pub(super) async fn logout(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    delete_devices(server, &session.user, Some(&[&session.device_id])).await?;
    ok(&json!({}))
}

/// `POST /logout/all`
pub(super) async fn logout_all(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
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

/// What a login says about its device.
pub(super) struct DeviceWish {
    device_id: Option<String>,
    display_name: Option<String>,
}

impl DeviceWish {
    /// Reads `device_id` and `initial_device_display_name`.
    pub(super) fn read(body: &Body) -> Result<Self, MatrixError> {
        let bounded = |key: &str| -> Result<Option<String>, MatrixError> {
            let text = body.text(key)?;
            if text.is_some_and(|text| text.is_empty() || text.len() > MAX_DEVICE_TEXT) {
                return Err(MatrixError::invalid_param(format!("{key:?} must have between 1 and 255 bytes.")));
            }
            Ok(text.map(str::to_owned))
        };
        let display_name = body.text("initial_device_display_name")?.filter(|name| !name.is_empty());
        Ok(Self {
            device_id: bounded("device_id")?,
            display_name: display_name.map(|name| name.chars().take(MAX_DEVICE_TEXT).collect()),
        })
    }

    /// The device to store, and its new access token.
    pub(super) fn make(self, server: &Server, user: &UserId) -> (NewDevice, String) {
        let random = &*server.platform.random;
        let token = new_token(random);
        let device = NewDevice {
            user_id: user.as_str().to_owned(),
            device_id: self.device_id.unwrap_or_else(|| random_letters(random, 10)),
            token_hash: token_hash(&token),
            display_name: self.display_name,
            created_ts: server.platform.clock.now_ms(),
        };
        (device, token)
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
