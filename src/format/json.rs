//! The JSON format: each event is one WebSocket text message.

use std::ops::Range;

use bytes::Bytes;

use super::{Encoded, Event};
use crate::message::Kind;
use crate::protocol::frame::{self, Header};

/// The subprotocol of the JSON format, as `Sec-WebSocket-Protocol` names it.
pub(crate) const JSON_PROTOCOL: &str = "wscast.v1.json";

/// Appends `event` as one WebSocket text message.
pub(super) fn append(event: &Event<'_>, frames: &mut Vec<u8>) {
    frame::encode(Kind::Text, "", to_string(event).as_bytes(), frames);
}

/// `event` as a JSON object on one line.
pub(crate) fn to_string(event: &Event<'_>) -> String {
    serde_json::to_string(event).expect("an event has string keys, and a String takes every write")
}

/// Messages encoded in JSON as objects without a frame: slices of what all clients of the JSON format
/// share.
pub(crate) fn objects(encoded: &Encoded, indices: Range<usize>) -> impl Iterator<Item = Bytes> {
    indices.map(|index| {
        let frame = encoded.message(index);
        let header = Header::parse(&frame).expect("a frame has a header");
        frame.slice(header.length as usize..)
    })
}
