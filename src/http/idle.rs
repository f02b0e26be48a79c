//! Connections between two requests: the one idle for longest gives its place to a new connection.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// The idle connections of a server.
#[derive(Debug, Default)]
pub(crate) struct IdleConnections(Mutex<ByAge>);

#[derive(Debug, Default)]
struct ByAge {
    /// What each is evicted by, in the order in which they became idle.
    entries: BTreeMap<u64, Weak<Notify>>,
    next: u64,
}

/// One idle connection; dropping it says that it is idle no more.
#[derive(Debug)]
pub(super) struct IdleEntry {
    all: Arc<IdleConnections>,
    key: u64,
}

impl IdleConnections {
    /// A connection becomes idle; `evicted` is notified when its place is needed.
    pub(super) fn enter(self: &Arc<Self>, evicted: &Arc<Notify>) -> IdleEntry {
        let mut all = self.0.lock();
        let key = all.next;
        all.next += 1;
        all.entries.insert(key, Arc::downgrade(evicted));
        IdleEntry {
            all: self.clone(),
            key,
        }
    }

    /// Evicts the connection that has been idle for longest; returns whether there was one.
    pub(crate) fn evict_longest(&self) -> bool {
        let oldest = self.0.lock().entries.pop_first();
        let evicted = oldest.and_then(|(_, evicted)| evicted.upgrade());
        evicted.map(|it| it.notify_one()).is_some()
    }
}

impl Drop for IdleEntry {
    fn drop(&mut self) {
        self.all.0.lock().entries.remove(&self.key);
    }
}
