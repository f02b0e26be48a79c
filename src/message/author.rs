//! An author: the connection that sent a message, and what it calls itself.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use data_encoding::BASE64URL_NOPAD;
use serde::{Serialize, Serializer};

/// Where messages come from: one value, shared by all messages of a connection. A POST has one of its own.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Author {
    /// The connection; none for a POST.
    pub(crate) connection: Option<ConnectionId>,
    /// What it calls itself, if anything.
    pub(crate) name: Option<Name>,
    /// What makes the POST that published the message one of its own, if it has a key.
    pub(crate) key: Option<Key>,
}

impl Author {
    /// A new connection, and what it calls itself.
    pub(crate) fn connection(name: Option<Name>) -> Arc<Self> {
        Arc::new(Self {
            connection: Some(ConnectionId::random()),
            name,
            key: None,
        })
    }

    /// A client that sends nothing, and what it calls itself.
    pub(crate) fn named(name: Name) -> Arc<Self> {
        Arc::new(Self {
            connection: None,
            name: Some(name),
            key: None,
        })
    }

    /// Bytes of memory that it takes.
    pub(crate) fn cost(&self) -> usize {
        // The counters of an `Arc`, and the rounding of its allocation.
        const OVERHEAD: usize = 24;
        // Its entry among the keys of the history, and the receipts of its message.
        const OF_KEY: usize = 288;
        let name = self
            .name
            .as_ref()
            .map_or(0, |name| name.0.len() + 2 * OVERHEAD);
        let key = self.key.as_ref();
        let key = key.map_or(0, |key| key.0.len() + OVERHEAD + OF_KEY);
        size_of::<Self>() + OVERHEAD + name + key
    }
}

/// Names one connection, and no other of any server: 96 random bits.
///
/// Everybody in its room sees it, so it proves nothing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConnectionId([u8; 12]);

impl ConnectionId {
    fn random() -> Self {
        let mut bits = [0; 12];
        getrandom::fill(&mut bits).expect("the kernel has random bits");
        Self(bits)
    }
}

/// A text that is not the id of a connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotAConnectionId;

impl FromStr for ConnectionId {
    type Err = NotAConnectionId;

    fn from_str(text: &str) -> Result<Self, NotAConnectionId> {
        let bits = BASE64URL_NOPAD.decode(text.as_bytes());
        let bits = bits.ok().and_then(|it| it.try_into().ok());
        bits.map(Self).ok_or(NotAConnectionId)
    }
}

/// In base64url, without padding (RFC 4648, section 5).
impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; 16];
        BASE64URL_NOPAD.encode_mut(&self.0, &mut text);
        f.write_str(str::from_utf8(&text).expect("base64url is ASCII"))
    }
}

impl fmt::Debug for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for ConnectionId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What a client calls itself: 1 to 64 characters, none of which controls terminals, lines, or the
/// direction of text around it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Name(Arc<str>);

/// The most characters of a name.
const NAME_MAX: usize = 64;

/// Why a text is not a [`Name`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotAName {
    /// It has no or too many characters.
    #[error("a name has 1 to {NAME_MAX} characters")]
    Length,
    /// It has characters that control what is around it.
    #[error("a name has no line breaks, and no other characters that control how text is shown")]
    Control,
}

impl FromStr for Name {
    type Err = NotAName;

    fn from_str(text: &str) -> Result<Self, NotAName> {
        if !(1..=NAME_MAX).contains(&text.chars().count()) {
            return Err(NotAName::Length);
        }
        let controls = |it: char| it.is_control() || controls_layout(it);
        match text.contains(controls) {
            true => Err(NotAName::Control),
            false => Ok(Self(text.into())),
        }
    }
}

impl Name {
    /// Its text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether it has the property `Bidi_Control` (Unicode Standard Annex 9, section 2), or ends a line
/// (Unicode Standard, section 5.8), which [`char::is_control`] does not say of it.
fn controls_layout(it: char) -> bool {
    matches!(it,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// An `Idempotency-Key`, without quotes: 1 to 128 visible ASCII characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key(Arc<str>);

impl Key {
    /// Its text, without quotes.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The key with this text.
    pub(crate) fn unquoted(text: &str) -> Result<Self, NotAKey> {
        let is_key =
            (1..=KEY_MAX).contains(&text.len()) && text.bytes().all(|it| it.is_ascii_graphic());
        is_key.then(|| Self(text.into())).ok_or(NotAKey)
    }
}

/// The most characters of a key.
const KEY_MAX: usize = 128;

/// Bytes that are not a [`Key`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("Idempotency-Key has 1 to {KEY_MAX} visible ASCII characters, in quotes or not")]
pub(crate) struct NotAKey;

impl TryFrom<&[u8]> for Key {
    type Error = NotAKey;

    fn try_from(bytes: &[u8]) -> Result<Self, NotAKey> {
        let text = str::from_utf8(bytes).map_err(|_| NotAKey)?;
        let quoted = text.strip_prefix('"').and_then(|it| it.strip_suffix('"'));
        Self::unquoted(quoted.unwrap_or(text))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_connection_has_another_id_of_16_characters() {
        let ids: HashSet<String> = (0..1000)
            .map(|_| ConnectionId::random().to_string())
            .collect();
        assert_eq!(ids.len(), 1000);
        for id in &ids {
            assert_eq!(id.parse::<ConnectionId>().unwrap().to_string(), *id);
        }
        for wrong in [
            "",
            "k7f3qd2mX0_aZ9T",
            "k7f3qd2mX0_aZ9T=",
            "k7f3qd2mX0_aZ9Tbb",
        ] {
            assert_eq!(wrong.parse::<ConnectionId>(), Err(NotAConnectionId));
        }
        let is_base64url = |it: u8| it.is_ascii_alphanumeric() || it == b'-' || it == b'_';
        assert!(
            ids.iter()
                .all(|id| id.len() == 16 && id.bytes().all(is_base64url))
        );
    }

    #[test]
    fn names_are_short_and_stay_where_they_are_shown() {
        for name in ["Ann", "Ann Lee", "Ünal", "安", "👩‍🚀", &"é".repeat(64)] {
            assert_eq!(name.parse::<Name>().unwrap().to_string(), name);
        }
        for wrong in ["", &"x".repeat(65)] {
            assert_eq!(wrong.parse::<Name>(), Err(NotAName::Length), "{wrong:?}");
        }
        for wrong in [
            "a\nb",
            "a\0",
            "\u{7f}",
            "\u{85}",
            "\u{202e}nnA",
            "\u{2066}A",
            "A\u{200f}",
            "A\u{61c}",
            "A\u{2028}B",
        ] {
            assert_eq!(wrong.parse::<Name>(), Err(NotAName::Control), "{wrong:?}");
        }
    }

    #[test]
    fn keys_are_visible_ascii_with_quotes_or_without() {
        let key = |text: &str| Key::try_from(text.as_bytes());
        assert_eq!(key("\"a-1\""), key("a-1"));
        assert_eq!(*key("a\"b").unwrap().0, *"a\"b");
        assert_eq!(*key("\"").unwrap().0, *"\"");
        assert!(key(&"x".repeat(128)).is_ok());
        assert!(key(&format!("\"{}\"", "x".repeat(128))).is_ok());
        for wrong in ["", "\"\"", "a b", "a\tb", "é", &"x".repeat(129)] {
            assert_eq!(key(wrong), Err(NotAKey), "{wrong:?}");
        }
        assert_eq!(Key::try_from(&b"\xff"[..]), Err(NotAKey));
    }
}
