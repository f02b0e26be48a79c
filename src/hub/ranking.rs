//! One of the largest of many things, found without a look at all of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Something that has a size, and keeps its rank for a [`Ranking`].
pub trait Ranked {
    /// Its size now.
    fn bytes(&self) -> usize;

    /// Its rank; 0 where it has none.
    fn rank(&self) -> &AtomicUsize;
}

/// Things in the order of their ranks.
///
/// A rank is a size with some space above it, so that a thing that grows is
/// [ranked](Self::rank) again only now and then. One that shrinks keeps its rank until it is
/// mistaken for the largest.
#[derive(Debug)]
pub struct Ranking<T> {
    /// By rank and address.
    by_rank: BTreeMap<(usize, usize), Arc<T>>,
}

/// The space above a size is an eighth of it, and a rank is corrected where it is more than a
/// quarter: so what is taken for the largest is at least four fifths of it.
const SPACE: usize = 8;
const SPACE_MAX: usize = 4;

impl<T> Default for Ranking<T> {
    fn default() -> Self {
        Self {
            by_rank: BTreeMap::new(),
        }
    }
}

impl<T: Ranked> Ranking<T> {
    /// Whether `it` is larger than its rank, and has to be [ranked](Self::rank) again.
    pub fn is_outgrown(it: &T) -> bool {
        it.bytes() > it.rank().load(Ordering::Relaxed)
    }

    /// Ranks `it` by its size now; what has none has no rank.
    pub fn rank(&mut self, it: &Arc<T>) {
        self.remove(it);
        let bytes = it.bytes();
        if bytes > 0 {
            let rank = bytes + bytes / SPACE;
            it.rank().store(rank, Ordering::Relaxed);
            self.by_rank.insert((rank, address(it)), it.clone());
        }
    }

    /// Takes `it` out.
    pub fn remove(&mut self, it: &Arc<T>) {
        let rank = it.rank().swap(0, Ordering::Relaxed);
        self.by_rank.remove(&(rank, address(it)));
    }

    /// One of the largest: none is larger by more than a quarter.
    pub fn largest(&mut self) -> Option<Arc<T>> {
        loop {
            let ((rank, _), it) = self.by_rank.last_key_value()?;
            let (rank, it, bytes) = (*rank, it.clone(), it.bytes());
            if bytes > 0 && bytes + bytes / SPACE_MAX >= rank {
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

    /// A thing that counts how often its size is asked for.
    #[derive(Debug, Default)]
    struct Thing {
        bytes: AtomicUsize,
        rank: AtomicUsize,
        looks: Arc<AtomicUsize>,
    }

    impl Ranked for Thing {
        fn bytes(&self) -> usize {
            self.looks.fetch_add(1, Ordering::Relaxed);
            self.bytes.load(Ordering::Relaxed)
        }

        fn rank(&self) -> &AtomicUsize {
            &self.rank
        }
    }

    impl Thing {
        fn set(self: &Arc<Self>, bytes: usize, ranking: &mut Ranking<Self>) {
            self.bytes.store(bytes, Ordering::Relaxed);
            if Ranking::is_outgrown(&**self) {
                ranking.rank(self);
            }
        }
    }

    /// How many sizes are looked at for each message that makes one of `count` things grow, once
    /// they are as large together as they may be.
    fn looks_a_message(count: usize) -> usize {
        const MESSAGES: usize = 20_000;
        let looks = Arc::new(AtomicUsize::new(0));
        let thing = || {
            Arc::new(Thing {
                looks: looks.clone(),
                ..Thing::default()
            })
        };
        let things: Vec<_> = (0..count).map(|_| thing()).collect();
        let mut ranking = Ranking::default();
        for it in &things {
            it.set(10_000, &mut ranking);
        }
        looks.store(0, Ordering::Relaxed);
        for number in 0..MESSAGES {
            let grown = &things[number * 7919 % count];
            let bytes = grown.bytes.load(Ordering::Relaxed) + 200;
            grown.set(bytes, &mut ranking);
            let largest = ranking.largest().unwrap();
            let bytes = largest.bytes.load(Ordering::Relaxed) - 200;
            largest.set(bytes, &mut ranking);
        }
        looks.load(Ordering::Relaxed) / MESSAGES
    }

    #[test]
    fn the_largest_of_many_costs_no_more_than_that_of_a_few() {
        let (few, many) = (looks_a_message(20), looks_a_message(20_000));
        assert!(few.max(many) <= 8, "{few} of 20, {many} of 20,000");
    }

    proptest! {
        #[test]
        fn none_is_larger_by_more_than_a_quarter(
            sizes in prop::collection::vec((0..10_usize, 0..10_000_usize), 0..100),
        ) {
            let things: Vec<Arc<Thing>> = (0..10).map(|_| Arc::default()).collect();
            let mut ranking = Ranking::default();
            for (which, bytes) in sizes {
                things[which].set(bytes, &mut ranking);
                let sizes = things.iter().map(|it| it.bytes.load(Ordering::Relaxed));
                let most = sizes.max().unwrap();
                let largest = ranking.largest().map_or(0, |it| it.bytes());
                prop_assert!(largest * 5 / 4 + 1 >= most, "{largest} for {most}");
                prop_assert_eq!(largest == 0, most == 0);
            }
            for it in &things {
                ranking.remove(it);
            }
            prop_assert!(ranking.largest().is_none());
        }
    }
}
