//! Finds one of the largest of many items without reading the size of each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// An item that has a size and stores its rank for a [`Ranking`].
pub(crate) trait Ranked {
    /// The current size.
    fn bytes(&self) -> usize;

    /// The rank; 0 for an item outside the ranking.
    fn rank(&self) -> &AtomicUsize;
}

/// Items in the order of their ranks.
///
/// A rank is a size with a margin above it, so that a growing item is [ranked](Self::rank) anew only now
/// and then. A shrinking item keeps its rank until it comes up as the largest.
#[derive(Debug)]
pub(crate) struct Ranking<T> {
    /// By rank and address.
    by_rank: BTreeMap<(usize, usize), Arc<T>>,
}

/// A rank exceeds the size by 1/`MARGIN`, and is corrected once it exceeds it by more than
/// 1/`MARGIN_MAX`: so the reported item has at least four fifths of the largest size.
const MARGIN: usize = 8;
const MARGIN_MAX: usize = 4;

impl<T> Default for Ranking<T> {
    fn default() -> Self {
        Self {
            by_rank: BTreeMap::new(),
        }
    }
}

impl<T: Ranked> Ranking<T> {
    /// Whether `it` is larger than its rank, and must be [ranked](Self::rank) anew.
    pub(crate) fn is_outgrown(it: &T) -> bool {
        it.bytes() > it.rank().load(Ordering::Relaxed)
    }

    /// Ranks `it` by its current size; an item of size 0 is removed.
    pub(crate) fn rank(&mut self, it: &Arc<T>) {
        self.remove(it);
        let bytes = it.bytes();
        if bytes > 0 {
            let rank = bytes + bytes / MARGIN;
            it.rank().store(rank, Ordering::Relaxed);
            self.by_rank.insert((rank, address(it)), it.clone());
        }
    }

    /// Removes `it`.
    pub(crate) fn remove(&mut self, it: &Arc<T>) {
        let rank = it.rank().swap(0, Ordering::Relaxed);
        self.by_rank.remove(&(rank, address(it)));
    }

    /// One of the largest: none is larger by more than a quarter.
    pub(crate) fn largest(&mut self) -> Option<Arc<T>> {
        loop {
            let ((rank, _), it) = self.by_rank.last_key_value()?;
            let (rank, it, bytes) = (*rank, it.clone(), it.bytes());
            if bytes > 0 && bytes + bytes / MARGIN_MAX >= rank {
                return Some(it);
            }
            self.rank(&it);
        }
    }
}

fn address<T>(it: &Arc<T>) -> usize {
    Arc::as_ptr(it).addr()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An item that counts the reads of its size.
    #[derive(Debug, Default)]
    struct Item {
        bytes: AtomicUsize,
        rank: AtomicUsize,
        reads: Arc<AtomicUsize>,
    }

    impl Ranked for Item {
        fn bytes(&self) -> usize {
            self.reads.fetch_add(1, Ordering::Relaxed);
            self.bytes.load(Ordering::Relaxed)
        }

        fn rank(&self) -> &AtomicUsize {
            &self.rank
        }
    }

    impl Item {
        fn set(self: &Arc<Self>, bytes: usize, ranking: &mut Ranking<Self>) {
            self.bytes.store(bytes, Ordering::Relaxed);
            if Ranking::is_outgrown(&**self) {
                ranking.rank(self);
            }
        }
    }

    /// How many sizes are read for each message that makes one of `count` items grow, once their total
    /// is at its limit.
    fn reads_per_message(count: usize) -> usize {
        const MESSAGES: usize = 20_000;
        let reads = Arc::new(AtomicUsize::new(0));
        let item = || {
            Arc::new(Item {
                reads: reads.clone(),
                ..Item::default()
            })
        };
        let items: Vec<_> = (0..count).map(|_| item()).collect();
        let mut ranking = Ranking::default();
        for it in &items {
            it.set(10_000, &mut ranking);
        }
        reads.store(0, Ordering::Relaxed);
        for number in 0..MESSAGES {
            let grown = &items[number * 7919 % count];
            let bytes = grown.bytes.load(Ordering::Relaxed) + 200;
            grown.set(bytes, &mut ranking);
            let largest = ranking.largest().unwrap();
            let bytes = largest.bytes.load(Ordering::Relaxed) - 200;
            largest.set(bytes, &mut ranking);
        }
        reads.load(Ordering::Relaxed) / MESSAGES
    }

    #[test]
    fn the_largest_of_many_costs_no_more_than_that_of_a_few() {
        let (few, many) = (reads_per_message(20), reads_per_message(20_000));
        assert!(few.max(many) <= 8, "{few} of 20, {many} of 20,000");
    }

    proptest! {
        #[test]
        fn none_is_larger_by_more_than_a_quarter(
            sizes in prop::collection::vec((0..10_usize, 0..10_000_usize), 0..100),
        ) {
            let items: Vec<Arc<Item>> = (0..10).map(|_| Arc::default()).collect();
            let mut ranking = Ranking::default();
            for (which, bytes) in sizes {
                items[which].set(bytes, &mut ranking);
                let sizes = items.iter().map(|it| it.bytes.load(Ordering::Relaxed));
                let most = sizes.max().unwrap();
                let largest = ranking.largest().map_or(0, |it| it.bytes());
                prop_assert!(largest * 5 / 4 + 1 >= most, "{largest} for {most}");
                prop_assert_eq!(largest == 0, most == 0);
            }
            for it in &items {
                ranking.remove(it);
            }
            prop_assert!(ranking.largest().is_none());
        }
    }
}
