//! Bodies of responses, and their types.

use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;

/// The body of a response.
pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A body that is complete.
pub(crate) fn whole(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).boxed_unsync()
}

/// A header field that is known at compile time.
pub(crate) type Field = (HeaderName, &'static str);

/// Browsers must not take a body for another type, such as a page.
pub(crate) const NO_SNIFFING: Field = (header::X_CONTENT_TYPE_OPTIONS, "nosniff");

/// The answer is of this moment.
pub(crate) const NO_STORE: Field = (header::CACHE_CONTROL, "no-store");

/// A plain text body.
pub(crate) const TEXT: Field = (header::CONTENT_TYPE, "text/plain; charset=utf-8");

/// A response with these header fields.
pub(crate) fn respond(
    status: StatusCode,
    fields: impl IntoIterator<Item = Field>,
    body: Body,
) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    for (name, value) in fields {
        let value = HeaderValue::from_static(value);
        response.headers_mut().insert(name, value);
    }
    response
}

/// `value` in JSON, on a line.
pub(crate) fn to_json(value: &impl Serialize) -> String {
    let json = serde_json::to_string(value);
    json.expect("names are strings, and a String takes every write") + "\n"
}

/// A JSON response that is not to be cached.
pub(crate) fn respond_json(status: StatusCode, body: Body) -> Response<Body> {
    let json = (header::CONTENT_TYPE, "application/json");
    respond(status, [json, NO_STORE, NO_SNIFFING], body)
}
