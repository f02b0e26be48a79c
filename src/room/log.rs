//! The log of a room: appending and fan-out.

use std::collections::{BTreeSet, HashMap};
use std::mem;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::SystemTime;

use slab::Slab;
use tokio_util::sync::CancellationToken;

use super::archive::Archive;
use super::behaviour::Behaviour;
use super::history::History;
use super::ids::Ids;
use super::keys::Keyed;
use super::presence::Presence;
use super::queue::{Bound, Sender};
use super::receipts::{Collector, Receipts};
use super::sync::Mutex;
use super::total::Total;
use crate::config::{self, Limits};
use crate::format::{Batch, Frames};
use crate::message::{Key, MessageId};

/// One ordered log and its clients. The tail of the log is the history; a client at its end gets later
/// messages through its queue.
#[derive(Debug)]
pub(crate) struct Room {
    pub(super) behaviour: Behaviour,
    pub(super) bound: Bound,
    pub(super) log: Mutex<Log>,
    pub(super) receipts: Arc<Receipts>,
    pub(super) presence: Presence,
    /// Where messages are that the history has evicted, if anywhere.
    pub(super) archive: Option<Arc<dyn Archive>>,
    /// Memory of this room's history, readable without the lock.
    pub(super) bytes: AtomicUsize,
    /// The rank by these bytes in the hub.
    pub(super) rank: AtomicUsize,
    /// Memory of all histories, to which this room adds its own.
    pub(super) total: Arc<Total>,
    /// The most of that memory.
    pub(super) total_limit: usize,
}

#[derive(Debug)]
pub(super) struct Log {
    pub(super) ids: Ids,
    pub(super) history: History,
    pub(super) registry: Slab<Member>,
    /// How many of the registry can acknowledge messages; an event stream cannot.
    pub(super) acknowledging: usize,
    /// The clients that read from the history: the next message, and the key.
    pub(super) behind: BTreeSet<(u64, usize)>,
    /// The keys of messages that are being published, and what tells of their end.
    pub(super) claims: HashMap<Key, CancellationToken>,
    /// Publications that the store has not placed yet.
    in_flight: usize,
    /// The server is shutting down: no more publications.
    sealed: bool,
    /// How often the log of the store began anew, and at which position last.
    pub(super) restarts: u32,
    pub(super) restarted_at: u64,
    /// Whether the hub has evicted the room: its history no longer counts.
    pub(super) evicted: bool,
}

/// A client in the registry.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) sender: Sender,
    pub(super) reads: Reads,
}

/// Where a client reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reads {
    /// Its queue, which is live.
    Queue,
    /// The history, from this position on.
    History(u64),
    /// The archive: the history need not retain anything for it.
    Archive,
}

/// What a room begins with.
#[derive(Debug)]
pub(crate) struct Origin {
    /// The id of the next message.
    pub(crate) next: MessageId,
    /// The last messages before that.
    pub(crate) tail: Vec<Batch>,
    /// The sequence number from which on messages are for new clients, which may be in the archive alone.
    pub(crate) replay_from: u64,
    /// Where earlier ones are.
    pub(crate) archive: Option<Arc<dyn Archive>>,
}

impl Log {
    /// Whether no more messages come.
    pub(super) fn is_ended(&self) -> bool {
        self.sealed && self.in_flight == 0
    }

    fn end_if_sealed(&self) {
        if self.is_ended() {
            let members = self.registry.iter();
            members.for_each(|(_, member)| member.sender.close());
        }
    }

    /// Sets where a member reads, and its index entry.
    pub(super) fn set_reads(&mut self, key: usize, reads: Reads) {
        let before = mem::replace(&mut self.registry[key].reads, reads);
        if let Reads::History(position) = before {
            self.behind.remove(&(position, key));
        }
        if let Reads::History(position) = reads {
            self.behind.insert((position, key));
        }
    }

    /// Position of the oldest message that a client behind still needs.
    pub(super) fn needed(&self) -> Option<u64> {
        self.behind.first().map(|(position, _)| *position)
    }
}

/// Messages that a room has taken.
#[derive(Debug)]
pub(crate) struct Delivery {
    /// The messages with their ids.
    pub(crate) batch: Arc<Batch>,
    /// How many live queues they were put into.
    pub(crate) queues: usize,
    /// How many clients the room has.
    pub(crate) clients: usize,
    /// The receipts for the last of the messages, where they were requested.
    pub(crate) receipts: Option<Arc<Collector>>,
}

/// A room at the moment of a publication that the store has to place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Announced {
    /// How many clients it has.
    pub(crate) clients: usize,
    /// The id of its next message.
    pub(crate) next: MessageId,
}

/// What became of messages that a store has placed.
#[derive(Debug)]
pub(crate) enum Placed {
    /// They are in the log now.
    Delivered(Delivery),
    /// They were in the log already.
    Duplicate(Delivery),
    /// Others have to come before them, from this one on.
    Gap(MessageId),
}

/// The room takes no more messages: the server is shutting down.
#[derive(Debug, thiserror::Error)]
#[error("the room is sealed")]
pub(crate) struct Sealed;

impl Room {
    /// A room without clients, whose log goes on from `origin`; `total` counts the bytes of all rooms.
    pub(crate) fn new(
        behaviour: Behaviour,
        history: &config::History,
        limits: &Limits,
        origin: Origin,
        total: Arc<Total>,
    ) -> Self {
        let bound = Bound {
            messages: limits.max_queue,
            bytes: limits.max_queue_bytes.bytes(),
        };
        let Origin {
            next,
            tail,
            replay_from,
            archive,
        } = origin;
        let total_limit = history.total.bytes();
        let mut history = History::new(history.limit, history.bytes.bytes(), bound.bytes);
        let first = tail.first().map_or(next, Batch::first_id);
        if archive.is_some() {
            history = history.archived(first.seq, replay_from);
        }
        let of_epoch = tail.iter().map(Batch::first_id);
        let of_epoch = of_epoch.filter(|id| id.epoch == next.epoch).min();
        let of_epoch = of_epoch.unwrap_or(next);
        let ids = Ids::new(of_epoch.seq, of_epoch);
        for batch in tail {
            history.push(&Arc::new(batch), None);
        }
        let room = Self {
            behaviour,
            bound,
            log: Mutex::new(Log {
                ids,
                history,
                registry: Slab::new(),
                acknowledging: 0,
                behind: BTreeSet::new(),
                claims: HashMap::new(),
                in_flight: 0,
                sealed: false,
                restarts: 0,
                restarted_at: 0,
                evicted: false,
            }),
            receipts: Arc::default(),
            presence: Presence::default(),
            archive,
            bytes: AtomicUsize::new(0),
            rank: AtomicUsize::new(0),
            total,
            total_limit,
        };
        room.account(&room.log.lock().history);
        room
    }

    /// Numbers messages, appends them to the log and, in a broadcast room, to every live queue. Never waits
    /// for a client. `keep` gets the batch and the number of clients under the lock: the order of its calls is
    /// that of the ids.
    ///
    /// With `receipts`, requests one for the last of the messages from every client that can acknowledge.
    ///
    /// # Errors
    /// [`Sealed`] after [`seal`](Self::seal); the messages are not appended then.
    pub(crate) fn append(
        self: &Arc<Self>,
        frames: Frames,
        receipts: bool,
        keep: impl FnOnce(&Arc<Batch>, usize),
    ) -> Result<Delivery, Sealed> {
        let mut log = self.log.lock();
        if log.sealed {
            return Err(Sealed);
        }
        let position = log.history.next();
        let first = log.ids.at(position);
        let batch = Arc::new(Batch::new(position, first, SystemTime::now(), frames));
        let clients = log.registry.len();
        keep(&batch, clients);
        Ok(self.fan_out(&mut log, batch, receipts))
    }

    /// Announces a publication that the store has to place: the log ends only after it was
    /// [concluded](Self::conclude).
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub(crate) fn announce(&self) -> Result<Announced, Sealed> {
        let mut log = self.log.lock();
        if log.sealed {
            return Err(Sealed);
        }
        log.in_flight += 1;
        Ok(Announced {
            clients: log.registry.len(),
            next: log.ids.at(log.history.next()),
        })
    }

    /// Ends what [`announce`](Self::announce) began, whether the publication was delivered or not.
    pub(crate) fn conclude(&self) {
        let mut log = self.log.lock();
        log.in_flight -= 1;
        log.end_if_sealed();
    }

    /// Appends messages that the store has numbered, as [`append`](Self::append) does. A new epoch goes
    /// on with the sequence numbers, or begins the log anew: what it had before is no longer in it.
    pub(crate) fn deliver(
        self: &Arc<Self>,
        first: MessageId,
        time: SystemTime,
        frames: Frames,
        receipts: bool,
    ) -> Placed {
        let mut log = self.log.lock();
        let position = log.history.next();
        let next = log.ids.at(position);
        if first < next {
            let position = log.ids.position(first.seq);
            return Placed::Duplicate(Delivery {
                batch: Arc::new(Batch::new(position, first, time, frames)),
                queues: 0,
                clients: log.registry.len(),
                receipts: None,
            });
        }
        if first.epoch == next.epoch && first.seq > next.seq {
            return Placed::Gap(next);
        }
        if first.epoch > next.epoch {
            log.ids = log.ids.continued(position, first);
            if first.seq != next.seq {
                log.ids = Ids::new(position, first);
                log.restarts += 1;
                log.restarted_at = position;
                log.history.clear();
            }
        }
        let batch = Arc::new(Batch::new(position, first, time, frames));
        Placed::Delivered(self.fan_out(&mut log, batch, receipts))
    }

    /// Goes on in a new epoch, as messages may have been lost in the store.
    pub(crate) fn begin_epoch(&self, epoch: u64) {
        let mut log = self.log.lock();
        let position = log.history.next();
        let next = log.ids.at(position);
        if epoch > next.epoch {
            log.ids = Ids::new(position, MessageId { epoch, ..next });
        }
    }

    /// Has all clients look for what is not a message.
    pub(crate) fn ask_all(&self) {
        let log = self.log.lock();
        log.registry.iter().for_each(|(_, it)| it.sender.ask());
    }

    fn fan_out(self: &Arc<Self>, log: &mut Log, batch: Arc<Batch>, receipts: bool) -> Delivery {
        let clients = log.registry.len();
        let first = batch.positions().start;
        let last = batch.positions().end - 1;
        let key = batch.author().and_then(|it| it.key.as_ref());
        // Before the clients can read the message, which makes them look for requests. Where it has a
        // key, its publisher may ask for them later.
        let collector = (receipts || key.is_some())
            .then(|| Arc::new(self.receipts.expect(last, log.acknowledging, receipts)));
        let mut queues = 0;
        if self.behaviour == Behaviour::Broadcast {
            for (key, member) in &mut log.registry {
                if member.reads != Reads::Queue {
                    continue;
                }
                if member.sender.send(&batch, self.bound) {
                    queues += 1;
                } else {
                    member.reads = Reads::History(first);
                    log.behind.insert((first, key));
                }
            }
        }
        let needed = log.needed();
        log.history.push(&batch, needed);
        if let (Some(key), Some(receipts)) = (key, &collector) {
            let keyed = Keyed {
                position: last,
                clients,
                receipts: receipts.clone(),
            };
            log.history.remember(key, keyed);
        }
        self.account(&log.history);
        Delivery {
            batch,
            queues,
            clients,
            receipts: collector.filter(|_| receipts),
        }
    }

    /// What it does with a message.
    pub(crate) fn behaviour(&self) -> Behaviour {
        self.behaviour
    }

    /// Seals the log: no more publications. Its clients drain it, then are closed.
    pub(crate) fn seal(&self) {
        let mut log = self.log.lock();
        log.sealed = true;
        log.end_if_sealed();
    }

    /// Whether the history retains no message.
    pub(crate) fn is_empty(&self) -> bool {
        let log = self.log.lock();
        log.history.retained_from() == log.history.next()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::task::{Context, Poll, Waker};

    use bytes::Bytes;
    use futures_util::FutureExt;
    use proptest::prelude::*;

    use super::*;
    use crate::config::{Config, Mode, Size};
    use crate::disconnect::Disconnect;
    use crate::format::Encoding;
    use crate::format::{BatchBuilder, Outbox, Plain};
    use crate::message::Kind;
    use crate::room::reader::{Part, Piece};
    use crate::room::{Follow, OnGap, Subscription};

    const NO_PREFIX: Option<String> = Some(String::new());

    fn new_room(config: &Config, epoch: u64, total: Arc<Total>) -> Room {
        let Config {
            service,
            history,
            limits,
            ..
        } = config;
        let origin = Origin {
            next: MessageId { epoch, seq: 1 },
            tail: Vec::new(),
            replay_from: 1,
            archive: None,
        };
        Room::new(service.mode.into(), history, limits, origin, total)
    }

    pub(crate) fn config(mode: Mode, history_limit: usize, max_queue: usize) -> Config {
        Config::with(|config| {
            config.service.mode = mode;
            config.history.limit = history_limit;
            config.limits.max_queue = max_queue;
            config.service.prefix = NO_PREFIX;
        })
    }

    /// A room whose messages are their own numbers: 1, 2, 3 …
    pub(crate) struct Numbers {
        pub(crate) room: Arc<Room>,
        plain: Plain,
        pub(crate) last: u64,
        /// How many clients were in the room at the last publication with receipts.
        pub(crate) clients: usize,
    }

    impl Numbers {
        pub(crate) fn new(config: &Config) -> Self {
            Self {
                room: Arc::new(new_room(config, 1, Arc::default())),
                plain: Plain::new(&config.service),
                last: 0,
                clients: 0,
            }
        }

        pub(crate) fn publish(&mut self, count: u64) {
            let frames = self.encode(count);
            let batch = self.room.append(frames, false, |_, _| {}).unwrap().batch;
            assert_eq!(batch.positions(), self.last + 1..self.last + count + 1);
            self.last += count;
        }

        /// Publishes one message, and requests receipts for it.
        pub(crate) fn publish_with_receipts(&mut self) -> Arc<Collector> {
            let frames = self.encode(1);
            let delivery = self.room.append(frames, true, |_, _| {}).unwrap();
            self.last += 1;
            self.clients = delivery.clients;
            assert_eq!(delivery.batch.last_id().seq, self.last);
            delivery.receipts.unwrap()
        }

        /// The next `count` messages.
        pub(crate) fn encode(&self, count: u64) -> Frames {
            let mut builder = BatchBuilder::default();
            for number in self.last + 1..=self.last + count {
                let text = number.to_string();
                self.plain.encode(Kind::Text, text.as_bytes(), &mut builder);
            }
            builder.take().unwrap()
        }

        /// How many queues are live.
        fn live(&self) -> usize {
            let log = self.room.log.lock();
            log.registry
                .iter()
                .filter(|(_, member)| member.reads == Reads::Queue)
                .count()
        }
    }

    /// The numbers that `frames` carry.
    fn numbers(frames: &[Bytes]) -> Vec<u64> {
        let mut bytes: &[u8] = &frames.concat();
        let mut numbers = Vec::new();
        while let [_, length, rest @ ..] = bytes {
            let (number, rest) = rest.split_at(*length as usize);
            numbers.push(std::str::from_utf8(number).unwrap().parse().unwrap());
            bytes = rest;
        }
        numbers
    }

    /// Polls once.
    fn poll_numbers(subscription: &mut Subscription) -> Poll<Result<Vec<u64>, Disconnect>> {
        let mut frames = Outbox::new();
        let mut cx = Context::from_waker(Waker::noop());
        subscription
            .poll_next(&mut cx, &mut frames)
            .map_ok(|count| {
                let numbers = numbers(&frames);
                assert_eq!(numbers.len() as u64, count);
                assert_eq!(subscription.last().unwrap().seq, *numbers.last().unwrap());
                numbers
            })
    }

    fn poll_replay(
        subscription: &mut Subscription,
        frames: &mut Outbox,
    ) -> Poll<Result<u64, Disconnect>> {
        subscription.poll_replay(&mut Context::from_waker(Waker::noop()), frames)
    }

    /// Polls until nothing is ready.
    fn take_all(subscription: &mut Subscription) -> Vec<u64> {
        let mut all = Vec::new();
        while let Poll::Ready(numbers) = poll_numbers(subscription) {
            all.extend(numbers.unwrap());
        }
        all
    }

    #[test]
    fn a_subscription_gets_history_then_live() {
        let mut room = Numbers::new(&config(Mode::Broadcast, 10, 10));
        room.publish(3);
        let mut subscription = room.room.subscribe(Follow::default(), false).0;
        room.publish(2);
        assert_eq!(take_all(&mut subscription), [1, 2, 3, 4, 5]);
        room.publish(1);
        assert_eq!(take_all(&mut subscription), [6]);
    }

    #[test]
    fn a_client_that_overflows_leaves_the_live_registry_and_catches_up_from_the_history() {
        let mut room = Numbers::new(&config(Mode::Broadcast, 100, 4));
        let mut slow = room.room.subscribe(Follow::default(), false).0;
        let mut fast = room.room.subscribe(Follow::default(), false).0;
        for _ in 0..10 {
            room.publish(1);
            assert_eq!(take_all(&mut fast), [room.last]);
        }
        assert_eq!(room.live(), 1);
        assert_eq!(take_all(&mut slow), (1..=10).collect::<Vec<_>>());
        assert_eq!(room.live(), 2);
        room.publish(1);
        assert_eq!(take_all(&mut slow), [11]);
    }

    #[test]
    fn queued_bytes_are_bounded_but_one_batch_always_fits() {
        let mut config = config(Mode::Broadcast, 0, 100);
        config.limits.max_queue_bytes = Size::from(7);
        let mut room = Numbers::new(&config);
        let mut one = room.room.subscribe(Follow::default(), false).0;
        // Three bytes a frame.
        room.publish(5);
        assert_eq!(take_all(&mut one), [1, 2, 3, 4, 5]);
        room.publish(1);
        room.publish(1);
        assert_eq!(room.live(), 1);
        room.publish(1);
        assert_eq!(room.live(), 0);
        assert!(matches!(poll_numbers(&mut one), Poll::Ready(Ok(got)) if got == [6, 7]));
        assert!(matches!(
            poll_numbers(&mut one),
            Poll::Ready(Err(Disconnect::Behind))
        ));
    }

    #[test]
    fn a_room_without_a_history_retains_what_a_slow_client_needs() {
        let mut room = Numbers::new(&config(Mode::Broadcast, 0, 1));
        let mut slow = room.room.subscribe(Follow::default(), false).0;
        (0..5).for_each(|_| room.publish(1));
        assert_eq!(take_all(&mut slow), [1, 2, 3, 4, 5]);
        room.publish(1);
        assert_eq!(take_all(&mut slow), [6]);
        assert!(room.room.is_empty());
    }

    #[test]
    fn a_long_history_is_read_in_bounded_steps() {
        let mut room = Numbers::new(&config(Mode::Broadcast, 100, 4));
        for _ in 0..10 {
            room.publish(1);
        }
        let mut subscription = room.room.subscribe(Follow::default(), false).0;
        let mut steps = Vec::new();
        while let Poll::Ready(step) = poll_numbers(&mut subscription) {
            steps.push(step.unwrap().len());
        }
        assert_eq!(steps, [4, 4, 2]);
    }

    #[test]
    fn in_echo_mode_only_messages_before_the_join_are_replayed() {
        let mut room = Numbers::new(&config(Mode::Echo, 100, 2));
        (0..3).for_each(|_| room.publish(1));
        let mut subscription = room.room.subscribe(Follow::default(), false).0;
        (0..3).for_each(|_| room.publish(1));
        let (mut frames, mut counts) = (Outbox::new(), Vec::new());
        while let Poll::Ready(Ok(count @ 1..)) = poll_replay(&mut subscription, &mut frames) {
            counts.push(count);
        }
        assert_eq!((numbers(&frames), counts), (vec![1, 2, 3], vec![2, 1]));
        assert!(poll_numbers(&mut subscription).is_pending());
        room.publish(1);
        assert!(poll_numbers(&mut subscription).is_pending());
    }

    /// The events of a JSON subscription: the text of a message, or `gap` and its size.
    fn events(subscription: &mut Subscription) -> Vec<String> {
        let mut frames = Outbox::new();
        let mut cx = Context::from_waker(Waker::noop());
        while let Poll::Ready(given) = subscription.poll_next(&mut cx, &mut frames) {
            given.unwrap();
            subscription.take_ping_request();
        }
        let text = String::from_utf8_lossy(&frames.concat()).into_owned();
        let events = text.match_indices('{').map(|(start, _)| {
            let end = start + text[start..].find('}').unwrap();
            serde_json::from_str::<serde_json::Value>(&text[start..=end]).unwrap()
        });
        let describe = |event: serde_json::Value| match event["type"].as_str() {
            Some("gap") => format!("gap {}", event["missed"]),
            _ => event["text"].as_str().unwrap().to_owned(),
        };
        events.map(describe).collect()
    }

    #[test]
    fn a_format_with_gap_events_continues_after_a_gap() {
        let mut room = Numbers::new(&config(Mode::Broadcast, 2, 1));
        let follow = Follow {
            encoding: Encoding::Json,
            on_gap: OnGap::Report,
            ..Follow::default()
        };
        let (mut subscription, _) = room.room.subscribe(follow, false);
        (0..3).for_each(|_| room.publish(1));
        assert_eq!(events(&mut subscription), ["1", "2", "3"]);
        (0..9).for_each(|_| room.publish(1));
        // The hub reclaims memory although the client still needs it.
        let newest = room
            .room
            .log
            .lock()
            .history
            .batches_from(12)
            .next()
            .unwrap()
            .cost();
        room.room.trim_to(newest);
        assert_eq!(events(&mut subscription), ["4", "gap 7", "12"]);
        room.publish(1);
        assert_eq!(events(&mut subscription), ["13"]);
        // Everything may be evicted; the gap is reported even at the end of a sealed log.
        (0..9).for_each(|_| room.publish(1));
        room.room.trim_to(0);
        assert_eq!(events(&mut subscription), ["14", "gap 8"]);
        (0..9).for_each(|_| room.publish(1));
        room.room.trim_to(0);
        room.room.seal();
        let (mut frames, mut cx) = (Outbox::new(), Context::from_waker(Waker::noop()));
        for is_ok in [true, true, false] {
            let given = subscription.poll_next(&mut cx, &mut frames);
            assert!(matches!(given, Poll::Ready(given) if given.is_ok() == is_ok));
        }
    }

    #[test]
    fn a_sealed_room_accepts_nothing_and_yields_the_rest_then_its_end() {
        let mut room = Numbers::new(&config(Mode::Broadcast, 100, 2));
        let mut live = room.room.subscribe(Follow::default(), false).0;
        (0..5).for_each(|_| room.publish(1));
        let mut late = room.room.subscribe(Follow::default(), false).0;
        room.room.seal();
        let frames = room.encode(1);
        assert!(room.room.append(frames, false, |_, _| {}).is_err());
        for subscription in [&mut live, &mut late] {
            let mut all = Vec::new();
            let end = loop {
                match poll_numbers(subscription) {
                    Poll::Ready(Ok(numbers)) => all.extend(numbers),
                    Poll::Ready(Err(end)) => break end,
                    Poll::Pending => panic!("a sealed room has an end"),
                }
            };
            assert_eq!(all, [1, 2, 3, 4, 5]);
            assert!(matches!(end, Disconnect::ShuttingDown));
        }
    }

    #[test]
    fn the_bytes_of_all_rooms_are_counted_through_every_change() {
        let total = Arc::<Total>::default();
        let config = config(Mode::Broadcast, 3, 10);
        let plain = Plain::new(&config.service);
        let rooms = [1, 2].map(|epoch| Arc::new(new_room(&config, epoch, total.clone())));
        let mut costs = Vec::new();
        for payload in ["1", "22", "333", "4444"] {
            for room in &rooms {
                let mut builder = BatchBuilder::default();
                plain.encode(Kind::Text, payload.as_bytes(), &mut builder);
                let delivery = room
                    .append(builder.take().unwrap(), false, |_, _| {})
                    .unwrap();
                costs.push(delivery.batch.cost());
            }
        }
        // Two rooms, and three of the four messages.
        let all: usize = costs[2..].iter().sum();
        assert_eq!(total.bytes(), all);
        let last = costs[7];
        rooms[0].trim_to(last);
        assert_eq!((rooms[0].bytes(), rooms[1].bytes()), (last, all / 2));
        assert_eq!(total.bytes(), last + all / 2);
        drop(rooms);
        assert_eq!(total.bytes(), 0);
    }

    #[test]
    fn copies_count_wherever_clients_read_and_evict_no_message() {
        let mut config = config(Mode::Broadcast, 1000, 10);
        config.history.bytes = Size::from(50_000);
        let mut room = Numbers::new(&config);
        let follow = |encoding| Follow {
            encoding,
            on_gap: OnGap::Report,
            ..Follow::default()
        };
        let mut live = room.room.subscribe(follow(Encoding::Json), false).0;
        for _ in 0..100 {
            room.publish(1);
            assert_eq!(events(&mut live).len(), 1);
            assert_counted(&room.room);
        }
        assert_eq!(room.room.log.lock().history.retained_from(), 1);
        // A late client, one of another encoding, and a reader that is no client.
        for encoding in [Encoding::Json, Encoding::EventStream] {
            let mut late = room.room.subscribe(follow(encoding), false).0;
            let (mut frames, mut cx) = (Outbox::new(), Context::from_waker(Waker::noop()));
            while late.poll_next(&mut cx, &mut frames).is_ready() {
                assert_counted(&room.room);
            }
        }
        let mut reader = room.room.read(Part::Last, 1000, false);
        while let Some(Piece::Messages(batch, _)) =
            reader.next().now_or_never().expect("memory never waits")
        {
            reader.encoded(&batch, Encoding::Json);
            assert_counted(&room.room);
        }
        assert_eq!(room.room.log.lock().history.retained_from(), 1);
        assert!(room.room.bytes() > 49_000, "{}", room.room.bytes());
        // A reader that still has a batch of an evicted room counts nothing.
        let bare = {
            let log = room.room.log.lock();
            let mut batches = log.history.batches_from(1);
            batches.find(|it| it.memory() == it.cost()).unwrap().clone()
        };
        room.room.write_off();
        reader.encoded(&bare, Encoding::Json);
        assert_eq!(room.room.total.bytes(), 0);
    }

    /// All counts of bytes are those of the batches and copies in the history, and within its bound.
    fn assert_counted(room: &Room) {
        let log = room.log.lock();
        let held = log.history.batches_from(1).map(|it| it.memory());
        let held = held.sum::<usize>();
        assert_eq!((room.bytes(), room.total.bytes()), (held, held));
        assert!(held <= 50_000, "{held}");
    }

    #[derive(Debug, Clone)]
    enum Step {
        Publish(u64),
        Join,
        Poll(prop::sample::Index),
        Leave(prop::sample::Index),
        /// The hub reclaims memory.
        Trim,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (1..4_u64).prop_map(Step::Publish),
            1 => Just(Step::Join),
            3 => any::<prop::sample::Index>().prop_map(Step::Poll),
            1 => any::<prop::sample::Index>().prop_map(Step::Leave),
            1 => Just(Step::Trim),
        ]
    }

    proptest! {
        /// After any publications and evictions: a resumed client gets exactly the messages after the
        /// requested id; any other gets the whole replay, and the size of the gap.
        #[test]
        fn a_client_resumes_exactly_when_nothing_is_missing(
            steps in prop::collection::vec(prop_oneof![
                3 => (1..4_u64).prop_map(Step::Publish),
                1 => Just(Step::Trim),
            ], 0..20),
            history_limit in 0_usize..8,
            epoch in 0..3_u64,
            seq in prop_oneof![9 => 0..30_u64, 1 => Just(u64::MAX)],
            a_client_is_behind in any::<bool>(),
        ) {
            let mut room = Numbers::new(&config(Mode::Broadcast, history_limit, 1));
            // The room retains more for a client behind than it replays to new ones.
            let _behind = a_client_is_behind.then(|| room.room.subscribe(Follow::default(), false));
            for step in steps {
                match step {
                    Step::Publish(count) => room.publish(count),
                    _ => room.room.trim_to(room.room.bytes() / 2),
                }
            }
            let (replay_from, retained_from) = {
                let log = room.room.log.lock();
                (log.history.replay_from(), log.history.retained_from())
            };
            let since = Some(MessageId { epoch, seq });
            let follow = Follow { since, ..Follow::default() };
            let (mut subscription, start) = room.room.subscribe(follow, false);
            let is_of_this_log = epoch == 1 && seq <= room.last;
            prop_assert_eq!(start.resumed, is_of_this_log && seq + 1 >= retained_from);
            let (from, missed) = match (start.resumed, is_of_this_log) {
                (true, _) => (seq + 1, Some(0)),
                (false, true) => (replay_from, Some(replay_from - seq - 1)),
                (false, false) => (replay_from, None),
            };
            prop_assert_eq!((start.next, start.missed), (from, missed));
            prop_assert_eq!(start.last.map_or(0, |id| id.seq), room.last);
            room.publish(1);
            prop_assert_eq!(take_all(&mut subscription), (from..=room.last).collect::<Vec<_>>());
        }

        /// In any order of steps: a client gets one contiguous run of the log, from the oldest message
        /// at its join to the end, and is closed as behind only when its next message was evicted.
        #[test]
        fn each_client_gets_one_contiguous_run(
            steps in prop::collection::vec(step(), 0..200),
            history_limit in 0_usize..12,
            max_queue in 1_usize..6,
            max_queue_bytes in 1_usize..400,
        ) {
            let mut config = config(Mode::Broadcast, history_limit, max_queue);
        config.limits.max_queue_bytes = Size::from(max_queue_bytes);
            let mut room = Numbers::new(&config);
            // Each with its next number.
            let mut clients: Vec<(Subscription, u64)> = Vec::new();
            for step in steps {
                match step {
                    Step::Publish(count) => room.publish(count),
                    Step::Trim => room.room.trim_to(room.room.bytes() / 2),
                    Step::Join => {
                        let next = room.room.log.lock().history.replay_from();
                        clients.push((room.room.subscribe(Follow::default(), false).0, next));
                    }
                    Step::Poll(_) | Step::Leave(_) if clients.is_empty() => {}
                    Step::Poll(which) => {
                        let which = which.index(clients.len());
                        let (subscription, next) = &mut clients[which];
                        match poll_numbers(subscription) {
                            Poll::Ready(Ok(numbers)) => {
                                let end = *next + numbers.len() as u64;
                                prop_assert_eq!(numbers, (*next..end).collect::<Vec<_>>());
                                *next = end;
                            }
                            Poll::Ready(Err(why)) => {
                                prop_assert!(matches!(why, Disconnect::Behind));
                                prop_assert!(*next < room.room.log.lock().history.retained_from());
                                clients.swap_remove(which);
                            }
                            Poll::Pending => prop_assert_eq!(*next, room.last + 1),
                        }
                    }
                    Step::Leave(which) => drop(clients.swap_remove(which.index(clients.len()))),
                }
                prop_assert_eq!(room.room.log.lock().registry.len(), clients.len());
            }
            // Nothing is retained for clients that left.
            clients.clear();
            let log = room.room.log.lock();
            prop_assert!(log.behind.is_empty());
            prop_assert_eq!(log.history.retained_from(), log.history.replay_from());
        }
    }
}
