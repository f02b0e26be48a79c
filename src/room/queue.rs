//! The live messages that wait for one client.

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

/// A bounded queue between a room, which never waits, and one client, which takes all there is.
///
/// A queue is attached while its room fills it. It is detached for good reason by the room (it was
/// full, or the room ended), and what it held until then can still be taken.
#[derive(Debug, Default)]
pub struct Queue(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    batches: Batches,
    messages: usize,
    bytes: usize,
    attached: bool,
    client: Option<Waker>,
    /// Whether receipts were asked for since the client last took something.
    asked: bool,
    /// Who waits for the client to have the message of this sequence number.
    receipts: Vec<(u64, mpsc::Sender<()>)>,
}

impl Queue {
    /// The room fills it from now on.
    pub fn attach(&self) {
        self.0.lock().attached = true;
    }

    /// The room no longer fills it.
    pub fn detach(&self) {
        let mut state = self.0.lock();
        state.attached = false;
        state.wake();
    }

    /// Adds a batch; where it does not fit, detaches instead and returns false.
    pub fn push(&self, batch: &Arc<Batch>, bound: Bound) -> bool {
        let mut state = self.0.lock();
        let messages = state.messages + batch.len();
        let bytes = state.bytes + batch.frame_bytes();
        if state.batches.is_empty() || bound.allows(messages, bytes) {
            state.batches.push(batch.clone());
            state.messages = messages;
            state.bytes = bytes;
        } else {
            state.attached = false;
        }
        state.wake();
        state.attached
    }

    /// Takes all that waits, leaving the empty `into` in its place; while the queue is attached, the
    /// task is woken when there is more, whether it got something now or not.
    pub fn poll_take(&self, cx: &mut Context<'_>, into: &mut Batches) -> Poll<Taken> {
        debug_assert!(into.is_empty());
        let mut state = self.0.lock();
        if state.attached
            && !state
                .client
                .as_ref()
                .is_some_and(|it| it.will_wake(cx.waker()))
        {
            state.client = Some(cx.waker().clone());
        }
        // What is asked for lies in the history where the queue is detached: it is to be given first.
        let asked = state.attached && state.asked;
        if !state.batches.is_empty() || asked {
            mem::swap(&mut state.batches, into);
            state.messages = 0;
            state.bytes = 0;
            state.asked &= !asked;
            Poll::Ready(Taken::All {
                asked,
                watched: state.attached,
            })
        } else if state.attached {
            Poll::Pending
        } else {
            Poll::Ready(Taken::End)
        }
    }

    /// Asks the client for a receipt, for `sender`, of all messages up to the sequence number `seq`;
    /// without one, the sender is dropped when the client is gone.
    pub fn ask(&self, seq: u64, sender: mpsc::Sender<()>) {
        let mut state = self.0.lock();
        state.receipts.retain(|(_, sender)| !sender.is_closed());
        state.receipts.push((seq, sender));
        state.asked = true;
        state.wake();
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

/// What a queue gave.
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
