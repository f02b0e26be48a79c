//! The client page and its headers.

use std::sync::LazyLock;

use data_encoding::{BASE64, HEXLOWER};
use hyper::header::{self, HeaderMap};
use hyper::{Response, StatusCode};
use sha2::{Digest, Sha256};

use super::response::{Body, NO_SNIFFING, respond, whole};

/// The client page; it also works when opened as a file.
const PAGE: &str = include_str!("../../static/client.html");

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

/// Changes with the page and with [`POLICY`].
static ETAG: LazyLock<String> = LazyLock::new(|| {
    let hash = Sha256::new().chain_update(PAGE).chain_update(&*POLICY);
    format!("\"{}\"", HEXLOWER.encode(&hash.finalize()[..8]))
});

/// The hash of the page's only element of that name, as a policy lists it (CSP Level 3, section
/// 2.3.1).
fn source_hash(element: &str) -> String {
    let (_, rest) = PAGE
        .split_once(&format!("<{element}>"))
        .expect("the page has one");
    let (source, _) = rest
        .split_once(&format!("</{element}>"))
        .expect("it has an end");
    // As browsers normalize it, whatever the line ends of the source file are.
    let source = source.replace("\r\n", "\n");
    format!("sha256-{}", BASE64.encode(&Sha256::digest(source)))
}

/// The answer to a request for the page: 200, or 304 where `If-None-Match` names what would be sent
/// (RFC 9110, section 13.1.2).
pub(crate) fn respond_page(request: &HeaderMap) -> Response<Body> {
    let fields = [
        (header::ETAG, &**ETAG),
        // Stored, and revalidated each time: a new server may have a new page.
        (header::CACHE_CONTROL, "no-cache"),
        (header::VARY, "Accept"),
    ];
    if is_known(request) {
        return respond(StatusCode::NOT_MODIFIED, fields, whole(""));
    }
    let of_page = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, &**POLICY),
        NO_SNIFFING,
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    respond(
        StatusCode::OK,
        fields.into_iter().chain(of_page),
        whole(PAGE),
    )
}

fn is_known(request: &HeaderMap) -> bool {
    let known = request.get_all(header::IF_NONE_MATCH).iter();
    known
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .any(|tag| tag == "*" || tag.trim_start_matches("W/") == *ETAG)
}
