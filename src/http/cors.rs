//! `OPTIONS`, and what pages of other origins may read and send (Fetch, section 3.3).

use hyper::header::{self, HeaderName, HeaderValue};
use hyper::http::response::Builder;
use hyper::{Response, StatusCode};

/// The origin that may read the answer, if a web page sent the request (Fetch, section 3.3).
#[derive(Debug)]
pub(crate) struct Cors(pub(crate) Option<HeaderValue>);

impl Cors {
    /// A response that the origin may read.
    pub(crate) fn response(&self) -> Builder {
        let headers = self.headers().into_iter();
        headers.fold(Response::builder(), |response, (name, value)| {
            response.header(name, value)
        })
    }

    /// The header fields that allow the origin to read a response.
    pub(crate) fn headers(&self) -> Vec<(HeaderName, HeaderValue)> {
        let Some(origin) = &self.0 else {
            return Vec::new();
        };
        vec![
            (header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone()),
            (header::VARY, HeaderValue::from_static("Origin")),
        ]
    }
}

/// The answer to `OPTIONS`.
pub(crate) fn options(response: Builder, allowed: &'static str) -> Builder {
    response
        .status(StatusCode::NO_CONTENT)
        .header(header::ALLOW, allowed)
        .header(header::CONNECTION, "close")
}

/// Adds the answer to a preflight: what a web page may send (Fetch, section 3.3.2).
pub(crate) fn preflight(response: Builder) -> Builder {
    response
        .header(header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST")
        .header(
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            "content-type, idempotency-key, last-event-id, if-match",
        )
        .header(header::ACCESS_CONTROL_MAX_AGE, "600")
}
