//! The name of a room: the one spelling of all paths that mean the same.

use std::ops::Deref;
use std::str::FromStr;

/// The name of a room, as the path of a URL gives it (RFC 3986, sections 6.2.2.1 and 6.2.2.2).
///
/// Escapes are in upper case. Unreserved characters are not escaped; characters that a path cannot
/// contain are, and so is a `%` that begins no escape. There is no trailing slash, except in `/`. The
/// rest is as sent: repeated slashes, `%2F`, dot segments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RoomName(String);

/// The longest name of a room, in bytes.
const MAX: usize = 1024;

/// Why a path names no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotARoom {
    /// It is `*`, or empty.
    #[error("the path of a room begins with /")]
    NoPath,
    /// It has more than 1024 bytes.
    #[error("the name of a room has at most {MAX} bytes, escapes included: choose a shorter path")]
    TooLong,
    /// It is reserved; with the remedy.
    #[error("this path is reserved, and no room: {0}")]
    Reserved(&'static str),
}

/// Reserved paths, with everything below them, and the remedy.
const RESERVED_TREES: [(&str, &str); 3] = [
    ("/-", "choose one that does not begin with /-/"),
    ("/.well-known", "nothing is to be found here"),
    (
        "/socket.io",
        "this is a plain WebSocket server, not Socket.IO: connect with new WebSocket(url)",
    ),
];

/// Reserved single paths, and the remedy.
const RESERVED: [(&str, &str); 7] = [
    ("/healthz", HEALTH),
    ("/livez", HEALTH),
    ("/readyz", HEALTH),
    ("/health", HEALTH),
    ("/metrics", "there are no metrics here"),
    ("/favicon.ico", "there is no icon here"),
    ("/robots.txt", "there are no rules for robots here"),
];

const HEALTH: &str = "ask /healthz how the server is";

impl FromStr for RoomName {
    type Err = NotARoom;

    fn from_str(path: &str) -> Result<Self, NotARoom> {
        if !path.starts_with('/') {
            return Err(NotARoom::NoPath);
        }
        let mut name = String::with_capacity(path.len());
        let mut rest = path.trim_end_matches('/').as_bytes();
        while let [byte, behind @ ..] = rest {
            let escaped = match behind {
                [high, low, ..] if *byte == b'%' => byte_of(*high, *low),
                _ => None,
            };
            push(escaped, *byte, &mut name);
            rest = match escaped {
                Some(_) => &behind[2..],
                None => behind,
            };
        }
        if name.is_empty() {
            name.push('/');
        }
        if name.len() > MAX {
            return Err(NotARoom::TooLong);
        }
        match remedy(&name) {
            Some(remedy) => Err(NotARoom::Reserved(remedy)),
            None => Ok(Self(name)),
        }
    }
}

/// Appends one byte of a path in its only spelling: the `escaped` byte, or else the literal `byte`.
fn push(escaped: Option<u8>, byte: u8, name: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let is_literal = match escaped {
        Some(byte) => is_unreserved(byte),
        None => is_unreserved(byte) || b"/!$&'()*+,;=:@".contains(&byte),
    };
    let byte = escaped.unwrap_or(byte);
    if is_literal {
        name.push(char::from(byte));
    } else {
        let digits = [byte >> 4, byte & 0xf].map(|it| char::from(HEX[usize::from(it)]));
        name.push('%');
        name.extend(digits);
    }
}

/// The byte of two hexadecimal digits.
fn byte_of(high: u8, low: u8) -> Option<u8> {
    let digit = |it: u8| char::from(it).to_digit(16);
    Some((digit(high)? << 4 | digit(low)?) as u8)
}

/// Whether the escaped and the literal byte mean the same (RFC 3986, section 2.3).
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// The remedy, where this name is reserved.
fn remedy(name: &str) -> Option<&'static str> {
    let tree = RESERVED_TREES.iter().find(|(root, _)| {
        let below = name.strip_prefix(root);
        below.is_some_and(|it| it.is_empty() || it.starts_with('/'))
    });
    let single = || RESERVED.iter().find(|(it, _)| *it == name);
    tree.or_else(single).map(|(_, remedy)| *remedy)
}

impl Deref for RoomName {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl From<RoomName> for String {
    fn from(name: RoomName) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(path: &str) -> String {
        path.parse::<RoomName>().unwrap().into()
    }

    #[test]
    fn a_room_has_one_spelling() {
        for (paths, expected) in [
            (&["/", "//", "///"][..], "/"),
            (
                &["/lobby", "/lobby/", "/lobby//", "/%6cobby", "/%6C%6f%62by/"],
                "/lobby",
            ),
            (&["/Lobby"], "/Lobby"),
            (&["/a~-._b", "/%61%7e%2d%2E%5f%62"], "/a~-._b"),
            (&["/caf%c3%a9", "/café", "/caf%C3%A9"], "/caf%C3%A9"),
            (&["/%ff", "/%FF"], "/%FF"),
            (&["/%2f", "/%2F/"], "/%2F"),
            (&["/a//b", "/a//b/"], "/a//b"),
            (&["//a"], "//a"),
            (&["/a/../b", "/a/%2e%2E/b"], "/a/../b"),
            (&["/."], "/."),
            (
                &["/a;b=c,d:e@f!$&'()*+", "/%61;b=c,d:e@f!$&'()*+/"],
                "/a;b=c,d:e@f!$&'()*+",
            ),
            // Reserved characters mean something else when escaped.
            (&["/%3b", "/%3B"], "/%3B"),
            // Characters that a path cannot contain.
            (
                &["/{\"x\"|y^}", "/%7b%22x%22%7cy%5e%7d"],
                "/%7B%22x%22%7Cy%5E%7D",
            ),
            // Invalid escapes.
            (&["/100%", "/100%25"], "/100%25"),
            (&["/%zz", "/%25zz"], "/%25zz"),
            (&["/%2", "/%252"], "/%252"),
            (&["/%%36%6"], "/%256%256"),
        ] {
            for path in paths {
                assert_eq!(name(path), expected, "{path}");
            }
        }
    }

    #[test]
    fn a_name_has_at_most_1024_bytes_as_it_is_written() {
        let longest = format!("/{}", "x".repeat(MAX - 1));
        assert_eq!(name(&longest), longest);
        assert_eq!(name(&longest.replace('x', "%78")), longest);
        assert_eq!(name(&format!("{longest}///")), longest);
        for path in [format!("{longest}x"), format!("/{}", "é".repeat(171))] {
            assert_eq!(path.parse::<RoomName>(), Err(NotARoom::TooLong));
        }
    }

    #[test]
    fn a_reserved_path_is_no_room_in_any_spelling() {
        for path in [
            "/-",
            "/-/",
            "/-/wscast.js",
            "/%2d",
            "/.well-known",
            "/%2ewell-known/acme",
            "/socket.io/",
            "/socket%2Eio",
            "/healthz/",
            "/livez",
            "/readyz",
            "/health",
            "/metrics/",
            "/favicon.ico",
            "/robots.txt",
        ] {
            let refused = path.parse::<RoomName>();
            assert!(
                matches!(refused, Err(NotARoom::Reserved(_))),
                "{path}: {refused:?}"
            );
        }
        for path in [
            "/-a",
            "/--",
            "/a/-",
            "//-",
            "/.well-knowns",
            "/.well-known%2Fx",
            "/socket.iox",
            "/Metrics",
            "/metrics/x",
            "/healthz/x",
            "/a/socket.io",
        ] {
            assert_eq!(name(path), path);
        }
        for path in ["", "*", "lobby"] {
            assert_eq!(path.parse::<RoomName>(), Err(NotARoom::NoPath));
        }
    }

    proptest! {
        #[test]
        fn a_name_is_its_own_spelling(path in "/([ -~é]|%[0-9a-fA-F]{1,2}|//){0,40}") {
            if let Ok(name) = path.parse::<RoomName>() {
                prop_assert_eq!(name.parse::<RoomName>(), Ok(name.clone()));
                prop_assert!(name.bytes().all(|it| it.is_ascii_graphic()));
                prop_assert!(&*name == "/" || !name.ends_with('/'));
            }
        }

        #[test]
        fn escapes_make_no_difference(
            text in "[a-zA-Z0-9._~é-]{1,40}",
            choices in prop::collection::vec(0..3_u8, 200),
        ) {
            let mut path = "/".to_owned();
            for (byte, choice) in text.bytes().zip(choices) {
                match choice {
                    0 if byte.is_ascii() => path.push(char::from(byte)),
                    1 => path.push_str(&format!("%{byte:02x}")),
                    _ => path.push_str(&format!("%{byte:02X}")),
                }
            }
            prop_assert_eq!(path.parse::<RoomName>(), format!("/{text}").parse());
        }
    }
}
