//! The registry of rooms by name: joining, leaving, and eviction when space runs out.

mod membership;
mod opening;
mod publications;
mod ranking;
mod room_guard;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::config::{Config, History, Limits, Service, Times};
use crate::format::Plain;
use crate::message::Unavailable;
use crate::room::reader::{Part, Reader};
use crate::room::{Behaviour, Clients, Follow, Room, Sealed, Total};
use crate::store::{Health, Store};
use opening::State;
use publications::Publications;
use ranking::{Ranked, Ranking};
use room_guard::Place;

pub(crate) use membership::Membership;
pub(crate) use publications::{Pending, Publication};
pub(crate) use room_guard::RoomGuard;

/// All rooms of a server.
///
/// Lock order: the hub, then a room. Publishing takes the hub's lock only to evict, or when the history
/// of a room has outgrown its rank.
#[derive(Debug)]
pub(crate) struct Hub {
    service: Service,
    history: History,
    limits: Limits,
    times: Times,
    plain: Arc<Plain>,
    store: Store,
    publications: Publications,
    rooms: Mutex<Rooms>,
    /// Bytes of memory of all histories.
    total: Arc<Total>,
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
    state: State,
    /// Places taken in it.
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
    /// The room has to be read from the store.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Why messages are not published.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PublishError {
    /// The server is shutting down.
    #[error("the server is shutting down")]
    Sealed,
    /// The store cannot take them.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl From<Sealed> for PublishError {
    fn from(_: Sealed) -> Self {
        Self::Sealed
    }
}

/// How many messages a reader is given where new clients get none.
const READ_LIMIT: usize = 1000;

impl Hub {
    /// A hub without rooms.
    pub(crate) fn new(config: &Config, store: Store) -> Arc<Self> {
        let hub = Arc::new(Self {
            plain: Arc::new(Plain::new(&config.service)),
            service: config.service.clone(),
            history: config.history.clone(),
            limits: config.limits.clone(),
            times: config.times.clone(),
            store,
            publications: Publications::default(),
            rooms: Mutex::default(),
            total: Arc::default(),
        });
        if let Some(backend) = hub.store.backend() {
            let hub: Weak<Self> = Arc::downgrade(&hub);
            backend.feed(hub);
        }
        hub
    }

    /// Subscribes to the room `name`, and opens it where it is not open.
    ///
    /// # Errors
    /// [`JoinError`]; no room is opened then.
    pub(crate) async fn join(
        self: &Arc<Self>,
        name: &str,
        follow: Follow,
    ) -> Result<Membership, JoinError> {
        let room_guard = self.enter(name).await?;
        let is_archived = match follow.since {
            Some(id) => room_guard.room.is_archived(id).await?,
            None => false,
        };
        let (subscription, start) = room_guard.room.subscribe(follow, is_archived);
        Ok(Membership {
            subscription,
            start,
            room_guard,
        })
    }

    /// Guards the room `name`, and opens it where it is not open: once for all that wait for it.
    ///
    /// # Errors
    /// [`JoinError`]; no room is opened then.
    pub(crate) async fn enter(self: &Arc<Self>, name: &str) -> Result<RoomGuard, JoinError> {
        let (place, state) = self.take_place(name)?;
        let room = match state {
            State::Open(room) => room,
            State::Opening(opening) => {
                let room = opening.await?;
                self.set_open(name, &room);
                room
            }
        };
        Ok(RoomGuard { place, room })
    }

    /// Takes a place in the room `name`, which may be about to be opened.
    fn take_place(self: &Arc<Self>, name: &str) -> Result<(Place, State), JoinError> {
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
            let name = Arc::<str>::from(name);
            let entry = Entry {
                state: self.open(&name, self.behaviour_at_opening()),
                clients: 0,
                departed: 0,
            };
            rooms.by_name.insert(name, entry);
        }
        let entry = rooms
            .by_name
            .get_mut(name)
            .expect("it exists or was inserted");
        if entry.clients == 0 {
            rooms.empty.remove(&entry.departed);
        }
        entry.clients += 1;
        let place = Place {
            hub: self.clone(),
            name: name.into(),
        };
        Ok((place, entry.state.clone()))
    }

    /// Reads at most `limit` messages of the room `name`; none where nothing is kept of it.
    ///
    /// # Errors
    /// [`JoinError`], where the room has to be opened for it.
    pub(crate) async fn read(
        self: &Arc<Self>,
        name: &str,
        part: Part,
        limit: u64,
    ) -> Result<Reader, JoinError> {
        if self.store.backend().is_none() {
            let room = self.open_room(name);
            return Ok(room.map_or_else(Reader::default, |room| room.read(part, limit, false)));
        }
        let guard = self.enter(name).await?;
        let is_archived = match part {
            Part::Since(id) | Part::Before(id) => guard.room.is_archived(id).await?,
            Part::Last => false,
        };
        Ok(guard.room.read(part, limit, is_archived))
    }

    /// The room `name`, if it is open.
    fn open_room(&self, name: &str) -> Option<Arc<Room>> {
        match &self.rooms.lock().by_name.get(name)?.state {
            State::Open(room) => Some(room.clone()),
            State::Opening(_) => None,
        }
    }

    /// The rooms that are open.
    fn open_rooms(&self) -> Vec<Arc<Room>> {
        let rooms = self.rooms.lock();
        let open = rooms.by_name.values().filter_map(|it| match &it.state {
            State::Open(room) => Some(room.clone()),
            State::Opening(_) => None,
        });
        open.collect()
    }

    /// What is wrong with the store, unless it is well, and how it is.
    pub(crate) fn store_fault(&self) -> Option<(Health, String)> {
        let backend = self.store.backend()?;
        Some((backend.health(), backend.fault()?))
    }

    /// Has the store write what is still to be written, after the last publication.
    pub(crate) async fn close_store(&self) {
        if let Some(backend) = self.store.backend() {
            backend.close().await;
        }
    }

    /// The behaviour of the room `name`, whether it exists or not.
    pub(crate) fn behaviour(&self, name: &str) -> Behaviour {
        let room = self.open_room(name);
        room.map_or_else(|| self.behaviour_at_opening(), |room| room.behaviour())
    }

    /// The behaviour that a room is opened with.
    fn behaviour_at_opening(&self) -> Behaviour {
        self.service.mode.into()
    }

    /// The clients of the room `name`, with at most `limit` names; a room that is not open has none.
    pub(crate) fn clients(&self, name: &str, limit: usize) -> Clients {
        let room = self.open_room(name);
        room.map_or_else(Clients::default, |room| room.clients(limit))
    }

    /// How many messages a reader is given that does not say how many.
    pub(crate) fn read_limit(&self) -> usize {
        match self.history.limit {
            // A store keeps what new clients do not get.
            0 if self.store.backend().is_some() => READ_LIMIT,
            limit => limit,
        }
    }

    /// Whether any message is kept, in memory or in a store.
    pub(crate) fn keeps_messages(&self) -> bool {
        let History {
            limit,
            bytes,
            total,
        } = &self.history;
        self.store.backend().is_some() || (*limit > 0 && bytes.bytes() > 0 && total.bytes() > 0)
    }

    /// Seals all rooms: no more messages and no more clients. Current clients drain the log of their
    /// room, then are closed.
    pub(crate) fn seal(&self) {
        let mut rooms = self.rooms.lock();
        rooms.sealed = true;
        for entry in rooms.by_name.values() {
            if let State::Open(room) = &entry.state {
                room.seal();
            }
        }
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
        self.total
            .bytes()
            .saturating_sub(self.history.total.bytes())
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
            if self.total.outgrown.swap(false, Ordering::Relaxed) {
                rooms.rank_outgrown();
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
    /// Ranks the rooms that have outgrown their ranks, as copies of messages were made for readers.
    fn rank_outgrown(&mut self) {
        let rooms = self
            .by_name
            .values()
            .filter_map(|entry| match &entry.state {
                State::Open(room) => Some(room),
                State::Opening(_) => None,
            });
        for room in rooms.filter(|room| Ranking::is_outgrown(&***room)) {
            self.ranking.rank(room);
        }
    }

    /// Evicts the room that has been empty for longest, and returns it, so that the caller can drop it
    /// without the lock; none where every room has clients.
    fn evict_longest_empty(&mut self) -> Option<Arc<Room>> {
        let (_, name) = self.empty.pop_first()?;
        let room = self.remove(&name)?;
        room.write_off();
        Some(room)
    }

    /// Removes a room, and returns it if it was open.
    fn remove(&mut self, name: &str) -> Option<Arc<Room>> {
        let entry = self.by_name.remove(name).expect("a room has its name");
        let State::Open(room) = entry.state else {
            return None;
        };
        self.ranking.remove(&room);
        Some(room)
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
    use crate::format::{Batch, BatchBuilder, Encoding};
    use crate::message::Kind;
    use crate::room::reader::Piece;

    fn hub(change: impl FnOnce(&mut Config)) -> Arc<Hub> {
        let mut config = Config::with(|config| {
            config.service.mode = Mode::Broadcast;
        });
        change(&mut config);
        Hub::new(&config, Store::memory())
    }

    impl Hub {
        /// Opens a room with a behaviour that is not that of `--mode`.
        pub(crate) fn open_as(self: &Arc<Self>, name: &str, behaviour: Behaviour) {
            let name = name.into();
            let entry = Entry {
                state: self.open(&name, behaviour),
                clients: 0,
                departed: 0,
            };
            self.rooms.lock().by_name.insert(name, entry);
        }
    }

    #[tokio::test]
    async fn a_room_keeps_the_behaviour_that_it_was_opened_with() {
        let hub = hub(|_| {});
        hub.open_as("/echo", Behaviour::Echo);
        let follow = Follow {
            encoding: Encoding::Json,
            ..Follow::default()
        };
        for (name, behaviour, mode) in [
            ("/echo", Behaviour::Echo, r#""mode":"echo""#),
            ("/", Behaviour::Broadcast, r#""mode":"broadcast""#),
        ] {
            assert_eq!(hub.behaviour(name), behaviour);
            let membership = hub.join(name, follow.clone()).await.unwrap();
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
        match guard.publish(builder.take().unwrap(), false).unwrap() {
            Publication::Delivered(delivery) => delivery.batch,
            Publication::Pending(_) => panic!("memory is never pending"),
        }
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
        let held = rooms.by_name.values().map(|it| match &it.state {
            State::Open(room) => room.bytes(),
            State::Opening(_) => 0,
        });
        assert_eq!(hub.total.bytes(), held.sum::<usize>());
        let mut names: Vec<_> = rooms.by_name.keys().map(|it| it.to_string()).collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn a_room_joined_again_is_the_last_to_be_forgotten() {
        let hub = hub(|config| config.limits.max_rooms = 2);
        for name in ["/a", "/b", "/a"] {
            publish(&hub.enter(name).await.unwrap(), "kept");
        }
        let c = hub.enter("/c").await.unwrap();
        assert_eq!(names(&hub), ["/a", "/c"]);
        let a = hub.enter("/a").await.unwrap();
        assert_eq!(hub.enter("/d").await.unwrap_err(), JoinError::Full);
        drop(c);
        assert_eq!(names(&hub), ["/a"]);
        drop(a);
        assert_eq!(names(&hub), ["/a"]);
    }

    #[tokio::test]
    async fn all_histories_together_stay_within_their_total() {
        let total = 100_000;
        let hub = hub(|config| config.history.total = Size::from(total));
        publish(&hub.enter("/empty").await.unwrap(), "evicted first");
        let mut rooms = Vec::new();
        for number in 0..10 {
            rooms.push(hub.enter(&format!("/{number}")).await.unwrap());
        }
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

    /// Reads all of a room in JSON.
    async fn read_all(hub: &Arc<Hub>, name: &str) -> usize {
        let mut reader = hub.read(name, Part::Last, u64::MAX).await.unwrap();
        let mut messages = 0;
        while let Some(piece) = reader.next().await {
            let Piece::Messages(batch, _) = piece else {
                panic!("nothing is evicted");
            };
            messages += batch.len();
            reader.encoded(&batch, Encoding::Json);
        }
        messages
    }

    #[tokio::test]
    async fn reading_keeps_the_total_and_forgets_no_message_and_no_room() {
        let total = 100_000;
        let hub = hub(|config| config.history.total = Size::from(total));
        let names_of_rooms = ["/a", "/b", "/c"];
        for name in names_of_rooms {
            let guard = hub.enter(name).await.unwrap();
            (0..100).for_each(|_| drop(publish(&guard, "")));
        }
        let before = hub.total.bytes();
        assert!((60_000..90_000).contains(&before), "{before}");
        for name in names_of_rooms.repeat(2) {
            assert_eq!(read_all(&hub, name).await, 100);
            assert!(hub.total.bytes() <= total);
        }
        // What space there was is used, by copies.
        assert!(hub.total.bytes() > total - 1000);
        assert_eq!(names(&hub), names_of_rooms);
    }

    #[tokio::test]
    async fn a_room_that_grew_by_copies_is_trimmed_before_a_smaller_one() {
        let hub = hub(|config| config.history.total = Size::from(90_000));
        let read = hub.enter("/read").await.unwrap();
        let other = hub.enter("/other").await.unwrap();
        (0..100).for_each(|_| drop(publish(&read, "")));
        (0..100).for_each(|_| drop(publish(&other, "")));
        read_all(&hub, "/read").await;
        let size = read.room.bytes();
        assert!(size > other.room.bytes() * 5 / 4, "{size}");
        let mut published = 100;
        // Beyond the total, which takes copies first.
        while read.room.bytes() > size - 2000 {
            publish(&other, "");
            published += 1;
            assert!(published < 200);
        }
        assert_eq!(read_all(&hub, "/other").await, published);
        assert_eq!(read_all(&hub, "/read").await, 100);
    }
}
