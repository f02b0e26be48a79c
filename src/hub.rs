//! The registry of rooms by name: joining, leaving, and eviction when space runs out.

mod membership;
mod ranking;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::config::{Config, History, Limits, Service};
use crate::format::{Frames, Plain};
use crate::room::reader::{Part, Reader};
use crate::room::{Behaviour, Collector, Delivery, Follow, Room, Sealed};
use crate::store::Store;
use ranking::{Ranked, Ranking};

pub(crate) use membership::Membership;

/// All rooms of a server.
///
/// Lock order: the hub, then a room. Publishing takes the hub's lock only to evict, or when the history
/// of a room has outgrown its rank.
#[derive(Debug)]
pub(crate) struct Hub {
    service: Service,
    history: History,
    limits: Limits,
    plain: Arc<Plain>,
    store: Store,
    rooms: Mutex<Rooms>,
    /// Bytes of memory of all histories.
    total: Arc<AtomicUsize>,
}

#[derive(Debug, Default)]
struct Rooms {
    by_name: HashMap<Arc<str>, Entry>,
    /// The rooms without clients, in the order in which they became empty: the first is evicted first.
    empty: BTreeMap<u64, Arc<str>>,
    /// Guards dropped so far; orders the empty rooms.
    departures: u64,
    /// The rooms with a history, by its bytes.
    ranking: Ranking<Room>,
    sealed: bool,
}

#[derive(Debug)]
struct Entry {
    room: Arc<Room>,
    clients: usize,
    /// The value of `departures` when it became empty.
    departed: u64,
}

/// Why a room cannot be joined.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JoinError {
    /// `--max-rooms` rooms exist, and each has clients.
    #[error("no place for another room")]
    Full,
    /// The server is shutting down.
    #[error("the server is shutting down")]
    Sealed,
}

impl Hub {
    /// A hub without rooms.
    pub(crate) fn new(config: &Config, store: Store) -> Self {
        Self {
            plain: Arc::new(Plain::new(&config.service)),
            service: config.service.clone(),
            history: config.history.clone(),
            limits: config.limits.clone(),
            store,
            rooms: Mutex::default(),
            total: Arc::default(),
        }
    }

    /// Subscribes to the room `name`, and creates it where it does not exist.
    ///
    /// # Errors
    /// [`JoinError`]; no room is created then.
    pub(crate) fn join(
        self: &Arc<Self>,
        name: &str,
        follow: Follow,
    ) -> Result<Membership, JoinError> {
        let room_guard = self.enter(name)?;
        let (subscription, start) = room_guard.room.subscribe(follow);
        Ok(Membership {
            subscription,
            start,
            room_guard,
        })
    }

    /// Guards the room `name`, and creates it where it does not exist.
    ///
    /// # Errors
    /// [`JoinError`]; no room is created then.
    pub(crate) fn enter(self: &Arc<Self>, name: &str) -> Result<RoomGuard, JoinError> {
        // Declared before the lock, so that the history is freed after the lock is released.
        let _evicted;
        let mut rooms = self.rooms.lock();
        let rooms = &mut *rooms;
        if rooms.sealed {
            return Err(JoinError::Sealed);
        }
        if !rooms.by_name.contains_key(name) {
            if rooms.by_name.len() >= self.limits.max_rooms {
                _evicted = rooms.evict_longest_empty().ok_or(JoinError::Full)?;
            }
            let room = Room::new(
                self.behaviour_at_opening(),
                &self.history,
                &self.limits,
                self.store.begin(),
                self.total.clone(),
            );
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
            .expect("it exists or was inserted");
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

    /// Reads at most `limit` messages of the room `name`; none where the room does not exist.
    pub(crate) fn read(&self, name: &str, part: Part, limit: u64) -> Reader {
        let room = self
            .rooms
            .lock()
            .by_name
            .get(name)
            .map(|it| it.room.clone());
        room.map_or_else(Reader::default, |room| room.read(part, limit))
    }

    /// The behaviour of the room `name`, whether it exists or not.
    pub(crate) fn behaviour(&self, name: &str) -> Behaviour {
        let rooms = self.rooms.lock();
        match rooms.by_name.get(name) {
            Some(entry) => entry.room.behaviour(),
            None => self.behaviour_at_opening(),
        }
    }

    /// The behaviour that a room is opened with.
    fn behaviour_at_opening(&self) -> Behaviour {
        self.service.mode.into()
    }

    /// How many messages a room remembers.
    pub(crate) fn history_limit(&self) -> usize {
        self.history.limit
    }

    /// Seals all rooms: no more messages and no more clients. Current clients drain the log of their
    /// room, then are closed.
    pub(crate) fn seal(&self) {
        let mut rooms = self.rooms.lock();
        rooms.sealed = true;
        rooms.by_name.values().for_each(|entry| entry.room.seal());
    }

    /// How many rooms there are.
    pub(crate) fn rooms(&self) -> usize {
        self.rooms.lock().by_name.len()
    }

    /// Restores the ranking and `--history-total` after `room` has grown.
    fn settle(&self, room: &Arc<Room>) {
        if Ranking::is_outgrown(&**room) {
            self.rooms.lock().ranking.rank(room);
        }
        if self.excess() > 0 {
            self.reclaim();
        }
    }

    /// Bytes by which all histories together exceed `--history-total`.
    fn excess(&self) -> usize {
        let total = self.total.load(Ordering::Relaxed);
        total.saturating_sub(self.history.total.bytes())
    }

    /// Evicts empty rooms, then trims the largest histories, until `--history-total` is kept.
    fn reclaim(&self) {
        loop {
            // Declared before the lock, so that the history is freed after the lock is released.
            let evicted;
            let mut rooms = self.rooms.lock();
            let excess = self.excess();
            if excess == 0 {
                break;
            }
            evicted = rooms.evict_longest_empty();
            if evicted.is_some() {
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
    /// Evicts the room that has been empty for longest, and returns it, so that the caller can drop it
    /// without the lock; none where every room has clients.
    fn evict_longest_empty(&mut self) -> Option<Arc<Room>> {
        let (_, name) = self.empty.pop_first()?;
        let room = self.remove(&name);
        room.write_off();
        Some(room)
    }

    fn remove(&mut self, name: &str) -> Arc<Room> {
        let entry = self.by_name.remove(name).expect("a room has its name");
        self.ranking.remove(&entry.room);
        entry.room
    }
}

/// Keeps a room in the registry. When the last guard is dropped, a room without messages is removed,
/// and one with messages becomes evictable.
#[derive(Debug)]
pub(crate) struct RoomGuard {
    hub: Arc<Hub>,
    name: Arc<str>,
    room: Arc<Room>,
}

impl RoomGuard {
    /// The encoder of this room's messages.
    pub(crate) fn plain(&self) -> &Arc<Plain> {
        &self.hub.plain
    }

    /// What the room does with a message.
    pub(crate) fn behaviour(&self) -> Behaviour {
        self.room.behaviour()
    }

    /// The name of the room.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Publishes messages to the room; returns once they are in its log.
    ///
    /// # Errors
    /// [`Sealed`] when the server is shutting down; the messages are not appended then.
    pub(crate) fn publish(&self, frames: Frames) -> Result<Delivery, Sealed> {
        let delivery = self.room.deliver(frames)?;
        self.hub.settle(&self.room);
        Ok(delivery)
    }

    /// As [`publish`](Self::publish), and requests receipts for the last of the messages.
    ///
    /// # Errors
    /// As [`publish`](Self::publish).
    pub(crate) fn publish_with_receipts(
        &self,
        frames: Frames,
    ) -> Result<(Delivery, Collector), Sealed> {
        let published = self.room.deliver_with_receipts(frames)?;
        self.hub.settle(&self.room);
        Ok(published)
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
            rooms.remove(&self.name);
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
    use crate::format::Batch;
    use crate::format::BatchBuilder;
    use crate::format::Format;
    use crate::message::Kind;

    fn hub(change: impl FnOnce(&mut Config)) -> Arc<Hub> {
        let mut config = Config::with(|config| {
            config.service.mode = Mode::Broadcast;
        });
        change(&mut config);
        Arc::new(Hub::new(&config, Store::memory()))
    }

    impl Hub {
        /// Opens a room with a behaviour that is not that of `--mode`.
        pub(crate) fn open_as(&self, name: &str, behaviour: Behaviour) {
            let epoch = self.store.begin();
            let (history, limits) = (&self.history, &self.limits);
            let room = Room::new(behaviour, history, limits, epoch, self.total.clone());
            let entry = Entry {
                room: Arc::new(room),
                clients: 0,
                departed: 0,
            };
            self.rooms.lock().by_name.insert(name.into(), entry);
        }
    }

    #[test]
    fn a_room_keeps_the_behaviour_that_it_was_opened_with() {
        let hub = hub(|_| {});
        hub.open_as("/echo", Behaviour::Echo);
        let follow = Follow {
            format: Format::Json,
            since: None,
        };
        for (name, behaviour, mode) in [
            ("/echo", Behaviour::Echo, r#""mode":"echo""#),
            ("/", Behaviour::Broadcast, r#""mode":"broadcast""#),
        ] {
            assert_eq!(hub.behaviour(name), behaviour);
            let membership = hub.join(name, follow).unwrap();
            assert_eq!(hub.behaviour(name), behaviour);
            assert_eq!(membership.room_guard.behaviour(), behaviour);
            let welcome = membership.greeting().unwrap();
            assert!(String::from_utf8_lossy(&welcome).contains(mode));
        }
    }

    fn publish(guard: &RoomGuard, text: &str) -> Arc<Batch> {
        let mut builder = BatchBuilder::default();
        guard
            .plain()
            .encode(Kind::Text, text.as_bytes(), &mut builder);
        guard.publish(builder.take().unwrap()).unwrap().batch
    }

    /// The names of the rooms; asserts that the indexes beside them agree.
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
    fn a_room_joined_again_is_the_last_to_be_forgotten() {
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
        publish(&hub.enter("/empty").unwrap(), "evicted first");
        let rooms: Vec<_> = (0..10)
            .map(|number| hub.enter(&format!("/{number}")).unwrap())
            .collect();
        for round in 0..2000 {
            for (number, room) in rooms.iter().enumerate() {
                // Later rooms publish more.
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
