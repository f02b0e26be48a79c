//! The JSON format: each event is one WebSocket text message.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::{Batch, Event, Format, rendition};
use crate::message::Kind;
use crate::protocol::frame::{self, Header};

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

/// The messages of `batch` at these positions, as JSON objects: slices of the frames that all
/// clients of the JSON format share.
pub(crate) fn objects(batch: Arc<Batch>, positions: Range<u64>) -> impl Iterator<Item = Bytes> {
    let first = batch.positions().start;
    positions.map(move |position| {
        let frame = rendition(&batch, Format::Json).message((position - first) as usize);
        let header = Header::parse(&frame).map_or(0, |it| it.length as usize);
        frame.slice(header..)
    })
}
