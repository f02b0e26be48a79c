//! `POST /<room>`: publishes the body as a message.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::ready;
use std::time::Duration;

use hyper::body::{Body as _, Incoming};
use hyper::{Request, StatusCode};
use serde::Serialize;
use tracing::Span;

use super::content::Content;
use super::refusal::Refusal;
use super::request::Query;
use super::routes::Routes;
use crate::client::budget::Share;
use crate::client::message_log;
use crate::format::BatchBuilder;
use crate::hub::JoinError;
use crate::room::{Delivery, RoomName};

/// The answer to a POST that is published.
#[derive(Debug, Serialize)]
pub(super) struct Published {
    id: String,
    /// How many clients were in the room.
    clients: usize,
    /// How many of them sent a receipt, if the request waits for receipts.
    #[serde(skip_serializing_if = "Option::is_none")]
    delivered: Option<usize>,
}

impl Published {
    pub(super) fn to_json(&self) -> String {
        let json = serde_json::to_string(self);
        json.expect("names are strings, and a String takes every write") + "\n"
    }
}

impl Routes {
    /// Publishes the body of `request`; waits for receipts if its query has `wait`.
    pub(super) async fn publish(
        &self,
        request: Request<Incoming>,
        room: &RoomName,
        answering: impl Fn(Duration),
    ) -> Result<Published, Refusal> {
        let (head, body) = request.into_parts();
        let wait = Query(head.uri.query().unwrap_or_default()).wait()?;
        // Checked before `100 Continue`, which the read of the body sends.
        let content = Content::of(&head.headers)?;
        let body = self.read(body).await?;
        answering(wait.unwrap_or_default());
        let (kind, payload) = content.message(&body)?;
        if payload.len() > self.settings.max_message_size {
            return Err(self.too_big());
        }

        let guard = self.hub.enter(room)?;
        let mut builder = BatchBuilder::default();
        guard.plain().encode(kind, &payload, &mut builder);
        let frames = builder.take().expect("it was encoded just now");
        if self.settings.log_messages {
            message_log::received(&Span::current(), &frames);
        }
        let sealed = |_| JoinError::Sealed;
        let (Delivery { batch, .. }, receipts) = match wait {
            None => (guard.publish(frames).map_err(sealed)?, None),
            Some(limit) => {
                let published = guard.publish_with_receipts(frames);
                let (delivery, collector) = published.map_err(sealed)?;
                (delivery, Some((collector, limit)))
            }
        };
        if self.settings.log_messages {
            message_log::broadcasting(&Span::current(), batch.frames());
        }
        let id = batch.last_id();
        let (clients, delivered) = match receipts {
            None => (guard.room().clients(), None),
            Some((collector, limit)) => (collector.clients(), Some(collector.collect(limit).await)),
        };
        Ok(Published {
            id: id.to_string(),
            clients,
            delivered,
        })
    }

    /// Reads a body into a buffer of its own: a slice of hyper's buffer would keep all of that in memory.
    async fn read(&self, mut body: Incoming) -> Result<Vec<u8>, Refusal> {
        let limit = self.settings.max_message_size;
        // Checked before `100 Continue`, too.
        if body.size_hint().lower() > limit as u64 {
            return Err(self.too_big());
        }
        let mut whole = Vec::new();
        let mut unfinished: Option<Share> = None;
        loop {
            let frame = poll_fn(|cx| {
                if let Some(unfinished) = &unfinished {
                    ready!(unfinished.poll_room(cx))
                        .map_err(|cut| Refusal::unavailable(cut.to_string()))?;
                }
                let frame = ready!(Pin::new(&mut body).poll_frame(cx)).transpose();
                frame
                    .map_err(|_| Refusal::bad("the body is malformed, or ends too early"))
                    .into()
            });
            let Some(frame) = frame.await? else {
                return Ok(whole);
            };
            let Some(data) = frame.data_ref() else {
                continue;
            };
            if whole.len() + data.len() > limit {
                return Err(self.too_big());
            }
            whole.extend_from_slice(data);
            let hint = body.size_hint();
            if !body.is_end_stream() {
                let missing = hint.exact().unwrap_or((limit - whole.len()) as u64);
                unfinished
                    .get_or_insert_with(|| self.budget.begin())
                    .update(whole.len(), missing);
            }
        }
    }

    fn too_big(&self) -> Refusal {
        let limit = self.settings.max_message_size;
        let reason = format!("a message has at most {limit} bytes: see --max-message-size");
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, reason)
    }
}
