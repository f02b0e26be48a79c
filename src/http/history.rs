//! `GET /<room>?history`: the messages of a room as JSON.

use std::collections::VecDeque;
use std::mem;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};

use super::refusal::Refusal;
use super::request::Request;
use super::response::{Body, respond_json};
use super::routes::Routes;
use crate::admission::Grant;
use crate::format::{Encoding, Event, json};
use crate::room::RoomName;
use crate::room::reader::{Part, Piece, Reader};

/// The header that says whether a history begins right behind the id of the request.
const RESUMED: &str = "wscast-resumed";

/// The most messages of one answer.
const MESSAGES_MAX: usize = 10_000;

impl Routes {
    /// Messages of a room as a JSON array, the oldest first: the first ones behind `since`, the last ones
    /// before `before`, or the last ones of all.
    pub(super) async fn history(
        &self,
        request: &Request,
        grant: &Grant,
        room: &RoomName,
    ) -> Result<Response<Body>, Refusal> {
        grant.check_read()?;
        let part = match (request.since()?, request.query.id("before")?) {
            (None, None) => Part::Last,
            (Some(id), None) => Part::Since(id),
            (None, Some(id)) => Part::Before(id),
            (Some(_), Some(_)) => {
                return Err(Refusal::bad(
                    "since and before exclude each other: give one of them",
                ));
            }
        };
        let limit = request.query.limit()?.unwrap_or(self.hub.read_limit());
        let limit = limit.min(MESSAGES_MAX) as u64;
        let reader = self.hub.read(room, part, limit).await?;
        let resumed = if reader.resumed { "true" } else { "false" };
        let pieces = stream::unfold(JsonArray::of(reader), async |mut array| {
            let bytes = array.next().await?;
            Some((Ok(Frame::data(bytes)), array))
        });
        let body = StreamBody::new(pieces).boxed_unsync();
        let mut response = respond_json(StatusCode::OK, body);
        let fields = response.headers_mut();
        fields.insert(RESUMED, HeaderValue::from_static(resumed));
        let exposed = HeaderValue::from_static(RESUMED);
        fields.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
        Ok(response)
    }
}

/// A JSON array of what a reader reads, made piece by piece as the peer takes it.
struct JsonArray {
    reader: Reader,
    /// Pieces that are made: short messages are copied, several into one; long ones are shared.
    made: VecDeque<Bytes>,
    copied: Vec<u8>,
    /// What stands before the next element.
    lead: &'static str,
    is_complete: bool,
}

/// A message of so many bytes is shared, instead of copied.
const LONG: usize = 1024;

/// Copies are gathered up to this many bytes.
const PIECE: usize = 8 * 1024;

impl JsonArray {
    fn of(reader: Reader) -> Self {
        Self {
            reader,
            made: VecDeque::new(),
            copied: b"[".to_vec(),
            lead: "\n",
            is_complete: false,
        }
    }

    /// Appends an element.
    fn push(&mut self, json: Bytes) {
        let lead = mem::replace(&mut self.lead, ",\n");
        self.copied.extend_from_slice(lead.as_bytes());
        if json.len() < LONG {
            self.copied.extend_from_slice(&json);
        } else {
            self.finish_copy();
            self.made.push_back(json);
        }
    }

    fn finish_copy(&mut self) {
        if !self.copied.is_empty() {
            self.made.push_back(mem::take(&mut self.copied).into());
        }
    }

    /// The next bytes; none at the end.
    async fn next(&mut self) -> Option<Bytes> {
        while self.made.is_empty() && !self.is_complete {
            match self.reader.next().await {
                Some(Piece::Messages(batch, positions)) => {
                    let encoded = self.reader.encoded(&batch, Encoding::Json);
                    let indices = batch.index(positions.start)..batch.index(positions.end);
                    json::objects(encoded, indices).for_each(|json| self.push(json));
                }
                Some(Piece::Gap(missed)) => {
                    let missed = Some(missed);
                    self.push(json::to_string(&Event::Gap { missed }).into());
                }
                None => {
                    self.copied.extend_from_slice(b"\n]\n");
                    self.is_complete = true;
                }
            }
            if self.is_complete || self.copied.len() >= PIECE {
                self.finish_copy();
            }
        }
        self.made.pop_front()
    }
}
