//! The routes: which request gets which answer.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Response, StatusCode};
use tokio_util::sync::CancellationToken;

use super::client_module::ModuleFile;
use super::cors::{Cors, options, preflight};
use super::page::respond_page;
use super::phase::Link;
use super::refusal::Refusal;
use super::request::{Request, Resource, Wants};
use super::response::{Body, Field, NO_STORE, TEXT, respond, respond_json, to_json, whole};
use crate::admission::{Admission, Admitted, Grant};
use crate::client::Settings;
use crate::client::budget::Budget;
use crate::excerpt::excerpt;
use crate::format::{Encoding, JSON_PROTOCOL, PLAIN_PROTOCOL};
use crate::hub::{Hub, Membership};
use crate::message::Author;
use crate::protocol::handshake::{self, tokens};
use crate::room::{Behaviour, Follow, OnGap, RoomName};
use crate::store::Health;

/// Everything that answers depend on.
#[derive(Debug)]
pub(crate) struct Routes {
    pub(super) settings: Arc<Settings>,
    pub(super) hub: Arc<Hub>,
    pub(super) budget: Arc<Budget>,
    pub(super) admission: Admission,
    pub(super) draining: CancellationToken,
}

/// The answer to a request.
#[derive(Debug)]
pub(super) enum Answer {
    /// A response.
    Response(Response<Body>),
    /// The client has joined a room, as a WebSocket behind this response.
    WebSocket(Box<Join>),
    /// The client has joined a room, as an event stream that begins with this response.
    EventStream(Box<Join>),
}

/// A client that has joined a room.
#[derive(Debug)]
pub(super) struct Join {
    /// The head of the answer; its body is empty.
    pub(super) response: Response<Body>,
    pub(super) membership: Membership,
    pub(super) grant: Arc<Grant>,
    /// An excerpt of the unknown subprotocols that it offers, if any.
    pub(super) unknown_protocols: Option<String>,
}

impl Routes {
    /// Routes to the rooms of `hub`, for requests that `admission` allows.
    pub(crate) fn new(
        settings: Arc<Settings>,
        hub: Arc<Hub>,
        budget: Arc<Budget>,
        admission: Admission,
        draining: CancellationToken,
    ) -> Self {
        Self {
            settings,
            hub,
            budget,
            admission,
            draining,
        }
    }

    /// Checks the host and the origin of a request, unless it is open to all: a health check, or for the
    /// page, whose own requests are checked. Returns the origin that may read the answer, and what the client
    /// may do.
    ///
    /// # Errors
    /// A [`Refusal`], which is then the answer.
    pub(super) fn admit(&self, request: &Request) -> Result<(Cors, Arc<Grant>), Refusal> {
        if matches!(
            request.resource,
            Resource::Live | Resource::Healthy | Resource::Ready
        ) {
            return Ok((Cors::default(), Grant::NONE.into()));
        }
        let host = request.host()?;
        if request.wants_page() {
            return Ok((Cors::default(), Grant::NONE.into()));
        }
        let admitted = self.admission.check(&request.headers, host.as_ref())?;
        let Admitted { origin, grant } = admitted;
        Ok((Cors(origin.cloned()), grant))
    }

    /// Answers `request`, which is admitted. Without a permit of `--max-connections`, only health checks
    /// are answered.
    ///
    /// # Errors
    /// A [`Refusal`], which is then the answer.
    pub(super) async fn answer(
        &self,
        request: &Request,
        grant: &Arc<Grant>,
        body: Incoming,
        has_permit: bool,
        connection: &Link,
    ) -> Result<Answer, Refusal> {
        let room = match &request.resource {
            Resource::Live => return health(&request.method, Ok(WELL)).map(Answer::Response),
            Resource::Healthy => {
                let health = self.check_draining();
                return self::health(&request.method, health).map(Answer::Response);
            }
            Resource::Ready => {
                let health = self.check_draining().and_then(|_| self.check_store());
                return self::health(&request.method, health).map(Answer::Response);
            }
            _ if !has_permit => return Err(Refusal::full()),
            Resource::Server => {
                let methods = allowed(self.hub.behaviour(DEFAULT_ROOM));
                return Ok(Answer::Response(options(methods)));
            }
            Resource::Module(file) => return module(request, *file).map(Answer::Response),
            _ if request.method == Method::CONNECT => {
                let behaviour = self.hub.behaviour(DEFAULT_ROOM);
                return Err(not_allowed(behaviour, &request.method));
            }
            Resource::Room(room) => room.as_ref().map_err(|error| Refusal::from(*error))?,
        };
        let response = match (&request.method, request.wants) {
            (&Method::GET, Wants::WebSocket) => return self.upgrade(request, grant, room).await,
            (&Method::GET, Wants::Events) => return self.events(request, grant, room).await,
            (&Method::HEAD, Wants::Events) => {
                grant.check_read()?;
                event_stream("")
            }
            (&Method::GET | &Method::HEAD, Wants::History) => {
                self.history(request, grant, room).await?
            }
            (&Method::GET | &Method::HEAD, Wants::Clients) => {
                grant.check_read()?;
                let clients = self.hub.clients(room, NAMES_MAX);
                respond_json(StatusCode::OK, whole(to_json(&clients)))
            }
            (&Method::GET | &Method::HEAD, Wants::Page | Wants::WebSocket) => {
                respond_page(&request.headers)
            }
            (&Method::OPTIONS, _) if request.is_preflight() => {
                preflight(allowed(self.hub.behaviour(room)))
            }
            (&Method::OPTIONS, _) => options(allowed(self.hub.behaviour(room))),
            (&Method::POST, _) if self.hub.behaviour(room) == Behaviour::Broadcast => {
                self.publish(request, grant, body, room, connection).await?
            }
            (method, _) => return Err(not_allowed(self.hub.behaviour(room), method)),
        };
        Ok(Answer::Response(response))
    }

    /// How the server is, unless it is shutting down.
    fn check_draining(&self) -> Result<Cow<'static, str>, Refusal> {
        match self.draining.is_cancelled() {
            true => Err(Refusal::draining()),
            false => Ok(WELL),
        }
    }

    /// How the server is, unless it publishes nothing for want of its store.
    fn check_store(&self) -> Result<Cow<'static, str>, Refusal> {
        let Some((health, fault)) = self.hub.store_fault() else {
            return Ok(WELL);
        };
        let why = format!("the store is unavailable: {fault}");
        match health {
            Health::Refusing => Err(Refusal::unavailable(why)),
            Health::Well | Health::Failing => {
                Ok(format!("ok, but {why}; messages are in memory alone").into())
            }
        }
    }

    /// Joins a room as a WebSocket client (RFC 6455, section 4.2.2).
    async fn upgrade(
        &self,
        request: &Request,
        grant: &Arc<Grant>,
        room: &RoomName,
    ) -> Result<Answer, Refusal> {
        grant.check_read()?;
        let headers = &request.headers;
        let accept = handshake::check(request.version, headers, request.has_body)?;
        let offers = |protocol| {
            tokens(headers, header::SEC_WEBSOCKET_PROTOCOL)
                .any(|it| it == protocol)
                .then_some(protocol)
        };
        let protocol = offers(JSON_PROTOCOL).or_else(|| offers(PLAIN_PROTOCOL));
        let is_json = protocol == Some(JSON_PROTOCOL);
        let (encoding, on_gap) = match is_json {
            true => (Encoding::Json, OnGap::Report),
            false => (Encoding::Plain, OnGap::Close),
        };
        let (name, hears_itself) = (request.query.name()?, request.query.echo()?);
        // Otherwise it has an author from its first message on.
        let is_announced = is_json || name.is_some() || !hears_itself;
        let follow = Follow {
            encoding,
            acknowledges: true,
            on_gap,
            since: request.since()?,
            author: is_announced.then(|| Author::connection(name)),
            hears_itself,
            counts: is_json && request.query.has_clients(),
        };
        let membership = self.hub.join(room, follow).await?;
        let fields = [
            (header::CONNECTION, "Upgrade"),
            (header::UPGRADE, "websocket"),
        ];
        let protocol = protocol.map(|it| (header::SEC_WEBSOCKET_PROTOCOL, it));
        let fields = fields.into_iter().chain(protocol);
        let mut response = respond(StatusCode::SWITCHING_PROTOCOLS, fields, whole(""));
        let fields = response.headers_mut();
        fields.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        Ok(Answer::WebSocket(Box::new(Join {
            response,
            membership,
            grant: grant.clone(),
            unknown_protocols: unknown_protocols_of(headers),
        })))
    }

    /// Joins a room as a client of Server-Sent Events (WHATWG HTML, section 9.2).
    async fn events(
        &self,
        request: &Request,
        grant: &Arc<Grant>,
        room: &RoomName,
    ) -> Result<Answer, Refusal> {
        grant.check_read()?;
        let follow = Follow {
            encoding: Encoding::EventStream,
            acknowledges: false,
            on_gap: OnGap::Report,
            since: request.since()?,
            author: request.query.name()?.map(Author::named),
            ..Follow::default()
        };
        let membership = self.hub.join(room, follow).await?;
        let mut response = event_stream("");
        // It ends with the connection.
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
        Ok(Answer::EventStream(Box::new(Join {
            response,
            membership,
            grant: grant.clone(),
            unknown_protocols: None,
        })))
    }
}

/// What a health check is answered that finds nothing wrong.
const WELL: Cow<'static, str> = Cow::Borrowed("ok");

/// The most names of the answer to `?clients`.
const NAMES_MAX: usize = 1000;

/// The room whose methods are those of the server.
const DEFAULT_ROOM: &str = "/";

/// The methods that a room allows.
fn allowed(behaviour: Behaviour) -> &'static str {
    match behaviour {
        Behaviour::Echo => "GET, HEAD, OPTIONS",
        Behaviour::Broadcast => "GET, HEAD, POST, OPTIONS",
    }
}

fn not_allowed(behaviour: Behaviour, method: &Method) -> Refusal {
    let reason = match (behaviour, method) {
        (Behaviour::Echo, &Method::POST) => {
            "an echo server has no broadcasts: start it with --mode broadcast"
        }
        (Behaviour::Echo, _) => "use GET",
        (Behaviour::Broadcast, _) => "use GET or POST",
    };
    Refusal::method(allowed(behaviour), reason)
}

/// The answer to a health check.
fn health(
    method: &Method,
    health: Result<Cow<'static, str>, Refusal>,
) -> Result<Response<Body>, Refusal> {
    const ALLOWED: &str = "GET, HEAD, OPTIONS";
    match *method {
        Method::GET | Method::HEAD => {
            let body = whole(health?.into_owned());
            Ok(respond(StatusCode::OK, [TEXT, NO_STORE], body))
        }
        Method::OPTIONS => Ok(options(ALLOWED)),
        _ => Err(Refusal::method(ALLOWED, "use GET")),
    }
}

/// The answer to a request for a file of the client module.
fn module(request: &Request, file: ModuleFile) -> Result<Response<Body>, Refusal> {
    const ALLOWED: &str = "GET, HEAD, OPTIONS";
    match request.method {
        Method::GET | Method::HEAD => Ok(file.respond(&request.headers)),
        Method::OPTIONS => Ok(options(ALLOWED)),
        _ => Err(Refusal::method(ALLOWED, "use GET")),
    }
}

/// An excerpt of the unknown subprotocols that a client offers, if any.
fn unknown_protocols_of(headers: &HeaderMap) -> Option<String> {
    let offered = tokens(headers, header::SEC_WEBSOCKET_PROTOCOL);
    let unknown: Vec<_> = offered
        .filter(|it| ![JSON_PROTOCOL, PLAIN_PROTOCOL].contains(it))
        .collect();
    (!unknown.is_empty()).then(|| excerpt(unknown.join(", ").as_bytes()).into_owned())
}

/// An event stream, or its head.
fn event_stream(text: impl Into<Bytes>) -> Response<Body> {
    let fields: [Field; 3] = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store, no-transform"),
        // Otherwise nginx buffers the stream.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    respond(StatusCode::OK, fields, whole(text))
}

/// What a browser's `EventSource` gets in the place of a 503, after which it would never come back: a
/// stream that ends, with the time to reconnect and the reason (WHATWG HTML, section 9.2.3).
pub(super) fn retry_later(refusal: &Refusal, time: Duration) -> Response<Body> {
    let millis = time.as_millis();
    event_stream(format!("retry: {millis}\n: {}\n\n", refusal.reason()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draining_server_is_not_ready() {
        let status = |found| match health(&Method::GET, found) {
            Ok(response) => response.status().as_u16(),
            Err(refusal) => refusal.status().as_u16(),
        };
        let draining = Err(Refusal::draining());
        assert_eq!((status(Ok(WELL)), status(draining)), (200, 503));
    }
}
