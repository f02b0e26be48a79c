//! The routes: which request gets which answer.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{self, HeaderMap};
use hyper::http::response::Builder;
use hyper::{Method, Request, Response, StatusCode};
use tokio_util::sync::CancellationToken;

use super::cors::{Cors, options, preflight};
use super::page;
use super::refusal::Refusal;
use super::request::{Resource, host_of, is_preflight, resource_of, room_of, since};
use super::response::{Body, TEXT, respond_json, whole};
use crate::admission::Admission;
use crate::client::Settings;
use crate::client::budget::Budget;
use crate::config::Mode;
use crate::excerpt::excerpt;
use crate::format::{Format, JSON_PROTOCOL};
use crate::hub::{Hub, JoinError, Membership};
use crate::protocol::handshake::{self, HandshakeError, tokens};
use crate::room::Follow;
use crate::room::name::RoomName;

/// Health checks, which are not rooms: whether the process serves, and whether the server takes new
/// clients.
const ALIVE: &str = "/livez";
const HEALTH: [&str; 2] = ["/healthz", "/readyz"];

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
pub(crate) enum Answer {
    /// A response, which ends the exchange.
    Response(hyper::http::Result<Response<Body>>),
    /// The client has joined a room.
    Join(Box<Join>),
}

/// A client that has joined a room, and the head of its answer.
#[derive(Debug)]
pub(crate) struct Join {
    /// The head of the answer; its body is empty.
    pub(crate) response: hyper::http::Result<Response<Body>>,
    /// The name of the room.
    pub(crate) room: String,
    /// The client's membership of the room.
    pub(crate) membership: Membership,
    /// An excerpt of the unknown subprotocols that it offers, if any.
    pub(crate) unknown_protocols: Option<String>,
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

    /// Answers `request`; calls `answering` once all of it is read, with the time that the answer may
    /// take. Without a permit of `--max-connections`, only health checks are answered.
    ///
    /// # Errors
    /// A [`Refusal`], which is then the answer.
    pub(crate) async fn answer(
        &self,
        request: Request<Incoming>,
        has_permit: bool,
        answering: impl Fn(Duration),
    ) -> Result<Answer, Refusal> {
        let path = request.uri().path();
        if path == ALIVE || HEALTH.contains(&path) {
            return self.health(request.method(), path).map(Answer::Response);
        }
        if !has_permit {
            return Err(Refusal::unavailable("no place left, try again later"));
        }
        let host = host_of(&request)?;
        // The page is open to all: its own requests are checked.
        let is_page = match *request.method() {
            Method::GET => resource_of(&request) == Resource::Page,
            Method::HEAD => matches!(resource_of(&request), Resource::Page | Resource::WebSocket),
            _ => false,
        };
        if is_page {
            room_of(path)?;
            return Ok(Answer::Response(page::respond(request.headers())));
        }
        let origin = self.admission.check(request.headers(), host.as_ref());
        let origin = origin.map_err(|it| Refusal::new(StatusCode::FORBIDDEN, it.to_string()))?;
        let origin = Cors(origin.cloned());
        let answer = self.route(request, &origin, answering).await;
        answer.map_err(|refusal| refusal.with_all(origin.headers()))
    }

    async fn route(
        &self,
        request: Request<Incoming>,
        origin: &Cors,
        answering: impl Fn(Duration),
    ) -> Result<Answer, Refusal> {
        let response = origin.response();
        if request.method() == Method::OPTIONS && request.uri().path() == "*" {
            return Ok(Answer::Response(
                options(response, self.allowed()).body(whole("")),
            ));
        }
        let room = room_of(request.uri().path())?;
        let mut unknown_protocols = None;
        let (response, membership) = match (request.method(), resource_of(&request)) {
            (&Method::GET, Resource::WebSocket) => {
                unknown_protocols = unknown_protocols_of(request.headers());
                self.upgrade(&request, &room, response)?
            }
            (&Method::GET, Resource::Events) => self.events(&request, &room, response)?,
            (&Method::HEAD, Resource::Events) => {
                return Ok(Answer::Response(event_stream(response).body(whole(""))));
            }
            (&Method::GET | &Method::HEAD, Resource::History) => {
                return Ok(Answer::Response(self.history(&request, &room, response)?));
            }
            (&Method::OPTIONS, _) => {
                let response = match is_preflight(request.headers()) {
                    true => preflight(response),
                    false => response,
                };
                return Ok(Answer::Response(
                    options(response, self.allowed()).body(whole("")),
                ));
            }
            (&Method::POST, _) if self.settings.mode == Mode::Broadcast => {
                let published = self.publish(request, &room, answering).await?;
                let response = response.status(StatusCode::CREATED);
                return Ok(Answer::Response(respond_json(
                    response,
                    whole(published.to_json()),
                )));
            }
            (method, _) => return Err(self.not_allowed(method)),
        };
        Ok(Answer::Join(Box::new(Join {
            response: response.body(whole("")),
            room: room.into(),
            membership,
            unknown_protocols,
        })))
    }

    /// The methods that a room allows.
    fn allowed(&self) -> &'static str {
        match self.settings.mode {
            Mode::Echo => "GET, HEAD, OPTIONS",
            Mode::Broadcast => "GET, HEAD, POST, OPTIONS",
        }
    }

    fn not_allowed(&self, method: &Method) -> Refusal {
        let reason = match (self.settings.mode, method) {
            (Mode::Echo, &Method::POST) => {
                "an echo server has no broadcasts: start it with --mode broadcast"
            }
            (Mode::Echo, _) => "use GET",
            (Mode::Broadcast, _) => "use GET or POST",
        };
        Refusal::new(StatusCode::METHOD_NOT_ALLOWED, reason).with(header::ALLOW, self.allowed())
    }

    /// Joins a room as a WebSocket client.
    fn upgrade(
        &self,
        request: &Request<Incoming>,
        room: &RoomName,
        response: Builder,
    ) -> Result<(Builder, Membership), Refusal> {
        let accept = handshake::check(request)?;
        let headers = request.headers();
        let json = tokens(headers, header::SEC_WEBSOCKET_PROTOCOL).any(|it| it == JSON_PROTOCOL);
        let follow = Follow {
            format: if json { Format::Json } else { Format::Plain },
            since: since(request)?,
        };
        let membership = self.hub.join(room, follow)?;
        let response = response
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_ACCEPT, accept);
        let response = match json {
            true => response.header(header::SEC_WEBSOCKET_PROTOCOL, JSON_PROTOCOL),
            false => response,
        };
        Ok((response, membership))
    }

    /// Joins a room as a client of Server-Sent Events (WHATWG HTML, section 9.2).
    fn events(
        &self,
        request: &Request<Incoming>,
        room: &RoomName,
        response: Builder,
    ) -> Result<(Builder, Membership), Refusal> {
        let follow = Follow {
            format: Format::EventStream,
            since: since(request)?,
        };
        let membership = self.hub.join(room, follow)?;
        Ok((event_stream(response), membership))
    }

    fn health(
        &self,
        method: &Method,
        path: &str,
    ) -> Result<hyper::http::Result<Response<Body>>, Refusal> {
        const ALLOWED: &str = "GET, HEAD, OPTIONS";
        let builder = Response::builder();
        match *method {
            Method::GET | Method::HEAD if path != ALIVE && self.draining.is_cancelled() => {
                Err(Refusal::unavailable("the server is shutting down"))
            }
            Method::GET | Method::HEAD => Ok(builder
                .header(header::CONTENT_TYPE, TEXT)
                .header(header::CACHE_CONTROL, "no-store")
                .header(header::CONNECTION, "close")
                .body(whole("ok"))),
            Method::OPTIONS => Ok(options(builder, ALLOWED).body(whole(""))),
            _ => Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "use GET")
                .with(header::ALLOW, ALLOWED)),
        }
    }
}

/// An excerpt of the unknown subprotocols that a client offers, if any.
fn unknown_protocols_of(headers: &HeaderMap) -> Option<String> {
    let offered = tokens(headers, header::SEC_WEBSOCKET_PROTOCOL);
    let unknown: Vec<_> = offered.filter(|it| *it != JSON_PROTOCOL).collect();
    (!unknown.is_empty()).then(|| excerpt(unknown.join(", ").as_bytes()).into_owned())
}

/// The head of an event stream.
fn event_stream(response: Builder) -> Builder {
    response
        .header(header::CONTENT_TYPE, "text/event-stream")
        .header(header::CACHE_CONTROL, "no-store, no-transform")
        // Otherwise nginx buffers the stream.
        .header("x-accel-buffering", "no")
        .header(header::CONNECTION, "close")
}

impl From<HandshakeError> for Refusal {
    fn from(error: HandshakeError) -> Self {
        match error {
            HandshakeError::Version => Self::new(StatusCode::UPGRADE_REQUIRED, error.to_string())
                .with(header::SEC_WEBSOCKET_VERSION, "13"),
            HandshakeError::Malformed(reason) => Self::bad(reason),
        }
    }
}

impl From<JoinError> for Refusal {
    fn from(error: JoinError) -> Self {
        match error {
            JoinError::Full => Self::unavailable("no place for another room, try again later"),
            JoinError::Sealed => Self::unavailable("the server is shutting down"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::store::Store;

    #[test]
    fn a_draining_server_is_live_and_not_ready() {
        let config = Config::default();
        let hub = Arc::new(Hub::new(&config, Store::memory()));
        let admission = Admission::new(&config.access, "localhost", true);
        let settings = Arc::new(Settings::from(&config));
        let draining = CancellationToken::new();
        let budget = Arc::new(Budget::new(1 << 20, Duration::from_secs(1)));
        let routes = Routes::new(settings, hub, budget, admission, draining.clone());
        let status = |path| match routes.health(&Method::GET, path) {
            Ok(response) => response.unwrap().status().as_u16(),
            Err(refusal) => refusal.status().as_u16(),
        };
        let paths = ["/livez", "/healthz", "/readyz"];
        assert_eq!(paths.map(status), [200, 200, 200]);
        draining.cancel();
        assert_eq!(paths.map(status), [200, 503, 503]);
    }
}
