//! `POST /<room>`: publishes the body as a message.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Poll, ready};

use bytes::Bytes;
use hyper::body::{Body as _, Frame, Incoming};
use hyper::{Response, StatusCode};
use serde::Serialize;
use tokio::select;
use tokio::time::timeout;
use tracing::Span;

use super::content_type::Content;
use super::phase::Link;
use super::refusal::Refusal;
use super::request::Request;
use super::response::{Body, respond_json, to_json, whole};
use super::routes::Routes;
use crate::admission::Grant;
use crate::client::budget::Share;
use crate::client::message_log;
use crate::client::turn::Turn;
use crate::format::BatchBuilder;
use crate::hub::{Publication, RoomGuard};
use crate::message::{Author, Key, Kind, Unavailable};
use crate::room::{Claim, Claimed, Delivery, RoomName};

/// The answer to a POST that is published.
#[derive(Debug, Serialize)]
pub(super) struct Published {
    id: String,
    /// How many clients were in the room when it was published.
    clients: usize,
    /// How many of them sent a receipt, if the request waits for receipts.
    #[serde(skip_serializing_if = "Option::is_none")]
    delivered: Option<usize>,
}

/// A message that is to be published.
struct Message<'a> {
    kind: Kind,
    payload: &'a [u8],
    author: Author,
}

/// A step of reading a body.
enum Step {
    Frame(Frame<Bytes>),
    End,
    /// Reads pause until `--max-incoming` permits more.
    NoSpace,
}

impl Routes {
    /// Publishes `body`, the body of `request`; waits for receipts if its query has `wait`, at most as
    /// long as the publisher waits. A second request with the same `Idempotency-Key` publishes nothing.
    pub(super) async fn publish(
        &self,
        request: &Request,
        grant: &Grant,
        body: Incoming,
        room: &RoomName,
        publisher: &Link,
    ) -> Result<Response<Body>, Refusal> {
        let wait = request.query.wait()?;
        let name = request.query.name()?;
        let key = request.idempotency_key()?;
        if key.is_some() && !self.hub.keeps_messages() {
            return Err(Refusal::bad(
                "Idempotency-Key: nothing is kept here: see --history-limit",
            ));
        }
        grant.check_publish()?;
        // Checked before `100 Continue`, which the read of the body sends.
        let content = Content::of(&request.headers)?;
        let body = select! {
            biased;
            body = self.read(body) => body?,
            () = self.draining.cancelled() => return Err(Refusal::draining()),
        };
        let (kind, payload) = content.message(&body)?;
        if payload.len() > self.settings.max_message_size {
            return Err(self.too_big());
        }
        // It may have expired meanwhile.
        grant.check_expiry()?;

        let message = Message {
            kind,
            payload: &payload,
            author: Author {
                connection: None,
                name,
                key,
            },
        };
        // A publisher that hangs up meanwhile cannot take its message back: the store has it.
        let (status, delivery) = self.publish_once(room, message, wait.is_some()).await?;
        let Delivery {
            batch,
            queues,
            clients,
            receipts,
        } = delivery;
        // The next request may wait on this connection already.
        let mut turn = Turn::default();
        turn.owe_yields(queues);
        turn.end().await;
        let mut delivered = None;
        if let (Some(collector), Some(limit)) = (receipts, wait) {
            // A publisher that has hung up would keep its place; one that has half-closed gets its answer
            // now.
            select! {
                _ = timeout(limit, collector.wait()) => {}
                () = publisher.closed() => {}
            }
            delivered = Some(collector.delivered());
        }
        let published = Published {
            id: batch.last_id().to_string(),
            clients,
            delivered,
        };
        Ok(respond_json(status, whole(to_json(&published))))
    }

    /// Publishes a message, unless one with its key is published: 201, or 200 with that one.
    async fn publish_once(
        &self,
        room: &RoomName,
        message: Message<'_>,
        receipts: bool,
    ) -> Result<(StatusCode, Delivery), Refusal> {
        let guard = self.hub.enter(room).await?;
        let claimed = match &message.author.key {
            None => None,
            Some(key) => match claim(&guard, key, receipts).await? {
                Ok(claimed) => Some(claimed),
                Err(published) => return answer_again(*published, &message),
            },
        };
        let delivery = self
            .publish_message(&guard, message, receipts, claimed)
            .await?;
        Ok((StatusCode::CREATED, delivery))
    }

    /// Publishes one message, when the store has room for it, and waits until it is delivered.
    async fn publish_message(
        &self,
        guard: &RoomGuard,
        message: Message<'_>,
        receipts: bool,
        claimed: Option<Claimed>,
    ) -> Result<Delivery, Refusal> {
        if !guard.is_ready() {
            // It counts while it waits, as what is incomplete does.
            let waiting = self.budget.begin();
            waiting.update(message.payload.len(), 0);
            select! {
                () = guard.ready() => {}
                cut = poll_fn(|cx| waiting.poll_cut(cx)) => return Err(cut.into()),
            }
        }
        let Message {
            kind,
            payload,
            author,
        } = message;
        let mut builder = BatchBuilder::default();
        guard.plain().encode(kind, payload, &mut builder);
        let frames = builder.take().expect("it was encoded just now");
        let is_known = author != Author::default();
        let frames = frames.by(is_known.then(|| Arc::new(author)));
        if self.settings.log_messages {
            message_log::received(&Span::current(), &frames);
        }
        let delivery = match guard.publish_claimed(frames, receipts, claimed)? {
            Publication::Delivered(delivery) => delivery,
            Publication::Pending(pending) => pending.await?,
        };
        if self.settings.log_messages {
            message_log::broadcasting(&Span::current(), delivery.batch.frames());
        }
        Ok(delivery)
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
            if let Some(share) = &unfinished {
                poll_fn(|cx| share.poll_room(cx)).await?;
            }
            let frame = match self.next_step(&mut body, unfinished.as_ref()).await? {
                Step::NoSpace => continue,
                Step::End => return Ok(whole),
                Step::Frame(frame) => frame,
            };
            // hyper takes a line of the next request for a trailer, where the end of a body is malformed.
            let Some(data) = frame.data_ref() else {
                return Err(Refusal::bad("a body has no trailers here"));
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

    /// The next part of a body, unless that stands still, its message is cut, or reads have to pause. The
    /// clock begins anew behind a pause.
    async fn next_step(&self, body: &mut Incoming, share: Option<&Share>) -> Result<Step, Refusal> {
        let step = poll_fn(|cx| {
            if let Some(share) = share
                && share.poll_room(cx)?.is_pending()
            {
                return Poll::Ready(Ok(Step::NoSpace));
            }
            match ready!(Pin::new(&mut *body).poll_frame(cx)).transpose() {
                Ok(Some(frame)) => Poll::Ready(Ok(Step::Frame(frame))),
                Ok(None) => Poll::Ready(Ok(Step::End)),
                Err(_) => Poll::Ready(Err(Refusal::bad(
                    "the body is malformed, or ends too early",
                ))),
            }
        });
        let step = timeout(self.settings.times.open_timeout.get(), step).await;
        step.unwrap_or_else(|_| Err(Refusal::timed_out()))
    }

    fn too_big(&self) -> Refusal {
        let limit = self.settings.max_message_size;
        let reason = format!("a message has at most {limit} bytes: see --max-message-size");
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, reason)
    }
}

/// Claims `key`, or returns what was published under it.
async fn claim(
    guard: &RoomGuard,
    key: &Key,
    receipts: bool,
) -> Result<Result<Claimed, Box<Delivery>>, Unavailable> {
    loop {
        match guard.claim(key, receipts).await? {
            Claim::Granted(claimed) => return Ok(Ok(claimed)),
            Claim::Pending(done) => done.await,
            Claim::Published(delivery) => return Ok(Err(delivery.into())),
        }
    }
}

/// The answer to the second try of what was published under its key, if that is `message`.
fn answer_again(
    published: Delivery,
    message: &Message<'_>,
) -> Result<(StatusCode, Delivery), Refusal> {
    let kept = published.batch.frames().payloads().next();
    match kept == Some((message.kind, message.payload)) {
        true => Ok((StatusCode::OK, published)),
        false => Err(Refusal::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "Idempotency-Key is that of another message: each message needs a new one",
        )),
    }
}
