//! A request that is not granted.

use std::borrow::Cow;

use hyper::header::{self, HeaderName};
use hyper::http::response::Builder;
use hyper::{Response, StatusCode};

use crate::page::{Body, NO_SNIFFING, whole};

/// A request that is not granted, with the reason in one line.
#[derive(Debug)]
pub struct Refusal {
    status: StatusCode,
    reason: Cow<'static, str>,
    header: Option<(HeaderName, &'static str)>,
}

impl Refusal {
    /// A refusal with this status and reason.
    pub fn new(status: StatusCode, reason: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            reason: reason.into(),
            header: None,
        }
    }

    /// 400: the request makes no sense.
    pub fn bad(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, reason)
    }

    /// 503: try again in a second.
    pub fn unavailable(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, reason).with(header::RETRY_AFTER, "1")
    }

    /// The same with one more header field.
    pub fn with(self, name: HeaderName, value: &'static str) -> Self {
        Self {
            header: Some((name, value)),
            ..self
        }
    }

    /// The response to it, which `builder` has begun.
    ///
    /// # Errors
    /// None that can happen.
    pub fn into_response(self, builder: Builder) -> hyper::http::Result<Response<Body>> {
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

/// The type of a body that people read.
pub const TEXT: &str = "text/plain; charset=utf-8";
