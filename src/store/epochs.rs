//! The epochs of new logs.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Gives each new log its epoch.
#[derive(Debug, Default)]
pub(super) struct Epochs {
    /// The newest one given.
    last: AtomicU64,
}

impl Epochs {
    /// Epochs after `last`.
    pub(super) fn after(last: u64) -> Self {
        Self { last: last.into() }
    }

    /// The epoch of a new log: Unix time in milliseconds and three random digits, which tell two
    /// processes apart that read the same time.
    ///
    /// Within a process epochs only grow, even where the clock is set back.
    pub(super) fn begin(&self) -> u64 {
        let since_1970 = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        self.begin_at(since_1970.as_millis() as u64)
    }

    fn begin_at(&self, millis: u64) -> u64 {
        let digits = RandomState::new().hash_one(millis) % 1000;
        // `last + 1` where the clock stands still or is set back. Epochs run ahead of the clock only
        // beyond a thousand logs a millisecond.
        let next = |last| (millis * 1000 + digits).max(last + 1);
        let last = self
            .last
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
                Some(next(last))
            })
            .expect("the update always gives a value");
        next(last)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn epochs_are_the_time_and_three_digits_and_only_grow_in_a_process() {
        let epochs = Epochs::default();
        let mut last = 0;
        // The clock stands still, goes on, and is set back by an hour.
        for now in [5_000_000, 5_000_000, 5_000_001, 1_400_000, 5_000_002] {
            let epoch = epochs.begin_at(now);
            assert!(epoch > last, "{epoch} after {last}");
            assert!(now == 1_400_000 || epoch / 1000 <= now + 1, "{epoch}");
            last = epoch;
        }
    }

    #[test]
    fn epochs_do_not_run_ahead_of_the_clock() {
        let epochs = Epochs::default();
        for now in 0..100 {
            for _ in 0..900 {
                assert!(epochs.begin_at(now) / 1000 <= now + 1);
            }
        }
    }

    #[test]
    fn a_server_that_starts_again_in_the_same_millisecond_has_another_epoch() {
        let starts: HashSet<u64> = (0..100)
            .map(|_| Epochs::default().begin_at(1_732_290_000_000))
            .collect();
        assert!(starts.len() > 50, "{starts:?}");
        let digits = 1_732_290_000_000_000..1_732_290_000_001_000;
        assert!(starts.iter().all(|it| digits.contains(it)));
    }
}
