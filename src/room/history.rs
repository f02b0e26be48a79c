//! The tail of a room's log, bounded by messages and memory.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use super::keys::Keyed;
use crate::format::Batch;
use crate::message::Key;

/// The newest messages of a log, in order, without gaps.
///
/// Replay for new clients is bounded by `--history-limit` and `--history-bytes`. Older messages are
/// retained while a client that is behind needs them, within a bound of their own.
///
/// It retains whole batches: the memory of one is freed with its last message.
///
/// Copies of the messages in other encodings are kept for the next client that needs them, as long as
/// they fit in `--history-bytes` and `--history-total` beside the messages. No message is evicted for a
/// copy, so that reading forgets nothing.
#[derive(Debug)]
pub(crate) struct History {
    batches: VecDeque<Arc<Batch>>,
    /// Bound of the replay for new clients.
    limit: Limit,
    /// Bound of the older bytes retained for clients that are behind.
    behind_bytes: usize,
    /// Whether what is evicted can still be read from a store.
    archived: bool,
    /// Position of the oldest message in memory.
    retained_from: u64,
    /// Position of the oldest message for new clients.
    replay_from: u64,
    /// Position of the next message.
    next: u64,
    /// Cost of all batches, without copies.
    bytes: usize,
    /// Cost of the messages from `replay_from` on.
    replay_bytes: usize,
    /// The batches that have copies: the last message of each, and the cost of its copies.
    copies: BTreeMap<u64, usize>,
    /// Cost of all copies.
    copied_bytes: usize,
    /// The messages that have keys.
    keyed: HashMap<Key, Keyed>,
}

/// A number of messages, and bytes of memory.
#[derive(Debug, Clone, Copy)]
struct Limit {
    messages: u64,
    bytes: usize,
}

/// Slots that the list keeps in any case; a longer one shrinks when it empties.
const KEPT_SLOTS: usize = 64;

impl History {
    /// An empty history that begins at position 1, replays at most `messages` and `bytes`, and retains
    /// `behind_bytes` more while a client needs them.
    pub(crate) fn new(messages: usize, bytes: usize, behind_bytes: usize) -> Self {
        let messages = if bytes == 0 { 0 } else { messages as u64 };
        Self {
            batches: VecDeque::new(),
            limit: Limit { messages, bytes },
            behind_bytes,
            archived: false,
            retained_from: 1,
            replay_from: 1,
            next: 1,
            bytes: 0,
            replay_bytes: 0,
            copies: BTreeMap::new(),
            copied_bytes: 0,
            keyed: HashMap::new(),
        }
    }

    /// The same, empty at position `next`, of a log whose earlier messages are in a store: new clients
    /// get them from there, those from `replay_from` on and as many as a history in memory may have.
    pub(crate) fn archived(self, next: u64, replay_from: u64) -> Self {
        let limited = next.saturating_sub(self.limit.messages).max(1);
        Self {
            archived: true,
            retained_from: next,
            replay_from: limited.max(replay_from).min(next),
            next,
            ..self
        }
    }

    /// Position of the oldest message for new clients; that of the next message where there is
    /// none.
    pub(crate) fn replay_from(&self) -> u64 {
        self.replay_from
    }

    /// Position of the oldest message in memory.
    pub(crate) fn retained_from(&self) -> u64 {
        self.retained_from
    }

    /// Position of the next message.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Bytes of memory of all batches and their copies.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes + self.copied_bytes
    }

    /// Appends the next batch, and [evicts](Self::evict) what no longer fits.
    pub(crate) fn push(&mut self, batch: &Arc<Batch>, needed: Option<u64>) {
        debug_assert_eq!(batch.positions().start, self.next);
        self.next = batch.positions().end;
        if self.limit.messages == 0 && self.batches.is_empty() && needed.is_none() {
            // It would be evicted at once.
            (self.retained_from, self.replay_from) = (self.next, self.next);
            return;
        }
        let cost = batch.cost();
        self.bytes += cost;
        self.replay_bytes += cost;
        self.batches.push_back(batch.clone());
        self.evict(needed);
    }

    /// Remembers what is known of the message with this key, unless that is evicted already.
    pub(super) fn remember(&mut self, key: &Key, keyed: Keyed) {
        if keyed.position >= self.retained_from {
            self.keyed.insert(key.clone(), keyed);
        }
    }

    /// The message with this key, if it is retained.
    pub(super) fn find(&self, key: &Key) -> Option<(&Arc<Batch>, &Keyed)> {
        let keyed = self.keyed.get(key)?;
        let batch = self.batches.get(self.index(keyed.position))?;
        (keyed.position >= self.retained_from).then_some((batch, keyed))
    }

    /// How many keys are remembered.
    #[cfg(test)]
    pub(super) fn keys(&self) -> usize {
        self.keyed.len()
    }

    /// Evicts the oldest messages beyond the bounds; those from `needed` on are retained within
    /// `behind_bytes`.
    pub(crate) fn evict(&mut self, needed: Option<u64>) {
        self.trim_replay();
        let needed = needed.unwrap_or(self.replay_from).min(self.replay_from);
        while let Some(batch) = self.batches.front()
            && (batch.positions().end <= needed
                || (batch.positions().end <= self.replay_from
                    && self.bytes - self.replay_bytes > self.behind_bytes))
        {
            self.evict_batch();
        }
        // The batch with `replay_from` stays in memory; older messages in it may count as evicted.
        let retained_from = match self.bytes - self.replay_bytes > self.behind_bytes {
            true => self.replay_from,
            false => needed,
        };
        self.retained_from = self.retained_from.max(retained_from);
        self.trim_copies();
        self.shrink_slots();
    }

    /// Drops the oldest copies, and then evicts the oldest batches, until the rest takes at most `bytes` of
    /// memory.
    pub(crate) fn trim_to(&mut self, bytes: usize) {
        while self.bytes() > bytes {
            match self.copies.first_key_value() {
                Some((last, _)) => self.drop_copies(*last),
                None => self.evict_batch(),
            }
        }
        self.shrink_slots();
    }

    /// Forgets all messages: none of them is in the log any more.
    pub(crate) fn clear(&mut self) {
        self.trim_to(0);
        (self.retained_from, self.replay_from) = (self.next, self.next);
    }

    /// Counts a new copy of `batch`, of `bytes`. Unless it `fits` and has space here, the history goes on
    /// without it; queues that have the same batch keep it.
    pub(crate) fn keep_copy(&mut self, batch: &Arc<Batch>, bytes: usize, fits: bool) {
        let last = batch.positions().end - 1;
        let held = self.batches.get(self.index(last));
        if !held.is_some_and(|it| Arc::ptr_eq(it, batch)) {
            return;
        }
        *self.copies.entry(last).or_default() += bytes;
        self.copied_bytes += bytes;
        // A message only for clients that are behind is not encoded for many.
        if !fits || last < self.replay_from || self.copies_exceed() {
            self.drop_copies(last);
        }
    }

    /// The batches from `position` on, oldest first; the first may begin before that.
    pub(crate) fn batches_from(&self, position: u64) -> impl Iterator<Item = &Arc<Batch>> {
        self.batches.range(self.index(position)..)
    }

    fn trim_replay(&mut self) {
        let Limit { messages, bytes } = self.limit;
        let mut at = self.index(self.replay_from);
        // Whole batches first: with a small bound that is all, and no message is counted alone.
        while let Some(batch) = self.batches.get(at)
            && batch.positions().start == self.replay_from
            && (self.next - batch.positions().end >= messages
                || self.replay_bytes - batch.cost() > bytes)
        {
            self.replay_bytes -= batch.cost();
            self.replay_from = batch.positions().end;
            at += 1;
        }
        while let Some(batch) = self.batches.get(at)
            && (self.replay_bytes > bytes || self.next - self.replay_from > messages)
        {
            self.replay_bytes -=
                batch.cost_from(self.replay_from) - batch.cost_from(self.replay_from + 1);
            self.replay_from += 1;
            if self.replay_from == batch.positions().end {
                at += 1;
            }
        }
    }

    /// Drops the copies that new clients do not need, and then the oldest ones, until the rest fits.
    fn trim_copies(&mut self) {
        while let Some((last, _)) = self.copies.first_key_value()
            && (*last < self.replay_from || self.copies_exceed())
        {
            self.drop_copies(*last);
        }
    }

    fn copies_exceed(&self) -> bool {
        self.replay_bytes + self.copied_bytes > self.limit.bytes
    }

    /// Goes on without the copies of the batch whose last message is `last`.
    fn drop_copies(&mut self, last: u64) {
        self.forget_copies(last);
        let at = self.index(last);
        self.batches[at] = Arc::new(self.batches[at].without_copies());
    }

    /// Subtracts the copies of the batch whose last message is `last`.
    fn forget_copies(&mut self, last: u64) {
        self.copied_bytes -= self.copies.remove(&last).unwrap_or_default();
    }

    /// Evicts the oldest batch.
    fn evict_batch(&mut self) {
        let batch = self
            .batches
            .pop_front()
            .expect("retained bytes belong to a batch");
        let end = batch.positions().end;
        if self.replay_from < end {
            self.replay_bytes -= batch.cost_from(self.replay_from);
        }
        self.bytes -= batch.cost();
        self.forget_copies(end - 1);
        if let Some(key) = batch.author().and_then(|it| it.key.as_ref()) {
            self.keyed.remove(key);
        }
        self.retained_from = end;
        if !self.archived {
            self.replay_from = self.replay_from.max(end);
        }
    }

    fn shrink_slots(&mut self) {
        let (len, slots) = (self.batches.len(), self.batches.capacity());
        if slots > KEPT_SLOTS && len < slots / 4 {
            self.batches.shrink_to(len * 2);
        }
    }

    /// The index of the batch that contains the message at `position`.
    fn index(&self, position: u64) -> usize {
        self.batches
            .partition_point(|batch| batch.positions().end <= position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Encoding, testing};
    use crate::message::Kind;
    use proptest::prelude::*;
    use proptest::sample::Index;

    /// A batch of one message for each payload size.
    fn batch(first: u64, sizes: &[usize]) -> Arc<Batch> {
        let payloads: Vec<Vec<u8>> = sizes.iter().map(|size| vec![0; *size]).collect();
        let messages: Vec<_> = payloads.iter().map(|it| (Kind::Binary, &it[..])).collect();
        Arc::new(testing::batch(&testing::plain(""), first, &messages))
    }

    #[test]
    fn zero_messages_or_bytes_keep_nothing() {
        for (messages, bytes) in [(0, 100), (100, 0)] {
            let mut history = History::new(messages, bytes, 100);
            history.push(&batch(1, &[0, 5]), None);
            assert_eq!(
                (history.replay_from(), history.next(), history.bytes()),
                (3, 3, 0)
            );
            assert_eq!(history.batches_from(1).count(), 0);
        }
    }

    #[test]
    fn needed_messages_are_retained_within_a_bound() {
        let cost = batch(1, &[10]).cost();
        let mut history = History::new(1, 10 * cost, 2 * cost);
        for seq in 1..=3 {
            history.push(&batch(seq, &[10]), Some(1));
        }
        assert_eq!(
            (
                history.retained_from(),
                history.replay_from(),
                history.bytes()
            ),
            (1, 3, 3 * cost)
        );
        history.push(&batch(4, &[10]), Some(1));
        assert_eq!((history.retained_from(), history.replay_from()), (2, 4));
        history.evict(Some(3));
        assert_eq!((history.retained_from(), history.replay_from()), (3, 4));
        history.evict(None);
        assert_eq!((history.retained_from(), history.bytes()), (4, cost));
        // A single message may exceed the bound.
        history.push(&batch(5, &[2 * cost]), Some(4));
        history.push(&batch(6, &[1]), Some(4));
        assert_eq!((history.retained_from(), history.replay_from()), (6, 6));
    }

    #[test]
    fn messages_without_a_payload_are_bounded_by_bytes_as_well() {
        let limit = 1 << 20;
        for each in [1, 256] {
            let mut history = History::new(usize::MAX, limit, 0);
            let sizes = vec![0; each];
            while history.next() < 100_000 {
                history.push(&batch(history.next(), &sizes), None);
            }
            let most = history.batches_from(1).map(|it| it.cost()).max().unwrap();
            assert!(history.bytes() <= limit + most);
            assert!(history.bytes() > limit - most, "{}", history.bytes());
        }
    }

    /// Encodes the batch with the message `seq`, as a client that needs it does.
    fn encode(history: &mut History, seq: u64, encoding: Encoding, fits: bool) -> Arc<Batch> {
        let batch = history.batches_from(seq).next().unwrap().clone();
        let (_, made) = batch.encoded(encoding);
        if made > 0 {
            history.keep_copy(&batch, made, fits);
        }
        batch
    }

    /// Which batches have copies, by their first messages.
    fn copied(history: &History) -> Vec<u64> {
        let batches = history.batches_from(1);
        let copied = batches.filter(|batch| batch.memory() > batch.cost());
        copied.map(|batch| batch.positions().start).collect()
    }

    #[test]
    fn copies_are_kept_as_long_as_no_message_needs_their_space() {
        let cost = batch(1, &[10]).cost();
        let copy = batch(1, &[10]).encoded(Encoding::Json).1;
        let mut history = History::new(100, 4 * cost + 2 * copy, 0);
        for seq in 1..=3 {
            history.push(&batch(seq, &[10]), None);
        }
        for seq in [1, 2, 3, 1] {
            encode(&mut history, seq, Encoding::Json, true);
        }
        // Beside three messages there is space for two copies of that size.
        assert_eq!(copied(&history), [1, 2]);
        assert_eq!(history.bytes(), 3 * cost + 2 * copy);
        // Two more messages take the space of the oldest copy.
        history.push(&batch(4, &[10]), None);
        assert_eq!(copied(&history), [1, 2]);
        history.push(&batch(5, &[10]), None);
        assert_eq!((copied(&history), history.replay_from()), (vec![2], 1));
        // The batch that a queue holds keeps its copy.
        let queued = encode(&mut history, 5, Encoding::Json, false);
        assert_eq!(copied(&history), [2]);
        assert_eq!(queued.encoded(Encoding::Json).1, 0);
        // Less memory in all takes copies first.
        history.trim_to(5 * cost);
        assert_eq!((copied(&history), history.bytes()), (vec![], 5 * cost));
        history.trim_to(4 * cost);
        assert_eq!((history.retained_from(), history.bytes()), (2, 4 * cost));
    }

    #[test]
    fn what_a_queue_alone_has_does_not_count() {
        let mut history = History::new(10, 10_000, 0);
        history.push(&batch(1, &[10]), None);
        let bytes = history.bytes();
        // The history goes on without this copy, and any later one of the same batch.
        let queued = encode(&mut history, 1, Encoding::Json, false);
        let (_, made) = queued.encoded(Encoding::EventStream);
        history.keep_copy(&queued, made, true);
        assert_eq!((copied(&history), history.bytes()), (vec![], bytes));
        encode(&mut history, 1, Encoding::EventStream, true);
        assert_eq!(history.bytes(), bytes + made);
    }

    #[test]
    fn what_only_clients_behind_need_has_no_copies() {
        let cost = batch(1, &[10]).cost();
        let mut history = History::new(1, 100 * cost, 100 * cost);
        for seq in 1..=3 {
            history.push(&batch(seq, &[10]), Some(1));
            encode(&mut history, seq, Encoding::EventStream, true);
            assert_eq!(copied(&history), [seq]);
        }
        encode(&mut history, 1, Encoding::Json, true);
        assert_eq!(copied(&history), [3]);
    }

    #[test]
    fn the_list_shrinks_when_the_history_does() {
        let mut history = History::new(usize::MAX, usize::MAX, 0);
        for seq in 1..=10_000 {
            history.push(&batch(seq, &[0]), None);
        }
        history.trim_to(10 * batch(1, &[0]).cost());
        assert_eq!(history.batches.len(), 10);
        assert!(history.batches.capacity() <= KEPT_SLOTS);
    }

    fn encoding() -> impl Strategy<Value = Encoding> {
        let all = [Encoding::Plain, Encoding::Json, Encoding::EventStream];
        prop::sample::select(all.to_vec())
    }

    proptest! {
        /// Against the obvious model: a list of (seq, cost) cut from the front.
        #[test]
        fn the_history_retains_the_newest_messages_that_fit(
            batches in prop::collection::vec(
                (
                    prop::collection::vec(0_usize..20, 1..5),
                    prop::option::of(1_u64..60),
                    prop::collection::vec((any::<Index>(), encoding(), any::<bool>()), 0..4),
                ),
                0..30,
            ),
            max_messages in 0_usize..20,
            max_bytes in 1_usize..6000,
            behind_bytes in 0_usize..1000,
        ) {
            let mut history = History::new(max_messages, max_bytes, behind_bytes);
            let mut model: VecDeque<(u64, usize)> = VecDeque::new();
            let mut next = 1;
            for (sizes, needed, encoded) in &batches {
                let batch = batch(next, sizes);
                history.push(&batch, *needed);
                for seq in batch.positions() {
                    model.push_back((seq, batch.cost_from(seq) - batch.cost_from(seq + 1)));
                }
                next = batch.positions().end;
                while model.len() > max_messages
                    || model.iter().map(|(_, cost)| cost).sum::<usize>() > max_bytes
                {
                    model.pop_front();
                }
                let replay_from = model.front().map_or(next, |(seq, _)| *seq);
                prop_assert_eq!((history.replay_from(), history.next()), (replay_from, next));
                prop_assert!(history.retained_from() == replay_from || needed.is_some_and(|it| it <= history.retained_from()));
                for seq in history.retained_from()..history.next() {
                    let run: Vec<u64> = history
                        .batches_from(seq)
                        .flat_map(|batch| batch.positions())
                        .skip_while(|it| *it < seq)
                        .collect();
                    prop_assert_eq!(run, (seq..next).collect::<Vec<_>>());
                }
                let replayed: usize = model.iter().map(|(_, cost)| cost).sum();
                let costs = history.batches_from(1).map(|it| it.cost());
                let behind = behind_bytes.max(costs.max().unwrap_or_default());
                prop_assert!(history.bytes <= replayed + behind);
                // The reported cost is that of all that is retained, and within the bounds, whatever
                // clients need encoded.
                let retained = history.retained_from()..history.next();
                for (which, encoding, fits) in encoded.iter().filter(|_| !retained.is_empty()) {
                    let count = (retained.end - retained.start) as usize;
                    let seq = retained.start + which.index(count) as u64;
                    encode(&mut history, seq, *encoding, *fits);
                    let held = history.batches_from(1).map(|it| it.memory());
                    prop_assert_eq!(history.bytes(), held.sum::<usize>());
                    prop_assert!(history.bytes() <= max_bytes + behind);
                    prop_assert_eq!(history.replay_from(), replay_from);
                }
            }
            history.trim_to(0);
            prop_assert_eq!((history.bytes(), history.replay_from()), (0, next));
        }
    }
}
