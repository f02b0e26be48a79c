//! Keys: a message that its publisher sends again under the same key is published once.

use std::sync::Arc;

use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::log::{Delivery, Room};
use super::receipts::Collector;
use crate::message::Key;

/// What is known of a message with a key, as long as the history retains it.
#[derive(Debug)]
pub(super) struct Keyed {
    /// Its position.
    pub(super) position: u64,
    /// How many clients the room had when it was published.
    pub(super) clients: usize,
    /// The receipts for it, whether a publisher waits for them or not.
    pub(super) receipts: Arc<Collector>,
}

/// What a publisher may do that has a key.
#[derive(Debug)]
pub(crate) enum Claim {
    /// Publish its message.
    Granted(Claimed),
    /// Nothing until another publisher with this key has published its message, or failed to.
    Pending(WaitForCancellationFutureOwned),
    /// Nothing: the message is in the log. The receipts are those for it.
    Published(Delivery),
}

/// Keeps a key to one publisher until its message is in the log, or is refused.
#[derive(Debug)]
pub(crate) struct Claimed {
    room: Arc<Room>,
    key: Key,
}

impl Room {
    /// Claims `key`; the receipts of a message that is published are collected if `receipts`.
    pub(crate) fn claim(self: &Arc<Self>, key: &Key, receipts: bool) -> Claim {
        let mut log = self.log.lock();
        if let Some((batch, keyed)) = log.history.find(key) {
            if receipts && keyed.receipts.want() {
                // Most clients have the message already, and were not pinged for it.
                log.registry.iter().for_each(|(_, it)| it.sender.ask());
            }
            return Claim::Published(Delivery {
                batch: batch.clone(),
                queues: 0,
                clients: keyed.clients,
                receipts: receipts.then(|| keyed.receipts.clone()),
            });
        }
        if let Some(done) = log.claims.get(key) {
            return Claim::Pending(done.clone().cancelled_owned());
        }
        log.claims.insert(key.clone(), CancellationToken::new());
        Claim::Granted(Claimed {
            room: self.clone(),
            key: key.clone(),
        })
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        let done = self.room.log.lock().claims.remove(&self.key);
        done.inspect(CancellationToken::cancel);
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use futures_util::FutureExt;

    use super::*;
    use crate::config::Mode;
    use crate::format::Outbox;
    use crate::message::Author;
    use crate::room::log::tests::{Numbers, config};
    use crate::room::{Follow, Subscription};

    fn publish(numbers: &Numbers, key: &Key) {
        let author = Author {
            key: Some(key.clone()),
            ..Author::default()
        };
        let frames = numbers.encode(1).by(Some(Arc::new(author)));
        numbers.room.append(frames, false, |_, _| {}).unwrap();
    }

    #[test]
    fn clients_are_pinged_for_a_message_with_a_key_only_if_a_publisher_waits() {
        let numbers = Numbers::new(&config(Mode::Broadcast, 2, 10));
        let room = &numbers.room;
        let key = Key::try_from(&b"k"[..]).unwrap();
        let mut clients = [(), ()].map(|()| room.subscribe(Follow::default(), false).0);
        publish(&numbers, &key);
        let is_pinged = |client: &mut Subscription| {
            let (mut cx, mut requests) = (Context::from_waker(Waker::noop()), 0);
            while client.poll_next(&mut cx, &mut Outbox::new()).is_ready() {
                requests += usize::from(client.take_ping_request());
            }
            requests == 1
        };
        assert!(!is_pinged(&mut clients[0]));
        let Claim::Published(Delivery { receipts, .. }) = room.claim(&key, true) else {
            panic!("it is published")
        };
        assert!(receipts.unwrap().wait().now_or_never().is_none());
        for client in &mut clients {
            assert!(is_pinged(client));
        }
    }

    #[test]
    fn a_key_and_its_receipts_are_forgotten_with_its_message() {
        let numbers = Numbers::new(&config(Mode::Broadcast, 2, 10));
        let room = &numbers.room;
        let keys = ["a", "b", "c"].map(|key| Key::try_from(key.as_bytes()).unwrap());
        for key in &keys {
            publish(&numbers, key);
        }
        let is_published = keys.map(|key| matches!(room.claim(&key, true), Claim::Published(_)));
        assert_eq!(is_published, [false, true, true]);
        assert_eq!(room.log.lock().history.keys(), 2);
        assert_eq!(room.receipts.entries(), 2);
        room.trim_to(0);
        assert_eq!(room.log.lock().history.keys(), 0);
        assert_eq!(room.receipts.entries(), 0);
    }
}
