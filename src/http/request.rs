//! A request, parsed: the resource, the host, the room and the query.

use std::borrow::Cow;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Request, StatusCode, Version};

use super::refusal::Refusal;
use crate::config::{Host, Time};
use crate::excerpt::excerpt;
use crate::message::MessageId;
use crate::protocol::handshake::has_token;
use crate::room::name::{NotARoom, RoomName};

/// How long a POST may wait for receipts, and how long it waits without `timeout`.
const RECEIPT_WAIT_MAX: Duration = Duration::from_secs(60);
const RECEIPT_WAIT: Duration = Duration::from_secs(10);

/// What a GET of a room's path is for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Resource {
    /// A WebSocket.
    WebSocket,
    /// Server-Sent Events.
    Events,
    /// The history of the room.
    History,
    /// The client page.
    Page,
}

/// The resource that a GET or HEAD is for.
pub(crate) fn resource_of(request: &Request<Incoming>) -> Resource {
    let headers = request.headers();
    if has_token(headers, header::UPGRADE, "websocket") {
        Resource::WebSocket
    } else if has_token(headers, header::ACCEPT, "text/event-stream") {
        Resource::Events
    } else if Query::of(request).get("history").is_some() {
        Resource::History
    } else {
        Resource::Page
    }
}

/// Whether a browser asks if a web page may send a request (Fetch, section 3.3.2).
pub(crate) fn is_preflight(headers: &HeaderMap) -> bool {
    headers.contains_key(header::ORIGIN)
        && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// The host that a request is for (RFC 9112, section 3.2); `None` if it names none.
///
/// # Errors
/// A [`Refusal`] where `Host` is missing, repeated or malformed.
pub(crate) fn host_of(request: &Request<Incoming>) -> Result<Option<Host>, Refusal> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().ok(),
        (None, _) if request.version() < Version::HTTP_11 => Some(""),
        _ => None,
    };
    let host = host.ok_or_else(|| Refusal::bad("a request names one Host"))?;
    match request.uri().authority().map_or(host, |it| it.as_str()) {
        "" => Ok(None),
        host => host.parse().map(Some).map_err(|()| {
            let host = excerpt(host.as_bytes());
            Refusal::bad(format!("Host is not a name or an address: {host:?}"))
        }),
    }
}

/// The room that `path` names.
///
/// # Errors
/// A [`Refusal`] of a path that names no room.
pub(crate) fn room_of(path: &str) -> Result<RoomName, Refusal> {
    path.parse().map_err(|error: NotARoom| {
        let status = match error {
            NotARoom::NoPath => StatusCode::BAD_REQUEST,
            NotARoom::TooLong => StatusCode::URI_TOO_LONG,
            NotARoom::Reserved(_) => StatusCode::NOT_FOUND,
        };
        Refusal::new(status, error.to_string())
    })
}

/// The query of a request: `since`, `limit`, `wait`, `timeout`, `history`; others are ignored.
#[derive(Debug)]
pub(crate) struct Query<'a>(pub &'a str);

impl<'a> Query<'a> {
    /// That of `request`.
    pub(crate) fn of(request: &'a Request<Incoming>) -> Self {
        Self(request.uri().query().unwrap_or_default())
    }

    /// The value of `name`.
    pub(crate) fn get(&self, name: &str) -> Option<Cow<'a, str>> {
        form_urlencoded::parse(self.0.as_bytes())
            .find(|(it, _)| it == name)
            .map(|(_, value)| value)
    }

    /// The most messages to return.
    ///
    /// # Errors
    /// A [`Refusal`] where `limit` is not a number from 1.
    pub(crate) fn limit(&self) -> Result<usize, Refusal> {
        match self.get("limit").map(|limit| limit.parse()) {
            None => Ok(usize::MAX),
            Some(Ok(limit)) if limit > 0 => Ok(limit),
            Some(_) => Err(Refusal::bad("limit is not a number from 1")),
        }
    }

    /// How long to wait for receipts, if at all.
    ///
    /// # Errors
    /// A [`Refusal`] of an unknown `wait`, or of a `timeout` that is malformed or too long.
    pub(crate) fn wait(&self) -> Result<Option<Duration>, Refusal> {
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

/// The last message that the client has: `Last-Event-ID`, which an `EventSource` sends when it
/// reconnects, or else `since` of the query.
///
/// # Errors
/// A [`Refusal`] where `since` is not an id.
pub(crate) fn since(request: &Request<Incoming>) -> Result<Option<MessageId>, Refusal> {
    let last = request.headers().get("last-event-id");
    let last = last.map(HeaderValue::as_bytes).filter(|it| !it.is_empty());
    if let Some(last) = last {
        // An `EventSource` never reconnects after a 400.
        let id = str::from_utf8(last).ok().and_then(|it| it.parse().ok());
        return Ok(Some(id.unwrap_or(MessageId::OF_ANOTHER_LOG)));
    }
    let since = Query::of(request).get("since").filter(|it| !it.is_empty());
    let since = since.map(|id| id.parse());
    since
        .transpose()
        .map_err(|error| Refusal::bad(format!("since: {error}")))
}
