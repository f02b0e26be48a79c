//! Where the logs of rooms are kept beyond the tail that memory holds: the seam between the hub and a
//! store.
//!
//! A store decides when a message has an id and may be delivered. It knows rooms by name alone.

mod database;
#[cfg(test)]
pub(crate) mod double;
mod epochs;
mod memory;

use std::fmt::Debug;
use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use anyhow::anyhow;
use futures_util::future::BoxFuture;

use crate::config::Config;
use crate::format::{Batch, Frames};
use crate::message::{Key, MessageId, Unavailable};
use database::Database;
use memory::Memory;

/// Keeps the logs of all rooms.
///
/// Rooms that are in memory alone are a case of its own: publishing to them costs no call through a table,
/// no allocation and no await.
#[derive(Debug)]
pub(crate) enum Store {
    /// The memory of the rooms is all there is.
    Memory(Memory),
    /// Something beside this process or on its disk.
    Backend(Arc<dyn Backend>),
}

/// A store that keeps more of a log than the memory of its room.
pub(crate) trait Backend: Debug + Send + Sync {
    /// Delivers to `feed` from now on.
    fn feed(&self, feed: Weak<dyn Feed>);

    /// Opens the log of the room `name`, or begins it.
    fn open(&self, name: &Arc<str>) -> BoxFuture<'static, Result<Opened, Unavailable>>;

    /// The messages of the room `name` with these sequence numbers, as far as they are kept: one run that
    /// begins with the first of them that is kept, and may end before the last one.
    fn read(
        &self,
        name: &str,
        seqs: Range<u64>,
    ) -> BoxFuture<'static, Result<Vec<Batch>, Unavailable>>;

    /// The message of the room `name` that was published under `key`, as long as it is kept.
    fn find(
        &self,
        name: &Arc<str>,
        key: &Key,
    ) -> BoxFuture<'static, Result<Option<Found>, Unavailable>>;

    /// Whether messages of the room `name` were lost that it had to keep, and no new epoch tells of that yet.
    fn has_lost(&self, name: &str) -> bool;

    /// Whether it keeps up with what is published: otherwise publishers wait until it is
    /// [ready](Self::ready). What is published nevertheless is taken.
    fn is_ready(&self) -> bool;

    /// Waits until it keeps up, or takes nothing at all for now.
    fn ready(&self) -> BoxFuture<'static, ()>;

    /// Admits one publication.
    ///
    /// # Errors
    /// [`Unavailable`] if nothing can be published now.
    fn admit(&self) -> Result<NumberedBy, Unavailable>;

    /// Keeps messages that the room `name` has numbered, and published to so many clients. Called under the
    /// lock of that room, in the order of the ids: it must not wait.
    fn keep(&self, name: &Arc<str>, batch: &Arc<Batch>, clients: usize);

    /// Takes messages for the room `name`, to be numbered. They are delivered or refused exactly once, in a
    /// bounded time.
    fn append(&self, name: &Arc<str>, messages: Publishing);

    /// How it is.
    fn health(&self) -> Health;

    /// What is wrong with it, unless it is well.
    fn fault(&self) -> Option<String>;

    /// Writes what is still to be written, and ends; at the end of the server.
    fn close(&self) -> BoxFuture<'static, ()>;
}

/// How a store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Health {
    /// It keeps what is published.
    Well,
    /// It does not; what is published is delivered from memory alone.
    Failing,
    /// It does not, and nothing is published meanwhile.
    Refusing,
}

/// A message that was published under a key.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) batch: Batch,
    /// How many clients the room had then.
    pub(crate) clients: usize,
}

/// What a store has of a log when its room is opened.
#[derive(Debug)]
pub(crate) struct Opened {
    /// The id of the next message.
    pub(crate) next: MessageId,
    /// The last messages, up to that id; as many as the history of a room may hold is enough.
    pub(crate) tail: Vec<Batch>,
    /// The sequence number from which on messages are for new clients, which may be in the store alone.
    pub(crate) replay_from: u64,
}

/// A room that is opened.
pub(crate) enum Opening {
    /// It can be had now.
    Now(Opened),
    /// The store has to be read.
    Later(BoxFuture<'static, Result<Opened, Unavailable>>),
}

/// Which side numbers a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NumberedBy {
    /// The room, which delivers it at once and has the store [keep](Backend::keep) it.
    Room,
    /// The store, which [takes](Backend::append) it and delivers it later, through its [`Feed`].
    Store,
}

/// Messages that a store has to number.
#[derive(Debug)]
pub(crate) struct Publishing {
    pub(crate) frames: Frames,
    /// How many clients their room has.
    pub(crate) clients: usize,
    /// The next id as far as the room knows: a log that the store does not have goes on with it.
    pub(crate) next: MessageId,
    pub(crate) ticket: Ticket,
}

/// Names a publication until the store has delivered or refused it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Ticket(pub(crate) u64);

/// Messages that a store has numbered.
#[derive(Debug, Clone)]
pub(crate) struct Numbered {
    /// The id of the first; the others follow it.
    pub(crate) first: MessageId,
    /// When they were published.
    pub(crate) time: SystemTime,
    pub(crate) frames: Frames,
    /// The publication of this process that they are, if any.
    pub(crate) ticket: Option<Ticket>,
}

/// What a store gives its messages and answers to: the hub.
pub(crate) trait Feed: Debug + Send + Sync {
    /// Delivers the next messages of the room `name`.
    fn deliver(&self, name: &str, messages: Numbered) -> Fed;

    /// Refuses a publication: its messages are in no log.
    fn refuse(&self, ticket: Ticket, why: Unavailable);

    /// Refuses all publications that the store has taken: it will deliver none of them.
    fn refuse_all(&self, why: Unavailable);

    /// The room `name` goes on in a new epoch: the store lacks some of its messages, and will for ever.
    fn begin_epoch(&self, name: &str, epoch: u64);

    /// The health of the store has changed.
    fn health_changed(&self);
}

/// What became of messages that a store delivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fed {
    /// They are in the log of their room, now or already.
    Taken {
        /// How many clients it has.
        clients: usize,
    },
    /// Others have to be delivered before them, from this one on.
    Gap(MessageId),
    /// No client needs their room, which is not in memory.
    Closed,
}

impl Store {
    /// Rooms that end with this process.
    pub(crate) fn memory() -> Self {
        Self::Memory(Memory::default())
    }

    /// The store of a configuration.
    ///
    /// # Errors
    /// One line that names the option and the remedy.
    pub(crate) fn open(config: &Config) -> anyhow::Result<Self> {
        match &config.storage.database {
            None => Ok(Self::memory()),
            Some(path) => {
                let database = Database::open(path, config)
                    .map_err(|why| anyhow!("--database {}: {why:#}", path.display()))?;
                Ok(Self::Backend(Arc::new(database)))
            }
        }
    }

    /// The backend, if there is one.
    pub(crate) fn backend(&self) -> Option<&Arc<dyn Backend>> {
        match self {
            Self::Memory(_) => None,
            Self::Backend(backend) => Some(backend),
        }
    }

    /// Opens the log of the room `name`, or begins it.
    pub(crate) fn open_room(&self, name: &Arc<str>) -> Opening {
        match self {
            Self::Memory(memory) => Opening::Now(memory.open()),
            Self::Backend(backend) => Opening::Later(backend.open(name)),
        }
    }

    /// Whether it keeps up with what is published.
    pub(crate) fn is_ready(&self) -> bool {
        self.backend().is_none_or(|backend| backend.is_ready())
    }

    /// How it is.
    pub(crate) fn health(&self) -> Health {
        self.backend()
            .map_or(Health::Well, |backend| backend.health())
    }
}
