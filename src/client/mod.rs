//! The part of the Client-Server API through which local users act. Each of its sections has a file, and so has what several of them
//! share: who asks ([`auth`]) and what they may see ([`visibility`]), how bodies are read ([`body`]) and events are told ([`events`],
//! [`bundles`]).
//!
//! [`handle`] finds the endpoint in [`ROUTES`] or, where the answer is a stream, in [`STREAMED`], by the spec's own path templates, and
//! adds the CORS headers that every answer needs. What is in neither does not exist: 404 `M_UNRECOGNIZED`.
//!
//! Nothing here decides what a room allows: events are made by [`crate::room`], other servers are asked by
//! [`crate::federation::outbound`].

// What the sections share
mod auth;
mod body;
mod bundles;
mod events;
mod filters;
mod passwords;
mod reauthentication;
mod throttle;
mod tokens;
mod unread;
mod visibility;

// What the server can do
mod capabilities;

// Accounts and logins
mod account;
mod login;
mod openid;
mod register;

// What belongs to users
mod account_data;
mod profile;
mod profile_in_rooms;
mod reporting;
mod tags;

// Push rules
mod notifications;
mod push_rules;
mod pushers;

// Devices and end-to-end encryption
mod cross_signing;
mod dehydrated;
mod device_lists;
mod devices;
mod keys;
mod room_keys;
mod to_device;

// Rooms and who is in them
mod inviting;
mod membership;
mod room_creation;
mod settings;
mod upgrade;

// Sending; typing, receipts, presence
mod presence;
mod receipts;
mod sending;
mod typing;

// Reading
mod by_time;
mod context;
mod fleeting;
mod messages;
mod relations;
mod state;
mod sync;

// Searching, aliases and the directory
mod directory;
mod public_rooms;
mod search;
mod spaces;
mod user_directory;

// Media
mod media;

pub use account::sweep_departures;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
pub use membership::has_joined;
pub use passwords::may_hash;

use crate::{
    log::LogRecord,
    router::{self, Answer, Body, Incoming, Response},
    server::Server,
};

type Handler = router::Handler<Server>;
type Route = router::Route<Handler>;

/// Answers a request for a path that [`is_of_clients`], and describes it for the log.
pub async fn handle(server: &Server, request: Incoming, record: LogRecord) -> (Answer, LogRecord) {
    let (mut response, record) = answer(server, request, record).await;
    allow_all_origins(response.headers_mut());
    (response, record)
}

/// Whether requests for `path` are answered here: those under `/_matrix/client` and `/_matrix/media`, and for [`WELL_KNOWN`].
pub fn is_of_clients(path: &str) -> bool {
    path.starts_with("/_matrix/client/") || path.starts_with("/_matrix/media/") || path == WELL_KNOWN
}

/// Lets web pages of any origin read the answer to a request for `path`, if that [`is_of_clients`]: what refuses such a request
/// before it comes here has to be read, too.
pub fn allow_other_origins(path: &str, headers: &mut HeaderMap) {
    if is_of_clients(path) {
        allow_all_origins(headers);
    }
}

fn allow_all_origins(headers: &mut HeaderMap) {
    for (name, value) in CORS {
        headers.insert(name, value);
    }
}

/// The answer to a browser's question about any endpoint at all, if the request is one.
pub fn preflight(method: &Method, path: &str) -> Option<Response> {
    let is_one = method == Method::OPTIONS && is_of_clients(path);
    is_one.then(|| router::json_response(StatusCode::OK, &serde_json::json!({})))
}

/// The endpoints. `v3` paths also answer as `r0`, as the API called that version before.
static ROUTES: &[Route] = &[
    get(WELL_KNOWN, |s, c| Box::pin(capabilities::well_known(s, c))),
    get("/_matrix/client/versions", |s, c| Box::pin(capabilities::versions(s, c))),
    get("/_matrix/client/v3/capabilities", |s, c| Box::pin(capabilities::capabilities(s, c))),
    get("/_matrix/client/v3/thirdparty/protocols", |s, c| Box::pin(capabilities::third_party_protocols(s, c))),
    get("/_matrix/client/v3/voip/turnServer", |s, c| Box::pin(capabilities::turn_server(s, c))),
    // Accounts and logins
    post("/_matrix/client/v3/register", |s, c| Box::pin(register::register(s, c))),
    get("/_matrix/client/v3/register/available", |s, c| Box::pin(register::available(s, c))),
    get(TOKEN_VALIDITY, |s, c| Box::pin(register::token_validity(s, c))),
    get("/_matrix/client/v3/login", |s, c| Box::pin(login::flows(s, c))),
    post("/_matrix/client/v3/login", |s, c| Box::pin(login::login(s, c))),
    post("/_matrix/client/v3/logout", |s, c| Box::pin(login::logout(s, c))),
    post("/_matrix/client/v3/logout/all", |s, c| Box::pin(login::logout_all(s, c))),
    post("/_matrix/client/v3/refresh", |s, c| Box::pin(login::refresh(s, c))),
    post("/_matrix/client/v3/account/password", |s, c| Box::pin(account::password(s, c))),
    post("/_matrix/client/v3/account/deactivate", |s, c| Box::pin(account::deactivate(s, c))),
    get("/_matrix/client/v3/account/3pid", |s, c| Box::pin(account::third_party_ids(s, c))),
    post("/_matrix/client/v3/account/3pid", |s, c| Box::pin(account::add_third_party_id(s, c))),
    post("/_matrix/client/v3/account/3pid/add", |s, c| Box::pin(account::add_third_party_id(s, c))),
    post("/_matrix/client/v3/account/3pid/bind", |s, c| Box::pin(account::add_third_party_id(s, c))),
    post("/_matrix/client/v3/account/3pid/delete", |s, c| Box::pin(account::delete_third_party_id(s, c))),
    post("/_matrix/client/v3/account/3pid/unbind", |s, c| Box::pin(account::unbind_third_party_id(s, c))),
    post("/_matrix/client/v3/account/3pid/email/requestToken", |s, c| Box::pin(account::request_token(s, c))),
    post("/_matrix/client/v3/account/3pid/msisdn/requestToken", |s, c| Box::pin(account::request_token(s, c))),
    post("/_matrix/client/v3/register/email/requestToken", |s, c| Box::pin(account::request_token(s, c))),
    post("/_matrix/client/v3/register/msisdn/requestToken", |s, c| Box::pin(account::request_token(s, c))),
    post(PASSWORD_BY_EMAIL, |s, c| Box::pin(account::request_password_token(s, c))),
    post(PASSWORD_BY_MSISDN, |s, c| Box::pin(account::request_password_token(s, c))),
    get("/_matrix/client/v3/account/whoami", |s, c| Box::pin(login::whoami(s, c))),
    // What belongs to users
    get("/_matrix/client/v3/profile/{userId}", |s, c| Box::pin(profile::get(s, c))),
    get("/_matrix/client/v3/profile/{userId}/{keyName}", |s, c| Box::pin(profile::get_field(s, c))),
    put("/_matrix/client/v3/profile/{userId}/{keyName}", |s, c| Box::pin(profile::put_field(s, c))),
    delete("/_matrix/client/v3/profile/{userId}/{keyName}", |s, c| Box::pin(profile::delete_field(s, c))),
    post("/_matrix/client/v3/user/{userId}/filter", |s, c| Box::pin(filters::upload(s, c))),
    get("/_matrix/client/v3/user/{userId}/filter/{filterId}", |s, c| Box::pin(filters::download(s, c))),
    get("/_matrix/client/v3/user/{userId}/account_data/{type}", |s, c| Box::pin(account_data::get(s, c))),
    put("/_matrix/client/v3/user/{userId}/account_data/{type}", |s, c| Box::pin(account_data::put(s, c))),
    get(ROOM_ACCOUNT_DATA, |s, c| Box::pin(account_data::get_in_room(s, c))),
    put(ROOM_ACCOUNT_DATA, |s, c| Box::pin(account_data::put_in_room(s, c))),
    get("/_matrix/client/v3/user/{userId}/rooms/{roomId}/tags", |s, c| Box::pin(tags::list(s, c))),
    put("/_matrix/client/v3/user/{userId}/rooms/{roomId}/tags/{tag}", |s, c| Box::pin(tags::put(s, c))),
    delete("/_matrix/client/v3/user/{userId}/rooms/{roomId}/tags/{tag}", |s, c| Box::pin(tags::delete(s, c))),
    post("/_matrix/client/v3/user/{userId}/openid/request_token", |s, c| Box::pin(openid::request_token(s, c))),
    post("/_matrix/client/v3/users/{userId}/report", |s, c| Box::pin(reporting::user(s, c))),
    // Push rules
    get("/_matrix/client/v3/pushrules/", |s, c| Box::pin(push_rules::all(s, c))),
    get("/_matrix/client/v3/pushrules", |s, c| Box::pin(push_rules::all(s, c))),
    get("/_matrix/client/v3/pushrules/global/", |s, c| Box::pin(push_rules::global(s, c))),
    get("/_matrix/client/v3/pushrules/global", |s, c| Box::pin(push_rules::global(s, c))),
    get("/_matrix/client/v3/pushrules/global/{kind}/{ruleId}", |s, c| Box::pin(push_rules::get(s, c))),
    put("/_matrix/client/v3/pushrules/global/{kind}/{ruleId}", |s, c| Box::pin(push_rules::put(s, c))),
    delete("/_matrix/client/v3/pushrules/global/{kind}/{ruleId}", |s, c| Box::pin(push_rules::delete(s, c))),
    get("/_matrix/client/v3/pushrules/global/{kind}/{ruleId}/enabled", |s, c| Box::pin(push_rules::enabled(s, c))),
    put("/_matrix/client/v3/pushrules/global/{kind}/{ruleId}/enabled", |s, c| Box::pin(push_rules::enable(s, c))),
    get("/_matrix/client/v3/pushrules/global/{kind}/{ruleId}/actions", |s, c| Box::pin(push_rules::actions(s, c))),
    put("/_matrix/client/v3/pushrules/global/{kind}/{ruleId}/actions", |s, c| Box::pin(push_rules::act(s, c))),
    get("/_matrix/client/v3/pushers", |s, c| Box::pin(pushers::list(s, c))),
    post("/_matrix/client/v3/pushers/set", |s, c| Box::pin(pushers::set(s, c))),
    get("/_matrix/client/v3/notifications", |s, c| Box::pin(notifications::notifications(s, c))),
    // Devices and end-to-end encryption
    get("/_matrix/client/v3/devices", |s, c| Box::pin(devices::list(s, c))),
    get("/_matrix/client/v3/devices/{deviceId}", |s, c| Box::pin(devices::get(s, c))),
    put("/_matrix/client/v3/devices/{deviceId}", |s, c| Box::pin(devices::rename(s, c))),
    delete("/_matrix/client/v3/devices/{deviceId}", |s, c| Box::pin(devices::delete(s, c))),
    post("/_matrix/client/v3/delete_devices", |s, c| Box::pin(devices::delete_several(s, c))),
    post("/_matrix/client/v3/keys/upload", |s, c| Box::pin(keys::upload(s, c))),
    post("/_matrix/client/v3/keys/query", |s, c| Box::pin(keys::query(s, c))),
    post("/_matrix/client/v3/keys/claim", |s, c| Box::pin(keys::claim(s, c))),
    get("/_matrix/client/v3/keys/changes", |s, c| Box::pin(keys::changes(s, c))),
    post("/_matrix/client/v3/keys/device_signing/upload", |s, c| Box::pin(cross_signing::upload(s, c))),
    post("/_matrix/client/v3/keys/signatures/upload", |s, c| Box::pin(cross_signing::upload_signatures(s, c))),
    put("/_matrix/client/v3/sendToDevice/{eventType}/{txnId}", |s, c| Box::pin(to_device::send(s, c))),
    get(DEHYDRATED, |s, c| Box::pin(dehydrated::get(s, c))),
    put(DEHYDRATED, |s, c| Box::pin(dehydrated::put(s, c))),
    delete(DEHYDRATED, |s, c| Box::pin(dehydrated::delete(s, c))),
    post(DEHYDRATED_EVENTS, |s, c| Box::pin(dehydrated::events(s, c))),
    post("/_matrix/client/v3/room_keys/version", |s, c| Box::pin(room_keys::create(s, c))),
    get("/_matrix/client/v3/room_keys/version", |s, c| Box::pin(room_keys::newest(s, c))),
    get("/_matrix/client/v3/room_keys/version/{version}", |s, c| Box::pin(room_keys::version(s, c))),
    put("/_matrix/client/v3/room_keys/version/{version}", |s, c| Box::pin(room_keys::update(s, c))),
    delete("/_matrix/client/v3/room_keys/version/{version}", |s, c| Box::pin(room_keys::delete(s, c))),
    get("/_matrix/client/v3/room_keys/keys", |s, c| Box::pin(room_keys::get_all(s, c))),
    put("/_matrix/client/v3/room_keys/keys", |s, c| Box::pin(room_keys::put_all(s, c))),
    delete("/_matrix/client/v3/room_keys/keys", |s, c| Box::pin(room_keys::delete_all(s, c))),
    get("/_matrix/client/v3/room_keys/keys/{roomId}", |s, c| Box::pin(room_keys::get_room(s, c))),
    put("/_matrix/client/v3/room_keys/keys/{roomId}", |s, c| Box::pin(room_keys::put_room(s, c))),
    delete("/_matrix/client/v3/room_keys/keys/{roomId}", |s, c| Box::pin(room_keys::delete_room(s, c))),
    get("/_matrix/client/v3/room_keys/keys/{roomId}/{sessionId}", |s, c| Box::pin(room_keys::get_session(s, c))),
    put("/_matrix/client/v3/room_keys/keys/{roomId}/{sessionId}", |s, c| Box::pin(room_keys::put_session(s, c))),
    delete("/_matrix/client/v3/room_keys/keys/{roomId}/{sessionId}", |s, c| Box::pin(room_keys::delete_session(s, c))),
    // Rooms and who is in them
    post("/_matrix/client/v3/createRoom", |s, c| Box::pin(room_creation::create(s, c))),
    post("/_matrix/client/v3/rooms/{roomId}/upgrade", |s, c| Box::pin(upgrade::upgrade(s, c))),
    post("/_matrix/client/v3/rooms/{roomId}/report", |s, c| Box::pin(reporting::room(s, c))),
    post("/_matrix/client/v3/rooms/{roomId}/report/{eventId}", |s, c| Box::pin(reporting::event(s, c))),
    post("/_matrix/client/v3/join/{roomIdOrAlias}", |s, c| Box::pin(membership::join_by_id_or_alias(s, c))),
    post("/_matrix/client/v3/rooms/{roomId}/join", |s, c| Box::pin(membership::join_by_id(s, c))),
    post("/_matrix/client/v3/knock/{roomIdOrAlias}", |s, c| Box::pin(membership::knock(s, c))),
    post("/_matrix/client/v3/rooms/{roomId}/leave", |s, c| Box::pin(membership::leave(s, c))),
    post("/_matrix/client/v3/rooms/{roomId}/forget", |s, c| Box::pin(membership::forget(s, c))),
    post("/_matrix/client/v3/rooms/{roomId}/invite", |s, c| Box::pin(inviting::invite(s, c))),
    post("/_matrix/client/v3/rooms/{roomId}/kick", |s, c| Box::pin(membership::kick(s, c))),
    post("/_matrix/client/v3/rooms/{roomId}/ban", |s, c| Box::pin(membership::ban(s, c))),
    post("/_matrix/client/v3/rooms/{roomId}/unban", |s, c| Box::pin(membership::unban(s, c))),
    get("/_matrix/client/v3/joined_rooms", |s, c| Box::pin(membership::joined_rooms(s, c))),
    // Sending
    put("/_matrix/client/v3/rooms/{roomId}/send/{eventType}/{txnId}", |s, c| Box::pin(sending::send(s, c))),
    put("/_matrix/client/v3/rooms/{roomId}/redact/{eventId}/{txnId}", |s, c| Box::pin(sending::redact(s, c))),
    put("/_matrix/client/v3/rooms/{roomId}/state/{eventType}", |s, c| Box::pin(sending::put_state(s, c))),
    put("/_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}", |s, c| Box::pin(sending::put_state(s, c))),
    // Typing, receipts, presence
    put("/_matrix/client/v3/rooms/{roomId}/typing/{userId}", |s, c| Box::pin(typing::put(s, c))),
    post("/_matrix/client/v3/rooms/{roomId}/receipt/{receiptType}/{eventId}", |s, c| Box::pin(receipts::post(s, c))),
    post("/_matrix/client/v3/rooms/{roomId}/read_markers", |s, c| Box::pin(receipts::read_markers(s, c))),
    get("/_matrix/client/v3/presence/{userId}/status", |s, c| Box::pin(presence::get(s, c))),
    put("/_matrix/client/v3/presence/{userId}/status", |s, c| Box::pin(presence::put(s, c))),
    // Reading
    get("/_matrix/client/v3/sync", |s, c| Box::pin(sync::sync(s, c))),
    get("/_matrix/client/v3/rooms/{roomId}/state", |s, c| Box::pin(state::whole(s, c))),
    get("/_matrix/client/v3/rooms/{roomId}/state/{eventType}", |s, c| Box::pin(state::one(s, c))),
    get("/_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}", |s, c| Box::pin(state::one(s, c))),
    get("/_matrix/client/v3/rooms/{roomId}/members", |s, c| Box::pin(state::members(s, c))),
    get("/_matrix/client/v3/rooms/{roomId}/joined_members", |s, c| Box::pin(state::joined_members(s, c))),
    get("/_matrix/client/v3/rooms/{roomId}/messages", |s, c| Box::pin(messages::messages(s, c))),
    get("/_matrix/client/v3/rooms/{roomId}/context/{eventId}", |s, c| Box::pin(context::context(s, c))),
    get("/_matrix/client/v3/rooms/{roomId}/event/{eventId}", |s, c| Box::pin(messages::event(s, c))),
    get("/_matrix/client/v1/rooms/{roomId}/timestamp_to_event", |s, c| Box::pin(by_time::timestamp_to_event(s, c))),
    get("/_matrix/client/v1/rooms/{roomId}/relations/{eventId}", |s, c| Box::pin(relations::relations(s, c))),
    get("/_matrix/client/v1/rooms/{roomId}/relations/{eventId}/{relType}", |s, c| Box::pin(relations::relations(s, c))),
    get(RELATIONS_OF_TYPE, |s, c| Box::pin(relations::relations(s, c))),
    get("/_matrix/client/v1/rooms/{roomId}/threads", |s, c| Box::pin(relations::threads(s, c))),
    // Searching
    post("/_matrix/client/v3/search", |s, c| Box::pin(search::search(s, c))),
    post("/_matrix/client/v3/user_directory/search", |s, c| Box::pin(user_directory::search(s, c))),
    // Aliases and the directory
    get("/_matrix/client/v3/directory/room/{roomAlias}", |s, c| Box::pin(directory::get(s, c))),
    put("/_matrix/client/v3/directory/room/{roomAlias}", |s, c| Box::pin(directory::put(s, c))),
    delete("/_matrix/client/v3/directory/room/{roomAlias}", |s, c| Box::pin(directory::delete(s, c))),
    get("/_matrix/client/v3/directory/list/room/{roomId}", |s, c| Box::pin(directory::get_visibility(s, c))),
    put("/_matrix/client/v3/directory/list/room/{roomId}", |s, c| Box::pin(directory::put_visibility(s, c))),
    get("/_matrix/client/v1/rooms/{roomId}/hierarchy", |s, c| Box::pin(spaces::hierarchy(s, c))),
    get("/_matrix/client/v1/room_summary/{roomIdOrAlias}", |s, c| Box::pin(spaces::summary(s, c))),
    get("/_matrix/client/v3/publicRooms", |s, c| Box::pin(public_rooms::list(s, c))),
    post("/_matrix/client/v3/publicRooms", |s, c| Box::pin(public_rooms::search(s, c))),
    get("/_matrix/client/v3/rooms/{roomId}/aliases", |s, c| Box::pin(directory::of_room(s, c))),
    // Media
    post("/_matrix/media/v3/upload", |s, c| Box::pin(media::upload(s, c))),
    put("/_matrix/media/v3/upload/{serverName}/{mediaId}", |s, c| Box::pin(media::upload_to(s, c))),
    post("/_matrix/media/v1/create", |s, c| Box::pin(media::create(s, c))),
    get("/_matrix/client/v1/media/config", |s, c| Box::pin(media::config(s, c))),
    get("/_matrix/media/v3/config", |s, c| Box::pin(media::config(s, c))),
    get("/_matrix/media/v3/download/{serverName}/{mediaId}", |s, c| Box::pin(media::frozen(s, c))),
    get("/_matrix/media/v3/download/{serverName}/{mediaId}/{fileName}", |s, c| Box::pin(media::frozen(s, c))),
    get("/_matrix/media/v3/thumbnail/{serverName}/{mediaId}", |s, c| Box::pin(media::frozen(s, c))),
];

/// The endpoints whose answers are streamed.
static STREAMED: &[router::Route<router::StreamHandler<Server>>] = &[
    streamed("/_matrix/client/v1/media/download/{serverName}/{mediaId}", |s, c| Box::pin(media::download(s, c))),
    streamed("/_matrix/client/v1/media/thumbnail/{serverName}/{mediaId}", |s, c| Box::pin(media::thumbnail(s, c))),
    streamed(NAMED_DOWNLOAD, |s, c| Box::pin(media::download_as(s, c))),
];

/// The one endpoint outside `/_matrix/client` and `/_matrix/media`.
pub const WELL_KNOWN: &str = "/.well-known/matrix/client";
const TOKEN_VALIDITY: &str = "/_matrix/client/v1/register/m.login.registration_token/validity";
const NAMED_DOWNLOAD: &str = "/_matrix/client/v1/media/download/{serverName}/{mediaId}/{fileName}";
const DEHYDRATED: &str = "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device";
const DEHYDRATED_EVENTS: &str = "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device/{deviceId}/events";
const RELATIONS_OF_TYPE: &str = "/_matrix/client/v1/rooms/{roomId}/relations/{eventId}/{relType}/{eventType}";
const PASSWORD_BY_EMAIL: &str = "/_matrix/client/v3/account/password/email/requestToken";
const PASSWORD_BY_MSISDN: &str = "/_matrix/client/v3/account/password/msisdn/requestToken";
const ROOM_ACCOUNT_DATA: &str = "/_matrix/client/v3/user/{userId}/rooms/{roomId}/account_data/{type}";

/// CORS (Client-Server API, "Web Browser Clients").
const CORS: [(HeaderName, HeaderValue); 5] = [
    (header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*")),
    (header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, PUT, DELETE, OPTIONS")),
    (header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("X-Requested-With, Content-Type, Authorization")),
    (header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("Retry-After")),
    (header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("86400")),
];

async fn answer(server: &Server, request: Incoming, mut record: LogRecord) -> (Answer, LogRecord) {
    if let Some(response) = preflight(request.method(), request.uri().path()) {
        return (response.map(Body::Whole), record);
    }
    let path = router::newest_path(request.uri().path());
    let handled = match router::find(ROUTES, request.method(), &path) {
        Ok(found) => {
            record = found.describe(record);
            router::whole((found.route.handler)(server, &router::call(request, found.parameters)).await)
        }
        Err(error) if error.status == StatusCode::NOT_FOUND => match router::find(STREAMED, request.method(), &path) {
            Ok(found) => {
                record = found.describe(record);
                (found.route.handler)(server, &router::call(request, found.parameters)).await
            }
            Err(error) => Err(error),
        },
        Err(error) => Err(error),
    };
    router::answer(handled, record)
}

const fn get(template: &'static str, handler: Handler) -> Route {
    Route { method: Method::GET, template, handler }
}

const fn post(template: &'static str, handler: Handler) -> Route {
    Route { method: Method::POST, template, handler }
}

const fn streamed(
    template: &'static str,
    handler: router::StreamHandler<Server>,
) -> router::Route<router::StreamHandler<Server>> {
    router::Route { method: Method::GET, template, handler }
}

const fn put(template: &'static str, handler: Handler) -> Route {
    Route { method: Method::PUT, template, handler }
}

const fn delete(template: &'static str, handler: Handler) -> Route {
    Route { method: Method::DELETE, template, handler }
}
