//! The inbound half of the Server-Server API: a file for each section of the spec.
//!
//! | Section | File |
//! |---|---|
//! | Server discovery; Server implementation | [`discovery`] |
//! | Publishing Keys | [`own_keys`] |
//! | Querying Keys Through Another Server | [`notary`] |
//! | Request Authentication | [`authentication`] |
//! | Transactions; PDUs (checks 1 to 3 on receipt) | [`transactions`] |
//! | EDUs; Typing Notifications; Receipts; Presence | [`edus`] |
//! | Retrieving event authorisation information; Retrieving events | [`retrieving`], by their time: [`by_time`] |
//! | Backfilling and retrieving missing events | [`backfill`] |
//! | Joining Rooms | [`joining`], restricted rooms: `room/restricted.rs` |
//! | Knocking upon a room | [`knocking`] |
//! | Inviting to a room | [`inviting`]; invites that are taken back: [`rescinding`] |
//! | Leaving Rooms (Rejecting Invites) | [`leaving`] |
//! | Third-party invites | [`third_party_invites`] |
//! | Published Room Directory | [`public_rooms`] |
//! | Spaces | [`spaces`] |
//! | OpenID | [`openid`] |
//! | Querying for information | [`queries`] |
//! | Device Management; End-to-End Encryption | [`user_keys`], the EDUs: [`device_edus`] |
//! | Send-to-device messaging | [`device_edus`] |
//! | Content Repository | [`media`] |
//! | Policy Servers: as one | [`policy`] |
//!
//! What an accepted event does to its room is decided in [`crate::room`].

mod answer;
mod authentication;
mod backfill;
mod by_time;
mod device_edus;
mod discovery;
mod edus;
mod inviting;
mod joining;
mod knocking;
mod leaving;
mod malformed;
mod media;
mod membership;
mod notary;
mod openid;
mod own_keys;
mod part;
mod policy;
mod public_rooms;
mod queries;
mod rescinding;
mod retrieving;
mod spaces;
mod third_party_invites;
mod transactions;
mod user_keys;

use http::{Method, StatusCode};

pub use self::authentication::Origin;
use self::{authentication::Signed, malformed::malformed};
use crate::{
    error::MatrixError,
    log::LogRecord,
    platform::LocalBoxFuture,
    router::{self, Answer, Found, Handled, Incoming, Route, Streamed},
    server::Server,
};

/// A handler of an endpoint that anybody may ask.
type PublicHandler = router::Handler<Server>;

/// A handler of an endpoint that only authenticated servers reach.
type SignedHandler = for<'a> fn(&'a Server, Signed) -> LocalBoxFuture<'a, Handled>;

/// As [`SignedHandler`], where the answer is streamed.
type StreamedHandler = for<'a> fn(&'a Server, Signed) -> LocalBoxFuture<'a, Streamed>;

const ON_BIND: &str = "/_matrix/federation/v1/3pid/onbind";

/// The endpoints that anybody may ask.
const PUBLIC: &[Route<PublicHandler>] = &[
    public(Method::GET, "/.well-known/matrix/server", |server, call| Box::pin(discovery::well_known(server, call))),
    public(Method::GET, "/_matrix/federation/v1/version", |server, call| Box::pin(discovery::version(server, call))),
    public(Method::GET, "/_matrix/federation/v1/openid/userinfo", |server, call| {
        Box::pin(openid::userinfo(server, call))
    }),
    public(Method::PUT, ON_BIND, |server, call| Box::pin(third_party_invites::on_bind(server, call))),
    // Not the specification's method, but that of the identity server Sydent, and the only one that Synapse takes.
    public(Method::POST, ON_BIND, |server, call| Box::pin(third_party_invites::on_bind(server, call))),
    public(Method::GET, "/_matrix/key/v2/server", |server, call| Box::pin(own_keys::server_keys(server, call))),
    public(Method::GET, "/.well-known/matrix/policy_server", |server, call| Box::pin(policy::well_known(server, call))),
    // Deprecated, and asked by older servers with an empty or any key ID: the answer holds all keys anyway.
    public(Method::GET, "/_matrix/key/v2/server/{keyId}", |server, call| Box::pin(own_keys::server_keys(server, call))),
    public(Method::GET, "/_matrix/key/v2/query/{serverName}", |server, call| Box::pin(notary::query_one(server, call))),
    public(Method::POST, "/_matrix/key/v2/query", |server, call| Box::pin(notary::query(server, call))),
];

/// The endpoints that a request must be signed for.
const SIGNED: &[Route<SignedHandler>] = &[
    signed(Method::PUT, "/_matrix/federation/v1/send/{txnId}", |server, request| {
        Box::pin(transactions::send(server, request))
    }),
    signed(Method::GET, "/_matrix/federation/v1/event_auth/{roomId}/{eventId}", |server, request| {
        Box::pin(retrieving::event_auth(server, request))
    }),
    signed(Method::GET, "/_matrix/federation/v1/backfill/{roomId}", |server, request| {
        Box::pin(backfill::backfill(server, request))
    }),
    signed(Method::POST, "/_matrix/federation/v1/get_missing_events/{roomId}", |server, request| {
        Box::pin(backfill::get_missing_events(server, request))
    }),
    signed(Method::GET, "/_matrix/federation/v1/state/{roomId}", |server, request| {
        Box::pin(retrieving::state(server, request))
    }),
    signed(Method::GET, "/_matrix/federation/v1/state_ids/{roomId}", |server, request| {
        Box::pin(retrieving::state_ids(server, request))
    }),
    signed(Method::GET, "/_matrix/federation/v1/event/{eventId}", |server, request| {
        Box::pin(retrieving::event(server, request))
    }),
    signed(Method::GET, "/_matrix/federation/v1/timestamp_to_event/{roomId}", |server, request| {
        Box::pin(by_time::timestamp_to_event(server, request))
    }),
    signed(Method::GET, "/_matrix/federation/v1/make_join/{roomId}/{userId}", |server, request| {
        Box::pin(joining::make_join(server, request))
    }),
    signed(Method::PUT, "/_matrix/federation/v1/send_join/{roomId}/{eventId}", |server, request| {
        Box::pin(joining::send_join_v1(server, request))
    }),
    signed(Method::PUT, "/_matrix/federation/v2/send_join/{roomId}/{eventId}", |server, request| {
        Box::pin(joining::send_join(server, request))
    }),
    signed(Method::GET, "/_matrix/federation/v1/make_knock/{roomId}/{userId}", |server, request| {
        Box::pin(knocking::make_knock(server, request))
    }),
    signed(Method::PUT, "/_matrix/federation/v1/send_knock/{roomId}/{eventId}", |server, request| {
        Box::pin(knocking::send_knock(server, request))
    }),
    signed(Method::PUT, "/_matrix/federation/v1/invite/{roomId}/{eventId}", |server, request| {
        Box::pin(inviting::invite_v1(server, request))
    }),
    signed(Method::PUT, "/_matrix/federation/v2/invite/{roomId}/{eventId}", |server, request| {
        Box::pin(inviting::invite(server, request))
    }),
    signed(Method::GET, "/_matrix/federation/v1/make_leave/{roomId}/{userId}", |server, request| {
        Box::pin(leaving::make_leave(server, request))
    }),
    signed(Method::PUT, "/_matrix/federation/v1/send_leave/{roomId}/{eventId}", |server, request| {
        Box::pin(leaving::send_leave_v1(server, request))
    }),
    signed(Method::PUT, "/_matrix/federation/v2/send_leave/{roomId}/{eventId}", |server, request| {
        Box::pin(leaving::send_leave(server, request))
    }),
    signed(Method::PUT, "/_matrix/federation/v1/exchange_third_party_invite/{roomId}", |server, request| {
        Box::pin(third_party_invites::exchange(server, request))
    }),
    signed(Method::GET, "/_matrix/federation/v1/publicRooms", |server, request| {
        Box::pin(public_rooms::list(server, request))
    }),
    signed(Method::POST, "/_matrix/federation/v1/publicRooms", |server, request| {
        Box::pin(public_rooms::search(server, request))
    }),
    signed(Method::GET, "/_matrix/federation/v1/hierarchy/{roomId}", |server, request| {
        Box::pin(spaces::hierarchy(server, request))
    }),
    signed(Method::POST, "/_matrix/policy/v1/sign", |server, request| Box::pin(policy::sign(server, request))),
    signed(Method::GET, "/_matrix/federation/v1/query/directory", |server, request| {
        Box::pin(queries::directory(server, request))
    }),
    signed(Method::GET, "/_matrix/federation/v1/query/profile", |server, request| {
        Box::pin(queries::profile(server, request))
    }),
    signed(Method::GET, "/_matrix/federation/v1/user/devices/{userId}", |server, request| {
        Box::pin(user_keys::devices(server, request))
    }),
    signed(Method::POST, "/_matrix/federation/v1/user/keys/query", |server, request| {
        Box::pin(user_keys::query(server, request))
    }),
    signed(Method::POST, "/_matrix/federation/v1/user/keys/claim", |server, request| {
        Box::pin(user_keys::claim(server, request))
    }),
];

/// The same, of which the answers are streamed. With the engine in an object they are answered in front of it, so none of them
/// sends anybody what waits.
const STREAMED: &[Route<StreamedHandler>] = &[
    streamed("/_matrix/federation/v1/media/download/{mediaId}", |server, request| {
        Box::pin(media::download(server, request))
    }),
    streamed("/_matrix/federation/v1/media/thumbnail/{mediaId}", |server, request| {
        Box::pin(media::thumbnail(server, request))
    }),
];

/// Answers one request that is no client's, also one for a path that does not exist, and describes it for the log.
pub async fn handle(server: &Server, request: Incoming, mut record: LogRecord) -> (Answer, LogRecord) {
    let handled = route(server, request, &mut record).await;
    router::answer(handled, record)
}

async fn route(server: &Server, request: Incoming, record: &mut LogRecord) -> Streamed {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    match router::find(PUBLIC, &method, &path) {
        Ok(found) => {
            *record = found.describe(record.clone());
            router::whole((found.route.handler)(server, &router::call(request, found.parameters)).await)
        }
        // Unsupported endpoints are told apart before anything is checked (Server-Server API, "Unsupported endpoints").
        Err(error) if error.status == StatusCode::NOT_FOUND => {
            match router::find(STREAMED, &method, &path) {
                Ok(found) => {
                    let signed = authenticated(server, request, &found, record).await?;
                    return (found.route.handler)(server, signed).await;
                }
                Err(error) if error.status == StatusCode::NOT_FOUND => {}
                Err(error) => return Err(error),
            }
            let found = router::find(SIGNED, &method, &path)?;
            let signed = authenticated(server, request, &found, record).await?;
            let origin = signed.origin.name().clone();
            // The body is in work until the answer is there, whatever the endpoint keeps of the request.
            let _in_work = signed.call.in_work();
            let handled = (found.route.handler)(server, signed).await;
            server.heard_from(&origin);
            router::whole(handled)
        }
        Err(error) => Err(error),
    }
}

/// The request, whose path was found, once it is known who signed it.
async fn authenticated<H>(
    server: &Server,
    request: Incoming,
    found: &Found<'_, H>,
    record: &mut LogRecord,
) -> Result<Signed, MatrixError> {
    *record = found.describe(record.clone());
    let call = router::call(request, found.parameters.clone());
    let signed = authentication::authenticate(server, call).await?;
    *record = record.clone().origin(signed.origin.name());
    Ok(signed)
}

const fn public(method: Method, template: &'static str, handler: PublicHandler) -> Route<PublicHandler> {
    Route { method, template, handler }
}

const fn streamed(template: &'static str, handler: StreamedHandler) -> Route<StreamedHandler> {
    Route { method: Method::GET, template, handler }
}

const fn signed(method: Method, template: &'static str, handler: SignedHandler) -> Route<SignedHandler> {
    Route { method, template, handler }
}
