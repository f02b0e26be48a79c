//! `OPTIONS`, and what a page of another origin may read and send (Fetch, section 3.3).

use hyper::header::{self, HeaderName, HeaderValue};
use hyper::http::response::Builder;
use hyper::{Response, StatusCode};

/// The origin that may read the answer, where a web page asks (Fetch, section 3.3).
#[derive(Debug)]
pub struct Cors(pub Option<HeaderValue>);

impl Cors {
    /// A response that it may read.
    pub fn response(&self) -> Builder {
        let headers = self.headers().into_iter();
        headers.fold(Response::builder(), |response, (name, value)| {
            response.header(name, value)
        })
    }

    /// What says so.
    pub fn headers(&self) -> Vec<(HeaderName, HeaderValue)> {
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
pub fn options(response: Builder, allowed: &'static str) -> Builder {
    response
        .status(StatusCode::NO_CONTENT)
        .header(header::ALLOW, allowed)
        .header(header::CONNECTION, "close")
}

/// Says what a web page may send that the browser asks for first (Fetch, section 3.3.2).
pub fn preflight(response: Builder) -> Builder {
    response
        .header(header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST")
        .header(
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            "content-type, idempotency-key, last-event-id, if-match",
        )
        .header(header::ACCESS_CONTROL_MAX_AGE, "600")
}
