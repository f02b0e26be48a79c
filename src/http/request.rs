//! A request, parsed once: what it asks for, of which host, and with which query.

use std::time::Duration;

use hyper::body::{Body as _, Incoming};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Version};

use super::client_module::ModuleFile;
use super::refusal::Refusal;
use crate::config::{Host, Time};
use crate::excerpt::excerpt;
use crate::message::{Key, MessageId, Name, NotAName};
use crate::protocol::handshake::has_token;
use crate::room::RoomName;
use crate::room::name::NotARoom;

/// How long a POST may wait for receipts, and how long it waits without `timeout`.
const RECEIPT_WAIT_MAX: Duration = Duration::from_secs(60);
const RECEIPT_WAIT: Duration = Duration::from_secs(10);

/// The head of a request.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) version: Version,
    pub(crate) resource: Resource,
    /// What a GET is for.
    pub(crate) wants: Wants,
    pub(crate) query: Query,
    pub(crate) headers: HeaderMap,
    /// Whether a body follows.
    pub(crate) has_body: bool,
    /// The authority of the target, where it has one (RFC 9112, section 3.2.2).
    authority: Option<String>,
}

/// What a path names.
#[derive(Debug)]
pub(crate) enum Resource {
    /// `/livez`: whether the process serves.
    Live,
    /// `/healthz`: whether the server takes new clients.
    Healthy,
    /// `/readyz`: whether it takes new clients and messages.
    Ready,
    /// `*`: the server as a whole, for OPTIONS alone.
    Server,
    /// A file of the client module.
    Module(ModuleFile),
    /// A room, if the path names one.
    Room(Result<RoomName, NotARoom>),
}

/// What a GET of a room's path is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wants {
    /// A WebSocket.
    WebSocket,
    /// The history of the room.
    History,
    /// The clients of the room.
    Clients,
    /// Server-Sent Events.
    Events,
    /// The client page.
    Page,
}

impl Request {
    /// Parses the head of a request.
    pub(crate) fn new(head: Parts, body: &Incoming) -> Self {
        let Parts {
            method,
            uri,
            version,
            headers,
            ..
        } = head;
        let resource = match uri.path() {
            "/livez" => Resource::Live,
            "/healthz" => Resource::Healthy,
            "/readyz" => Resource::Ready,
            "*" if method == Method::OPTIONS => Resource::Server,
            path => match ModuleFile::at(path) {
                Some(file) => Resource::Module(file),
                None => Resource::Room(path.parse()),
            },
        };
        let query = Query::parse(uri.query().unwrap_or_default());
        Self {
            method,
            version,
            resource,
            wants: wants(&headers, &query),
            query,
            headers,
            has_body: !body.is_end_stream(),
            authority: uri.authority().map(|it| it.as_str().to_owned()),
        }
    }

    /// The host that it is for (RFC 9112, section 3.2); `None` if it names none.
    ///
    /// # Errors
    /// A [`Refusal`] where `Host` is missing, repeated or malformed.
    pub(crate) fn host(&self) -> Result<Option<Host>, Refusal> {
        let mut hosts = self.headers.get_all(header::HOST).iter();
        let host = match (hosts.next(), hosts.next()) {
            (Some(host), None) => host.to_str().ok(),
            (None, _) if self.version < Version::HTTP_11 => Some(""),
            _ => None,
        };
        let host = host.ok_or_else(|| Refusal::bad("a request names one Host"))?;
        match self.authority.as_deref().unwrap_or(host) {
            "" => Ok(None),
            host => host.parse().map(Some).map_err(|()| {
                let host = excerpt(host.as_bytes());
                Refusal::bad(format!("Host is not a name or an address: {host:?}"))
            }),
        }
    }

    /// Whether it is answered with the page, or with a file of the client module, which are open to all.
    pub(crate) fn wants_page(&self) -> bool {
        match self.method {
            _ if matches!(self.resource, Resource::Module(_)) => true,
            Method::GET => self.wants == Wants::Page,
            Method::HEAD => matches!(self.wants, Wants::Page | Wants::WebSocket),
            _ => false,
        }
    }

    /// Whether a browser's `EventSource` sent it, as far as it can be known: it has a header field that
    /// browsers alone send.
    pub(crate) fn is_of_event_source(&self) -> bool {
        let by_browsers = ["sec-fetch-mode", "origin", "referer"];
        self.method == Method::GET
            && self.wants == Wants::Events
            && by_browsers.iter().any(|it| self.headers.contains_key(*it))
    }

    /// Whether a browser asks if a web page may send a request (Fetch, section 3.3.2).
    pub(crate) fn is_preflight(&self) -> bool {
        self.method == Method::OPTIONS
            && self.headers.contains_key(header::ORIGIN)
            && self
                .headers
                .contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
    }

    /// The key that makes a POST one of its own (draft-ietf-httpapi-idempotency-key-header).
    ///
    /// # Errors
    /// A [`Refusal`] where it is not a [`Key`], or there are several.
    pub(crate) fn idempotency_key(&self) -> Result<Option<Key>, Refusal> {
        let mut keys = self.headers.get_all("idempotency-key").iter();
        let Some(key) = keys.next() else {
            return Ok(None);
        };
        if keys.next().is_some() {
            return Err(Refusal::bad("a request has one Idempotency-Key"));
        }
        let key = Key::try_from(key.as_bytes());
        key.map(Some)
            .map_err(|error| Refusal::bad(error.to_string()))
    }

    /// The last message that the client has: `Last-Event-ID`, which an `EventSource` sends when it
    /// reconnects, or else `since` of the query.
    ///
    /// # Errors
    /// A [`Refusal`] where `since` is not an id.
    pub(crate) fn since(&self) -> Result<Option<MessageId>, Refusal> {
        let last = self.headers.get("last-event-id");
        let last = last.map(HeaderValue::as_bytes).filter(|it| !it.is_empty());
        if let Some(last) = last {
            // An `EventSource` never reconnects after a 400.
            let id = str::from_utf8(last).ok().and_then(|it| it.parse().ok());
            return Ok(Some(id.unwrap_or(MessageId::OF_ANOTHER_LOG)));
        }
        self.query.id("since")
    }
}

/// The first of what a request can be for.
fn wants(headers: &HeaderMap, query: &Query) -> Wants {
    if has_token(headers, header::UPGRADE, "websocket") {
        Wants::WebSocket
    } else if query.get("history").is_some() {
        Wants::History
    } else if query.has_clients() {
        Wants::Clients
    } else if has_token(headers, header::ACCEPT, "text/event-stream") {
        Wants::Events
    } else {
        Wants::Page
    }
}

/// The parameters of a query; unknown ones are ignored.
#[derive(Debug)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    fn parse(query: &str) -> Self {
        let pairs = form_urlencoded::parse(query.as_bytes());
        Self(pairs.into_owned().collect())
    }

    /// The first value of `name`.
    fn get(&self, name: &str) -> Option<&str> {
        let named = self.0.iter().find(|(it, _)| it == name);
        named.map(|(_, value)| &**value)
    }

    /// The id that `name` holds; an empty one is none.
    ///
    /// # Errors
    /// A [`Refusal`] where it is not an id.
    pub(crate) fn id(&self, name: &str) -> Result<Option<MessageId>, Refusal> {
        let id = self.get(name).filter(|it| !it.is_empty());
        let id = id.map(str::parse).transpose();
        id.map_err(|error| Refusal::bad(format!("{name}: {error}")))
    }

    /// What the client calls itself; an empty name is none.
    ///
    /// # Errors
    /// A [`Refusal`] where `name` is not a [`Name`].
    pub(crate) fn name(&self) -> Result<Option<Name>, Refusal> {
        let name = self.get("name").filter(|it| !it.is_empty());
        let name = name.map(str::parse).transpose();
        name.map_err(|error: NotAName| Refusal::bad(format!("name: {error}")))
    }

    /// Whether the client gets its own messages.
    ///
    /// # Errors
    /// A [`Refusal`] where `echo` is not `on` or `off`.
    pub(crate) fn echo(&self) -> Result<bool, Refusal> {
        match self.get("echo") {
            None | Some("on") => Ok(true),
            Some("off") => Ok(false),
            Some(_) => Err(Refusal::bad("echo can be on or off")),
        }
    }

    /// Whether it names clients.
    pub(crate) fn has_clients(&self) -> bool {
        self.get("clients").is_some()
    }

    /// The most messages to return.
    ///
    /// # Errors
    /// A [`Refusal`] where `limit` is not a number from 1.
    pub(crate) fn limit(&self) -> Result<Option<usize>, Refusal> {
        match self.get("limit").map(str::parse) {
            None => Ok(None),
            Some(Ok(limit)) if limit > 0 => Ok(Some(limit)),
            Some(_) => Err(Refusal::bad(
                "limit is not a number from 1: write how many messages, as in 100",
            )),
        }
    }

    /// How long to wait for receipts, if at all.
    ///
    /// # Errors
    /// A [`Refusal`] of an unknown `wait`, or of a `timeout` that is malformed or too long.
    pub(crate) fn wait(&self) -> Result<Option<Duration>, Refusal> {
        match self.get("wait") {
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
