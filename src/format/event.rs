//! Events of a room, for the formats that carry ids.

use std::borrow::Cow;

use data_encoding::BASE64;
use serde::Serialize;

use super::Batch;
use crate::message::Kind;

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
        /// The newest message of the room when the client joined, if there ever was one.
        last_id: Option<String>,
        /// Whether what follows is, provably, all that came after the id in the client's request.
        resumed: bool,
        /// How many messages after that id are gone; `None` if that is not known.
        missed: Option<u64>,
    },
    /// A message, as its sender sent it.
    Message {
        /// Its id.
        id: String,
        /// When it was published (RFC 3339, UTC, milliseconds).
        time: String,
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
    batch
        .positions()
        .zip(batch.frames().payloads())
        .map(move |(position, (kind, payload))| {
            let is_text = kind == Kind::Text;
            Event::Message {
                id: batch.id(position).to_string(),
                time: time.clone(),
                text: is_text.then(|| String::from_utf8_lossy(payload)),
                binary: (!is_text).then(|| BASE64.encode(payload)),
            }
        })
}
