//! What responses have in common: bodies, and their types.

use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::header::{self, HeaderName};
use hyper::http::response::Builder;
use hyper::{Response, http};

/// What a response carries.
pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A body that is there already.
pub fn whole(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).boxed_unsync()
}

/// A body is what its type says, and never taken for a page.
pub const NO_SNIFFING: (HeaderName, &str) = (header::X_CONTENT_TYPE_OPTIONS, "nosniff");

/// The type of a body that people read.
pub const TEXT: &str = "text/plain; charset=utf-8";

/// A response that is JSON, and is not to be kept.
///
/// # Errors
/// Those of `builder`.
pub fn respond_json(builder: Builder, body: Body) -> http::Result<Response<Body>> {
    builder
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CACHE_CONTROL, "no-store")
        .header(NO_SNIFFING.0, NO_SNIFFING.1)
        .header(header::CONNECTION, "close")
        .body(body)
}
