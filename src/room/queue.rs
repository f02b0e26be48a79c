//! The live messages that wait for one client: a bounded channel whose halves are the room's
//! [`Sender`] and the client's [`Receiver`].
//!
//! Not tokio's: that has no bound in bytes, takes seven times the memory, and costs twice the time a
//! client.

use std::mem;
use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::mpsc;

use crate::format::Batch;

/// What waits, in order; room for what mostly waits, without an allocation.
pub type Batches = SmallVec<[Arc<Batch>; 2]>;

/// What may wait for one client; one batch may always, however large.
#[derive(Debug, Clone, Copy)]
pub struct Bound {
    /// Number of messages.
    pub messages: usize,
    /// Bytes of their frames.
    pub bytes: usize,
}

impl Bound {
    /// Whether so much may wait.
    pub fn allows(self, messages: usize, bytes: usize) -> bool {
        messages <= self.messages && bytes <= self.bytes
    }
}

/// A channel between a room, which never waits, and one client, which takes all there is.
///
/// It is live while the room sends to it. On overflow, or when the room is sealed, the room stops:
/// what is queued can still be received, and the rest is read from the history.
pub fn channel() -> (Sender, Receiver) {
    let state = Arc::<Mutex<State>>::default();
    (Sender(state.clone()), Receiver(state))
}

/// The room's half.
#[derive(Debug)]
pub struct Sender(Arc<Mutex<State>>);

/// The client's half.
#[derive(Debug)]
pub struct Receiver(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    batches: Batches,
    messages: usize,
    bytes: usize,
    live: bool,
    client: Option<Waker>,
    /// Whether receipts were asked for since the client last took something.
    asked: bool,
    /// The publishers that wait for the client to have the message of this sequence number.
    receipts: Vec<(u64, mpsc::Sender<()>)>,
}

impl Sender {
    /// Queues a batch; where it does not fit, stops being live instead and returns false.
    pub fn send(&self, batch: &Arc<Batch>, bound: Bound) -> bool {
        let mut state = self.0.lock();
        let messages = state.messages + batch.len();
        let bytes = state.bytes + batch.frame_bytes();
        if state.batches.is_empty() || bound.allows(messages, bytes) {
            state.batches.push(batch.clone());
            state.messages = messages;
            state.bytes = bytes;
        } else {
            state.live = false;
        }
        state.wake();
        state.live
    }

    /// Stops being live.
    pub fn close(&self) {
        let mut state = self.0.lock();
        state.live = false;
        state.wake();
    }

    /// Asks the client for a receipt, for `sender`, of all messages up to the sequence number `seq`;
    /// without one, the sender is dropped when the client is gone.
    pub fn ask_receipt(&self, seq: u64, sender: mpsc::Sender<()>) {
        let mut state = self.0.lock();
        state.receipts.retain(|(_, sender)| !sender.is_closed());
        state.receipts.push((seq, sender));
        state.asked = true;
        state.wake();
    }
}

impl Receiver {
    /// Is live from now on.
    pub fn open(&self) {
        self.0.lock().live = true;
    }

    /// Takes all that waits, leaving the empty `into` in its place; while it is live, the
    /// task is woken when there is more, whether it got something now or not.
    pub fn poll_recv(&self, cx: &mut Context<'_>, into: &mut Batches) -> Poll<Taken> {
        debug_assert!(into.is_empty());
        let mut state = self.0.lock();
        if state.live
            && !state
                .client
                .as_ref()
                .is_some_and(|it| it.will_wake(cx.waker()))
        {
            state.client = Some(cx.waker().clone());
        }
        // What is asked for lies in the history where it is not live: it is to be given first.
        let asked = state.live && state.asked;
        if !state.batches.is_empty() || asked {
            mem::swap(&mut state.batches, into);
            state.messages = 0;
            state.bytes = 0;
            state.asked &= !asked;
            Poll::Ready(Taken::All {
                asked,
                watched: state.live,
            })
        } else if state.live {
            Poll::Pending
        } else {
            Poll::Ready(Taken::End)
        }
    }

    /// The client has all messages up to the sequence number `seq`.
    pub fn acknowledge(&self, seq: u64) {
        self.0.lock().receipts.retain(|(wanted, sender)| {
            if *wanted <= seq {
                sender.try_send(()).ok();
            }
            *wanted > seq
        });
    }

    /// No receipts will come for messages with these sequence numbers: they are forgotten.
    pub fn forgo(&self, seqs: &Range<u64>) {
        let mut state = self.0.lock();
        state.receipts.retain(|(wanted, _)| !seqs.contains(wanted));
    }

    /// No more receipts will come.
    pub fn abandon(&self) {
        self.0.lock().receipts = Vec::new();
    }
}

/// What a receiver gave.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    /// All that waited.
    All {
        /// Whether receipts are asked for, of all messages given so far.
        asked: bool,
        /// Whether the task is woken when there is more.
        watched: bool,
    },
    /// Nothing waits, and nothing will come.
    End,
}

impl State {
    fn wake(&mut self) {
        if let Some(client) = self.client.take() {
            client.wake();
        }
    }
}
