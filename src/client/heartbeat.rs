//! When to ping a client and when to close it as dead; no IO, time passed in.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::Times;
use crate::message::MessageId;

/// The heartbeat of one client.
///
/// A ping is due every interval; the client is dead when nothing was received for the timeout after a
/// ping was written. Where unread data is buffered ahead of the ping, in kernels and proxies, the timeout
/// is as long as a slow client needs to read it.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    interval: Duration,
    timeout: Duration,
    /// Replaces `timeout`, where it is longer, for a client under backpressure.
    grace: Duration,
    next_ping: Instant,
    answer_due: Option<Instant>,
    /// Whether a write to the client had to wait since the last ping.
    behind: bool,
    /// Written bytes that the client has acknowledged.
    read: u64,
    /// The id in the oldest ping without an acknowledgement, and the bytes written before it.
    pending_ping: Option<(MessageId, u64)>,
}

/// What [`Heartbeat::check`] requires.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Beat {
    /// Nothing before [`Heartbeat::due`].
    Wait,
    /// Write a ping, then call [`Heartbeat::pinged`].
    Ping,
    /// Close the client as dead.
    GiveUp,
}

/// Bytes a second that a live client reads at least.
const SLOWEST: u64 = 16 * 1024;

/// More bytes than the buffers on the way to a client hold.
const UNREAD_MAX: u64 = 16 << 20;

/// How long a client may take to read `bytes`.
pub(crate) fn time_to_read(bytes: u64) -> Duration {
    Duration::from_millis(bytes.min(UNREAD_MAX) * 1000 / SLOWEST)
}

impl Heartbeat {
    /// The heartbeat of a client that joins now; none where the ping interval is zero.
    pub(super) fn start(times: &Times) -> Option<Self> {
        let (interval, timeout) = (times.ping_interval.get(), times.ping_timeout.get());
        let grace = times.write_timeout.get();
        (!interval.is_zero()).then(|| Self::new(interval, timeout, grace, Instant::now()))
    }

    /// Starts at `now`; the first ping is due one interval later.
    ///
    /// `grace` replaces `timeout`, where it is longer, for a client under backpressure.
    pub(crate) fn new(
        interval: Duration,
        timeout: Duration,
        grace: Duration,
        now: Instant,
    ) -> Self {
        Self {
            interval,
            timeout,
            grace,
            next_ping: now + interval,
            answer_due: None,
            behind: false,
            read: 0,
            pending_ping: None,
        }
    }

    /// When [`check`](Self::check) is due next.
    pub(crate) fn due(&self) -> Instant {
        self.answer_due
            .map_or(self.next_ping, |due| due.min(self.next_ping))
    }

    /// What `now` requires.
    pub(crate) fn check(&self, now: Instant) -> Beat {
        if self.answer_due.is_some_and(|due| due <= now) {
            Beat::GiveUp
        } else if self.next_ping <= now {
            Beat::Ping
        } else {
            Beat::Wait
        }
    }

    /// A ping was written at `now`, after `written` bytes in all, with `last` as the newest message.
    pub(crate) fn pinged(&mut self, now: Instant, written: u64, last: Option<MessageId>) {
        self.next_ping = now + self.interval;
        let grace = match std::mem::take(&mut self.behind) {
            true => self.grace,
            false => Duration::ZERO,
        };
        let patience = self.patience(written).max(grace);
        self.answer_due.get_or_insert(now + patience);
        if self.pending_ping.is_none() {
            self.pending_ping = last.map(|id| (id, written));
        }
    }

    /// Bytes were received: any frame, or any part of one.
    pub(crate) fn received(&mut self) {
        self.answer_due = None;
    }

    /// The client acknowledged all messages up to `id`.
    pub(crate) fn acknowledged(&mut self, id: MessageId) {
        if let Some((pinged, written)) = self.pending_ping
            && pinged <= id
        {
            self.read = written;
            self.pending_ping = None;
        }
    }

    /// A write that had to wait ended at `now`, after `written` bytes in all: the client is alive and
    /// reading, so the timeout of an earlier ping starts again.
    pub(crate) fn wrote_after_wait(&mut self, now: Instant, written: u64) {
        self.behind = true;
        let patience = self.patience(written);
        if let Some(due) = &mut self.answer_due {
            *due = (*due).max(now + patience);
        }
    }

    /// How long the answer to a ping may take that follows `written` bytes.
    fn patience(&self, written: u64) -> Duration {
        self.timeout.max(time_to_read(self.unread(written)))
    }

    /// How many of `written` bytes the client has not acknowledged.
    pub(crate) fn unread(&self, written: u64) -> u64 {
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
    fn a_silent_client_is_dead_at_interval_plus_timeout() {
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
    fn any_received_byte_answers_a_ping() {
        let start = Instant::now();
        let mut heartbeat = heartbeat(start);
        heartbeat.pinged(secs(start, 10), 0, None);
        heartbeat.received();
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
    fn a_client_that_reads_gets_another_timeout() {
        let start = Instant::now();
        let mut heartbeat = heartbeat(start);
        heartbeat.pinged(secs(start, 10), 0, None);
        heartbeat.wrote_after_wait(secs(start, 14), 0);
        assert_eq!(heartbeat.check(secs(start, 18)), Beat::Wait);
        assert_eq!(heartbeat.check(secs(start, 19)), Beat::GiveUp);
    }

    #[test]
    fn a_ping_behind_a_backlog_has_a_grace() {
        let start = Instant::now();
        let mut heartbeat = heartbeat(start);
        heartbeat.wrote_after_wait(secs(start, 9), 0);
        assert_eq!(heartbeat.due(), secs(start, 10));
        heartbeat.pinged(secs(start, 10), 0, None);
        assert_eq!(heartbeat.check(secs(start, 17)), Beat::Wait);
        assert_eq!(heartbeat.check(secs(start, 18)), Beat::GiveUp);
        heartbeat.received();
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
        // An older id does not acknowledge everything before the ping.
        heartbeat.received();
        heartbeat.acknowledged(id(6));
        heartbeat.pinged(secs(start, 30), 20 * SLOWEST, Some(id(8)));
        assert_eq!(heartbeat.check(secs(start, 39)), Beat::Wait);
        heartbeat.received();
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
