//! Bodies of responses, and their types.

use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::header::{self, HeaderName};
use hyper::http::response::Builder;
use hyper::{Response, http};

/// The body of a response.
pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A body that is complete.
pub(crate) fn whole(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).boxed_unsync()
}

/// Browsers must not take a body for another type, such as a page.
pub(crate) const NO_SNIFFING: (HeaderName, &str) = (header::X_CONTENT_TYPE_OPTIONS, "nosniff");

/// The type of a plain text body.
pub(crate) const TEXT: &str = "text/plain; charset=utf-8";

/// A JSON response that is not to be cached.
///
/// # Errors
/// Those of `builder`.
pub(crate) fn respond_json(builder: Builder, body: Body) -> http::Result<Response<Body>> {
    builder
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CACHE_CONTROL, "no-store")
        .header(NO_SNIFFING.0, NO_SNIFFING.1)
        .header(header::CONNECTION, "close")
        .body(body)
}
