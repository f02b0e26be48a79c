//! The rooms by name: joining, leaving, and which of them is forgotten when space runs out.

pub mod ranking;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::config::Config;
use crate::format::{self, Batch, Event, Format, Frames, Plain};
use crate::message::MessageId;
use crate::room::{Follow, Room, Sealed, Start, Subscription};
use crate::store::Store;
use ranking::{Ranked, Ranking};

/// All rooms of a server.
///
/// Lock order: the hub, then a room. Publishing takes the hub's lock only to make space, and when the
/// history of a room has grown by an eighth.
#[derive(Debug)]
pub struct Hub {
    config: Arc<Config>,
    plain: Arc<Plain>,
    store: Store,
    rooms: Mutex<Rooms>,
    /// Bytes of memory that all histories take.
    total: Arc<AtomicUsize>,
}

#[derive(Debug, Default)]
struct Rooms {
    by_name: HashMap<Arc<str>, Entry>,
    /// The names of the rooms without clients, by the number of their departure.
    empty: BTreeMap<u64, Arc<str>>,
    /// Counts the clients that left, so that it tells which room lost its last one first.
    departures: u64,
    /// The rooms with a history, by what it costs.
    ranking: Ranking<Room>,
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
    pub fn new(config: Arc<Config>, store: Store) -> Self {
        Self {
            plain: Arc::new(Plain::new(&config)),
            config,
            store,
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
    pub fn enter(self: &Arc<Self>, name: &str) -> Result<RoomGuard, JoinError> {
        // Dropped after the lock is free again.
        let _forgotten;
        let mut rooms = self.rooms.lock();
        let rooms = &mut *rooms;
        if rooms.sealed {
            return Err(JoinError::Sealed);
        }
        if !rooms.by_name.contains_key(name) {
            if rooms.by_name.len() >= self.config.limits.max_rooms {
                _forgotten = rooms.forget_longest_empty().ok_or(JoinError::Full)?;
            }
            let room = Room::new(&self.config, self.store.begin(), self.total.clone());
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
        if entry.clients == 0 {
            rooms.empty.remove(&entry.departed);
        }
        entry.clients += 1;
        Ok(RoomGuard {
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
        let room = self.rooms.lock().by_name.get(name)?.room.clone();
        Some(room.history(since))
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

    /// Keeps the histories ranked, and together under `--history-total`, after `room` has grown.
    fn settle(&self, room: &Arc<Room>) {
        if Ranking::is_outgrown(&**room) {
            self.rooms.lock().ranking.rank(room);
        }
        if self.excess() > 0 {
            self.reclaim();
        }
    }

    /// Bytes by which all histories together pass `--history-total`.
    fn excess(&self) -> usize {
        let total = self.total.load(Ordering::Relaxed);
        total.saturating_sub(self.config.history.total.bytes())
    }

    /// Brings all histories together under `--history-total` again.
    fn reclaim(&self) {
        loop {
            let forgotten;
            let mut rooms = self.rooms.lock();
            let excess = self.excess();
            if excess == 0 {
                break;
            }
            forgotten = rooms.forget_longest_empty();
            if forgotten.is_some() {
                continue;
            }
            let Some(room) = rooms.ranking.largest() else {
                break;
            };
            room.trim_to(room.bytes().saturating_sub(excess));
        }
    }
}

impl Rooms {
    /// Forgets the room that has had no client for longest and returns it, as to drop it takes
    /// time; none where every room has clients.
    fn forget_longest_empty(&mut self) -> Option<Arc<Room>> {
        let (_, name) = self.empty.pop_first()?;
        let room = self.forget(&name);
        room.write_off();
        Some(room)
    }

    fn forget(&mut self, name: &str) -> Arc<Room> {
        let entry = self.by_name.remove(name).expect("a room has its name");
        self.ranking.remove(&entry.room);
        entry.room
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
    pub presence: RoomGuard,
}

impl Membership {
    /// What greets the client, if anything does.
    pub fn greeting(&self) -> Option<Bytes> {
        let RoomGuard { hub, name, .. } = &self.presence;
        let format = self.subscription.format();
        if format == Format::Plain {
            return hub.plain.greeting();
        }
        let welcome = Event::Welcome {
            text: hub.config.service.welcome(),
            room: name,
            mode: hub.config.service.mode.name(),
            last_id: self.start.last.map(|id| id.to_string()),
            resumed: self.start.resumed,
            missed: self.start.missed,
        };
        Some(format::render_event(&welcome, format))
    }
}

/// Somebody in a room, who keeps it. The room is forgotten at once if it has neither history nor
/// anybody in it.
#[derive(Debug)]
pub struct RoomGuard {
    hub: Arc<Hub>,
    name: Arc<str>,
    room: Arc<Room>,
}

impl RoomGuard {
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
        let batch = self.room.deliver(frames)?;
        self.hub.settle(&self.room);
        Ok(batch)
    }
}

impl Drop for RoomGuard {
    fn drop(&mut self) {
        let mut rooms = self.hub.rooms.lock();
        let rooms = &mut *rooms;
        rooms.departures += 1;
        let entry = rooms
            .by_name
            .get_mut(&self.name)
            .expect("a room with a client stays");
        entry.clients -= 1;
        if entry.clients > 0 {
            return;
        }
        if entry.room.is_empty() {
            rooms.forget(&self.name);
        } else {
            entry.departed = rooms.departures;
            rooms.empty.insert(entry.departed, self.name.clone());
        }
    }
}

impl Ranked for Room {
    fn bytes(&self) -> usize {
        Self::bytes(self)
    }

    fn rank(&self) -> &AtomicUsize {
        Self::rank(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Mode, Size};
    use crate::format::BatchBuilder;
    use crate::message::Kind;

    fn hub(change: impl FnOnce(&mut Config)) -> Arc<Hub> {
        let mut config = Config::with(|config| {
            config.service.mode = Mode::Broadcast;
        });
        change(&mut config);
        Arc::new(Hub::new(Arc::new(config), Store::memory()))
    }

    fn publish(presence: &RoomGuard, text: &str) -> Arc<Batch> {
        let mut draft = BatchBuilder::default();
        presence
            .plain()
            .encode(Kind::Text, text.as_bytes(), &mut draft);
        presence.publish(draft.take().unwrap()).unwrap()
    }

    /// The names of the rooms, and whether the lists beside them say the same.
    fn names(hub: &Hub) -> Vec<String> {
        let rooms = hub.rooms.lock();
        let empty = rooms.empty.iter().map(|(departed, name)| {
            let entry = &rooms.by_name[name];
            assert_eq!((entry.clients, entry.departed), (0, *departed));
        });
        let unused = rooms.by_name.values().filter(|it| it.clients == 0);
        assert_eq!(empty.count(), unused.count());
        let held = rooms.by_name.values().map(|it| it.room.bytes());
        assert_eq!(hub.total.load(Ordering::Relaxed), held.sum::<usize>());
        let mut names: Vec<_> = rooms.by_name.keys().map(|it| it.to_string()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_room_that_was_entered_again_departs_again() {
        let hub = hub(|config| config.limits.max_rooms = 2);
        for name in ["/a", "/b", "/a"] {
            publish(&hub.enter(name).unwrap(), "kept");
        }
        let c = hub.enter("/c").unwrap();
        assert_eq!(names(&hub), ["/a", "/c"]);
        let a = hub.enter("/a").unwrap();
        assert_eq!(hub.enter("/d").unwrap_err(), JoinError::Full);
        drop(c);
        assert_eq!(names(&hub), ["/a"]);
        drop(a);
        assert_eq!(names(&hub), ["/a"]);
    }

    #[test]
    fn all_histories_together_stay_within_their_total() {
        let total = 100_000;
        let hub = hub(|config| config.history.total = Size::from(total));
        publish(&hub.enter("/empty").unwrap(), "forgotten first");
        let rooms: Vec<_> = (0..10)
            .map(|number| hub.enter(&format!("/{number}")).unwrap())
            .collect();
        for round in 0..2000 {
            for (number, room) in rooms.iter().enumerate() {
                // The last ones say more than the first ones.
                if round % (10 - number) == 0 {
                    publish(room, "");
                }
                assert!(hub.excess() == 0);
            }
        }
        assert_eq!(names(&hub).len(), 10);
        let sizes: Vec<usize> = rooms.iter().map(|it| it.room.bytes()).collect();
        let (least, most) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
        assert!(least * 5 / 4 + 1000 > *most, "{sizes:?}");
        drop(rooms);
        assert_eq!(names(&hub).len(), 10);
    }
}
