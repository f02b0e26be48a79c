//! Any bytes are requests, or are refused in one line; a room has one name.

use std::convert::Infallible;
use std::future::ready;

use futures_util::FutureExt;
use http_body_util::Empty;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request as HyperRequest, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{join, sink};

use super::admission;
use crate::http::content_type::Content;
use crate::http::head::{HEAD_MAX, explain};
use crate::http::refusal::Refusal;
use crate::http::request::{Request, Resource};
use crate::message::Kind;
use crate::protocol::handshake;
use crate::room::RoomName;
use crate::room::name::NotARoom;

/// Checks the input as what a peer sends on a new connection, and as a path.
pub fn request(input: &[u8]) {
    if let Ok(path) = str::from_utf8(input) {
        check_path(path);
    }
    let service = service_fn(|request: HyperRequest<Incoming>| {
        let (head, body) = request.into_parts();
        check_path(head.uri.path());
        check_request(&Request::new(head, &body), input);
        ready(Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())))
    });
    let stream = TokioIo::new(join(input, sink()));
    let connection = http1::Builder::new()
        .max_buf_size(HEAD_MAX)
        .half_close(true)
        .header_read_timeout(None)
        .serve_connection(stream, service);
    // A body that nothing reads leaves it waiting.
    connection.now_or_never();
    for is_too_large in [false, true] {
        check_refusal(&explain(input, is_too_large));
    }
}

fn check_request(request: &Request, body: &[u8]) {
    let query = &request.query;
    let host = accepted(request.host()).flatten();
    accepted(admission(true).check(&request.headers, host.as_ref()));
    accepted(handshake::check(
        request.version,
        &request.headers,
        request.has_body,
    ));
    let ids = [request.since(), query.id("before")].map(accepted);
    for id in ids.into_iter().flatten().flatten() {
        assert_eq!(id.to_string().parse(), Ok(id));
    }
    assert!(accepted(query.limit()).flatten() != Some(0));
    let wait = accepted(query.wait()).flatten();
    assert!(wait.is_none_or(|it| it.as_secs() <= 60));
    if let Some(content) = accepted(Content::of(&request.headers))
        && let Some((Kind::Text, text)) = accepted(content.message(body))
    {
        assert!(str::from_utf8(&text).is_ok());
    }
    if let Resource::Room(Err(error)) = request.resource {
        check_refusal(&error.into());
    }
}

/// The value; a refusal is checked.
fn accepted<T>(result: Result<T, impl Into<Refusal>>) -> Option<T> {
    result.map_err(|it| check_refusal(&it.into())).ok()
}

fn check_refusal(refusal: &Refusal) {
    assert!(refusal.status().is_client_error() || refusal.status().is_server_error());
    assert!(!refusal.reason().contains(char::is_control));
    assert!(refusal.reason().len() < 1024);
}

/// Reserved paths; those that end with a slash stand for everything below them, too.
const RESERVED: [&str; 10] = [
    "/-/",
    "/.well-known/",
    "/socket.io/",
    "/healthz",
    "/livez",
    "/readyz",
    "/health",
    "/metrics",
    "/favicon.ico",
    "/robots.txt",
];

/// Checks that a path names the same room in any spelling, or is refused in any.
fn check_path(path: &str) {
    let parsed = path.parse::<RoomName>();
    assert_eq!(path.starts_with('/'), parsed != Err(NotARoom::NoPath));
    let plain = unescaped(path.trim_end_matches('/'));
    let is_reserved = RESERVED.iter().any(|it| match it.strip_suffix('/') {
        Some(root) => plain == root.as_bytes() || plain.starts_with(it.as_bytes()),
        None => plain == it.as_bytes(),
    });
    if parsed != Err(NotARoom::TooLong) {
        assert_eq!(is_reserved, matches!(parsed, Err(NotARoom::Reserved(_))));
    }
    let Ok(name) = parsed else { return };
    assert!(name.starts_with('/') && name.len() <= 1024);
    assert!(name.bytes().all(|it| it.is_ascii_graphic()));
    assert!(&*name == "/" || !name.ends_with('/'));
    let escaped: String = name
        .split_inclusive('%')
        .enumerate()
        .flat_map(|(index, part)| {
            // The digits of an escape stay.
            let kept = if index == 0 { 0 } else { 2 };
            let (digits, rest) = part.split_at(kept);
            let rest = rest.chars().map(|it| match it {
                'a'..='z' | '0'..='9' => format!("%{:02x}", u32::from(it)),
                it => it.into(),
            });
            [digits.to_lowercase()].into_iter().chain(rest)
        })
        .collect();
    for spelling in [&*name, &escaped, &format!("{escaped}//")] {
        assert_eq!(spelling.parse().as_ref(), Ok(&name));
    }
}

/// `path` without the escapes of characters that need none.
fn unescaped(path: &str) -> Vec<u8> {
    let mut plain = Vec::new();
    let mut rest = path.as_bytes();
    while let Some((byte, behind)) = rest.split_first() {
        let digits = behind.get(..2).and_then(|it| str::from_utf8(it).ok());
        let digits = digits.filter(|it| *byte == b'%' && !it.starts_with('+'));
        let escaped = digits.and_then(|it| u8::from_str_radix(it, 16).ok());
        let needs_none = |it: &u8| it.is_ascii_alphanumeric() || b"-._~".contains(it);
        match escaped.filter(needs_none) {
            Some(escaped) => {
                plain.push(escaped);
                rest = &behind[2..];
            }
            None => {
                plain.push(*byte);
                rest = behind;
            }
        }
    }
    plain
}
