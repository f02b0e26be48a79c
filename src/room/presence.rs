//! Presence: how many clients a room has, and what they call themselves.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::OnceLock;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;

use super::log::Room;
use crate::message::{Author, Name};

/// The names of the clients of a room, as far as they have one, and their number.
///
/// Lock order: the log, then the names.
#[derive(Debug, Default)]
pub(super) struct Presence {
    /// How many clients have each name.
    names: Mutex<BTreeMap<Name, usize>>,
    /// The number of clients, from the first client on that follows it.
    count: OnceLock<watch::Sender<usize>>,
}

impl Presence {
    /// A client has come, by which the room has `count` of them.
    pub(super) fn join(&self, client: Option<&Author>, count: usize) {
        if let Some(name) = client.and_then(|it| it.name.as_ref()) {
            *self.names.lock().entry(name.clone()).or_default() += 1;
        }
        self.publish(count);
    }

    /// A client has gone, by which the room has `count` of them.
    pub(super) fn leave(&self, client: Option<&Author>, count: usize) {
        if let Some(name) = client.and_then(|it| it.name.as_ref()) {
            let mut names = self.names.lock();
            let clients = names.get_mut(name).expect("it came with this name");
            *clients -= 1;
            if *clients == 0 {
                names.remove(name);
            }
        }
        self.publish(count);
    }

    fn publish(&self, count: usize) {
        if let Some(sender) = self.count.get() {
            sender.send_replace(count);
        }
    }
}

/// The clients of a room.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Clients {
    /// How many there are.
    #[serde(rename = "clients")]
    pub(crate) count: usize,
    /// What they call themselves, each name once, in order, and not more than asked for.
    pub(crate) names: Vec<Name>,
}

impl Room {
    /// Its clients now, with at most `limit` names.
    pub(crate) fn clients(&self, limit: usize) -> Clients {
        let log = self.log.lock();
        let names = self.presence.names.lock();
        Clients {
            count: log.registry.len(),
            names: names.keys().take(limit).cloned().collect(),
        }
    }

    /// Follows the number of its clients for one that knows it was `count`.
    pub(super) fn headcount(&self, count: usize) -> Headcount {
        let sender = self
            .presence
            .count
            .get_or_init(|| watch::Sender::new(count));
        Headcount {
            receiver: sender.subscribe(),
            change: None,
            known: count,
            quiet_until: None,
        }
    }
}

/// The number of clients of a room, as one of them follows it: reported when it has changed, and at most
/// once in each [`QUIET`].
pub(crate) struct Headcount {
    receiver: watch::Receiver<usize>,
    /// Resolves at the next change.
    change: Option<BoxFuture<'static, ()>>,
    /// The number that the client knows.
    known: usize,
    /// Until when no change is reported.
    quiet_until: Option<Instant>,
}

impl fmt::Debug for Headcount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Headcount")
            .field("known", &self.known)
            .finish_non_exhaustive()
    }
}

/// The shortest time between two reports to one client.
const QUIET: Duration = Duration::from_secs(1);

impl Headcount {
    /// The number of clients, once it is another one than the client knows.
    pub(crate) fn poll_change(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        if self.quiet_until.is_some() {
            return Poll::Pending;
        }
        loop {
            let count = *self.receiver.borrow_and_update();
            if count != self.known {
                self.change = None;
                self.known = count;
                self.quiet_until = Some(Instant::now() + QUIET);
                return Poll::Ready(count);
            }
            let receiver = &self.receiver;
            let change = self.change.get_or_insert_with(|| {
                let mut receiver = receiver.clone();
                async move { drop(receiver.changed().await) }.boxed()
            });
            ready!(change.poll_unpin(cx));
            self.change = None;
        }
    }

    /// When the next change may be reported, if there is a time to wait for.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.quiet_until
    }

    /// Lets the next change be reported, if its time has come.
    pub(crate) fn check(&mut self, now: Instant) {
        self.quiet_until = self.quiet_until.filter(|until| *until > now);
    }
}
