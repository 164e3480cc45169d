//! Pushers (Client-Server API, "Push Notifications"). Nothing is pushed, and so there are none.

use serde_json::json;

use super::{
    auth,
    body::{Body, lacks},
};
use crate::{
    error::MatrixError,
    matrix::json::Value,
    router::{Call, Handled, ok},
    server::Server,
};

/// `GET /pushers`
pub(super) async fn list(server: &Server, call: &Call) -> Handled {
    auth::session(server, call).await?;
    ok(&json!({ "pushers": [] }))
}

/// `POST /pushers/set`: whoever wants one is told that nothing would come. There is none to delete.
pub(super) async fn set(server: &Server, call: &Call) -> Handled {
    auth::session(server, call).await?;
    let body = Body::of(server, call).await?;
    body.required_text("app_id")?;
    body.required_text("pushkey")?;
    match body.into_object().get("kind") {
        Some(Value::Null) => ok(&json!({})),
        Some(_) => Err(MatrixError::forbidden("This server does not push notifications.")),
        None => Err(lacks("kind")),
    }
}
