//! The phase of a connection: known to hyper's stream, to the answers and to the timeouts around them.

use std::future::{Future, poll_fn};
use std::mem;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::idle::{IdleConnections, IdleEntry};
use crate::admission::Grant;
use crate::hub::Membership;

/// What the stream below hyper and the answers above it know of each other. All of them run in the task
/// of the connection.
#[derive(Debug)]
pub(super) struct Link {
    phase: Mutex<Phase>,
    /// Where it counts while it is idle; none for a connection that has no place to give.
    idle: Option<Arc<IdleConnections>>,
    /// Notified when the place of this idle connection is needed.
    pub(super) evicted: Arc<Notify>,
    is_closed: AtomicBool,
    closed: Notify,
    joined: Mutex<Option<Box<Joined>>>,
}

/// A client that has joined a room: the connection is its own from here on.
#[derive(Debug)]
pub(super) struct Joined {
    pub(super) membership: Membership,
    pub(super) grant: Arc<Grant>,
    /// The head of the answer of an event stream, which hyper does not write.
    pub(super) head: Option<Bytes>,
}

/// How far a connection is.
#[derive(Debug)]
enum Phase {
    /// Nothing has been received yet.
    New(Instant),
    /// A part of the head of a request has been received.
    Head { since: Instant, bytes: Vec<u8> },
    /// A request is being read or answered.
    Busy,
    /// The answer is complete, and not all of it written.
    Flushing,
    /// Between two requests.
    Idle {
        since: Instant,
        _entry: Option<IdleEntry>,
    },
}

impl Link {
    pub(super) fn new(idle: Option<Arc<IdleConnections>>) -> Self {
        Self {
            phase: Mutex::new(Phase::New(Instant::now())),
            idle,
            evicted: Arc::default(),
            is_closed: AtomicBool::new(false),
            closed: Notify::new(),
            joined: Mutex::new(None),
        }
    }

    /// The connection is to be handed over to this client.
    pub(super) fn join(&self, joined: Joined) {
        *self.joined.lock() = Some(Box::new(joined));
    }

    /// The client that the connection is to be handed over to.
    pub(super) fn take_joined(&self) -> Option<Box<Joined>> {
        self.joined.lock().take()
    }

    /// A request begins; it ends when the guard is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> BusyGuard {
        *self.phase.lock() = Phase::Busy;
        BusyGuard(self.clone())
    }

    /// These bytes were received.
    pub(super) fn received(&self, received: &[u8]) {
        let mut phase = self.phase.lock();
        match &mut *phase {
            Phase::New(_) | Phase::Idle { .. } => {
                *phase = Phase::Head {
                    since: Instant::now(),
                    bytes: received.to_vec(),
                };
            }
            Phase::Head { bytes, .. } => bytes.extend_from_slice(received),
            Phase::Busy | Phase::Flushing => {}
        }
    }

    /// What was received of the head of a request that is incomplete.
    pub(super) fn take_head(&self) -> Option<Vec<u8>> {
        match &mut *self.phase.lock() {
            Phase::Head { bytes, .. } => Some(mem::take(bytes)),
            _ => None,
        }
    }

    /// All that hyper has to write was taken by the kernel.
    pub(super) fn flushed(&self) {
        let mut phase = self.phase.lock();
        if matches!(*phase, Phase::Flushing) {
            *phase = Phase::Idle {
                since: Instant::now(),
                _entry: self.idle.as_ref().map(|it| it.enter(&self.evicted)),
            };
        }
    }

    /// The peer sends no more.
    pub(super) fn peer_closed(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
        self.closed.notify_waiters();
    }

    /// Whether the peer sends no more, as far as that was watched.
    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Relaxed)
    }

    /// Waits until the peer sends no more: it has closed the connection, or its side of it.
    pub(super) async fn closed(&self) {
        let mut closed = pin!(self.closed.notified());
        poll_fn(|cx| match self.is_closed() {
            true => Poll::Ready(()),
            false => closed.as_mut().poll(cx),
        })
        .await;
    }

    /// Whether a request is being read or answered.
    pub(super) fn is_busy(&self) -> bool {
        matches!(*self.phase.lock(), Phase::Busy)
    }

    /// Whether hyper has an answer of ours to write; all else that it writes are answers of its own.
    pub(super) fn is_answering(&self) -> bool {
        matches!(*self.phase.lock(), Phase::Busy | Phase::Flushing)
    }

    /// Whether the first request, or one that has begun, is still to be received.
    pub(super) fn awaits_request(&self) -> bool {
        matches!(*self.phase.lock(), Phase::New(_) | Phase::Head { .. })
    }

    /// Whether it is between two requests.
    pub(super) fn is_idle(&self) -> bool {
        matches!(*self.phase.lock(), Phase::Idle { .. })
    }

    /// Waits until a request has been awaited, or its head has been incomplete, for `limit`.
    pub(super) async fn overdue(&self, limit: Duration) {
        // Moved only when it fires, so that a request costs no work on the timer.
        let mut timer = pin!(sleep(limit));
        loop {
            timer.as_mut().await;
            let now = Instant::now();
            let due = self.waits_since().unwrap_or(now) + limit;
            if due <= now {
                return;
            }
            timer.as_mut().reset(due);
        }
    }

    /// Since when a request is awaited or incomplete.
    fn waits_since(&self) -> Option<Instant> {
        match *self.phase.lock() {
            Phase::New(since) | Phase::Head { since, .. } | Phase::Idle { since, .. } => {
                Some(since)
            }
            Phase::Busy | Phase::Flushing => None,
        }
    }
}

/// A request that is read and answered.
#[derive(Debug)]
pub(super) struct BusyGuard(Arc<Link>);

impl Drop for BusyGuard {
    fn drop(&mut self) {
        *self.0.phase.lock() = Phase::Flushing;
    }
}
