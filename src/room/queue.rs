//! The queue of live messages for one client: a bounded channel whose halves are the room's [`Sender`]
//! and the client's [`Receiver`].
//!
//! tokio's channel has no bound in bytes, and costs several times the memory and time for each client.

use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use smallvec::SmallVec;

use super::sync::Mutex;
use crate::format::Batch;

/// Queued batches, in order; a typical queue needs no allocation.
pub(crate) type Batches = SmallVec<[Arc<Batch>; 2]>;

/// The bound of one queue; an empty queue accepts a batch of any size.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bound {
    /// Number of messages.
    pub(crate) messages: usize,
    /// Bytes of their frames.
    pub(crate) bytes: usize,
}

impl Bound {
    /// Whether the bound permits a queue of this size.
    pub(crate) fn allows(self, messages: usize, bytes: usize) -> bool {
        messages <= self.messages && bytes <= self.bytes
    }
}

/// A channel from a room, which never waits, to one client, which receives everything queued at once.
///
/// It is live while the room sends to it. On overflow or seal the room stops: queued batches can still
/// be received, and the rest is read from the history.
pub(crate) fn channel() -> (Sender, Receiver) {
    let state = Arc::<Mutex<State>>::default();
    (Sender(state.clone()), Receiver(state))
}

/// The room's half.
#[derive(Debug)]
pub(crate) struct Sender(Arc<Mutex<State>>);

/// The client's half.
#[derive(Debug)]
pub(crate) struct Receiver(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    batches: Batches,
    messages: usize,
    bytes: usize,
    live: bool,
    /// Whether the client is to look for what is not a message.
    asked: bool,
    client: Option<Waker>,
}

impl Sender {
    /// Queues a batch; on overflow, stops being live instead and returns false.
    pub(crate) fn send(&self, batch: &Arc<Batch>, bound: Bound) -> bool {
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

    /// Has the client look for what is not a message: receipts requested for messages that it has, or a
    /// change of the store.
    pub(crate) fn ask(&self) {
        let mut state = self.0.lock();
        state.asked = true;
        state.wake();
    }

    /// Stops being live.
    pub(crate) fn close(&self) {
        let mut state = self.0.lock();
        state.live = false;
        state.wake();
    }
}

impl Receiver {
    /// Makes the channel live.
    pub(crate) fn open(&self) {
        self.0.lock().live = true;
    }

    /// Swaps all queued batches with the empty `into`; while the channel is live, the task is woken for
    /// later ones, whether this receive was empty or not.
    pub(crate) fn poll_recv(&self, cx: &mut Context<'_>, into: &mut Batches) -> Poll<Taken> {
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
        if mem::take(&mut state.asked) {
            return Poll::Ready(Taken::Asked);
        }
        if !state.batches.is_empty() {
            mem::swap(&mut state.batches, into);
            state.messages = 0;
            state.bytes = 0;
            Poll::Ready(Taken::All {
                watched: state.live,
            })
        } else if state.live {
            Poll::Pending
        } else {
            Poll::Ready(Taken::End)
        }
    }
}

/// The result of a receive.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// Everything queued.
    All {
        /// Whether the task is woken for later messages.
        watched: bool,
    },
    /// No messages; something else may have come.
    Asked,
    /// The queue is drained and no longer live.
    End,
}

impl State {
    fn wake(&mut self) {
        if let Some(client) = self.client.take() {
            client.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::ready;

    use super::super::sync::model::{block_on, explore, spawn};
    use super::*;
    use crate::config::Mode;
    use crate::room::log::tests::{Numbers, config};

    /// `poll_recv`, `send`, or a mutant of one of them.
    type PollRecv = fn(&Receiver, &mut Context<'_>, &mut Batches) -> Poll<Taken>;
    type Send = fn(&Sender, &Arc<Batch>, Bound) -> bool;

    /// Two batches for a receiver that polls only where it has to, with the end behind them or without:
    /// in all interleavings it gets all that was queued. It waits for ever where a wake-up is lost.
    fn explore_queue(messages: usize, send: Send, poll_recv: PollRecv) {
        let mut room = Numbers::new(&config(Mode::Broadcast, 10, 1));
        room.publish(1);
        room.publish(1);
        let log = room.room.log.lock();
        let batches: Vec<_> = log.history.batches_from(1).cloned().collect();
        let bytes = usize::MAX;
        for closes in [false, true] {
            let batches = batches.clone();
            explore(move || {
                let (sender, receiver) = channel();
                receiver.open();
                let batches = batches.clone();
                let sending = spawn(move || {
                    let bound = Bound { messages, bytes };
                    let sent = batches.iter().take_while(|it| send(&sender, it, bound));
                    let sent = sent.count() as u64;
                    if closes {
                        sender.close();
                    }
                    sent
                });
                let mut received = Vec::new();
                block_on(|cx| {
                    while closes || received.len() < 2 {
                        let mut into = Batches::new();
                        match ready!(poll_recv(&receiver, cx, &mut into)) {
                            Taken::End => break,
                            Taken::Asked => {}
                            Taken::All { watched } => {
                                received.extend(into.iter().flat_map(|it| it.positions()));
                                if watched && (closes || received.len() < 2) {
                                    return Poll::Pending;
                                }
                            }
                        }
                    }
                    Poll::Ready(())
                });
                assert!(received.into_iter().eq(1..=sending.join().unwrap()));
            });
        }
    }

    #[test]
    fn no_wake_up_is_lost_in_any_interleaving() {
        explore_queue(2, Sender::send, Receiver::poll_recv);
    }

    #[test]
    fn after_an_overflow_the_rest_is_received_in_any_interleaving() {
        explore_queue(1, Sender::send, Receiver::poll_recv);
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn the_model_finds_a_waker_that_is_stored_behind_the_check() {
        explore_queue(2, Sender::send, |receiver, cx, into| {
            let polled = receiver.poll_recv(&mut Context::from_waker(Waker::noop()), into);
            let mut state = receiver.0.lock();
            state.client = Some(cx.waker().clone());
            polled
        });
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn the_model_finds_a_wake_before_the_push() {
        let send: Send = |sender, batch, _| {
            sender.0.lock().wake();
            sender.0.lock().batches.push(batch.clone());
            true
        };
        explore_queue(2, send, Receiver::poll_recv);
    }
}
