//! What a session publishes: its messages on their way to the room, and the answers to its client.

use std::future::poll_fn;
use std::task::{Context, Poll};

use tokio::time::timeout;

use super::message_log;
use super::session::Session;
use super::unplaced::Sent;
use crate::admission::Forbidden;
use crate::disconnect::Disconnect;
use crate::format::{ErrorCode, Event, Frames};
use crate::hub::{Publication, PublishError};
use crate::room::{Behaviour, Delivery};
use crate::transport::Transport;

impl<S: Transport> Session<S> {
    /// Waits until the store keeps up with what is published.
    pub(super) fn poll_may_publish(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.unplaced.is_none() && self.room_guard.is_ready() {
            return Poll::Ready(());
        }
        let unplaced = self.unplaced.get_or_insert_default();
        let ready = unplaced.poll_ready(cx, &self.room_guard);
        if ready.is_pending() {
            self.socket.pause_reads();
        } else if unplaced.is_empty() {
            self.unplaced = None;
        }
        ready
    }

    /// Publishes the messages read, batch by batch.
    pub(super) fn publish_read(&mut self) -> Result<(), Disconnect> {
        self.note_received();
        self.take_receipt();
        let mut queues = 0;
        while let Some(frames) = self.batch_builder.take() {
            queues = self.publish(frames)?;
        }
        self.socket.turn.owe_yields(queues);
        Ok(())
    }

    /// Publishes a batch; returns how many queues it was put into.
    fn publish(&mut self, frames: Frames) -> Result<usize, Disconnect> {
        let span = &self.record.span;
        let sent = Sent {
            first: self.record.received + 1,
            count: frames.len() as u64,
        };
        self.record.received += sent.count;
        if self.socket.settings.log_messages {
            message_log::received(span, &frames);
        }
        if !self.grant.may_publish {
            let why = Forbidden::Publish.into();
            self.reject(sent, ErrorCode::Forbidden, None, why)?;
            return Ok(0);
        }
        let frames = frames.by(Some(self.subscription.author().clone()));
        match self.room_guard.publish(frames, false) {
            Ok(Publication::Delivered(delivery)) => self.answer(sent, Ok(delivery)),
            Err(error) => self.answer(sent, Err(error)),
            Ok(Publication::Pending(pending)) => {
                self.unplaced.get_or_insert_default().push(sent, pending);
                Ok(0)
            }
        }
    }

    /// Answers the client for messages that it sent: with their echo, in an echo room, or with an error
    /// where they are in no log. Returns how many queues they were put into.
    fn answer(
        &mut self,
        sent: Sent,
        outcome: Result<Delivery, PublishError>,
    ) -> Result<usize, Disconnect> {
        let Delivery { batch, queues, .. } = match outcome {
            Ok(delivery) => delivery,
            // The session still drains the log before it ends.
            Err(PublishError::Sealed) => return Ok(0),
            Err(PublishError::Unavailable(why)) => {
                let (code, time) = (ErrorCode::Unavailable, why.retry_after.as_secs_f64());
                self.reject(sent, code, Some(time), Disconnect::Unavailable)?;
                return Ok(0);
            }
        };
        match self.room_guard.behaviour() {
            Behaviour::Echo => {
                self.record.sent += batch.len() as u64;
                self.outbox.push(self.subscription.echo(&batch));
            }
            Behaviour::Broadcast if self.socket.settings.log_messages => {
                message_log::broadcasting(&self.record.span, batch.frames());
            }
            Behaviour::Broadcast => {}
        }
        Ok(queues)
    }

    /// Reports that messages of the client are in no log.
    ///
    /// # Errors
    /// `why`, where the format of the client has no event for that.
    fn reject(
        &mut self,
        sent: Sent,
        code: ErrorCode,
        retry_after: Option<f64>,
        why: Disconnect,
    ) -> Result<(), Disconnect> {
        let encoding = self.subscription.encoding();
        let errors = (sent.first..sent.first + sent.count).map_while(|message| {
            encoding.event(&Event::Error {
                code,
                message,
                retry_after,
            })
        });
        let before = self.outbox.len();
        self.outbox.extend(errors);
        match self.outbox.len() > before {
            true => Ok(()),
            false => Err(why),
        }
    }

    /// Answers for the publications that the store has placed or refused; returns whether the answers
    /// wait for the socket.
    pub(super) fn poll_outcomes(&mut self, cx: &mut Context<'_>) -> Result<bool, Disconnect> {
        while let Some(unplaced) = &mut self.unplaced
            && let Poll::Ready((sent, outcome)) = unplaced.poll_outcome(cx)
        {
            let queues = self.answer(sent, outcome)?;
            self.socket.turn.owe_yields(queues);
        }
        Ok(!self.socket.try_write(&mut self.outbox)?)
    }

    /// Waits for the publications that are in the store, and writes the answers, all within the close
    /// timeout.
    pub(super) async fn write_outcomes(&mut self) {
        let limit = self.socket.settings.times.close_timeout.get();
        let outcomes = async {
            while let Some(unplaced) = &mut self.unplaced
                && unplaced.has_publications()
            {
                let (sent, outcome) = poll_fn(|cx| unplaced.poll_outcome(cx)).await;
                self.answer(sent, outcome)?;
                self.write().await?;
            }
            Ok::<(), Disconnect>(())
        };
        timeout(limit, outcomes).await.ok();
    }
}
