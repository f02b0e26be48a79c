//! The log of a room: appending, fan-out, joining.

use std::collections::BTreeSet;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use slab::Slab;

use super::history::History;
use super::queue::{self, Batches, Bound, Sender};
use super::receipts::{Collector, Receipts, Unacknowledged};
use super::subscription::{Source, Subscription};
use super::sync::Mutex;
use crate::config::{self, Limits, Mode};
use crate::format::{Batch, Format, Frames};
use crate::message::MessageId;

/// One ordered log and its clients. The tail of the log is the history; a client at its end gets later
/// messages through its queue.
#[derive(Debug)]
pub(crate) struct Room {
    pub(super) mode: Mode,
    pub(super) bound: Bound,
    pub(super) log: Mutex<Log>,
    pub(super) receipts: Receipts,
    /// Memory of this room's history, readable without the lock.
    pub(super) bytes: AtomicUsize,
    /// The rank by these bytes in the hub.
    pub(super) rank: AtomicUsize,
    /// Memory of all histories, to which this room adds its own.
    pub(super) total: Arc<AtomicUsize>,
}

#[derive(Debug)]
pub(super) struct Log {
    pub(super) epoch: u64,
    pub(super) history: History,
    pub(super) registry: Slab<Member>,
    /// How many of the registry can acknowledge messages; an event stream cannot.
    pub(super) acknowledging: usize,
    /// The clients that read from the history: the next message, and the key.
    pub(super) behind: BTreeSet<(u64, usize)>,
    pub(super) sealed: bool,
}

/// A client in the registry.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) sender: Sender,
    /// Sequence number of the next message to read from the history; none while the queue is live.
    pub(super) behind: Option<u64>,
}

/// How a client subscribes to a room.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Follow {
    /// The format of its events.
    pub(crate) format: Format,
    /// The last message that it received before it reconnected, if it did.
    pub(crate) since: Option<MessageId>,
}

/// Where a subscription starts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Start {
    /// Sequence number of its first message.
    pub(crate) next: u64,
    /// The newest message of the room at the join, if there ever was one.
    pub(crate) last: Option<MessageId>,
    /// Whether the subscription continues after the requested id without a gap.
    pub(crate) resumed: bool,
    /// How many messages after that id are skipped; none where the id is not of this log.
    pub(crate) missed: Option<u64>,
}

impl Log {
    /// Where a client starts that has the messages up to `since`.
    pub(super) fn start(&self, since: Option<MessageId>) -> Start {
        let (first, end) = (self.history.replay_from(), self.history.next());
        let last = (end > 1).then_some(MessageId {
            epoch: self.epoch,
            seq: end - 1,
        });
        let (next, resumed, missed) = match since {
            None => (first, false, Some(0)),
            Some(id) if id.epoch != self.epoch || id.seq >= end => (first, false, None),
            Some(id) if id.seq + 1 >= self.history.retained_from() => (id.seq + 1, true, Some(0)),
            Some(id) => (first, false, Some(first - id.seq - 1)),
        };
        Start {
            next,
            last,
            resumed,
            missed,
        }
    }

    /// Sets the next message that a member reads from the history, and its index entry.
    pub(super) fn set_behind(&mut self, key: usize, behind: Option<u64>) {
        let before = mem::replace(&mut self.registry[key].behind, behind);
        before.map(|seq| self.behind.remove(&(seq, key)));
        behind.map(|seq| self.behind.insert((seq, key)));
    }

    /// Sequence number of the oldest message that a client behind still needs.
    pub(super) fn needed(&self) -> Option<u64> {
        self.behind.first().map(|(seq, _)| *seq)
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
}

/// The room takes no more messages: the server is shutting down.
#[derive(Debug, thiserror::Error)]
#[error("the room is sealed")]
pub(crate) struct Sealed;

impl Room {
    /// An empty room whose ids begin with `epoch`; `total` counts the bytes of all rooms.
    pub(crate) fn new(
        mode: Mode,
        history: &config::History,
        limits: &Limits,
        epoch: u64,
        total: Arc<AtomicUsize>,
    ) -> Self {
        let bound = Bound {
            messages: limits.max_queue,
            bytes: limits.max_queue_bytes.bytes(),
        };
        let history = History::new(history.limit, history.bytes.bytes(), bound.bytes);
        Self {
            mode,
            bound,
            log: Mutex::new(Log {
                epoch,
                history,
                registry: Slab::new(),
                acknowledging: 0,
                behind: BTreeSet::new(),
                sealed: false,
            }),
            receipts: Receipts::default(),
            bytes: AtomicUsize::new(0),
            rank: AtomicUsize::new(0),
            total,
        }
    }

    /// Appends messages to the log and, in broadcast mode, to every live queue. Never waits for a client.
    ///
    /// # Errors
    /// [`Sealed`] after [`seal`](Self::seal); the messages are not appended then.
    pub(crate) fn deliver(&self, frames: Frames) -> Result<Delivery, Sealed> {
        self.append(&mut self.log.lock(), frames)
    }

    /// As [`deliver`](Self::deliver), and requests a receipt for the last of the messages from every
    /// client that can acknowledge.
    ///
    /// # Errors
    /// As [`deliver`](Self::deliver).
    pub(crate) fn deliver_with_receipts(
        self: &Arc<Self>,
        frames: Frames,
    ) -> Result<(Delivery, Collector), Sealed> {
        let mut log = self.log.lock();
        if log.sealed {
            return Err(Sealed);
        }
        let seq = log.history.next() + frames.payloads().len() as u64 - 1;
        // Before the clients can read the message, which makes them look for requests.
        self.receipts.expect(seq, log.acknowledging);
        let collector = Collector {
            room: self.clone(),
            seq,
        };
        Ok((self.append(&mut log, frames)?, collector))
    }

    fn append(&self, log: &mut Log, frames: Frames) -> Result<Delivery, Sealed> {
        if log.sealed {
            return Err(Sealed);
        }
        let first = MessageId {
            epoch: log.epoch,
            seq: log.history.next(),
        };
        let batch = Arc::new(Batch::new(first, frames));
        let mut queues = 0;
        if self.mode == Mode::Broadcast {
            for (key, member) in &mut log.registry {
                if member.behind.is_some() {
                    continue;
                }
                if member.sender.send(&batch, self.bound) {
                    queues += 1;
                } else {
                    member.behind = Some(first.seq);
                    log.behind.insert((first.seq, key));
                }
            }
        }
        let needed = log.needed();
        log.history.push(&batch, needed);
        self.account(&log.history);
        let clients = log.registry.len();
        Ok(Delivery {
            batch,
            queues,
            clients,
        })
    }

    /// Subscribes to the log: first the history, then live messages, without a gap between them.
    ///
    /// It starts after the id in `follow`, where all later messages are retained, and else with the
    /// whole replay.
    pub(crate) fn subscribe(self: &Arc<Self>, follow: Follow) -> (Subscription, Start) {
        let mut log = self.log.lock();
        let start = log.start(follow.since);
        let joined_at = log.history.next();
        let (sender, receiver) = queue::channel();
        let key = log.registry.insert(Member {
            sender,
            behind: None,
        });
        let unacknowledged = Unacknowledged::new(follow.format, joined_at);
        log.acknowledging += usize::from(unacknowledged.is_possible());
        log.set_behind(key, Some(start.next));
        let mut subscription = Subscription {
            room: self.clone(),
            receiver,
            key: Some(key),
            epoch: log.epoch,
            format: follow.format,
            source: Source::History,
            missed: 0,
            unacknowledged,
            next: start.next,
            last: None,
            joined_at,
            taken: Batches::new(),
        };
        // The only error here is that of a sealed room, which the first poll returns again.
        subscription.read_history(&mut log).ok();
        (subscription, start)
    }

    /// Seals the log: no more messages. Its clients drain it, then are closed.
    pub(crate) fn seal(&self) {
        let mut log = self.log.lock();
        log.sealed = true;
        log.registry
            .iter()
            .for_each(|(_, member)| member.sender.close());
    }

    /// Whether the history retains no message.
    pub(crate) fn is_empty(&self) -> bool {
        let log = self.log.lock();
        log.history.retained_from() == log.history.next()
    }

    /// Evicts the oldest messages until the others take at most `bytes` of memory.
    pub(crate) fn trim_to(&self, bytes: usize) {
        let mut log = self.log.lock();
        log.history.trim_to(bytes);
        self.account(&log.history);
    }

    /// Subtracts the history from the total, before the room is dropped.
    pub(crate) fn write_off(&self) {
        let bytes = self.bytes.swap(0, Ordering::Relaxed);
        self.total.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Bytes of memory of the history.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The rank that the hub assigns by these bytes; 0 for none.
    pub(crate) fn rank(&self) -> &AtomicUsize {
        &self.rank
    }

    /// Updates both counts of bytes after a change of the history.
    pub(super) fn account(&self, history: &History) {
        let (before, now) = (self.bytes(), history.bytes());
        if now != before {
            self.bytes.store(now, Ordering::Relaxed);
            self.total
                .fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.write_off();
    }
}

#[cfg(test)]
pub(crate) mod tests {

    use proptest::prelude::*;

    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::config::{Config, Size};
    use crate::disconnect::Disconnect;
    use crate::format::Chunk;
    use crate::format::Outbox;
    use crate::format::{BatchBuilder, Plain};
    use crate::message::Kind;

    const NO_PREFIX: Option<String> = Some(String::new());

    fn new_room(config: &Config, epoch: u64, total: Arc<AtomicUsize>) -> Room {
        let Config {
            service,
            history,
            limits,
            ..
        } = config;
        Room::new(service.mode, history, limits, epoch, total)
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
            let batch = self.room.deliver(frames).unwrap().batch;
            assert_eq!(batch.seqs(), self.last + 1..self.last + count + 1);
            self.last += count;
        }

        /// Publishes one message, and requests receipts for it.
        pub(crate) fn publish_with_receipts(&mut self) -> Collector {
            let frames = self.encode(1);
            let (delivery, collector) = self.room.deliver_with_receipts(frames).unwrap();
            self.last += 1;
            self.clients = delivery.clients;
            assert_eq!(delivery.batch.last_id().seq, self.last);
            collector
        }

        /// The next `count` messages.
        fn encode(&self, count: u64) -> Frames {
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
                .filter(|(_, member)| member.behind.is_none())
                .count()
        }
    }

    fn concat(frames: &[Chunk]) -> Vec<u8> {
        frames
            .iter()
            .flat_map(|frame| frame.iter().copied())
            .collect()
    }

    /// The numbers that `frames` carry.
    fn numbers(frames: &[Chunk]) -> Vec<u64> {
        let mut bytes: &[u8] = &concat(frames);
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
        let mut subscription = room.room.subscribe(Follow::default()).0;
        room.publish(2);
        assert_eq!(take_all(&mut subscription), [1, 2, 3, 4, 5]);
        room.publish(1);
        assert_eq!(take_all(&mut subscription), [6]);
    }

    #[test]
    fn a_client_that_overflows_leaves_the_live_registry_and_catches_up_from_the_history() {
        let mut room = Numbers::new(&config(Mode::Broadcast, 100, 4));
        let mut slow = room.room.subscribe(Follow::default()).0;
        let mut fast = room.room.subscribe(Follow::default()).0;
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
        let mut one = room.room.subscribe(Follow::default()).0;
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
        let mut slow = room.room.subscribe(Follow::default()).0;
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
        let mut subscription = room.room.subscribe(Follow::default()).0;
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
        let mut subscription = room.room.subscribe(Follow::default()).0;
        (0..3).for_each(|_| room.publish(1));
        let (mut frames, mut counts) = (Outbox::new(), Vec::new());
        while let count @ 1.. = subscription.replay(&mut frames).unwrap() {
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
        let text = String::from_utf8_lossy(&concat(&frames)).into_owned();
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
            format: Format::Json,
            since: None,
        };
        let (mut subscription, _) = room.room.subscribe(follow);
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
        let mut live = room.room.subscribe(Follow::default()).0;
        (0..5).for_each(|_| room.publish(1));
        let mut late = room.room.subscribe(Follow::default()).0;
        room.room.seal();
        assert!(room.room.deliver(Frames::default()).is_err());
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
        let total = Arc::new(AtomicUsize::new(0));
        let config = config(Mode::Broadcast, 3, 10);
        let plain = Plain::new(&config.service);
        let rooms = [1, 2].map(|epoch| new_room(&config, epoch, total.clone()));
        let mut costs = Vec::new();
        for payload in ["1", "22", "333", "4444"] {
            for room in &rooms {
                let mut builder = BatchBuilder::default();
                plain.encode(Kind::Text, payload.as_bytes(), &mut builder);
                costs.push(room.deliver(builder.take().unwrap()).unwrap().batch.cost());
            }
        }
        // Two rooms, and three of the four messages.
        let all: usize = costs[2..].iter().sum();
        assert_eq!(total.load(Ordering::Relaxed), all);
        let last = costs[7];
        rooms[0].trim_to(last);
        assert_eq!((rooms[0].bytes(), rooms[1].bytes()), (last, all / 2));
        assert_eq!(total.load(Ordering::Relaxed), last + all / 2);
        drop(rooms);
        assert_eq!(total.load(Ordering::Relaxed), 0);
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
            let _behind = a_client_is_behind.then(|| room.room.subscribe(Follow::default()));
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
            let (mut subscription, start) = room.room.subscribe(follow);
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
                        clients.push((room.room.subscribe(Follow::default()).0, next));
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
