//! Refusals: 4xx and 5xx answers.

use std::borrow::Cow;

use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};

use super::response::{Body, NO_SNIFFING, TEXT, whole};

/// A 4xx or 5xx answer with the reason in one line.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    reason: Cow<'static, str>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Refusal {
    /// A refusal with this status and reason. Text of a peer in the reason has to be an excerpt, and
    /// escaped.
    pub(crate) fn new(status: StatusCode, reason: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            reason: reason.into(),
            headers: Vec::new(),
        }
    }

    /// 400: the request is malformed.
    pub(crate) fn bad(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, reason)
    }

    /// 501: the transfer coding is not supported (RFC 9112, section 6.1).
    pub(crate) fn transfer_coding() -> Self {
        let reason = "of the transfer codings only chunked is understood";
        Self::new(StatusCode::NOT_IMPLEMENTED, reason)
    }

    /// 503: try again in a second.
    pub(crate) fn unavailable(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, reason).with(header::RETRY_AFTER, "1")
    }

    /// The same with one more header field.
    pub(crate) fn with(self, name: HeaderName, value: &'static str) -> Self {
        self.with_all([(name, HeaderValue::from_static(value))])
    }

    /// The same with more header fields.
    pub(crate) fn with_all(
        mut self,
        headers: impl IntoIterator<Item = (HeaderName, HeaderValue)>,
    ) -> Self {
        self.headers.extend(headers);
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

    /// The body.
    pub(crate) fn line(&self) -> String {
        format!("{}\n", self.reason)
    }

    /// It as a response.
    ///
    /// # Errors
    /// Those of the builder, which valid header fields do not cause.
    pub(crate) fn response(&self) -> hyper::http::Result<Response<Body>> {
        let line = self.line();
        let mut response = Response::builder()
            .status(self.status)
            .header(header::CONTENT_TYPE, TEXT)
            .header(header::CONTENT_LENGTH, line.len())
            // Otherwise caches may store some statuses.
            .header(header::CACHE_CONTROL, "no-store")
            .header(NO_SNIFFING.0, NO_SNIFFING.1)
            .header(header::CONNECTION, "close");
        for (name, value) in &self.headers {
            response = response.header(name, value);
        }
        response.body(whole(line))
    }
}
