//! The JSON format: each event is one WebSocket text message.

use super::Event;
use crate::message::Kind;
use crate::protocol::frame;

/// The subprotocol of the JSON format, as `Sec-WebSocket-Protocol` names it.
pub(crate) const JSON_PROTOCOL: &str = "wscast.v1.json";

/// Appends `event` as one WebSocket text message.
pub(crate) fn encode(event: &Event<'_>, frames: &mut Vec<u8>) {
    frame::encode(Kind::Text, "", to_string(event).as_bytes(), frames);
}

/// `event` as a JSON object on one line.
pub(crate) fn to_string(event: &Event<'_>) -> String {
    serde_json::to_string(event).expect("an event has string keys, and a String takes every write")
}
