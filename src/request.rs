//! What a request says: what it wants, from where, and what it brings.

use std::borrow::Cow;
use std::time::Duration;

use data_encoding::BASE64;
use hyper::body::{Body as _, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, StatusCode, Version};
use tungstenite::handshake::derive_accept_key;

use crate::config::Time;
use crate::message::{Kind, MessageId};
use crate::refusal::Refusal;
use crate::room_name::{NotARoom, RoomName};

/// How long somebody who publishes may wait for receipts, and does where nothing else is said.
const RECEIPT_WAIT_MAX: Duration = Duration::from_secs(60);
const RECEIPT_WAIT: Duration = Duration::from_secs(10);

/// What somebody wants who asks for a room with GET.
#[derive(Debug, PartialEq, Eq)]
pub enum Want {
    /// A WebSocket.
    WebSocket,
    /// Server-Sent Events.
    Events,
    /// What the room remembers.
    History,
    /// The client page.
    Page,
}

/// What a request with GET or HEAD is for.
pub fn wants(request: &Request<Incoming>) -> Want {
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

/// Whether a browser asks if a web page may send what it wants to (Fetch, section 3.3.2).
pub fn is_preflight(headers: &HeaderMap) -> bool {
    headers.contains_key(header::ORIGIN)
        && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// The host that a request is for (RFC 9112, section 3.2).
///
/// # Errors
/// A [`Refusal`].
pub fn host_of(request: &Request<Incoming>) -> Result<&str, Refusal> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().ok(),
        (None, _) if request.version() < Version::HTTP_11 => Some(""),
        _ => None,
    };
    let host = host.ok_or_else(|| Refusal::bad("a request names one Host"))?;
    Ok(request.uri().authority().map_or(host, |it| it.as_str()))
}

/// The room that `path` names.
///
/// # Errors
/// A [`Refusal`].
pub fn room_of(path: &str) -> Result<RoomName, Refusal> {
    path.parse().map_err(|error: NotARoom| {
        let status = match error {
            NotARoom::NoPath => StatusCode::BAD_REQUEST,
            NotARoom::TooLong => StatusCode::URI_TOO_LONG,
            NotARoom::Reserved(_) => StatusCode::NOT_FOUND,
        };
        Refusal::new(status, error.to_string())
    })
}

/// Whether a body that is a message is text or binary, by its type and, where that does not say, by
/// itself.
///
/// # Errors
/// A [`Refusal`].
pub fn kind_of(content_type: Option<&HeaderValue>, body: &[u8]) -> Result<Kind, Refusal> {
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
#[derive(Debug)]
pub struct Query<'a>(pub &'a str);

impl<'a> Query<'a> {
    /// That of `request`.
    pub fn of(request: &'a Request<Incoming>) -> Self {
        Self(request.uri().query().unwrap_or_default())
    }

    /// What it says of `name`.
    pub fn get(&self, name: &str) -> Option<Cow<'a, str>> {
        form_urlencoded::parse(self.0.as_bytes())
            .find(|(it, _)| it == name)
            .map(|(_, value)| value)
    }

    /// The last message that the client has.
    ///
    /// # Errors
    /// A [`Refusal`].
    pub fn since(&self) -> Result<Option<MessageId>, Refusal> {
        let since = self.get("since");
        since.map(|id| parse_id(&id, "since")).transpose()
    }

    /// How many messages it wants at most.
    ///
    /// # Errors
    /// A [`Refusal`].
    pub fn limit(&self) -> Result<usize, Refusal> {
        match self.get("limit").map(|limit| limit.parse()) {
            None => Ok(usize::MAX),
            Some(Ok(limit)) if limit > 0 => Ok(limit),
            Some(_) => Err(Refusal::bad("limit is not a number from 1")),
        }
    }

    /// How long it waits for receipts, if it does.
    ///
    /// # Errors
    /// A [`Refusal`].
    pub fn wait(&self) -> Result<Option<Duration>, Refusal> {
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

/// Reads an id out of what a request calls `name`.
///
/// # Errors
/// A [`Refusal`] where it is none.
pub fn parse_id(id: &str, name: &str) -> Result<MessageId, Refusal> {
    id.parse()
        .map_err(|error| Refusal::bad(format!("{name}: {error}")))
}

/// Checks an opening handshake (RFC 6455, section 4.2.1); returns what `Sec-WebSocket-Accept` has to
/// say.
///
/// # Errors
/// A [`Refusal`].
pub fn check_handshake(request: &Request<Incoming>) -> Result<String, Refusal> {
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
pub fn tokens(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|it| it.split(';').next())
        .map(str::trim)
}

/// Whether a header that is a list of tokens has `token` among them, in any case.
pub fn has_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    tokens(headers, name).any(|it| it.eq_ignore_ascii_case(token))
}
