//! Refusals: 4xx and 5xx answers, each with its reason in one line.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use httpdate::fmt_http_date;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};

use super::response::{Body, Field, NO_SNIFFING, NO_STORE, TEXT, respond, whole};
use crate::admission::{Forbidden, Refused};
use crate::client::budget::NoSpace;
use crate::hub::{JoinError, PublishError};
use crate::message::Unavailable;
use crate::protocol::handshake::HandshakeError;
use crate::room::name::NotARoom;

/// A 4xx or 5xx answer.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    reason: Cow<'static, str>,
    fields: Vec<Field>,
    /// When the same request may succeed.
    retry_after: Option<Duration>,
}

impl Refusal {
    /// A refusal with this status and reason. Text of a peer in the reason has to be an excerpt, and
    /// escaped.
    pub(crate) fn new(status: StatusCode, reason: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            reason: reason.into(),
            fields: Vec::new(),
            retry_after: None,
        }
    }

    /// 400: the request is malformed.
    pub(crate) fn bad(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, reason)
    }

    /// 405: the resource has only these methods.
    pub(crate) fn method(allowed: &'static str, reason: &'static str) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, reason).with(header::ALLOW, allowed)
    }

    /// 408: the request stands still.
    pub(crate) fn timed_out() -> Self {
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            "the request took too long: see --open-timeout",
        )
    }

    /// 501: the transfer coding is not supported (RFC 9112, section 6.1).
    pub(crate) fn transfer_coding() -> Self {
        let reason = "of the transfer codings only chunked is understood";
        Self::new(StatusCode::NOT_IMPLEMENTED, reason)
    }

    /// 503: try again in a second.
    pub(crate) fn unavailable(reason: impl Into<Cow<'static, str>>) -> Self {
        Self {
            retry_after: Some(Duration::from_secs(1)),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, reason)
        }
    }

    /// 503: `--max-connections` is reached.
    pub(crate) fn full() -> Self {
        Self::unavailable("no place left (--max-connections), try again later")
    }

    /// 503: the server drains.
    pub(crate) fn draining() -> Self {
        Self::unavailable("the server is shutting down")
    }

    /// The same with one more header field.
    pub(crate) fn with(mut self, name: HeaderName, value: &'static str) -> Self {
        self.fields.push((name, value));
        self
    }

    /// The status.
    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    /// The reason, in one line.
    pub(crate) fn reason(&self) -> &str {
        &self.reason
    }

    /// When the same request may succeed, if it may at all.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// It as a response.
    pub(crate) fn response(&self) -> Response<Body> {
        // Without `no-store`, caches may store some statuses.
        let fields = [TEXT, NO_STORE, NO_SNIFFING];
        let fields = fields.into_iter().chain(self.fields.clone());
        let mut response = respond(self.status, fields, whole(format!("{}\n", self.reason)));
        if let Some(time) = self.retry_after {
            // In seconds (RFC 9110, section 10.2.3).
            let seconds = HeaderValue::from(time.as_secs_f64().ceil() as u64);
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        response
    }

    /// It as the bytes of a last response, for a socket that hyper does not write to.
    pub(crate) fn last_response(&self, has_body: bool) -> Vec<u8> {
        let line = format!("{}\n", self.reason);
        let mut response = self.response();
        let fields = response.headers_mut();
        fields.insert(header::CONTENT_LENGTH, line.len().into());
        fields.insert(header::CONNECTION, HeaderValue::from_static("close"));
        let mut bytes = head_of(&response);
        if has_body {
            bytes.extend_from_slice(line.as_bytes());
        }
        bytes
    }
}

/// The bytes of the head of `response`, for a socket that hyper does not write to (RFC 9112, section
/// 4).
pub(super) fn head_of<B>(response: &Response<B>) -> Vec<u8> {
    let date = fmt_http_date(SystemTime::now());
    let mut head = format!("HTTP/1.1 {}\r\ndate: {date}\r\n", response.status()).into_bytes();
    for (name, value) in response.headers() {
        head.extend_from_slice(name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    head
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        Self::new(StatusCode::FORBIDDEN, refused.to_string())
    }
}

impl From<Forbidden> for Refusal {
    fn from(forbidden: Forbidden) -> Self {
        Self::new(StatusCode::FORBIDDEN, forbidden.reason())
    }
}

impl From<NotARoom> for Refusal {
    fn from(error: NotARoom) -> Self {
        let status = match error {
            NotARoom::NoPath => StatusCode::BAD_REQUEST,
            NotARoom::TooLong => StatusCode::URI_TOO_LONG,
            NotARoom::Reserved(_) => StatusCode::NOT_FOUND,
        };
        Self::new(status, error.to_string())
    }
}

impl From<HandshakeError> for Refusal {
    fn from(error: HandshakeError) -> Self {
        match error {
            HandshakeError::Version => Self::new(StatusCode::UPGRADE_REQUIRED, error.to_string())
                .with(header::SEC_WEBSOCKET_VERSION, "13")
                // RFC 9110, section 15.5.22.
                .with(header::UPGRADE, "websocket")
                .with(header::CONNECTION, "Upgrade"),
            HandshakeError::Malformed(reason) => Self::bad(reason),
        }
    }
}

impl From<NoSpace> for Refusal {
    fn from(cut: NoSpace) -> Self {
        Self::unavailable(cut.to_string())
    }
}

impl From<JoinError> for Refusal {
    fn from(error: JoinError) -> Self {
        match error {
            JoinError::Full => {
                Self::unavailable("no place for another room (--max-rooms), try again later")
            }
            JoinError::Sealed => Self::draining(),
            JoinError::Unavailable(why) => why.into(),
        }
    }
}

impl From<PublishError> for Refusal {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Sealed => Self::draining(),
            PublishError::Unavailable(why) => why.into(),
        }
    }
}

impl From<Unavailable> for Refusal {
    fn from(why: Unavailable) -> Self {
        Self {
            retry_after: Some(why.retry_after),
            ..Self::unavailable(format!("{why}, try again later"))
        }
    }
}
