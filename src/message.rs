//! The id of a message, its kind and author, and the store that cannot take it.

mod author;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

pub(crate) use author::{Author, ConnectionId, Key, Name, NotAName};

/// The id of a message in its room, written `<epoch>-<seq>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct MessageId {
    /// Unix time in milliseconds at which the room's log began, followed by three random digits.
    pub(crate) epoch: u64,
    /// Counts 1, 2, 3 … without gaps within an epoch.
    pub(crate) seq: u64,
}

impl MessageId {
    /// An id that is in no log: no log begins at the end of time.
    pub(crate) const OF_ANOTHER_LOG: Self = Self {
        epoch: u64::MAX,
        seq: 0,
    };
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.seq)
    }
}

/// A text that is not the id of a message.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("an id is <epoch>-<seq>, as in 1732290000000123-42")]
pub(crate) struct NotAnId;

impl FromStr for MessageId {
    type Err = NotAnId;

    fn from_str(text: &str) -> Result<Self, NotAnId> {
        let number = |digits: &str| match digits.bytes().all(|it| it.is_ascii_digit()) {
            true => digits.parse().map_err(|_| NotAnId),
            false => Err(NotAnId),
        };
        let (epoch, seq) = text.split_once('-').ok_or(NotAnId)?;
        Ok(Self {
            epoch: number(epoch)?,
            seq: number(seq)?,
        })
    }
}

/// The store that keeps the logs cannot be used now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the store is unavailable")]
pub(crate) struct Unavailable {
    /// When it may be worth another try.
    pub(crate) retry_after: Duration,
}

/// The kind of a WebSocket message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A text message, which is UTF-8.
    Text,
    /// A binary message.
    Binary,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_order_by_epoch_then_by_sequence_number() {
        let id = |epoch, seq| MessageId { epoch, seq };
        assert!(id(1, 10) < id(1, 11));
        assert!(id(1, 10) < id(2, 1));
        let (parsed, text) = (id(1732290000000123, 43), "1732290000000123-43");
        assert_eq!(parsed.to_string(), text);
        assert_eq!(text.parse(), Ok(parsed));
        for wrong in [
            "",
            "-",
            "1",
            "1-",
            "-1",
            "1-+2",
            "1--2",
            "1-2-3",
            "a-1",
            "1- 2",
            "1-99999999999999999999",
        ] {
            assert_eq!(wrong.parse::<MessageId>(), Err(NotAnId), "{wrong}");
        }
    }
}
