//! Receipts: how many clients acknowledge a message.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::mem;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use slab::Slab;

use super::sync::{AtomicU64, Mutex};

/// The receipts that the publishers of a room wait for: one entry a message, one count a client.
///
/// Lock order: the log, then the receipts. An entry is made under both, so that it counts exactly the
/// clients that the message is delivered to. On a cache line of its own, as every client reads `asked`
/// and the log beside it changes all the time.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Receipts {
    /// The largest position for which a publisher ever waited.
    asked: AtomicU64,
    /// By the positions of the messages.
    entries: Mutex<BTreeMap<u64, Entry>>,
}

#[derive(Debug)]
struct Entry {
    /// Clients that may still acknowledge the message.
    missing: usize,
    /// Clients that acknowledged it.
    delivered: usize,
    /// Whether a publisher waits for them: the clients are pinged then.
    wanted: bool,
    /// Those that wait, until they are woken or give up.
    publishers: Slab<Waker>,
}

/// What one client still has to acknowledge.
#[derive(Debug)]
pub(super) struct Unacknowledged {
    /// The position up to which it acknowledged, or need not.
    acknowledged: u64,
    /// The position up to which a ping was requested, or is not needed.
    pinged: u64,
    /// Messages beyond that were evicted before it read them: a later acknowledgement does not cover
    /// them.
    skipped: Vec<Range<u64>>,
}

impl Receipts {
    /// Collects the receipts of `missing` clients for the message `position`, which is not yet published;
    /// they are `wanted` if a publisher waits for them.
    pub(super) fn expect(
        self: &Arc<Self>,
        position: u64,
        missing: usize,
        wanted: bool,
    ) -> Collector {
        let entry = Entry {
            missing,
            delivered: 0,
            wanted,
            publishers: Slab::new(),
        };
        self.entries.lock().insert(position, entry);
        // The lock of the log, or of a queue, orders this before any read of the message.
        self.asked.store(position, Ordering::Relaxed);
        Collector {
            receipts: self.clone(),
            position,
        }
    }

    /// How many messages receipts are collected for.
    #[cfg(test)]
    pub(super) fn entries(&self) -> usize {
        self.entries.lock().len()
    }

    /// Whether `client`, which has the messages up to `last`, has to be pinged for a receipt; resets the
    /// request.
    pub(super) fn take_ping_request(&self, client: &mut Unacknowledged, last: u64) -> bool {
        if last <= client.pinged || !self.is_asked_beyond(client.pinged) {
            return false;
        }
        let unpinged = client.pinged + 1..=last;
        client.pinged = last;
        let entries = self.entries.lock();
        entries.range(unpinged).any(|(_, entry)| entry.wanted)
    }

    /// `client` acknowledged all messages up to `position` that it has.
    pub(super) fn acknowledge(&self, client: &mut Unacknowledged, position: u64) {
        if position <= client.acknowledged {
            return;
        }
        if self.is_asked_beyond(client.acknowledged) {
            self.settle(client.owed(position), true);
        }
        client.acknowledged = position;
        client.skipped.retain(|skipped| skipped.end > position + 1);
    }

    /// The messages `positions` were evicted before `client` read them.
    pub(super) fn skip(&self, client: &mut Unacknowledged, positions: Range<u64>) {
        if !self.is_asked_beyond(client.acknowledged) {
            return;
        }
        let owed = positions.start.max(client.acknowledged + 1)..positions.end;
        if self.settle([owed], false) {
            // Of messages that no publisher waits for any more, nothing needs to be remembered.
            let first = self.entries.lock().keys().next().copied();
            client.skipped.retain(|it| Some(it.end) > first);
            // What came before them was pinged for when it was read.
            client.pinged = client.pinged.max(positions.end - 1);
            client.skipped.push(positions);
        }
    }

    /// `client` left, and acknowledges nothing more.
    pub(super) fn leave(&self, client: &Unacknowledged) {
        if self.is_asked_beyond(client.acknowledged) {
            self.settle(client.owed(NEVER - 1), false);
        }
    }

    /// Whether a receipt was ever requested for a message after `position`; takes no lock.
    fn is_asked_beyond(&self, position: u64) -> bool {
        self.asked.load(Ordering::Relaxed) > position
    }

    /// Counts one client less as missing for all messages in `owed`; returns whether there were any.
    fn settle(&self, owed: impl IntoIterator<Item = Range<u64>>, delivered: bool) -> bool {
        let mut entries = self.entries.lock();
        let mut any = false;
        for positions in owed.into_iter().filter(|positions| !positions.is_empty()) {
            for (_, entry) in entries.range_mut(positions) {
                any = true;
                entry.delivered += usize::from(delivered);
                entry.missing -= 1;
                if entry.missing == 0 {
                    entry.publishers.drain().for_each(Waker::wake);
                }
            }
        }
        any
    }
}

impl Unacknowledged {
    /// A client that joins before the message `joined_at`, and can acknowledge messages or not.
    pub(super) fn new(acknowledges: bool, joined_at: u64) -> Self {
        let before = match acknowledges {
            true => joined_at - 1,
            false => NEVER,
        };
        Self {
            acknowledged: before,
            pinged: before,
            skipped: Vec::new(),
        }
    }

    /// Whether the client can acknowledge at all.
    pub(super) fn is_possible(&self) -> bool {
        self.acknowledged != NEVER
    }

    /// Pings that were requested before do not count: some may be missing.
    pub(super) fn ask_again(&mut self) {
        self.pinged = self.acknowledged;
    }

    /// The messages up to `position` for which a receipt may be missing: those between the skipped ones.
    fn owed(&self, position: u64) -> impl Iterator<Item = Range<u64>> {
        let ends = self
            .skipped
            .iter()
            .map(move |it| it.start.min(position + 1));
        let starts = self.skipped.iter().map(|it| it.end);
        [self.acknowledged + 1]
            .into_iter()
            .chain(starts)
            .zip(ends.chain([position + 1]))
            .map(|(start, end)| start..end)
    }
}

/// Beyond all positions: no receipt is ever missing.
const NEVER: u64 = u64::MAX;

/// Collects the receipts for one message; gives up on them when dropped.
#[derive(Debug)]
pub(crate) struct Collector {
    receipts: Arc<Receipts>,
    position: u64,
}

impl Collector {
    /// A publisher waits for the receipts from now on; returns whether none has until now.
    pub(super) fn want(&self) -> bool {
        self.with_entry(|entry| !mem::replace(&mut entry.wanted, true))
    }

    /// Waits until every client that can acknowledge has done so or left.
    pub(crate) async fn wait(&self) {
        let mut waiting = Waiting {
            collector: self,
            key: None,
        };
        poll_fn(|cx| waiting.poll(cx)).await;
    }

    /// How many clients have acknowledged so far.
    pub(crate) fn delivered(&self) -> usize {
        self.with_entry(|entry| entry.delivered)
    }

    fn with_entry<T>(&self, of: impl FnOnce(&mut Entry) -> T) -> T {
        let mut entries = self.receipts.entries.lock();
        of(entries
            .get_mut(&self.position)
            .expect("it stays until the drop"))
    }
}

/// A publisher that waits; it leaves no waker behind, as that would keep its whole task in memory.
struct Waiting<'a> {
    collector: &'a Collector,
    /// Its waker among those of the entry.
    key: Option<usize>,
}

impl Waiting<'_> {
    fn poll(&mut self, cx: &Context<'_>) -> Poll<()> {
        let key = &mut self.key;
        self.collector.with_entry(|entry| {
            if entry.missing == 0 {
                return Poll::Ready(());
            }
            match *key {
                Some(key) => entry.publishers[key].clone_from(cx.waker()),
                None => *key = Some(entry.publishers.insert(cx.waker().clone())),
            }
            Poll::Pending
        })
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            // It is gone where all have been woken.
            self.collector
                .with_entry(|entry| entry.publishers.try_remove(key));
        }
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.receipts.entries.lock().remove(&self.position);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::task::Wake;

    use futures_util::FutureExt;
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;
    use crate::config::Mode;
    use crate::format::Outbox;
    use crate::message::MessageId;
    use crate::room::log::tests::{Numbers, config};
    use crate::room::{Follow, OnGap, Subscription};

    /// A room that retains this many messages, and queues as many as `max_queue` for a client.
    fn room(history_limit: usize, max_queue: usize) -> Numbers {
        Numbers::new(&config(Mode::Broadcast, history_limit, max_queue))
    }

    /// How a client follows that is closed where messages are missing.
    fn closed() -> Follow {
        Follow::default()
    }

    /// How a client follows that goes on behind a gap.
    fn goes_on() -> Follow {
        Follow {
            on_gap: OnGap::Report,
            ..closed()
        }
    }

    /// How a client follows that cannot acknowledge.
    fn silent() -> Follow {
        Follow {
            acknowledges: false,
            ..goes_on()
        }
    }

    fn join(room: &Numbers, follow: Follow) -> Subscription {
        room.room.subscribe(follow, false).0
    }

    /// What one poll gives.
    struct Given {
        gap: Range<u64>,
        messages: Range<u64>,
        ping: bool,
    }

    /// Polls once; none where nothing is ready.
    fn poll(client: &mut Subscription) -> Option<Given> {
        let (mut frames, mut cx) = (Outbox::new(), Context::from_waker(Waker::noop()));
        let before = client.next;
        let Poll::Ready(given) = client.poll_next(&mut cx, &mut frames) else {
            return None;
        };
        let first = client.next - given.expect("neither behind nor shut down");
        Some(Given {
            gap: before..first,
            messages: first..client.next,
            ping: client.take_ping_request(),
        })
    }

    /// Polls until nothing is ready; returns the message before each ping.
    fn pings(client: &mut Subscription) -> Vec<u64> {
        let given = std::iter::from_fn(|| poll(client));
        given
            .filter(|it| it.ping)
            .map(|it| it.messages.end - 1)
            .collect()
    }

    fn acknowledge(client: &mut Subscription, seq: u64) {
        client.acknowledge(MessageId { epoch: 1, seq });
    }

    /// The receipts so far, and whether they are all.
    fn state(collector: &Collector) -> (usize, bool) {
        let is_done = collector.wait().now_or_never().is_some();
        (collector.delivered(), is_done)
    }

    fn entries(room: &Numbers) -> usize {
        room.room.receipts.entries.lock().len()
    }

    #[test]
    fn each_client_in_the_room_is_asked_once_and_counted_once() {
        let mut room = room(100, 100);
        let mut clients = [closed(), goes_on()].map(|follow| join(&room, follow));
        let mut stream = join(&room, silent());
        room.publish(1);
        let collector = room.publish_with_receipts();
        let mut late = join(&room, closed());
        room.publish(1);
        assert_eq!(room.clients, 3);
        assert_eq!((pings(&mut stream), pings(&mut late)), (vec![], vec![]));
        for client in &mut clients {
            // Behind the message, with all that came with it.
            assert_eq!(pings(client), [3]);
        }
        acknowledge(&mut late, 3);
        assert_eq!(state(&collector), (0, false));
        acknowledge(&mut clients[0], 1);
        assert_eq!(state(&collector), (0, false));
        acknowledge(&mut clients[0], 2);
        acknowledge(&mut clients[0], 2);
        acknowledge(&mut clients[0], 3);
        assert_eq!(state(&collector), (1, false));
        acknowledge(&mut clients[1], 3);
        assert_eq!(state(&collector), (2, true));
        // Later messages are not pinged for.
        room.publish(1);
        assert!(clients.iter_mut().all(|client| pings(client).is_empty()));
    }

    #[test]
    fn without_a_client_that_can_acknowledge_all_receipts_are_there_at_once() {
        let mut room = room(100, 100);
        assert_eq!(state(&room.publish_with_receipts()), (0, true));
        let stream = join(&room, silent());
        let collector = room.publish_with_receipts();
        assert_eq!((room.clients, state(&collector)), (1, (0, true)));
        drop(stream);
        assert_eq!(state(&collector), (0, true));
    }

    #[test]
    fn a_client_behind_is_pinged_once_it_has_the_message() {
        let mut room = room(100, 1);
        let mut slow = join(&room, closed());
        room.publish(4);
        let collector = room.publish_with_receipts();
        room.publish(1);
        assert_eq!(pings(&mut slow), [5]);
        // Ignored: a message not yet yielded, and another log.
        acknowledge(&mut slow, 7);
        slow.acknowledge(MessageId { epoch: 2, seq: 5 });
        assert_eq!(state(&collector), (0, false));
        acknowledge(&mut slow, 5);
        assert_eq!(state(&collector), (1, true));
    }

    #[test]
    fn messages_in_a_gap_are_neither_acknowledged_nor_waited_for() {
        let mut room = room(0, 1);
        let mut slow = join(&room, goes_on());
        let read = room.publish_with_receipts();
        room.publish(1);
        let skipped = [(); 2].map(|()| room.publish_with_receipts());
        room.room.trim_to(0);
        assert_eq!(pings(&mut slow), [1]);
        skipped
            .iter()
            .for_each(|it| assert_eq!(state(it), (0, true)));
        let later = room.publish_with_receipts();
        assert_eq!(pings(&mut slow), [5]);
        acknowledge(&mut slow, 5);
        assert_eq!((state(&read), state(&later)), ((1, true), (1, true)));
        skipped
            .iter()
            .for_each(|it| assert_eq!(state(it), (0, true)));
        assert!(slow.unacknowledged.skipped.is_empty());
    }

    #[test]
    fn gaps_are_remembered_only_while_a_publisher_waits() {
        let mut room = room(0, 1);
        let mut slow = join(&room, goes_on());
        for _ in 0..100 {
            room.publish(1);
            drop(room.publish_with_receipts());
            let collector = room.publish_with_receipts();
            room.room.trim_to(0);
            pings(&mut slow);
            assert_eq!(state(&collector), (0, true));
            assert_eq!(slow.unacknowledged.skipped.len(), 1);
        }
    }

    #[test]
    fn a_wait_that_is_given_up_leaves_no_waker_behind() {
        struct Task;
        impl Wake for Task {
            fn wake(self: Arc<Self>) {}
        }
        let mut room = room(100, 100);
        let client = join(&room, closed());
        let collector = room.publish_with_receipts();
        let tasks = [(); 3].map(|()| Arc::new(Task));
        let mut waits = tasks.each_ref().map(|task| {
            let waker = Waker::from(task.clone());
            let mut wait = Box::pin(collector.wait());
            let mut poll = || wait.as_mut().poll(&mut Context::from_waker(&waker));
            assert!(poll().is_pending() && poll().is_pending());
            Some(wait)
        });
        let kept = || tasks.each_ref().map(Arc::strong_count);
        assert_eq!(kept(), [2; 3]);
        waits[1] = None;
        assert_eq!(kept(), [2, 1, 2]);
        drop(client);
        assert_eq!(kept(), [1; 3]);
        drop(waits);
        assert_eq!(state(&collector), (0, true));
    }

    #[tokio::test]
    async fn a_publisher_is_woken_by_the_last_client_and_leaves_nothing_behind() {
        let mut room = room(100, 100);
        let mut clients = [(); 2].map(|()| join(&room, closed()));
        let collector = room.publish_with_receipts();
        let given_up = room.publish_with_receipts();
        assert_eq!(entries(&room), 2);
        drop(given_up);
        let delivered = tokio::spawn(async move {
            collector.wait().await;
            collector.delivered()
        });
        tokio::task::yield_now().await;
        pings(&mut clients[0]);
        acknowledge(&mut clients[0], 1);
        // The other leaves.
        let [stays, leaves] = clients;
        drop(leaves);
        assert_eq!(delivered.await.unwrap(), 1);
        assert_eq!(entries(&room), 0);
        drop(stays);
        assert_eq!(room.room.log.lock().acknowledging, 0);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Publish,
        PublishWithReceipts,
        /// A publisher hangs up.
        HangUp(Index),
        Join(Follow),
        Poll(Index),
        Acknowledge(Index, u64),
        Leave(Index),
        /// The hub reclaims memory.
        Trim,
    }

    fn step() -> impl Strategy<Value = Step> {
        let index = any::<Index>;
        prop_oneof![
            2 => Just(Step::Publish),
            4 => Just(Step::PublishWithReceipts),
            1 => index().prop_map(Step::HangUp),
            2 => Just(Step::Join(goes_on())),
            1 => Just(Step::Join(silent())),
            6 => index().prop_map(Step::Poll),
            4 => (index(), 0..60_u64).prop_map(|(which, seq)| Step::Acknowledge(which, seq)),
            1 => index().prop_map(Step::Leave),
            2 => Just(Step::Trim),
        ]
    }

    /// What a publisher expects, in sets of clients.
    struct Expected {
        collector: Arc<Collector>,
        missing: BTreeSet<usize>,
        delivered: usize,
    }

    proptest! {
        /// In any order of steps, an entry counts exactly the clients that were in the room, read the
        /// message and acknowledged it; a ping follows exactly the messages that are waited for.
        #[test]
        fn receipts_count_exactly_the_clients_that_read_and_acknowledge(
            steps in prop::collection::vec(step(), 0..150),
            history_limit in 0_usize..6,
            max_queue in 1_usize..4,
        ) {
            let mut room = room(history_limit, max_queue);
            let mut clients: Vec<(usize, Subscription)> = Vec::new();
            let mut silent: BTreeSet<usize> = BTreeSet::new();
            let mut publishers: Vec<Expected> = Vec::new();
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Publish => room.publish(1),
                    Step::PublishWithReceipts => {
                        let asked = clients.iter().map(|(name, _)| *name);
                        let missing = asked.filter(|name| !silent.contains(name)).collect();
                        let collector = room.publish_with_receipts();
                        prop_assert_eq!(room.clients, clients.len());
                        publishers.push(Expected { collector, missing, delivered: 0 });
                    }
                    Step::HangUp(which) if !publishers.is_empty() => {
                        publishers.swap_remove(which.index(publishers.len()));
                    }
                    Step::Join(follow) => {
                        let acknowledges = follow.acknowledges;
                        clients.push((number, join(&room, follow)));
                        if !acknowledges {
                            silent.insert(number);
                        }
                    }
                    Step::Trim => room.room.trim_to(room.room.bytes() / 2),
                    Step::Poll(which) if !clients.is_empty() => {
                        let which = which.index(clients.len());
                        let (name, client) = &mut clients[which];
                        let Some(given) = poll(client) else { continue };
                        let mut asked = false;
                        for it in &mut publishers {
                            if given.gap.contains(&it.collector.position) {
                                it.missing.remove(name);
                            }
                            asked |= given.messages.contains(&it.collector.position)
                                && it.missing.contains(name);
                        }
                        prop_assert_eq!(given.ping, asked);
                    }
                    Step::Acknowledge(which, seq) if !clients.is_empty() => {
                        let which = which.index(clients.len());
                        let (name, client) = &mut clients[which];
                        acknowledge(client, seq);
                        if client.last().is_some_and(|last| seq <= last.seq) {
                            for it in publishers.iter_mut().filter(|it| it.collector.position <= seq) {
                                it.delivered += usize::from(it.missing.remove(name));
                            }
                        }
                    }
                    Step::Leave(which) if !clients.is_empty() => {
                        let (name, _) = clients.swap_remove(which.index(clients.len()));
                        publishers.iter_mut().for_each(|it| { it.missing.remove(&name); });
                    }
                    _ => {}
                }
                for it in &publishers {
                    prop_assert_eq!(
                        state(&it.collector),
                        (it.delivered, it.missing.is_empty())
                    );
                }
                prop_assert_eq!(entries(&room), publishers.len());
            }
        }
    }
}
