//! What a request is answered: the routes.

use std::future::poll_fn;
use std::iter;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::ready;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Body as _, Frame, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::response::Builder;
use hyper::{Method, Request, Response, StatusCode};
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use tracing::Span;

use crate::admission::Admission;
use crate::config::{Config, Mode};
use crate::content::Content;
use crate::excerpt::excerpt;
use crate::hub::{Hub, JoinError, Membership};
use crate::incoming::{Incoming as AllIncoming, Unfinished};
use crate::message::Format;
use crate::message_log;
use crate::page::{self, Body, NO_SNIFFING, whole};
use crate::refusal::{Refusal, TEXT};
use crate::request::{
    Query, Want, check_handshake, host_of, is_preflight, room_of, since, tokens, wants,
};
use crate::room::Follow;
use crate::room_name::RoomName;
use crate::wire::{self, Draft, JSON_PROTOCOL};

/// Paths that tell whether the server is up, and are no rooms: whether its process serves, and whether
/// it takes new clients.
const ALIVE: &str = "/livez";
const HEALTH: [&str; 2] = ["/healthz", "/readyz"];

/// What is there to answer from.
#[derive(Debug)]
pub struct Routes {
    config: Arc<Config>,
    hub: Arc<Hub>,
    incoming: Arc<AllIncoming>,
    admission: Admission,
    draining: CancellationToken,
}

/// What a request is answered.
#[derive(Debug)]
pub enum Answer {
    /// This, and that is all.
    Response(hyper::http::Result<Response<Body>>),
    /// The client follows a room from now on.
    Join(Box<Join>),
}

/// How a client begins to follow a room.
#[derive(Debug)]
pub struct Join {
    /// The answer to begin with, which has no body of its own.
    pub response: hyper::http::Result<Response<Body>>,
    /// The name of the room.
    pub room: String,
    /// Its place in the room.
    pub membership: Membership,
    /// An excerpt of the subprotocols that it offers and that are unknown, if there are any.
    pub unknown_protocols: Option<String>,
}

impl Routes {
    /// Routes into the rooms of `hub` for those whom `admission` lets in.
    pub fn new(
        config: Arc<Config>,
        hub: Arc<Hub>,
        incoming: Arc<AllIncoming>,
        admission: Admission,
        draining: CancellationToken,
    ) -> Self {
        Self {
            config,
            hub,
            incoming,
            admission,
            draining,
        }
    }

    /// Answers `request`; calls `answering` once all of it is there, with the time that the answer
    /// may take. Where there is no `place` left, no client is let in.
    ///
    /// # Errors
    /// A [`Refusal`], which is the answer then.
    pub async fn answer(
        &self,
        request: Request<Incoming>,
        place: bool,
        answering: impl Fn(Duration),
    ) -> Result<Answer, Refusal> {
        let path = request.uri().path();
        if path == ALIVE || HEALTH.contains(&path) {
            return self.health(request.method(), path).map(Answer::Response);
        }
        if !place {
            return Err(Refusal::unavailable("no place left, try again later"));
        }
        let host = host_of(&request)?;
        // The page has no rules: it is checked what it asks for then.
        let is_page = match *request.method() {
            Method::GET => wants(&request) == Want::Page,
            Method::HEAD => matches!(wants(&request), Want::Page | Want::WebSocket),
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
        let (response, membership) = match (request.method(), wants(&request)) {
            (&Method::GET, Want::WebSocket) => {
                unknown_protocols = unknown_protocols_of(request.headers());
                self.upgrade(&request, &room, response)?
            }
            (&Method::GET, Want::Events) => self.events(&request, &room, response)?,
            (&Method::HEAD, Want::Events) => {
                return Ok(Answer::Response(event_stream(response).body(whole(""))));
            }
            (&Method::GET | &Method::HEAD, Want::History) => {
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
            (&Method::POST, _) if self.config.mode == Mode::Broadcast => {
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

    /// The methods of a room.
    fn allowed(&self) -> &'static str {
        match self.config.mode {
            Mode::Echo => "GET, HEAD, OPTIONS",
            Mode::Broadcast => "GET, HEAD, POST, OPTIONS",
        }
    }

    fn not_allowed(&self, method: &Method) -> Refusal {
        let reason = match (self.config.mode, method) {
            (Mode::Echo, &Method::POST) => {
                "nobody follows a room of an echo server: start it with --mode broadcast"
            }
            (Mode::Echo, _) => "use GET",
            (Mode::Broadcast, _) => "use GET or POST",
        };
        Refusal::new(StatusCode::METHOD_NOT_ALLOWED, reason).with(header::ALLOW, self.allowed())
    }

    /// Lets a client in that asks for a WebSocket.
    fn upgrade(
        &self,
        request: &Request<Incoming>,
        room: &RoomName,
        response: Builder,
    ) -> Result<(Builder, Membership), Refusal> {
        let accept = check_handshake(request)?;
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

    /// Lets a client in that asks for Server-Sent Events (WHATWG HTML, section 9.2).
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

    /// The history of a room as a JSON array.
    fn history(
        &self,
        request: &Request<Incoming>,
        room: &RoomName,
        response: Builder,
    ) -> Result<hyper::http::Result<Response<Body>>, Refusal> {
        let (since, limit) = (since(request)?, Query::of(request).limit()?);
        let (batches, start) = self.hub.history(room, since).unwrap_or_default();
        // Batch by batch as the client takes them: of what is shared anyway, only that is copied.
        let (mut next, mut left, mut lead) = (start.next, limit, "\n");
        let pieces = batches.into_iter().map(move |batch| {
            let skipped = next.saturating_sub(batch.seqs().start) as usize;
            let mut piece = String::new();
            for message in wire::messages(&batch).skip(skipped).take(left) {
                piece.push_str(mem::replace(&mut lead, ",\n"));
                piece.push_str(&wire::json(&message));
                left -= 1;
            }
            next = batch.seqs().end;
            piece
        });
        let pieces = iter::once("[".to_owned()).chain(pieces);
        let frames = pieces
            .chain(["\n]\n".to_owned()])
            .map(|piece| Ok(Frame::data(Bytes::from(piece))));
        let body = StreamBody::new(stream::iter(frames)).boxed_unsync();
        let resumed = start.resumed;
        let response = response
            .header(RESUMED, resumed.to_string())
            .header(header::ACCESS_CONTROL_EXPOSE_HEADERS, RESUMED);
        Ok(respond_json(response, body))
    }

    /// Publishes the body of `request`, and waits for receipts if it asks for them.
    async fn publish(
        &self,
        request: Request<Incoming>,
        room: &RoomName,
        answering: impl Fn(Duration),
    ) -> Result<Published, Refusal> {
        let (head, body) = request.into_parts();
        let wait = Query(head.uri.query().unwrap_or_default()).wait()?;
        // Before a client that waits for `100 Continue` gets it.
        let content = Content::of(&head.headers)?;
        let body = self.read(body).await?;
        answering(wait.unwrap_or_default());
        let (kind, payload) = content.message(&body)?;
        if payload.len() > self.config.max_message_size.bytes() {
            return Err(self.too_big());
        }

        let presence = self.hub.enter(room)?;
        let mut draft = Draft::default();
        presence.plain().encode(kind, &payload, &mut draft);
        let frames = draft.take().expect("it was encoded just now");
        if self.config.log_messages {
            message_log::received(&Span::current(), &frames);
        }
        let batch = presence.publish(frames).map_err(|_| JoinError::Sealed)?;
        if self.config.log_messages {
            message_log::broadcasting(&Span::current(), batch.frames());
        }
        let id = batch.last_id();
        let Some(wait) = wait else {
            let clients = presence.room().clients();
            return Ok(Published {
                id: id.to_string(),
                clients,
                delivered: None,
            });
        };
        let receipts = presence.room().ask_receipts(id.seq);
        let clients = receipts.clients();
        let delivered = receipts.collect(wait).await;
        Ok(Published {
            id: id.to_string(),
            clients,
            delivered: Some(delivered),
        })
    }

    /// Reads a body that is a message, in a buffer of its own: a slice of hyper's would keep all of
    /// that.
    async fn read(&self, mut body: Incoming) -> Result<Vec<u8>, Refusal> {
        let limit = self.config.max_message_size.bytes();
        // Before the client is told to go on, if it waits for that.
        if body.size_hint().lower() > limit as u64 {
            return Err(self.too_big());
        }
        let mut whole = Vec::new();
        let mut unfinished: Option<Unfinished> = None;
        loop {
            let frame = poll_fn(|cx| {
                if let Some(unfinished) = &unfinished {
                    ready!(unfinished.poll_room(cx))
                        .map_err(|cut| Refusal::unavailable(cut.to_string()))?;
                }
                let frame = ready!(Pin::new(&mut body).poll_frame(cx)).transpose();
                frame
                    .map_err(|_| Refusal::bad("the body is malformed, or ends too early"))
                    .into()
            });
            let Some(frame) = frame.await? else {
                return Ok(whole);
            };
            let Some(data) = frame.data_ref() else {
                continue;
            };
            if whole.len() + data.len() > limit {
                return Err(self.too_big());
            }
            whole.extend_from_slice(data);
            let hint = body.size_hint();
            if !body.is_end_stream() {
                let missing = hint.exact().unwrap_or((limit - whole.len()) as u64);
                unfinished
                    .get_or_insert_with(|| self.incoming.begin())
                    .update(whole.len(), missing);
            }
        }
    }

    fn too_big(&self) -> Refusal {
        let limit = self.config.max_message_size.bytes();
        let reason = format!("a message has at most {limit} bytes: see --max-message-size");
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, reason)
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

/// An excerpt of the subprotocols that a client offers and that are unknown, if there are any.
fn unknown_protocols_of(headers: &HeaderMap) -> Option<String> {
    let offered = tokens(headers, header::SEC_WEBSOCKET_PROTOCOL);
    let unknown: Vec<_> = offered.filter(|it| *it != JSON_PROTOCOL).collect();
    (!unknown.is_empty()).then(|| excerpt(unknown.join(", ").as_bytes()).into_owned())
}

/// What is told to who has published a message.
#[derive(Debug, Serialize)]
struct Published {
    id: String,
    /// How many clients were in the room.
    clients: usize,
    /// How many of them gave a receipt, where that was waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    delivered: Option<usize>,
}

impl Published {
    fn to_json(&self) -> String {
        let json = serde_json::to_string(self);
        json.expect("names are strings, and a String takes every write") + "\n"
    }
}

/// The origin that may read the answer, where a web page asks (Fetch, section 3.3).
struct Cors(Option<HeaderValue>);

impl Cors {
    /// A response that it may read.
    fn response(&self) -> Builder {
        let headers = self.headers().into_iter();
        headers.fold(Response::builder(), |response, (name, value)| {
            response.header(name, value)
        })
    }

    /// What says so.
    fn headers(&self) -> Vec<(HeaderName, HeaderValue)> {
        let Some(origin) = &self.0 else {
            return Vec::new();
        };
        vec![
            (header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone()),
            (header::VARY, HeaderValue::from_static("Origin")),
        ]
    }
}

/// What is answered to `OPTIONS`.
fn options(response: Builder, allowed: &'static str) -> Builder {
    response
        .status(StatusCode::NO_CONTENT)
        .header(header::ALLOW, allowed)
        .header(header::CONNECTION, "close")
}

/// Says what a web page may send that the browser asks for first (Fetch, section 3.3.2).
fn preflight(response: Builder) -> Builder {
    response
        .header(header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST")
        .header(
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            "content-type, idempotency-key, last-event-id, if-match",
        )
        .header(header::ACCESS_CONTROL_MAX_AGE, "600")
}

/// The head of an event stream.
fn event_stream(response: Builder) -> Builder {
    response
        .header(header::CONTENT_TYPE, "text/event-stream")
        .header(header::CACHE_CONTROL, "no-store, no-transform")
        // Or nginx holds back what it thinks is not worth sending yet.
        .header("x-accel-buffering", "no")
        .header(header::CONNECTION, "close")
}

fn respond_json(builder: Builder, body: Body) -> hyper::http::Result<Response<Body>> {
    builder
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CACHE_CONTROL, "no-store")
        .header(NO_SNIFFING.0, NO_SNIFFING.1)
        .header(header::CONNECTION, "close")
        .body(body)
}

/// Whether a history begins right behind the id that was asked for.
const RESUMED: &str = "wscast-resumed";

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
    use crate::backend::Backend;

    #[test]
    fn a_server_that_drains_is_alive_and_takes_no_clients() {
        let config = Arc::new(Config::default());
        let hub = Arc::new(Hub::new(config.clone(), Backend::memory()));
        let admission = Admission::new(&config, true);
        let draining = CancellationToken::new();
        let incoming = Arc::new(AllIncoming::new(1 << 20, Duration::from_secs(1)));
        let routes = Routes::new(config, hub, incoming, admission, draining.clone());
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
