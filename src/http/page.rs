//! The client page and its headers.

use std::sync::LazyLock;

use data_encoding::BASE64;
use hyper::Response;
use hyper::header::{self, HeaderMap};
use sha2::{Digest, Sha256};

use super::embedded::Embedded;
use super::response::Body;

/// The client page; it also works when opened as a file.
const SOURCE: &str = include_str!("../../static/client.html");

/// What the page may do: use its own style and script, but none that is injected, and connect to
/// WebSocket servers. (`'self'` does not cover `ws:` in every browser.)
static POLICY: LazyLock<String> = LazyLock::new(|| {
    format!(
        "default-src 'none'; style-src '{}'; script-src '{}'; connect-src 'self' ws: wss:; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        source_hash("style"),
        source_hash("script"),
    )
});

static PAGE: LazyLock<Embedded> = LazyLock::new(|| {
    let of_text = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, &**POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    Embedded::new(SOURCE, [(header::VARY, "Accept")], of_text)
});

/// The hash of the page's only element of that name, as a policy lists it (CSP Level 3, section
/// 2.3.1).
fn source_hash(element: &str) -> String {
    let (_, rest) = SOURCE
        .split_once(&format!("<{element}>"))
        .expect("the page has one");
    let (source, _) = rest
        .split_once(&format!("</{element}>"))
        .expect("it has an end");
    // As browsers normalize it, whatever the line ends of the source file are.
    let source = source.replace("\r\n", "\n");
    format!("sha256-{}", BASE64.encode(&Sha256::digest(source)))
}

/// The answer to a request for the page.
pub(crate) fn respond_page(request: &HeaderMap) -> Response<Body> {
    PAGE.respond(request)
}
