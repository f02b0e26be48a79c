//! Publications that wait for their place in the log, and what the store delivers.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{Hub, PublishError, RoomGuard};
use crate::message::Unavailable;
use crate::room::{Claimed, Delivery, Placed};
use crate::store::{Fed, Feed, Numbered, Ticket};

/// Messages that are published.
#[derive(Debug)]
pub(crate) enum Publication {
    /// They are in the log and with the clients.
    Delivered(Delivery),
    /// The store has yet to place them.
    Pending(Pending),
}

/// Resolves when the store has delivered or refused a publication.
#[derive(Debug)]
pub(crate) struct Pending(oneshot::Receiver<Result<Delivery, PublishError>>);

impl Future for Pending {
    type Output = Result<Delivery, PublishError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let concluded = ready!(Pin::new(&mut self.0).poll(cx));
        // Only at the end of the hub.
        Poll::Ready(concluded.unwrap_or_else(|_| {
            let retry_after = Duration::from_secs(1);
            Err(Unavailable { retry_after }.into())
        }))
    }
}

/// The publications that a store has taken and not placed yet.
#[derive(Debug, Default)]
pub(super) struct Publications {
    last: AtomicU64,
    waiting: Mutex<HashMap<Ticket, Waiting>>,
}

/// A publication in the store.
#[derive(Debug)]
pub(super) struct Waiting {
    /// Keeps its room open.
    room_guard: RoomGuard,
    /// Whether receipts are requested for it.
    receipts: bool,
    /// Keeps its key, also where the publisher has gone.
    _claimed: Option<Claimed>,
    answer: oneshot::Sender<Result<Delivery, PublishError>>,
}

impl Publications {
    /// Begins a publication that is announced in the room of `room_guard`.
    pub(super) fn begin(
        &self,
        room_guard: RoomGuard,
        receipts: bool,
        claimed: Option<Claimed>,
    ) -> (Ticket, Pending) {
        let (answer, pending) = oneshot::channel();
        let ticket = Ticket(self.last.fetch_add(1, Ordering::Relaxed));
        let waiting = Waiting {
            room_guard,
            receipts,
            _claimed: claimed,
            answer,
        };
        self.waiting.lock().insert(ticket, waiting);
        (ticket, Pending(pending))
    }

    /// The publication that `ticket` names, once.
    pub(super) fn take(&self, ticket: Ticket) -> Option<Waiting> {
        self.waiting.lock().remove(&ticket)
    }

    /// All publications, once.
    pub(super) fn take_all(&self) -> Vec<Waiting> {
        let mut waiting = self.waiting.lock();
        waiting.drain().map(|(_, it)| it).collect()
    }

    /// It has to be delivered again.
    pub(super) fn put_back(&self, ticket: Ticket, waiting: Waiting) {
        self.waiting.lock().insert(ticket, waiting);
    }
}

impl Waiting {
    /// Answers the publisher, if it still waits. The log may end now.
    pub(super) fn conclude(self, answer: Result<Delivery, PublishError>) {
        self.answer.send(answer).ok();
        self.room_guard.room.conclude();
    }
}

impl Feed for Hub {
    fn deliver(&self, name: &str, messages: Numbered) -> Fed {
        let Numbered {
            first,
            time,
            frames,
            ticket,
        } = messages;
        let waiting = ticket.and_then(|ticket| self.publications.take(ticket));
        let Some(room) = self.open_room(name) else {
            return Fed::Closed;
        };
        let receipts = waiting.as_ref().is_some_and(|it| it.receipts);
        match room.deliver(first, time, frames, receipts) {
            Placed::Delivered(delivery) | Placed::Duplicate(delivery) => {
                self.settle(&room);
                let clients = delivery.clients;
                if let Some(waiting) = waiting {
                    waiting.conclude(Ok(delivery));
                }
                Fed::Taken { clients }
            }
            Placed::Gap(next) => {
                if let (Some(ticket), Some(waiting)) = (ticket, waiting) {
                    self.publications.put_back(ticket, waiting);
                }
                Fed::Gap(next)
            }
        }
    }

    fn refuse(&self, ticket: Ticket, why: Unavailable) {
        if let Some(waiting) = self.publications.take(ticket) {
            waiting.conclude(Err(why.into()));
        }
    }

    fn refuse_all(&self, why: Unavailable) {
        for waiting in self.publications.take_all() {
            waiting.conclude(Err(why.into()));
        }
    }

    fn begin_epoch(&self, name: &str, epoch: u64) {
        if let Some(room) = self.open_room(name) {
            room.begin_epoch(epoch);
        }
    }

    fn health_changed(&self) {
        for room in self.open_rooms() {
            room.ask_all();
        }
    }
}
