//! The rooms by name: joining, leaving, and which of them is forgotten when space runs out.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::backend::Backend;
use crate::config::Config;
use crate::message::{Batch, Format, Frames, MessageId};
use crate::room::{Follow, Room, Sealed, Start, Subscription};
use crate::wire::{self, Event, Plain};

/// All rooms of a server.
///
/// Lock order: the hub, then a room. Publishing takes the hub's lock only to make space.
#[derive(Debug)]
pub struct Hub {
    config: Arc<Config>,
    plain: Arc<Plain>,
    backend: Backend,
    rooms: Mutex<Rooms>,
    /// Payload bytes that all histories hold.
    total: Arc<AtomicUsize>,
}

#[derive(Debug, Default)]
struct Rooms {
    by_name: HashMap<Arc<str>, Entry>,
    /// Counts the rooms that lost their last client, so that it tells who did so first.
    departures: u64,
    sealed: bool,
}

#[derive(Debug)]
struct Entry {
    room: Arc<Room>,
    clients: usize,
    /// The number of its departure, where it has no client.
    departed: u64,
}

/// Why a room cannot be joined.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// `--max-rooms` rooms exist, and each has clients.
    #[error("no place for another room")]
    Full,
    /// The server is shutting down.
    #[error("the server is shutting down")]
    Sealed,
}

impl Hub {
    /// A hub without rooms.
    pub fn new(config: Arc<Config>, backend: Backend) -> Self {
        Self {
            plain: Arc::new(Plain::new(&config)),
            config,
            backend,
            rooms: Mutex::default(),
            total: Arc::default(),
        }
    }

    /// Joins the room `name`, which begins to exist if it does not yet, to follow it.
    ///
    /// # Errors
    /// [`JoinError`], and no room is made then.
    pub fn join(self: &Arc<Self>, name: &str, follow: Follow) -> Result<Membership, JoinError> {
        let presence = self.enter(name)?;
        let (subscription, start) = presence.room.subscribe(follow);
        Ok(Membership {
            subscription,
            start,
            presence,
        })
    }

    /// Enters the room `name`, which begins to exist if it does not yet.
    ///
    /// # Errors
    /// [`JoinError`], and no room is made then.
    pub fn enter(self: &Arc<Self>, name: &str) -> Result<Presence, JoinError> {
        let mut rooms = self.rooms.lock();
        if rooms.sealed {
            return Err(JoinError::Sealed);
        }
        if !rooms.by_name.contains_key(name) {
            if rooms.by_name.len() >= self.config.max_rooms && !rooms.forget_longest_empty() {
                return Err(JoinError::Full);
            }
            let room = Room::new(&self.config, self.backend.begin(), self.total.clone());
            let entry = Entry {
                room: Arc::new(room),
                clients: 0,
                departed: 0,
            };
            rooms.by_name.insert(name.into(), entry);
        }
        let entry = rooms
            .by_name
            .get_mut(name)
            .expect("it was there or was made");
        entry.clients += 1;
        Ok(Presence {
            hub: self.clone(),
            name: name.into(),
            room: entry.room.clone(),
        })
    }

    /// The messages that the room `name` remembers, if there is one, from behind the id that `since`
    /// names, and whether nothing is missing since.
    pub fn history(
        &self,
        name: &str,
        since: Option<MessageId>,
    ) -> Option<(Vec<Arc<Batch>>, Start)> {
        let rooms = self.rooms.lock();
        Some(rooms.by_name.get(name)?.room.history(since))
    }

    /// Takes no more messages and no more clients; whoever is in a room gets the rest of its log,
    /// then its end.
    pub fn seal(&self) {
        let mut rooms = self.rooms.lock();
        rooms.sealed = true;
        rooms.by_name.values().for_each(|entry| entry.room.seal());
    }

    /// How many rooms there are.
    pub fn rooms(&self) -> usize {
        self.rooms.lock().by_name.len()
    }

    /// Brings all histories together under `--history-total` again.
    fn reclaim(&self) {
        let mut rooms = self.rooms.lock();
        loop {
            let total = self.total.load(Ordering::Relaxed);
            let excess = total.saturating_sub(self.config.history_total.bytes());
            if excess == 0 {
                break;
            }
            if rooms.forget_longest_empty() {
                continue;
            }
            let largest = rooms
                .by_name
                .values()
                .max_by_key(|entry| entry.room.bytes());
            let Some(entry) = largest.filter(|entry| entry.room.bytes() > 0) else {
                break;
            };
            entry
                .room
                .trim_to(entry.room.bytes().saturating_sub(excess));
        }
    }
}

impl Rooms {
    /// Forgets the room that has had no client for longest; `false` where every room has clients.
    fn forget_longest_empty(&mut self) -> bool {
        let empty = self.by_name.iter().filter(|(_, entry)| entry.clients == 0);
        let Some((name, _)) = empty.min_by_key(|(_, entry)| entry.departed) else {
            return false;
        };
        let name = name.clone();
        self.by_name.remove(&name);
        true
    }
}

/// A client that follows a room.
#[derive(Debug)]
pub struct Membership {
    /// Its place in the log of the room.
    pub subscription: Subscription,
    /// Where that was at first.
    pub start: Start,
    /// What keeps the room.
    pub presence: Presence,
}

impl Membership {
    /// What greets the client, if anything does.
    pub fn greeting(&self) -> Option<Bytes> {
        let Presence { hub, name, .. } = &self.presence;
        let format = self.subscription.format();
        if format == Format::Plain {
            return hub.plain.greeting();
        }
        let welcome = Event::Welcome {
            text: hub.config.welcome(),
            room: name,
            mode: hub.config.mode.name(),
            last_id: self.start.last.map(|id| id.to_string()),
            resumed: self.start.resumed,
            missed: self.start.missed,
        };
        Some(wire::render_event(&welcome, format))
    }
}

/// Somebody in a room, who keeps it. The room is forgotten at once if it has neither history nor
/// anybody in it.
#[derive(Debug)]
pub struct Presence {
    hub: Arc<Hub>,
    name: Arc<str>,
    room: Arc<Room>,
}

impl Presence {
    /// How messages look in this room.
    pub fn plain(&self) -> &Arc<Plain> {
        &self.hub.plain
    }

    /// The room.
    pub fn room(&self) -> &Arc<Room> {
        &self.room
    }

    /// Publishes messages to the room; returns them with their ids once they are in its log.
    ///
    /// # Errors
    /// [`Sealed`] when the server is shutting down; the messages are not in the log then.
    pub fn publish(&self, frames: Frames) -> Result<Arc<Batch>, Sealed> {
        let batch = self.hub.backend.publish(&self.room, frames)?;
        if self.hub.total.load(Ordering::Relaxed) > self.hub.config.history_total.bytes() {
            self.hub.reclaim();
        }
        Ok(batch)
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let mut rooms = self.hub.rooms.lock();
        rooms.departures += 1;
        let departed = rooms.departures;
        let entry = rooms
            .by_name
            .get_mut(&self.name)
            .expect("a room with a client stays");
        entry.clients -= 1;
        entry.departed = departed;
        if entry.clients == 0 && entry.room.is_empty() {
            rooms.by_name.remove(&self.name);
        }
    }
}
