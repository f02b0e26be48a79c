//! The JSON format: each event is one WebSocket text message.

use std::ops::Range;

use bytes::Bytes;

use super::{Encoded, Event};
use crate::message::Kind;
use crate::protocol::frame::{self, Header};

/// The subprotocol of the JSON format, as `Sec-WebSocket-Protocol` names it.
pub(crate) const JSON_PROTOCOL: &str = "wscast.v1.json";

/// The longest event that needs no announcement. A script sees a message only when it is whole, and takes a
/// connection without an event for dead, unless it knows that one is on its way.
const LARGE: usize = 64 * 1024;

/// Appends `event` as one WebSocket text message, behind another one that announces it where it is large.
pub(super) fn append(event: &Event<'_>, frames: &mut Vec<u8>) {
    let text = to_string(event);
    if text.len() > LARGE {
        append(&Event::Large { bytes: text.len() }, frames);
    }
    frame::encode(Kind::Text, "", text.as_bytes(), frames);
}

/// `event` as a JSON object on one line.
pub(crate) fn to_string(event: &Event<'_>) -> String {
    serde_json::to_string(event).expect("an event has string keys, and a String takes every write")
}

/// Messages encoded in JSON as objects without a frame: slices of what all clients of the JSON format
/// share.
pub(crate) fn objects(encoded: &Encoded, indices: Range<usize>) -> impl Iterator<Item = Bytes> {
    indices.map(|index| {
        let mut frames = encoded.message(index);
        loop {
            let header = Header::parse(&frames).expect("a frame has a header");
            let payload = frames.slice(header.length as usize..);
            // What is behind its end belongs to the message that it announces.
            match payload.len() - header.payload as usize {
                0 => return payload,
                _ => frames = payload.slice(header.payload as usize..),
            }
        }
    })
}
