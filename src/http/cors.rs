//! `OPTIONS`, and what pages of other origins may read and send (Fetch, section 3.3).

use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};

use super::response::{Body, respond, whole};

/// The origin that may read the answer, if a web page sent the request (Fetch, section 3.3).
#[derive(Debug, Default)]
pub(super) struct Cors(pub(super) Option<HeaderValue>);

impl Cors {
    /// Lets the origin read `response`.
    pub(super) fn add_to(self, response: &mut Response<Body>) {
        if let Some(origin) = self.0 {
            let fields = response.headers_mut();
            fields.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            fields.append(header::VARY, HeaderValue::from_static("Origin"));
        }
    }
}

/// The answer to `OPTIONS`.
pub(super) fn options(allowed: &'static str) -> Response<Body> {
    respond(
        StatusCode::NO_CONTENT,
        [(header::ALLOW, allowed)],
        whole(""),
    )
}

/// The answer to a preflight: what a web page may send (Fetch, section 3.3.2).
pub(super) fn preflight(allowed: &'static str) -> Response<Body> {
    let fields = [
        (header::ALLOW, allowed),
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST"),
        (
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            "authorization, content-type, idempotency-key, last-event-id, if-match",
        ),
        (header::ACCESS_CONTROL_MAX_AGE, "600"),
    ];
    respond(StatusCode::NO_CONTENT, fields, whole(""))
}
