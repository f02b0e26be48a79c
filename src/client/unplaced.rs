//! What a session has published and its store has yet to place.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::hub::{Pending, PublishError, RoomGuard};
use crate::room::Delivery;

/// The publications of a session that wait for the store, in order, and its wait for a store that does not
/// keep up.
#[derive(Default)]
pub(super) struct Unplaced {
    publications: VecDeque<(Sent, Pending)>,
    store: Option<BoxFuture<'static, ()>>,
}

impl fmt::Debug for Unplaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.publications).finish()
    }
}

/// Messages that one client sent: the number of the first, counted from 1 in its connection, and how many.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    pub(super) first: u64,
    pub(super) count: u64,
}

/// Publications of one session that wait at a time; beyond, it reads no more.
const PUBLICATIONS_MAX: usize = 64;

impl Unplaced {
    /// Waits for one more publication.
    pub(super) fn push(&mut self, sent: Sent, pending: Pending) {
        self.publications.push_back((sent, pending));
    }

    /// Whether a publication waits.
    pub(super) fn has_publications(&self) -> bool {
        !self.publications.is_empty()
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.publications.is_empty() && self.store.is_none()
    }

    /// The outcome of the oldest publication; nothing is ready where none waits.
    pub(super) fn poll_outcome(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<(Sent, Result<Delivery, PublishError>)> {
        let Some((sent, pending)) = self.publications.front_mut() else {
            return Poll::Pending;
        };
        let (sent, outcome) = (*sent, ready!(Pin::new(pending).poll(cx)));
        self.publications.pop_front();
        Poll::Ready((sent, outcome))
    }

    /// Waits until more may be published in the room of `room_guard`.
    pub(super) fn poll_ready(&mut self, cx: &mut Context<'_>, room_guard: &RoomGuard) -> Poll<()> {
        if self.store.is_none() && !room_guard.is_ready() {
            self.store = Some(room_guard.ready());
        }
        if let Some(store) = &mut self.store {
            ready!(store.poll_unpin(cx));
            self.store = None;
        }
        match self.publications.len() < PUBLICATIONS_MAX {
            true => Poll::Ready(()),
            // The oldest of them wakes the task.
            false => Poll::Pending,
        }
    }
}
