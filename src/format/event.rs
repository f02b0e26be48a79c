//! Events of a room, for the formats that carry ids.

use std::borrow::Cow;
use std::time::Duration;

use data_encoding::BASE64;
use serde::{Serialize, Serializer};

use super::Batch;
use crate::message::{ConnectionId, Kind, Name};

/// An event of a room, for the formats that carry ids.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(crate) enum Event<'a> {
    /// The first event.
    Welcome {
        /// The greeting; may be empty.
        text: &'a str,
        /// The name of the room.
        room: &'a str,
        /// `echo` or `broadcast`.
        mode: &'a str,
        /// What the messages of this connection have as `from`; none for an event stream, which sends nothing.
        #[serde(skip_serializing_if = "Option::is_none")]
        you: Option<ConnectionId>,
        /// The newest message of the room when the client joined, if there ever was one.
        last_id: Option<String>,
        /// Whether what follows is, provably, all that came after the id in the client's request.
        resumed: bool,
        /// How many messages after that id are gone; `None` if that is not known.
        missed: Option<u64>,
        /// How many clients the room has, with this one.
        clients: usize,
        /// Bytes of the largest message that is taken.
        max_message_size: usize,
        /// Seconds from one sign of life to the next; 0 for none.
        ping_interval: Seconds,
        /// Seconds for which a sign of life may be late.
        ping_timeout: Seconds,
    },
    /// A message, as its sender sent it.
    Message {
        /// Its id.
        id: String,
        /// When it was published (RFC 3339, UTC, milliseconds).
        time: String,
        /// The connection that sent it; none for a POST.
        #[serde(skip_serializing_if = "Option::is_none")]
        from: Option<ConnectionId>,
        /// What its author calls itself, if anything.
        #[serde(skip_serializing_if = "Option::is_none")]
        name: Option<&'a Name>,
        /// Its text, if it is a text message.
        #[serde(skip_serializing_if = "Option::is_none")]
        text: Option<Cow<'a, str>>,
        /// Its bytes in base64, if it is binary.
        #[serde(skip_serializing_if = "Option::is_none")]
        binary: Option<String>,
    },
    /// Messages are missing here.
    Gap {
        /// How many; `None` if that is not known.
        missed: Option<u64>,
    },
    /// A sign of life, once in each ping interval: a web page sees no pings.
    Alive,
    /// The next event is large: a program that reads whole events sees nothing until all of it has come.
    Large {
        /// Its bytes.
        bytes: usize,
    },
    /// The number of clients has changed, for those that ask for it.
    Clients {
        /// How many the room has.
        count: usize,
    },
    /// The store does not keep what is published, or does again.
    Status {
        /// How it is.
        store: StoreStatus,
    },
    /// A message of the client was not taken.
    Error {
        /// Why.
        code: ErrorCode,
        /// Which: the first that its connection sent is 1.
        message: u64,
        /// After how many seconds it may be taken, where it makes sense to send it again.
        #[serde(skip_serializing_if = "Option::is_none")]
        retry_after: Option<f64>,
    },
}

/// Seconds as a JSON number: whole ones without a fraction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seconds(pub(crate) Duration);

impl Serialize for Seconds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.subsec_nanos() {
            0 => serializer.serialize_u64(self.0.as_secs()),
            _ => serializer.serialize_f64(self.0.as_secs_f64()),
        }
    }
}

/// How the store is.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum StoreStatus {
    /// It keeps what is published.
    Ok,
    /// It does not.
    Unavailable,
}

/// Why a message of a client was not taken.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ErrorCode {
    /// The client may not publish.
    Forbidden,
    /// The store cannot take it.
    Unavailable,
}

/// The messages of `batch`, in order.
pub(crate) fn messages(batch: &Batch) -> impl Iterator<Item = Event<'_>> {
    let time = humantime::format_rfc3339_millis(batch.time()).to_string();
    let author = batch.author();
    let from = author.and_then(|it| it.connection);
    let name = author.and_then(|it| it.name.as_ref());
    batch
        .positions()
        .zip(batch.frames().payloads())
        .map(move |(position, (kind, payload))| {
            let is_text = kind == Kind::Text;
            Event::Message {
                id: batch.id(position).to_string(),
                time: time.clone(),
                from,
                name,
                text: is_text.then(|| String::from_utf8_lossy(payload)),
                binary: (!is_text).then(|| BASE64.encode(payload)),
            }
        })
}
