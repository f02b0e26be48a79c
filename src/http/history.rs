//! `GET /<room>?history`: the history of a room as JSON.

use std::{iter, mem};

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
use crate::format;
use crate::room::RoomName;

/// The header that says whether a history begins right behind the id of the request.
const RESUMED: &str = "wscast-resumed";

impl Routes {
    /// The history of a room as a JSON array.
    pub(super) fn history(
        &self,
        request: &Request,
        room: &RoomName,
    ) -> Result<Response<Body>, Refusal> {
        let (since, limit) = (
            request.since()?,
            request.query.limit()?.unwrap_or(usize::MAX),
        );
        let (batches, start) = self.hub.history(room, since).unwrap_or_default();
        // Encoded batch by batch as the client takes them, so that there is no copy of the whole history.
        let (mut next, mut left, mut lead) = (start.next, limit, "\n");
        let chunks = batches.into_iter().map(move |batch| {
            let skipped = next.saturating_sub(batch.seqs().start) as usize;
            let mut chunk = String::new();
            for message in format::event::messages(&batch).skip(skipped).take(left) {
                chunk.push_str(mem::replace(&mut lead, ",\n"));
                chunk.push_str(&format::json::to_string(&message));
                left -= 1;
            }
            next = batch.seqs().end;
            chunk
        });
        let chunks = iter::once("[".to_owned()).chain(chunks);
        let frames = chunks
            .chain(["\n]\n".to_owned()])
            .map(|chunk| Ok(Frame::data(Bytes::from(chunk))));
        let body = StreamBody::new(stream::iter(frames)).boxed_unsync();
        let mut response = respond_json(StatusCode::OK, body);
        let resumed = if start.resumed { "true" } else { "false" };
        let fields = response.headers_mut();
        fields.insert(RESUMED, HeaderValue::from_static(resumed));
        let exposed = HeaderValue::from_static(RESUMED);
        fields.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
        Ok(response)
    }
}
