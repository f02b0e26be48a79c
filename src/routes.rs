//! What a request is answered: the routes, and what each of them wants.

use std::borrow::Cow;
use std::iter;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use data_encoding::BASE64;
use futures_util::stream;
use http_body_util::{BodyExt, LengthLimitError, Limited, StreamBody};
use hyper::body::{Body as _, Frame, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::response::Builder;
use hyper::{Method, Request, Response, StatusCode, Version};
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use tungstenite::handshake::derive_accept_key;

use crate::admission::Admission;
use crate::config::{Config, Mode, Time};
use crate::hub::{Hub, JoinError, Membership};
use crate::message::{Format, Kind, MessageId};
use crate::page::{self, Body, NO_SNIFFING, whole};
use crate::room::Follow;
use crate::wire::{self, Draft, JSON_PROTOCOL};

/// The longest name of a room, in bytes of the path as it was sent.
const ROOM_NAME_MAX: usize = 256;

/// Paths that are no rooms.
const HEALTH: &str = "/healthz";
const METRICS: &str = "/metrics";

/// How long somebody who publishes may wait for receipts, and does where nothing else is said.
const RECEIPT_WAIT_MAX: Duration = Duration::from_secs(60);
const RECEIPT_WAIT: Duration = Duration::from_secs(10);

/// What is there to answer from.
#[derive(Debug)]
pub struct Routes {
    config: Arc<Config>,
    hub: Arc<Hub>,
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
}

impl Routes {
    /// Routes into the rooms of `hub` for those whom `admission` lets in.
    pub fn new(
        config: Arc<Config>,
        hub: Arc<Hub>,
        admission: Admission,
        draining: CancellationToken,
    ) -> Self {
        Self {
            config,
            hub,
            admission,
            draining,
        }
    }

    /// Answers `request`; calls `answering` once all of it is there, with the time that the answer
    /// may take. Where there is no `place` left, nobody is let in.
    pub async fn answer(
        &self,
        request: Request<Incoming>,
        place: bool,
        answering: impl Fn(Duration),
    ) -> Answer {
        let path = request.uri().path();
        if path == HEALTH {
            return Answer::Response(self.health(request.method()));
        }
        if !place {
            let refusal = Refusal::unavailable("no place left, try again later");
            return Answer::Response(refusal.into_response(Response::builder()));
        }
        let host = match host_of(&request) {
            Ok(host) => host.to_owned(),
            Err(refusal) => return Answer::Response(refusal.into_response(Response::builder())),
        };
        // The page is for everybody: it is what it does then that is looked at.
        let is_page = match *request.method() {
            Method::GET => wants(&request) == Want::Page,
            Method::HEAD => matches!(wants(&request), Want::Page | Want::WebSocket),
            _ => false,
        };
        if is_page {
            return Answer::Response(match check_path(path) {
                Ok(()) => page::respond(request.headers()),
                Err(refusal) => refusal.into_response(Response::builder()),
            });
        }
        let origin = match self.admission.check(request.headers(), &host) {
            Ok(origin) => Cors(origin.cloned()),
            Err(refused) => {
                warn!("refused: {refused}");
                let refusal = Refusal::new(StatusCode::FORBIDDEN, refused.to_string());
                return Answer::Response(refusal.into_response(Response::builder()));
            }
        };
        match self.route(request, &origin, answering).await {
            Ok(answer) => answer,
            Err(refusal) => Answer::Response(refusal.into_response(origin.response())),
        }
    }

    async fn route(
        &self,
        request: Request<Incoming>,
        origin: &Cors,
        answering: impl Fn(Duration),
    ) -> Result<Answer, Refusal> {
        check_path(request.uri().path())?;
        let response = origin.response();
        let (response, membership) = match (request.method(), wants(&request)) {
            (&Method::GET, Want::WebSocket) => self.upgrade(&request, response)?,
            (&Method::GET, Want::Events) => self.events(&request, response)?,
            (&Method::HEAD, Want::Events) => {
                return Ok(Answer::Response(event_stream(response).body(whole(""))));
            }
            (&Method::GET | &Method::HEAD, Want::History) => {
                return Ok(Answer::Response(self.history(&request, response)?));
            }
            (&Method::OPTIONS, _) if is_preflight(request.headers()) => {
                return Ok(Answer::Response(preflight(response)));
            }
            (&Method::POST, _) if self.config.mode == Mode::Broadcast => {
                let published = self.publish(request, answering).await?;
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
            room: request.uri().path().to_owned(),
            membership,
        })))
    }

    fn not_allowed(&self, method: &Method) -> Refusal {
        let (reason, allow) = match (self.config.mode, method) {
            (Mode::Echo, &Method::POST) => (
                "nobody follows a room of an echo server: start it with --mode broadcast",
                "GET, HEAD",
            ),
            (Mode::Echo, _) => ("use GET", "GET, HEAD"),
            (Mode::Broadcast, _) => ("use GET or POST", "GET, HEAD, POST"),
        };
        Refusal::new(StatusCode::METHOD_NOT_ALLOWED, reason).with(header::ALLOW, allow)
    }

    /// Lets a client in that asks for a WebSocket.
    fn upgrade(
        &self,
        request: &Request<Incoming>,
        response: Builder,
    ) -> Result<(Builder, Membership), Refusal> {
        let accept = check_handshake(request)?;
        let headers = request.headers();
        let json = tokens(headers, header::SEC_WEBSOCKET_PROTOCOL).any(|it| it == JSON_PROTOCOL);
        let follow = Follow {
            format: if json { Format::Json } else { Format::Plain },
            since: Query::of(request).since()?,
        };
        let membership = self.hub.join(request.uri().path(), follow)?;
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
        response: Builder,
    ) -> Result<(Builder, Membership), Refusal> {
        // What an EventSource has seen since it asked first.
        let seen = request.headers().get("last-event-id");
        let since = match seen.map(|id| String::from_utf8_lossy(id.as_bytes())) {
            Some(id) if !id.is_empty() => Some(parse_id(&id, "Last-Event-ID")?),
            _ => Query::of(request).since()?,
        };
        let follow = Follow {
            format: Format::EventStream,
            since,
        };
        let membership = self.hub.join(request.uri().path(), follow)?;
        Ok((event_stream(response), membership))
    }

    /// The history of a room as a JSON array.
    fn history(
        &self,
        request: &Request<Incoming>,
        response: Builder,
    ) -> Result<hyper::http::Result<Response<Body>>, Refusal> {
        let query = Query::of(request);
        let (since, limit) = (query.since()?, query.limit()?);
        let (batches, start) = self
            .hub
            .history(request.uri().path(), since)
            .unwrap_or_default();
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
        answering: impl Fn(Duration),
    ) -> Result<Published, Refusal> {
        let (head, body) = request.into_parts();
        let wait = Query(head.uri.query().unwrap_or_default()).wait()?;
        let body = self.read(body).await?;
        answering(wait.unwrap_or_default());
        let kind = kind_of(head.headers.get(header::CONTENT_TYPE), &body)?;

        let presence = self.hub.enter(head.uri.path())?;
        let mut draft = Draft::default();
        presence.plain().encode(kind, &body, &mut draft);
        let frames = draft.take().expect("it was encoded just now");
        let batch = presence.publish(frames).map_err(|_| JoinError::Sealed)?;
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

    async fn read(&self, body: Incoming) -> Result<Bytes, Refusal> {
        let limit = self.config.max_message_size.bytes();
        let too_big = || {
            let reason = format!("a message has at most {limit} bytes: see --max-message-size");
            Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, reason)
        };
        // Before the client is told to go on, if it waits for that.
        if body.size_hint().lower() > limit as u64 {
            return Err(too_big());
        }
        match Limited::new(body, limit).collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => Err(too_big()),
            Err(_) => Err(Refusal::bad("the body is malformed, or ends too early")),
        }
    }

    fn health(&self, method: &Method) -> hyper::http::Result<Response<Body>> {
        let builder = Response::builder();
        if !matches!(*method, Method::GET | Method::HEAD) {
            let refusal = Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "use GET");
            return refusal
                .with(header::ALLOW, "GET, HEAD")
                .into_response(builder);
        }
        if self.draining.is_cancelled() {
            return Refusal::unavailable("the server is shutting down").into_response(builder);
        }
        builder
            .header(header::CONTENT_TYPE, TEXT)
            .header(header::CONNECTION, "close")
            .body(whole("ok"))
    }
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
        let response = Response::builder();
        match &self.0 {
            None => response,
            Some(origin) => response
                .header(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin)
                .header(header::VARY, "Origin"),
        }
    }
}

/// Says what a web page may send that the browser asks for first (Fetch, section 3.3.2).
fn preflight(response: Builder) -> hyper::http::Result<Response<Body>> {
    response
        .status(StatusCode::NO_CONTENT)
        .header(header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST")
        .header(
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            "content-type, last-event-id",
        )
        .header(header::ACCESS_CONTROL_MAX_AGE, "600")
        .header(header::CONNECTION, "close")
        .body(whole(""))
}

/// The head of an event stream.
fn event_stream(response: Builder) -> Builder {
    response
        .header(header::CONTENT_TYPE, "text/event-stream")
        .header(header::CACHE_CONTROL, "no-store")
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

const TEXT: &str = "text/plain; charset=utf-8";

/// Whether a history begins right behind the id that was asked for.
const RESUMED: &str = "wscast-resumed";

/// What somebody wants who asks for a room with GET.
#[derive(Debug, PartialEq, Eq)]
enum Want {
    WebSocket,
    Events,
    History,
    Page,
}

fn wants(request: &Request<Incoming>) -> Want {
    let headers = request.headers();
    if has_token(headers, header::UPGRADE, "websocket") {
        Want::WebSocket
    } else if has_token(headers, header::ACCEPT, "text/event-stream") {
        Want::Events
    } else if Query::of(request).get("history").is_some() {
        Want::History
    } else {
        Want::Page
    }
}

fn is_preflight(headers: &HeaderMap) -> bool {
    headers.contains_key(header::ORIGIN)
        && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// The host that a request is for (RFC 9112, section 3.2).
fn host_of(request: &Request<Incoming>) -> Result<&str, Refusal> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().ok(),
        (None, _) if request.version() < Version::HTTP_11 => Some(""),
        _ => None,
    };
    let host = host.ok_or_else(|| Refusal::bad("a request names one Host"))?;
    Ok(request.uri().authority().map_or(host, |it| it.as_str()))
}

/// Whether `path` may name a room.
fn check_path(path: &str) -> Result<(), Refusal> {
    if path == METRICS {
        let reason = "this path is reserved, and no room";
        return Err(Refusal::new(StatusCode::NOT_FOUND, reason));
    }
    if !path.starts_with('/') {
        return Err(Refusal::bad("a path begins with /"));
    }
    if path.len() > ROOM_NAME_MAX {
        let reason = "the name of a room has at most 256 bytes";
        return Err(Refusal::new(StatusCode::URI_TOO_LONG, reason));
    }
    Ok(())
}

/// Whether a body that is a message is text or binary, by its type and, where that does not say, by
/// itself.
fn kind_of(content_type: Option<&HeaderValue>, body: &[u8]) -> Result<Kind, Refusal> {
    let name = content_type.and_then(|it| it.to_str().ok());
    let name = name.and_then(|it| it.split(';').next()).unwrap_or_default();
    let name = name.trim().to_ascii_lowercase();
    let is_text = std::str::from_utf8(body).is_ok();
    if name == "application/octet-stream" {
        return Ok(Kind::Binary);
    }
    let says_text =
        name.starts_with("text/") || name == "application/json" || name.ends_with("+json");
    match (says_text, is_text) {
        (_, true) => Ok(Kind::Text),
        (false, false) => Ok(Kind::Binary),
        (true, false) => Err(Refusal::bad(
            "the text is not UTF-8: send it so, or as application/octet-stream",
        )),
    }
}

/// The query of a request: `since`, `limit`, `wait`, `timeout`, `history`; others are ignored.
struct Query<'a>(&'a str);

impl<'a> Query<'a> {
    fn of(request: &'a Request<Incoming>) -> Self {
        Self(request.uri().query().unwrap_or_default())
    }

    fn get(&self, name: &str) -> Option<Cow<'a, str>> {
        form_urlencoded::parse(self.0.as_bytes())
            .find(|(it, _)| it == name)
            .map(|(_, value)| value)
    }

    /// The last message that the client has.
    fn since(&self) -> Result<Option<MessageId>, Refusal> {
        let since = self.get("since");
        since.map(|id| parse_id(&id, "since")).transpose()
    }

    /// How many messages it wants at most.
    fn limit(&self) -> Result<usize, Refusal> {
        match self.get("limit").map(|limit| limit.parse()) {
            None => Ok(usize::MAX),
            Some(Ok(limit)) if limit > 0 => Ok(limit),
            Some(_) => Err(Refusal::bad("limit is not a number from 1")),
        }
    }

    /// How long it waits for receipts, if it does.
    fn wait(&self) -> Result<Option<Duration>, Refusal> {
        match self.get("wait").as_deref() {
            None => return Ok(None),
            Some("delivered") => {}
            Some(_) => return Err(Refusal::bad("wait can be delivered, and nothing else")),
        }
        let Some(timeout) = self.get("timeout") else {
            return Ok(Some(RECEIPT_WAIT));
        };
        match timeout.parse::<Time>() {
            Ok(time) if time.get() <= RECEIPT_WAIT_MAX => Ok(Some(time.get())),
            _ => Err(Refusal::bad(
                "timeout is not a time of at most a minute: write seconds (5) or a unit (500ms)",
            )),
        }
    }
}

fn parse_id(id: &str, name: &str) -> Result<MessageId, Refusal> {
    id.parse()
        .map_err(|error| Refusal::bad(format!("{name}: {error}")))
}

/// Checks an opening handshake (RFC 6455, section 4.2.1); returns what `Sec-WebSocket-Accept` has to
/// say.
fn check_handshake(request: &Request<Incoming>) -> Result<String, Refusal> {
    let headers = request.headers();
    if request.version() != Version::HTTP_11 {
        return Err(Refusal::bad("a WebSocket handshake needs HTTP/1.1"));
    }
    if !has_token(headers, header::CONNECTION, "upgrade") {
        return Err(Refusal::bad(
            "a WebSocket handshake needs the header Connection: Upgrade",
        ));
    }
    if !request.body().is_end_stream() {
        return Err(Refusal::bad("a WebSocket handshake has no body"));
    }
    if headers
        .get(header::SEC_WEBSOCKET_VERSION)
        .is_none_or(|version| version != "13")
    {
        return Err(
            Refusal::new(StatusCode::UPGRADE_REQUIRED, "use WebSocket version 13")
                .with(header::SEC_WEBSOCKET_VERSION, "13"),
        );
    }
    let mut keys = headers.get_all(header::SEC_WEBSOCKET_KEY).iter();
    let (Some(key), None) = (keys.next(), keys.next()) else {
        return Err(Refusal::bad(
            "a WebSocket handshake needs one Sec-WebSocket-Key",
        ));
    };
    if BASE64.decode(key.as_bytes()).map_or(0, |nonce| nonce.len()) != 16 {
        return Err(Refusal::bad("Sec-WebSocket-Key must be 16 bytes in base64"));
    }
    Ok(derive_accept_key(key.as_bytes()))
}

/// The tokens of a header that is a list of them, without their parameters.
fn tokens(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|it| it.split(';').next())
        .map(str::trim)
}

/// Whether a header that is a list of tokens has `token` among them, in any case.
fn has_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    tokens(headers, name).any(|it| it.eq_ignore_ascii_case(token))
}

/// A request that is not granted, with the reason in one line.
struct Refusal {
    status: StatusCode,
    reason: Cow<'static, str>,
    header: Option<(HeaderName, &'static str)>,
}

impl Refusal {
    fn new(status: StatusCode, reason: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            reason: reason.into(),
            header: None,
        }
    }

    fn bad(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, reason)
    }

    fn unavailable(reason: &'static str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, reason).with(header::RETRY_AFTER, "1")
    }

    fn with(self, name: HeaderName, value: &'static str) -> Self {
        Self {
            header: Some((name, value)),
            ..self
        }
    }

    fn into_response(self, builder: Builder) -> hyper::http::Result<Response<Body>> {
        let mut response = builder
            .status(self.status)
            .header(header::CONTENT_TYPE, TEXT)
            .header(NO_SNIFFING.0, NO_SNIFFING.1)
            .header(header::CONNECTION, "close");
        if let Some((name, value)) = self.header {
            response = response.header(name, value);
        }
        response.body(whole(format!("{}\n", self.reason)))
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
