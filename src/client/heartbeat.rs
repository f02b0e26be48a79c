//! When to ping a client and when to give it up; no IO, told the time.

use std::time::Duration;

use tokio::time::Instant;

use crate::message::MessageId;

/// The heartbeat of one client.
///
/// A ping is due every interval; the client is given up when nothing at all came from it for the
/// timeout after a ping was written. A ping that stands behind data which the client has not read
/// yet, in the buffers of kernels and proxies, may take as long as a slow client needs for that.
#[derive(Debug)]
pub struct Heartbeat {
    interval: Duration,
    timeout: Duration,
    /// In the place of `timeout`, where it is longer, for a client that keeps data waiting.
    grace: Duration,
    next_ping: Instant,
    answer_due: Option<Instant>,
    /// Whether the client kept data waiting since the last ping.
    behind: bool,
    /// How many bytes of what was written the client is known to have read.
    read: u64,
    /// The id that a ping carried which is not answered yet, and how many bytes were written then.
    asked: Option<(MessageId, u64)>,
}

/// What [`Heartbeat::check`] asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Beat {
    /// Nothing before [`Heartbeat::due`].
    Wait,
    /// Write a ping, then call [`Heartbeat::pinged`].
    Ping,
    /// The client is gone.
    GiveUp,
}

/// Bytes a second that the slowest client reads which is not taken for dead.
const SLOWEST: u64 = 16 * 1024;

/// More than buffers on the way to a client hold.
const UNREAD_MAX: u64 = 16 << 20;

/// How long a client may take to read so many bytes.
pub fn time_to_read(bytes: u64) -> Duration {
    Duration::from_millis(bytes.min(UNREAD_MAX) * 1000 / SLOWEST)
}

impl Heartbeat {
    /// Starts at `now`; the first ping is due one interval later.
    ///
    /// `grace` takes the place of `timeout`, where it is longer, for a ping that stands behind data
    /// which the client kept waiting.
    pub fn new(interval: Duration, timeout: Duration, grace: Duration, now: Instant) -> Self {
        Self {
            interval,
            timeout,
            grace,
            next_ping: now + interval,
            answer_due: None,
            behind: false,
            read: 0,
            asked: None,
        }
    }

    /// When to [`check`](Self::check) next.
    pub fn due(&self) -> Instant {
        self.answer_due
            .map_or(self.next_ping, |due| due.min(self.next_ping))
    }

    /// What is to be done at `now`.
    pub fn check(&self, now: Instant) -> Beat {
        if self.answer_due.is_some_and(|due| due <= now) {
            Beat::GiveUp
        } else if self.next_ping <= now {
            Beat::Ping
        } else {
            Beat::Wait
        }
    }

    /// A ping was written at `now`, behind `written` bytes in all, the last message of which was
    /// `last`.
    pub fn pinged(&mut self, now: Instant, written: u64, last: Option<MessageId>) {
        self.next_ping = now + self.interval;
        let grace = match std::mem::take(&mut self.behind) {
            true => self.grace,
            false => Duration::ZERO,
        };
        let patience = self.patience(written).max(grace);
        self.answer_due.get_or_insert(now + patience);
        if self.asked.is_none() {
            self.asked = last.map(|id| (id, written));
        }
    }

    /// Something came from the client: any frame, any part of one.
    pub fn heard(&mut self) {
        self.answer_due = None;
    }

    /// The client has read all messages up to `id`.
    pub fn acknowledged(&mut self, id: MessageId) {
        if let Some((asked, written)) = self.asked
            && asked <= id
        {
            self.read = written;
            self.asked = None;
        }
    }

    /// The client took data at `now` that it had kept waiting, `written` bytes in all: it lives, is
    /// busy reading, and a ping written before has all its time from now.
    pub fn took(&mut self, now: Instant, written: u64) {
        self.behind = true;
        let patience = self.patience(written);
        if let Some(due) = &mut self.answer_due {
            *due = (*due).max(now + patience);
        }
    }

    /// How long the answer to a ping may take that stands behind `written` bytes.
    fn patience(&self, written: u64) -> Duration {
        self.timeout.max(time_to_read(self.unread(written)))
    }

    /// How many of `written` bytes the client has not read, as far as it is known.
    pub fn unread(&self, written: u64) -> u64 {
        written.saturating_sub(self.read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(10);
    const TIMEOUT: Duration = Duration::from_secs(5);

    fn heartbeat(start: Instant) -> Heartbeat {
        Heartbeat::new(INTERVAL, TIMEOUT, Duration::from_secs(8), start)
    }

    fn secs(start: Instant, secs: u64) -> Instant {
        start + Duration::from_secs(secs)
    }

    fn id(seq: u64) -> MessageId {
        MessageId { epoch: 1, seq }
    }

    #[test]
    fn a_silent_client_is_given_up_at_interval_plus_timeout() {
        let start = Instant::now();
        let mut heartbeat = heartbeat(start);
        assert_eq!(heartbeat.due(), secs(start, 10));
        assert_eq!(heartbeat.check(secs(start, 9)), Beat::Wait);
        assert_eq!(heartbeat.check(secs(start, 10)), Beat::Ping);
        heartbeat.pinged(secs(start, 10), 0, None);
        assert_eq!(heartbeat.due(), secs(start, 15));
        assert_eq!(heartbeat.check(secs(start, 14)), Beat::Wait);
        assert_eq!(heartbeat.check(secs(start, 15)), Beat::GiveUp);
    }

    #[test]
    fn anything_heard_is_an_answer() {
        let start = Instant::now();
        let mut heartbeat = heartbeat(start);
        heartbeat.pinged(secs(start, 10), 0, None);
        heartbeat.heard();
        assert_eq!(heartbeat.check(secs(start, 15)), Beat::Wait);
        assert_eq!(heartbeat.due(), secs(start, 20));
    }

    #[test]
    fn the_first_unanswered_ping_counts_when_pings_are_more_frequent_than_the_timeout() {
        let start = Instant::now();
        let mut heartbeat = Heartbeat {
            interval: Duration::from_secs(2),
            ..heartbeat(start)
        };
        heartbeat.pinged(secs(start, 2), 0, None);
        assert_eq!(heartbeat.check(secs(start, 4)), Beat::Ping);
        heartbeat.pinged(secs(start, 4), 0, None);
        assert_eq!(heartbeat.check(secs(start, 7)), Beat::GiveUp);
    }

    #[test]
    fn a_client_that_takes_data_lives_a_timeout_longer() {
        let start = Instant::now();
        let mut heartbeat = heartbeat(start);
        heartbeat.pinged(secs(start, 10), 0, None);
        heartbeat.took(secs(start, 14), 0);
        assert_eq!(heartbeat.check(secs(start, 18)), Beat::Wait);
        assert_eq!(heartbeat.check(secs(start, 19)), Beat::GiveUp);
    }

    #[test]
    fn a_ping_behind_a_backlog_has_a_grace() {
        let start = Instant::now();
        let mut heartbeat = heartbeat(start);
        heartbeat.took(secs(start, 9), 0);
        assert_eq!(heartbeat.due(), secs(start, 10));
        heartbeat.pinged(secs(start, 10), 0, None);
        assert_eq!(heartbeat.check(secs(start, 17)), Beat::Wait);
        assert_eq!(heartbeat.check(secs(start, 18)), Beat::GiveUp);
        heartbeat.heard();
        heartbeat.pinged(secs(start, 20), 0, None);
        assert_eq!(heartbeat.due(), secs(start, 25));
    }

    #[test]
    fn a_ping_behind_unread_data_has_the_time_that_a_slow_client_needs() {
        let start = Instant::now();
        let mut heartbeat = heartbeat(start);
        heartbeat.pinged(secs(start, 10), 20 * SLOWEST, Some(id(7)));
        assert_eq!(heartbeat.check(secs(start, 29)), Beat::Ping);
        assert_eq!(heartbeat.check(secs(start, 30)), Beat::GiveUp);
        // A pong that says less does not say that all was read.
        heartbeat.heard();
        heartbeat.acknowledged(id(6));
        heartbeat.pinged(secs(start, 30), 20 * SLOWEST, Some(id(8)));
        assert_eq!(heartbeat.check(secs(start, 39)), Beat::Wait);
        heartbeat.heard();
        heartbeat.acknowledged(id(7));
        heartbeat.pinged(secs(start, 40), 20 * SLOWEST, Some(id(8)));
        assert_eq!(heartbeat.check(secs(start, 45)), Beat::GiveUp);
    }

    #[test]
    fn data_that_was_written_long_ago_does_not_keep_a_dead_client() {
        let start = Instant::now();
        let mut heartbeat = heartbeat(start);
        heartbeat.pinged(secs(start, 10), u64::MAX, None);
        let most = start + INTERVAL + time_to_read(UNREAD_MAX);
        assert_eq!(heartbeat.check(most), Beat::GiveUp);
    }
}
