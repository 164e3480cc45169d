//! Push rules (Client-Server API, "Push Rules: API"). They are kept as the account data `m.push_rules`.

use http::StatusCode;
use serde_json::json;

use super::{
    account_data::{self, PUSH_RULES},
    auth::{self, Session},
    body::{Body, lacks},
};
use crate::{
    error::MatrixError,
    matrix::{
        json::Object,
        push::{Kind, Place, PushRuleError, Rule, Ruleset},
    },
    router::{Call, Handled, ok},
    server::Server,
};

/// `GET /pushrules/`
pub(super) async fn all(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    ok(&rules(server, &session).await?.to_object())
}

/// `GET /pushrules/global/`
pub(super) async fn global(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    ok(&rules(server, &session).await?.global())
}

/// `GET /pushrules/global/{kind}/{ruleId}`
pub(super) async fn get(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let (kind, rule_id) = named(call)?;
    ok(&rules(server, &session).await?.rule(kind, rule_id).map_err(refused)?.to_object(kind))
}

/// `PUT /pushrules/global/{kind}/{ruleId}`
pub(super) async fn put(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let (kind, rule_id) = named(call).map_err(|_| MatrixError::invalid_param("Unknown kind of push rule."))?;
    let rule = Rule::new(kind, rule_id, &body(server, call).await?).map_err(refused)?;
    let place = Place { before: call.query("before"), after: call.query("after") };
    change(server, &session, |rules| rules.put(kind, rule.clone(), &place)).await
}

/// `DELETE /pushrules/global/{kind}/{ruleId}`
pub(super) async fn delete(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let (kind, rule_id) = named(call)?;
    change(server, &session, |rules| rules.remove(kind, rule_id)).await
}

/// `GET /pushrules/global/{kind}/{ruleId}/enabled`
pub(super) async fn enabled(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let (kind, rule_id) = named(call)?;
    let rules = rules(server, &session).await?;
    ok(&json!({ "enabled": rules.rule(kind, rule_id).map_err(refused)?.is_enabled() }))
}

/// `PUT /pushrules/global/{kind}/{ruleId}/enabled`
pub(super) async fn enable(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let (kind, rule_id) = named(call)?;
    let enabled = Body::of(server, call).await?.maybe("enabled")?;
    let enabled = enabled.ok_or_else(|| lacks("enabled"))?;
    change(server, &session, |rules| rules.enable(kind, rule_id, enabled)).await
}

/// `GET /pushrules/global/{kind}/{ruleId}/actions`
pub(super) async fn actions(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let (kind, rule_id) = named(call)?;
    let rules = rules(server, &session).await?;
    ok(&json!({ "actions": rules.rule(kind, rule_id).map_err(refused)?.actions() }))
}

/// `PUT /pushrules/global/{kind}/{ruleId}/actions`
pub(super) async fn act(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let (kind, rule_id) = named(call)?;
    let body = body(server, call).await?;
    change(server, &session, |rules| rules.act(kind, rule_id, &body)).await
}

async fn rules(server: &Server, session: &Session) -> Result<Ruleset, MatrixError> {
    let user_id = session.user.as_str();
    let content = server.store.account_data(user_id, "", PUSH_RULES).await?;
    Ok(account_data::push_rules(user_id, content.as_deref())?)
}

async fn change(
    server: &Server,
    session: &Session,
    change: impl Fn(&mut Ruleset) -> Result<(), PushRuleError>,
) -> Handled {
    let user_id = session.user.as_str();
    let changed = |old: Option<&str>| {
        let mut rules = account_data::push_rules(user_id, old)?;
        change(&mut rules).map_err(refused)?;
        Ok(Some(rules.to_object().to_text()))
    };
    account_data::change(server, (user_id, "", PUSH_RULES), changed).await?;
    ok(&json!({}))
}

/// The kind and ID in the path.
///
/// # Errors
/// 404 `M_NOT_FOUND` for an unknown kind, of which there are no rules.
fn named(call: &Call) -> Result<(Kind, &str), MatrixError> {
    let kind = Kind::parse(call.parameter(0));
    let kind = kind.ok_or_else(|| MatrixError::not_found("Unknown kind of push rule."))?;
    Ok((kind, call.parameter(1)))
}

/// The body as an object.
async fn body(server: &Server, call: &Call) -> Result<Object, MatrixError> {
    Ok(Body::of(server, call).await?.into_object())
}

fn refused(error: PushRuleError) -> MatrixError {
    let sentence = error.to_string();
    match error {
        PushRuleError::NotFound => MatrixError::not_found(sentence),
        PushRuleError::UnknownNeighbour | PushRuleError::NoPlace => {
            MatrixError::new(StatusCode::BAD_REQUEST, "M_UNKNOWN", sentence)
        }
        PushRuleError::Missing(_) => MatrixError::missing_param(sentence),
        PushRuleError::Malformed(_) => MatrixError::invalid_param(sentence),
        PushRuleError::TooMuch(_) => MatrixError::too_large(sentence),
    }
}
