//! Whether requests and answers are what ruma reads them as.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use http::{Method, StatusCode};
use percent_encoding::percent_decode_str;
use ruma_common::api::{IncomingRequest, IncomingRequestExt, IncomingResponse, IncomingResponseExt};
use ruma_federation_api::{
    authenticated_media::{get_content, get_content_thumbnail},
    authorization::get_event_authorization,
    backfill::get_backfill,
    device::get_devices,
    directory::{get_public_rooms, get_public_rooms_filtered},
    discovery::{
        discover_homeserver, get_remote_server_keys, get_remote_server_keys_batch, get_server_keys, get_server_version,
    },
    event::{get_event, get_event_by_timestamp, get_missing_events, get_room_state, get_room_state_ids},
    keys::{claim_keys, get_keys},
    membership::{
        create_invite, create_join_event, create_knock_event, create_leave_event, prepare_join_event,
        prepare_knock_event, prepare_leave_event,
    },
    openid::get_openid_userinfo,
    policy::sign_event,
    query::{get_profile_information, get_room_information},
    space::get_hierarchy,
    thirdparty::{bind_callback, exchange_invite},
    transactions::{edu::Edu, send_transaction_message},
};
use serde_json::{Value, json};
use verge::{
    platform::{LocalBoxFuture, TransportError},
    router::{Request, Response, json_response},
};

use crate::common::network::{Passing, World};

/// What ruma says of a request with these path parameters, and of an answer with the status 200.
type ReadRequest = fn(http::Request<&[u8]>, &[&str]) -> Result<(), String>;
type ReadAnswer = fn(http::Response<&[u8]>) -> Result<(), String>;

/// An endpoint, and how it is read.
struct Endpoint {
    method: Method,
    template: &'static str,
    request: ReadRequest,
    answer: ReadAnswer,
}

/// The endpoints, but for `query/{queryType}`, which there is none of.
fn endpoints() -> Vec<Endpoint> {
    macro_rules! endpoint {
        ($method:ident $template:literal $($module:ident)::+) => {
            endpoint!($method $template $($module)::+, of_request::<$($module)::+::Request>, of_answer::<$($module)::+::Response>)
        };
        ($method:ident $template:literal $($module:ident)::+, $request:expr, $answer:expr) => {
            Endpoint { method: Method::$method, template: $template, request: $request, answer: $answer }
        };
    }
    vec![
        endpoint!(GET "/.well-known/matrix/server" discover_homeserver),
        endpoint!(GET "/_matrix/federation/v1/version" get_server_version::v1),
        endpoint!(GET "/_matrix/key/v2/server" get_server_keys::v2),
        endpoint!(GET "/_matrix/key/v2/query/{}" get_remote_server_keys::v2),
        endpoint!(POST "/_matrix/key/v2/query" get_remote_server_keys_batch::v2),
        endpoint!(PUT "/_matrix/federation/v1/send/{}" send_transaction_message::v1, transaction,
            of_answer::<send_transaction_message::v1::Response>),
        endpoint!(GET "/_matrix/federation/v1/event_auth/{}/{}" get_event_authorization::v1),
        endpoint!(GET "/_matrix/federation/v1/backfill/{}" get_backfill::v1),
        endpoint!(POST "/_matrix/federation/v1/get_missing_events/{}" get_missing_events::v1),
        endpoint!(GET "/_matrix/federation/v1/event/{}" get_event::v1),
        endpoint!(GET "/_matrix/federation/v1/state/{}" get_room_state::v1),
        endpoint!(GET "/_matrix/federation/v1/state_ids/{}" get_room_state_ids::v1),
        endpoint!(GET "/_matrix/federation/v1/timestamp_to_event/{}" get_event_by_timestamp::v1),
        endpoint!(GET "/_matrix/federation/v1/make_join/{}/{}" prepare_join_event::v1,
            of_request::<prepare_join_event::v1::Request>, template::<prepare_join_event::v1::Response>),
        endpoint!(PUT "/_matrix/federation/v2/send_join/{}/{}" create_join_event::v2,
            membership::<create_join_event::v2::Request>, of_answer::<create_join_event::v2::Response>),
        endpoint!(GET "/_matrix/federation/v1/make_knock/{}/{}" prepare_knock_event::v1,
            of_request::<prepare_knock_event::v1::Request>, template::<prepare_knock_event::v1::Response>),
        endpoint!(PUT "/_matrix/federation/v1/send_knock/{}/{}" create_knock_event::v1,
            membership::<create_knock_event::v1::Request>, of_answer::<create_knock_event::v1::Response>),
        endpoint!(PUT "/_matrix/federation/v1/invite/{}/{}" create_invite::v1),
        endpoint!(PUT "/_matrix/federation/v2/invite/{}/{}" create_invite::v2, new_invite,
            of_answer::<create_invite::v2::Response>),
        endpoint!(GET "/_matrix/federation/v1/make_leave/{}/{}" prepare_leave_event::v1,
            of_request::<prepare_leave_event::v1::Request>, template::<prepare_leave_event::v1::Response>),
        endpoint!(PUT "/_matrix/federation/v2/send_leave/{}/{}" create_leave_event::v2,
            membership::<create_leave_event::v2::Request>, of_answer::<create_leave_event::v2::Response>),
        // ruma has no version 1 of these two. It is version 2 in a list behind the status.
        endpoint!(PUT "/_matrix/federation/v1/send_join/{}/{}" create_join_event::v2,
            membership::<create_join_event::v2::Request>, wrapped::<create_join_event::v2::Response>),
        endpoint!(PUT "/_matrix/federation/v1/send_leave/{}/{}" create_leave_event::v2,
            membership::<create_leave_event::v2::Request>, wrapped::<create_leave_event::v2::Response>),
        endpoint!(PUT "/_matrix/federation/v1/3pid/onbind" bind_callback::v1),
        endpoint!(PUT "/_matrix/federation/v1/exchange_third_party_invite/{}" exchange_invite::v1),
        endpoint!(GET "/_matrix/federation/v1/publicRooms" get_public_rooms::v1),
        endpoint!(POST "/_matrix/federation/v1/publicRooms" get_public_rooms_filtered::v1),
        endpoint!(GET "/_matrix/federation/v1/hierarchy/{}" get_hierarchy::v1),
        endpoint!(GET "/_matrix/federation/v1/query/directory" get_room_information::v1),
        endpoint!(GET "/_matrix/federation/v1/query/profile" get_profile_information::v1),
        endpoint!(GET "/_matrix/federation/v1/openid/userinfo" get_openid_userinfo::v1),
        endpoint!(GET "/_matrix/federation/v1/user/devices/{}" get_devices::v1),
        endpoint!(POST "/_matrix/federation/v1/user/keys/claim" claim_keys::v1),
        endpoint!(POST "/_matrix/federation/v1/user/keys/query" get_keys::v1),
        endpoint!(GET "/_matrix/federation/v1/media/download/{}" get_content::v1),
        endpoint!(GET "/_matrix/federation/v1/media/thumbnail/{}" get_content_thumbnail::v1),
        endpoint!(POST "/_matrix/policy/v1/sign" sign_event::v1),
    ]
}

fn of_request<R: IncomingRequest>(request: http::Request<&[u8]>, parameters: &[&str]) -> Result<(), String> {
    R::try_from_http_request(request, parameters).map(drop).map_err(|error| error.to_string())
}

fn of_answer<R: IncomingResponse>(answer: http::Response<&[u8]>) -> Result<(), String> {
    R::try_from_http_response(answer).map(drop).map_err(|error| error.to_string())
}

/// The members that the schemas of the handshakes require of a membership event, which ruma does not look into.
fn has_required(event: &Value) -> Result<(), String> {
    let is_there = event["origin_server_ts"].is_i64() && event["content"]["membership"].is_string();
    let mut texts = ["state_key", "sender", "origin", "type"].iter().filter(|name| !event[**name].is_string());
    match texts.next() {
        Some(name) => Err(format!("no {name}")),
        None => is_there.then_some(()).ok_or_else(|| "no origin_server_ts or membership".to_owned()),
    }
}

/// A membership event that is to be let in.
fn membership<R: IncomingRequest>(request: http::Request<&[u8]>, parameters: &[&str]) -> Result<(), String> {
    has_required(&serde_json::from_slice(request.body()).map_err(|error| error.to_string())?)?;
    of_request::<R>(request, parameters)
}

/// A membership event to be completed.
fn template<R: IncomingResponse>(answer: http::Response<&[u8]>) -> Result<(), String> {
    let body: Value = serde_json::from_slice(answer.body()).map_err(|error| error.to_string())?;
    has_required(&body["event"])?;
    of_answer::<R>(answer)
}

/// `[200, answer]`
fn wrapped<R: IncomingResponse>(answer: http::Response<&[u8]>) -> Result<(), String> {
    let (status, inner): (u16, Value) = serde_json::from_slice(answer.body()).map_err(|error| error.to_string())?;
    assert_eq!(status, 200);
    of_answer::<R>(http::Response::new(inner.to_string().as_bytes()))
}

/// An invite of version 2, whose event ruma leaves unread here: it is of the same schema as that of version 1, `origin` included.
fn new_invite(request: http::Request<&[u8]>, parameters: &[&str]) -> Result<(), String> {
    let body: Value = serde_json::from_slice(request.body()).map_err(|error| error.to_string())?;
    let mut event = body["event"].clone();
    event["unsigned"] = json!({ "invite_room_state": body["invite_room_state"] });
    let text = event.to_string();
    let old = http::Request::builder().method("PUT").uri("/_matrix/federation/v1/invite/!r:x/$e").body(text.as_bytes());
    of_request::<create_invite::v1::Request>(old.map_err(|error| error.to_string())?, parameters)?;
    of_request::<create_invite::v2::Request>(request, parameters)
}

/// A transaction, each EDU of it included.
fn transaction(request: http::Request<&[u8]>, parameters: &[&str]) -> Result<(), String> {
    let request = send_transaction_message::v1::Request::try_from_http_request(request, parameters);
    for edu in request.map_err(|error| error.to_string())?.edus {
        match edu.deserialize().map_err(|error| format!("{error}: {}", edu.json()))? {
            Edu::Presence(_)
            | Edu::Receipt(_)
            | Edu::Typing(_)
            | Edu::DeviceListUpdate(_)
            | Edu::DirectToDevice(_)
            | Edu::SigningKeyUpdate(_) => {}
            other => return Err(format!("{other:?}")),
        }
    }
    Ok(())
}

/// Reads all that servers send each other, and remembers what has come by.
pub(super) struct Watch {
    endpoints: Vec<Endpoint>,
    answered: RefCell<BTreeSet<String>>,
    edus: RefCell<BTreeMap<String, usize>>,
    faults: RefCell<Vec<String>>,
    /// Whether the servers have no endpoints of version 2, as older ones.
    pub(super) only_v1: Cell<bool>,
}

impl Watch {
    /// One that sees all that passes in the world.
    pub(super) fn over(world: &World) -> Rc<Self> {
        let (answered, edus, faults, only_v1) = Default::default();
        let watch = Rc::new(Self { endpoints: endpoints(), answered, edus, faults, only_v1 });
        let watching = Rc::clone(&watch);
        world.tap(Rc::new(move |passing| Rc::clone(&watching).pass(passing)));
        watch
    }

    fn pass(
        self: Rc<Self>,
        Passing { request, host, .. }: Passing,
    ) -> LocalBoxFuture<'static, Result<Response, TransportError>> {
        Box::pin(async move {
            if self.only_v1.get() && request.uri().path().starts_with("/_matrix/federation/v2/") {
                let unrecognized = json!({ "errcode": "M_UNRECOGNIZED", "error": "There is no version 2 here." });
                return Ok(json_response(StatusCode::NOT_FOUND, &unrecognized));
            }
            let asked = request.clone();
            let answer = host(request).await;
            self.see(&asked, &answer);
            Ok(answer)
        })
    }

    /// Reads a request and its answer.
    pub(super) fn see(&self, request: &Request, answer: &Response) {
        let path = request.uri().path();
        let found = self.endpoints.iter().find_map(|endpoint| {
            let parameters = matched(endpoint.template, path)?;
            (endpoint.method == *request.method()).then_some((endpoint, parameters))
        });
        let Some((endpoint, parameters)) = found else { return };
        let name = format!("{} {}", endpoint.method, endpoint.template);
        let parameters: Vec<&str> = parameters.iter().map(String::as_str).collect();
        let of_bytes = request.clone();
        let (parts, body) = of_bytes.into_parts();
        let fault = |what: &str, error: String, body: &[u8]| {
            let body = String::from_utf8_lossy(body).into_owned();
            self.faults.borrow_mut().push(format!("{name}: ruma does not read the {what}: {error}: {body}"));
        };
        if let Err(error) = (endpoint.request)(http::Request::from_parts(parts, &body[..]), &parameters) {
            fault("request", error, &body);
        }
        self.count_edus(request);
        let (parts, body) = answer.clone().into_parts();
        if answer.status() == StatusCode::OK {
            if let Err(error) = (endpoint.answer)(http::Response::from_parts(parts, &body[..])) {
                fault("answer", error, &body);
            }
            self.answered.borrow_mut().insert(name);
        } else {
            let error: Value = serde_json::from_slice(&body).unwrap();
            assert!(error["errcode"].is_string() && error["error"].is_string(), "{name}: {error}");
        }
    }

    fn count_edus(&self, request: &Request) {
        let body: Value = serde_json::from_slice(request.body()).unwrap_or_default();
        for edu in body["edus"].as_array().into_iter().flatten() {
            *self.edus.borrow_mut().entry(edu["edu_type"].as_str().unwrap().to_owned()).or_default() += 1;
        }
    }

    /// What ruma did not read.
    pub(super) fn faults(&self) -> Vec<String> {
        self.faults.take()
    }

    /// The endpoints of which no good answer has been seen.
    pub(super) fn unseen(&self) -> Vec<String> {
        let answered = self.answered.borrow();
        let names = self.endpoints.iter().map(|endpoint| format!("{} {}", endpoint.method, endpoint.template));
        names.filter(|name| !answered.contains(name)).collect()
    }

    /// The kinds of EDUs that were seen.
    pub(super) fn edus(&self) -> Vec<String> {
        self.edus.borrow().keys().cloned().collect()
    }
}

/// The decoded parameters of a path of this form.
fn matched(template: &str, path: &str) -> Option<Vec<String>> {
    let (wanted, given) = (template.split('/'), path.split('/'));
    if wanted.clone().count() != given.clone().count() {
        return None;
    }
    let mut parameters = Vec::new();
    for (wanted, given) in wanted.zip(given) {
        if wanted == "{}" {
            parameters.push(percent_decode_str(given).decode_utf8().ok()?.into_owned());
        } else if wanted != given {
            return None;
        }
    }
    Some(parameters)
}
