//! The opening handshake (RFC 6455, section 4.2): key and version.
//!
//! tungstenite's own check takes `Upgrade` for one word instead of a list, and accepts a request with
//! two keys. So only the answer to the key comes from tungstenite.

use std::sync::LazyLock;

use data_encoding::{BASE64, Encoding};
use hyper::Version;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// Why a request is not an opening handshake.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HandshakeError {
    /// Its version is not 13.
    #[error("use WebSocket version 13")]
    Version,
    /// It is malformed, with the reason.
    #[error("{0}")]
    Malformed(&'static str),
}

/// The encoding of a key: base64, with any value in the unused bits at its end.
static KEY: LazyLock<Encoding> = LazyLock::new(|| {
    let mut base64 = BASE64.specification();
    base64.check_trailing_bits = false;
    base64.encoding().expect("base64 is an encoding")
});

/// Checks an opening handshake (RFC 6455, section 4.2.1); returns the value of
/// `Sec-WebSocket-Accept`.
///
/// # Errors
/// [`HandshakeError`].
pub(crate) fn check(
    version: Version,
    headers: &HeaderMap,
    has_body: bool,
) -> Result<HeaderValue, HandshakeError> {
    if version != Version::HTTP_11 {
        return Err(HandshakeError::Malformed(
            "a WebSocket handshake needs HTTP/1.1",
        ));
    }
    if !has_token(headers, header::CONNECTION, "upgrade") {
        return Err(HandshakeError::Malformed(
            "a WebSocket handshake needs the header Connection: Upgrade",
        ));
    }
    if has_body {
        return Err(HandshakeError::Malformed(
            "a WebSocket handshake has no body",
        ));
    }
    if headers
        .get(header::SEC_WEBSOCKET_VERSION)
        .is_none_or(|version| version != "13")
    {
        return Err(HandshakeError::Version);
    }
    let mut keys = headers.get_all(header::SEC_WEBSOCKET_KEY).iter();
    let (Some(key), None) = (keys.next(), keys.next()) else {
        return Err(HandshakeError::Malformed(
            "a WebSocket handshake needs one Sec-WebSocket-Key",
        ));
    };
    if KEY.decode(key.as_bytes()).map_or(0, |nonce| nonce.len()) != 16 {
        return Err(HandshakeError::Malformed(
            "Sec-WebSocket-Key must be 16 bytes in base64",
        ));
    }
    let accept = derive_accept_key(key.as_bytes());
    Ok(HeaderValue::from_str(&accept).expect("base64 is a header value"))
}

/// The tokens of a header that is a list of them, without their parameters.
pub(crate) fn tokens(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|it| it.split(';').next())
        .map(str::trim)
}

/// Whether a header that is a list of tokens has `token` among them, in any case.
pub(crate) fn has_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    tokens(headers, name).any(|it| it.eq_ignore_ascii_case(token))
}
