//! The body of a request as a message: its kind and its charset.

use std::borrow::Cow;

use encoding_rs::{Encoding, UTF_8};
use hyper::StatusCode;
use hyper::header::{self, HeaderMap};

use super::refusal::Refusal;
use crate::message::Kind;

/// The kind and charset of a body, from the head of its request.
#[derive(Debug)]
pub(crate) struct Content {
    /// `None` if the body itself decides: text if it is UTF-8, else binary.
    kind: Option<Kind>,
    charset: &'static Encoding,
}

impl Content {
    /// The kind and charset of the body behind these header fields.
    ///
    /// # Errors
    /// A [`Refusal`] of an encoding or charset that is not supported.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        check_codings(headers)?;
        let content_type = headers.get(header::CONTENT_TYPE);
        let content_type = content_type.and_then(|it| it.to_str().ok());
        let mut parts = content_type.unwrap_or_default().split(';').map(str::trim);
        let kind = kind_of(&parts.next().unwrap_or_default().to_ascii_lowercase());
        let charset = parts
            .filter_map(|it| it.split_once('='))
            .find(|(name, _)| name.trim().eq_ignore_ascii_case("charset"))
            .map(|(_, value)| value.trim().trim_matches('"'));
        let charset = match charset {
            Some(label) if kind != Some(Kind::Binary) => {
                Encoding::for_label_no_replacement(label.as_bytes()).ok_or_else(|| {
                    unsupported("this charset is not known: send the text in UTF-8")
                })?
            }
            _ => UTF_8,
        };
        Ok(Self { kind, charset })
    }

    /// The kind and payload of the message in `body`.
    ///
    /// # Errors
    /// A [`Refusal`] of a text that is not in its charset.
    pub(crate) fn message<'a>(&self, body: &'a [u8]) -> Result<(Kind, Cow<'a, [u8]>), Refusal> {
        if self.kind == Some(Kind::Binary) {
            return Ok((Kind::Binary, body.into()));
        }
        if self.charset != UTF_8 {
            // As in browsers, a byte order mark has precedence over the label.
            let (text, _, is_malformed) = self.charset.decode(body);
            return match (is_malformed, text) {
                (false, Cow::Borrowed(text)) => Ok((Kind::Text, text.as_bytes().into())),
                (false, Cow::Owned(text)) => Ok((Kind::Text, text.into_bytes().into())),
                (true, _) => Err(Refusal::bad("the text is not in the charset that it names")),
            };
        }
        match (self.kind, std::str::from_utf8(body)) {
            (_, Ok(_)) => Ok((Kind::Text, body.into())),
            (None, Err(_)) => Ok((Kind::Binary, body.into())),
            (Some(_), Err(_)) => Err(Refusal::bad(
                "the text is not UTF-8: name its charset, or send it as application/octet-stream",
            )),
        }
    }
}

/// The kind of a media type in lower case; `None` if it is malformed, or that of an HTML form, which
/// `curl -d` gives to everything.
fn kind_of(media_type: &str) -> Option<Kind> {
    let (top, name) = media_type.split_once('/')?;
    let suffix = name.rsplit('+').next().unwrap_or_default();
    match (top, name) {
        ("application", "x-www-form-urlencoded") => None,
        ("text", _) => Some(Kind::Text),
        ("application", "javascript" | "x-javascript" | "ecmascript" | "x-ndjson" | "x-yaml") => {
            Some(Kind::Text)
        }
        _ if ["json", "xml", "yaml"].contains(&suffix) => Some(Kind::Text),
        _ => Some(Kind::Binary),
    }
}

/// Refuses compressed bodies and unknown transfer codings.
fn check_codings(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut codings = headers.get_all(header::CONTENT_ENCODING).iter();
    let is_none = |it: &[u8]| it.is_empty() || it.eq_ignore_ascii_case(b"identity");
    if !codings.all(|it| is_none(it.as_bytes())) {
        let refusal = unsupported("a body has no Content-Encoding: send it as it is");
        return Err(refusal.with(header::ACCEPT_ENCODING, "identity"));
    }
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let is_chunked = codings
        .next()
        .is_none_or(|it| it.as_bytes().eq_ignore_ascii_case(b"chunked"));
    match (is_chunked, codings.next()) {
        (true, None) => Ok(()),
        _ => Err(Refusal::transfer_coding()),
    }
}

fn unsupported(reason: &'static str) -> Refusal {
    Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, reason)
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn message(content_type: &str, body: &[u8]) -> Option<(Kind, Vec<u8>)> {
        let mut headers = HeaderMap::new();
        if !content_type.is_empty() {
            let value = HeaderValue::from_str(content_type).unwrap();
            headers.insert(header::CONTENT_TYPE, value);
        }
        let content = Content::of(&headers).ok()?;
        let (kind, payload) = content.message(body).ok()?;
        Some((kind, payload.into_owned()))
    }

    #[test]
    fn the_content_type_distinguishes_text_from_binary() {
        for (content_type, of_utf8, of_others) in [
            ("", Some(Kind::Text), Some(Kind::Binary)),
            (
                "application/x-www-form-urlencoded",
                Some(Kind::Text),
                Some(Kind::Binary),
            ),
            ("nonsense", Some(Kind::Text), Some(Kind::Binary)),
            ("text/plain", Some(Kind::Text), None),
            ("Text/HTML; charset=\"UTF-8\"", Some(Kind::Text), None),
            ("application/json", Some(Kind::Text), None),
            ("application/ld+json", Some(Kind::Text), None),
            ("application/xml", Some(Kind::Text), None),
            ("image/svg+xml", Some(Kind::Text), None),
            ("application/javascript", Some(Kind::Text), None),
            (
                "application/x-protobuf",
                Some(Kind::Binary),
                Some(Kind::Binary),
            ),
            (
                "application/octet-stream",
                Some(Kind::Binary),
                Some(Kind::Binary),
            ),
            (
                "application/cbor; charset=nonsense",
                Some(Kind::Binary),
                Some(Kind::Binary),
            ),
            (
                "multipart/form-data; boundary=x",
                Some(Kind::Binary),
                Some(Kind::Binary),
            ),
            ("image/png", Some(Kind::Binary), Some(Kind::Binary)),
        ] {
            let kind = |body| message(content_type, body).map(|(kind, _)| kind);
            assert_eq!(kind(b"text"), of_utf8, "{content_type}");
            assert_eq!(kind(b"\xff\0"), of_others, "{content_type}");
        }
    }

    #[test]
    fn a_known_charset_becomes_utf_8() {
        for (charset, body, text) in [
            ("utf-8", &b"\xc3\xa4"[..], "ä"),
            ("ISO-8859-1", b"\xe4", "ä"),
            ("windows-1252", b"\x80", "€"),
            ("\"shift_jis\"", b"\x82\xa0", "あ"),
            ("utf-16le", b"\xe4\0", "ä"),
            ("utf-16", b"\xfe\xff\0\xe4", "ä"),
            ("us-ascii", b"plain", "plain"),
        ] {
            for media_type in [
                "text/plain",
                "application/json",
                "application/x-www-form-urlencoded",
            ] {
                let found = message(&format!("{media_type}; q=1; Charset={charset}"), body);
                assert_eq!(found, Some((Kind::Text, text.into())), "{charset}");
            }
        }
        for (charset, body) in [
            ("utf-8", &b"\xe4"[..]),
            ("shift_jis", b"\x82"),
            ("utf-16le", b"\0"),
            ("klingon", b"x"),
            ("", b"x"),
            // Browsers refuse to decode this one, for safety.
            ("iso-2022-kr", b"x"),
        ] {
            assert_eq!(
                message(&format!("text/plain; charset={charset}"), body),
                None,
                "{charset}"
            );
        }
    }
}
