//! What the threads that publish share with the writer.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

use super::queue::{Queue, Work};
use crate::config::OnStoreError;
use crate::format::Batch;
use crate::message::Unavailable;
use crate::store::epochs::Epochs;
use crate::store::{Feed, Health, Publishing, Ticket};

/// The queue of the writer, and what is known of the database without asking it.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) queue: Mutex<Queue>,
    /// Wakes the writer.
    work: Condvar,
    /// Memory that messages may take while they cannot be written.
    memory_max: usize,
    pub(super) epochs: Epochs,
    /// No message is published in an older epoch.
    pub(super) epoch_min: u64,
    feed: OnceLock<Weak<dyn Feed>>,
    is_behind: AtomicBool,
    /// Wakes publishers.
    is_ready: Notify,
    health: AtomicU8,
    fault: Mutex<Option<String>>,
    /// Since when the writer has been at what it does.
    busy_since: Mutex<Option<Instant>>,
    is_closing: AtomicBool,
    /// Whether the writer has ended by a fault: nothing is written any more.
    is_dead: AtomicBool,
}

/// What the writer does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Something waits.
    Work,
    /// It is time for what it does now and then.
    Due,
    /// The store is closed.
    Close,
}

/// What publishers hear that are refused.
pub(super) const UNAVAILABLE: Unavailable = Unavailable {
    retry_after: Duration::from_secs(1),
};

/// What becomes of messages while the database cannot be written, and how the log says that.
pub(super) fn meanwhile(on_error: OnStoreError) -> (Health, &'static str) {
    match on_error {
        OnStoreError::Continue => (Health::Failing, "messages are in memory alone"),
        OnStoreError::Refuse => (Health::Refusing, "messages are refused"),
    }
}

impl Shared {
    pub(super) fn new(memory_max: usize, epochs: Epochs, epoch_min: u64) -> Self {
        Self {
            queue: Mutex::default(),
            work: Condvar::new(),
            memory_max,
            epochs,
            epoch_min,
            feed: OnceLock::new(),
            is_behind: AtomicBool::new(false),
            is_ready: Notify::new(),
            health: AtomicU8::new(Health::Well as u8),
            fault: Mutex::default(),
            busy_since: Mutex::default(),
            is_dead: AtomicBool::new(false),
            is_closing: AtomicBool::new(false),
        }
    }

    pub(super) fn set_feed(&self, feed: Weak<dyn Feed>) {
        self.feed.set(feed).expect("a store has one feed");
    }

    pub(super) fn feed(&self) -> Option<Arc<dyn Feed>> {
        self.feed.get().and_then(Weak::upgrade)
    }

    // For publishers.

    /// Whether the writer keeps up, or takes nothing at all.
    pub(super) fn is_ready(&self) -> bool {
        !self.is_behind.load(Ordering::Relaxed)
    }

    /// Waits for that.
    pub(super) async fn ready(&self) {
        loop {
            let ready = self.is_ready.notified();
            if self.is_ready() {
                return;
            }
            ready.await;
        }
    }

    /// Leaves messages to the writer that a room has numbered.
    pub(super) fn keep(&self, name: &Arc<str>, batch: &Arc<Batch>, clients: usize) {
        let mut queue = self.queue.lock();
        queue.keep(name, batch.clone(), clients);
        match self.health() {
            // What was taken before it refused is not given up, and no more comes.
            Health::Well | Health::Refusing => self.check_space(&queue),
            Health::Failing => queue.drop_beyond(self.memory_max),
        }
        drop(queue);
        self.work.notify_one();
    }

    /// Leaves messages to the writer that are to be numbered.
    pub(super) fn append(&self, name: &Arc<str>, messages: Publishing) {
        let mut queue = self.queue.lock();
        if self.is_dead.load(Ordering::Relaxed) {
            drop(queue);
            return self.refuse(messages.ticket);
        }
        queue.append(name.clone(), messages);
        self.check_space(&queue);
        drop(queue);
        self.work.notify_one();
    }

    /// Whether so many rooms have lost messages that no more can be noted.
    pub(super) fn is_overwhelmed(&self) -> bool {
        self.health() != Health::Well && self.queue.lock().has_lost_too_many()
    }

    pub(super) fn health(&self) -> Health {
        match self.health.load(Ordering::Relaxed) {
            it if it == Health::Well as u8 => Health::Well,
            it if it == Health::Failing as u8 => Health::Failing,
            _ => Health::Refusing,
        }
    }

    pub(super) fn fault(&self) -> Option<String> {
        self.fault.lock().clone()
    }

    /// Has the writer end.
    pub(super) fn close(&self) {
        // Under the lock, or the writer might begin to wait just now.
        let queue = self.queue.lock();
        self.is_closing.store(true, Ordering::Relaxed);
        drop(queue);
        self.work.notify_one();
    }

    // For the writer.

    /// Waits for work, the time `due`, or the end; while it `rests`, for the last two alone.
    pub(super) fn wait(&self, due: Instant, rests: bool) -> Turn {
        let mut queue = self.queue.lock();
        loop {
            if self.is_closing.load(Ordering::Relaxed) {
                return Turn::Close;
            }
            if due <= Instant::now() {
                return Turn::Due;
            }
            if !rests && !queue.is_empty() {
                return Turn::Work;
            }
            self.work.wait_until(&mut queue, due);
        }
    }

    pub(super) fn has_work(&self) -> bool {
        !self.queue.lock().is_empty()
    }

    /// How many messages wait.
    pub(super) fn waiting(&self) -> usize {
        self.queue.lock().messages()
    }

    /// How many messages memory had no room for since the last time.
    pub(super) fn take_dropped(&self) -> usize {
        self.queue.lock().take_dropped()
    }

    /// The work of one transaction.
    pub(super) fn work(&self) -> Work {
        self.queue.lock().work()
    }

    /// That work is done.
    pub(super) fn done(&self, work: &Work) {
        let mut queue = self.queue.lock();
        queue.done(work);
        self.check_space(&queue);
    }

    /// That work has failed; publications that are to be numbered are refused.
    pub(super) fn failed(&self, work: &Work) {
        self.queue.lock().failed();
        work.appended
            .iter()
            .for_each(|(_, it)| self.refuse(it.ticket));
    }

    /// Refuses a publication.
    pub(super) fn refuse(&self, ticket: Ticket) {
        self.feed().inspect(|feed| feed.refuse(ticket, UNAVAILABLE));
    }

    /// Refuses all publications that are to be numbered.
    pub(super) fn refuse_all(&self) {
        let appended = self.queue.lock().take_appended();
        appended.iter().for_each(|(_, it)| self.refuse(it.ticket));
    }

    /// A room goes on in a new epoch.
    pub(super) fn begin_epoch(&self, name: &str, epoch: u64) {
        self.feed().inspect(|feed| feed.begin_epoch(name, epoch));
    }

    /// The writer begins or ends something that may wait for the disk.
    pub(super) fn set_busy(&self, is_busy: bool) {
        *self.busy_since.lock() = is_busy.then(Instant::now);
    }

    /// How long the writer has been at what it does.
    pub(super) fn busy(&self) -> Duration {
        let since = *self.busy_since.lock();
        since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// The writer has ended by a fault: publications that wait for it are refused, and all later ones.
    pub(super) fn die(&self) {
        let queue = self.queue.lock();
        self.is_dead.store(true, Ordering::Relaxed);
        drop(queue);
        let fault = "its writer has ended by a fault of this server: restart the server".into();
        self.set_health(Health::Refusing, Some(fault));
        self.refuse_all();
        self.feed().inspect(|feed| feed.refuse_all(UNAVAILABLE));
    }

    pub(super) fn set_health(&self, health: Health, fault: Option<String>) {
        *self.fault.lock() = fault;
        let queue = self.queue.lock();
        self.health.store(health as u8, Ordering::Relaxed);
        self.check_space(&queue);
        drop(queue);
        self.feed().inspect(|feed| feed.health_changed());
    }

    /// Holds publishers back, or lets them on.
    fn check_space(&self, queue: &Queue) {
        let is_behind = self.health() == Health::Well && !queue.has_space();
        let was_behind = self.is_behind.swap(is_behind, Ordering::Relaxed);
        if was_behind && !is_behind {
            self.is_ready.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::testing::{batch, plain};
    use crate::message::Kind;

    #[test]
    fn only_what_goes_on_from_memory_is_given_up_where_that_has_no_room() {
        for (health, kept) in [
            (Health::Well, 2),
            (Health::Refusing, 2),
            (Health::Failing, 0),
        ] {
            let shared = Shared::new(0, Epochs::after(0), 0);
            let keep = |seq| {
                let batch = batch(&plain(""), seq, &[(Kind::Text, b"hi")]);
                shared.keep(&"/".into(), &Arc::new(batch), 0);
            };
            keep(1);
            shared.set_health(health, None);
            // One that was admitted just before.
            keep(2);
            assert_eq!(shared.waiting(), kept, "{health:?}");
        }
    }
}
