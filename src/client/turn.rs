//! A turn: how much one client does before the other tasks of its thread run.

use tokio::task::yield_now;

/// What a task has done for one client since it last waited or yielded.
///
/// Without a bound, a client that never pauses starves the other tasks of its thread. The task asks
/// [`is_over`](Self::is_over) before each round of reads and writes, and then [ends](Self::end) the turn;
/// a task that waits [renews](Self::renew) it. Its numbers are small, as each idle client has one.
#[derive(Debug)]
pub(crate) struct Turn {
    /// Rounds of reads and writes.
    rounds: u32,
    /// Bytes read.
    bytes: u32,
    /// The most bytes of one read, and of all reads of a turn but the last.
    read_size: u32,
    /// Yields owed to the receivers of what was published.
    yields: u32,
}

/// The most bytes of one read while messages are large, as these are cheap by the byte. So many bytes
/// of small messages would occupy the thread too long.
pub(super) const READ_OF_LARGE_MESSAGES: u32 = 512 * 1024;
/// The same while messages are small.
const READ_OF_SMALL_MESSAGES: u32 = 32 * 1024;

/// The most rounds of a turn.
pub(super) const ROUNDS: u32 = 64;

/// Average bytes of a message from which on reads are large.
const LARGE_MESSAGE: usize = 1024;

/// Receivers for one yield: about as many tasks as the runtime runs before a yielded task runs again.
const RECEIVERS_PER_YIELD: usize = 61;

impl Default for Turn {
    fn default() -> Self {
        Self {
            rounds: 0,
            bytes: 0,
            read_size: READ_OF_SMALL_MESSAGES,
            yields: 0,
        }
    }
}

impl Turn {
    /// One round of reads and writes.
    pub(crate) fn spend_round(&mut self) {
        self.rounds += 1;
    }

    /// One read of `bytes`, in which so many messages ended.
    pub(crate) fn spend_bytes(&mut self, bytes: usize, messages: usize) {
        self.bytes += bytes as u32;
        // The next messages are probably of the same size.
        self.read_size = match bytes >= messages * LARGE_MESSAGE {
            true => READ_OF_LARGE_MESSAGES,
            false => READ_OF_SMALL_MESSAGES,
        };
    }

    /// Messages were published to so many receivers. They run before the client is read again: their
    /// queues do not overflow only because a sender is faster than the scheduler, and the next read brings
    /// more at once.
    pub(crate) fn owe_yields(&mut self, receivers: usize) {
        self.yields += (receivers / RECEIVERS_PER_YIELD) as u32;
    }

    /// The most bytes of the next read.
    pub(crate) fn read_size(&self) -> usize {
        self.read_size as usize
    }

    /// Whether other tasks are due to run.
    pub(crate) fn is_over(&self) -> bool {
        self.yields > 0 || self.rounds >= ROUNDS || self.bytes >= self.read_size
    }

    /// Begins the next turn, as the task has waited or yielded; of several yields owed it was one.
    pub(crate) fn renew(&mut self) {
        (self.rounds, self.bytes) = (0, 0);
        self.yields = self.yields.saturating_sub(1);
    }

    /// Yields to other tasks as often as the turn requires; returns at once if it is not over.
    pub(crate) async fn end(&mut self) {
        while self.is_over() {
            yield_now().await;
            self.renew();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: usize = READ_OF_SMALL_MESSAGES as usize;
    const LARGE: usize = READ_OF_LARGE_MESSAGES as usize;

    /// How many yields end the turn.
    fn yields(mut turn: Turn) -> usize {
        let mut yields = 0;
        while turn.is_over() {
            turn.renew();
            yields += 1;
        }
        yields
    }

    fn turn(spend: impl FnOnce(&mut Turn)) -> Turn {
        let mut turn = Turn::default();
        spend(&mut turn);
        turn
    }

    #[test]
    fn a_turn_is_over_after_so_many_rounds() {
        let rounds = |count| turn(|it| (0..count).for_each(|_| it.spend_round()));
        assert_eq!(yields(rounds(ROUNDS - 1)), 0);
        assert_eq!(yields(rounds(ROUNDS)), 1);
    }

    #[test]
    fn a_turn_is_over_after_a_full_read() {
        let read = |bytes, messages| turn(|it| it.spend_bytes(bytes, messages));
        assert_eq!(yields(read(SMALL - 1, 1000)), 0);
        assert_eq!(yields(read(SMALL, 1000)), 1);
        // Large messages, and the inside of one, are cheap by the byte.
        assert_eq!(yields(read(SMALL, 32)), 0);
        assert_eq!(yields(read(LARGE - 1, 0)), 0);
        assert_eq!(yields(read(LARGE, 0)), 1);
        // Short reads add up.
        let reads = turn(|it| (0..32).for_each(|_| it.spend_bytes(1024, 2)));
        assert_eq!(yields(reads), 1);
    }

    #[test]
    fn receivers_run_before_the_next_read() {
        let owes = |receivers| yields(turn(|it| it.owe_yields(receivers)));
        assert_eq!([1, 60, 61, 100, 2500].map(owes), [0, 0, 1, 1, 40]);
    }
}
