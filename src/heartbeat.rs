//! When to ping a client and when to give it up; no IO, told the time.

use std::time::Duration;

use tokio::time::Instant;

/// The heartbeat of one client.
///
/// A ping is due every interval; the client is given up when nothing at all came from it for the
/// timeout after a ping was written.
#[derive(Debug)]
pub struct Heartbeat {
    interval: Duration,
    timeout: Duration,
    grace: Duration,
    next_ping: Instant,
    answer_due: Option<Instant>,
    /// Whether the client kept data waiting since the last ping.
    behind: bool,
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

impl Heartbeat {
    /// Starts at `now`; the first ping is due one interval later.
    ///
    /// `grace` takes the place of `timeout`, where it is longer, for a ping that stands behind much
    /// other data, which the client has to read first.
    pub fn new(interval: Duration, timeout: Duration, grace: Duration, now: Instant) -> Self {
        let next_ping = now + interval;
        Self {
            interval,
            timeout,
            grace,
            next_ping,
            answer_due: None,
            behind: false,
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

    /// A ping was written at `now`.
    pub fn pinged(&mut self, now: Instant) {
        self.next_ping = now + self.interval;
        let behind = std::mem::take(&mut self.behind);
        let limit = if behind {
            self.timeout.max(self.grace)
        } else {
            self.timeout
        };
        self.answer_due.get_or_insert(now + limit);
    }

    /// Something came from the client: any frame, any part of one.
    pub fn heard(&mut self) {
        self.answer_due = None;
    }

    /// The client took data at `now` that it had kept waiting: it lives, is busy reading, and has
    /// a whole timeout from now for a ping written before.
    pub fn took(&mut self, now: Instant) {
        self.behind = true;
        if let Some(due) = &mut self.answer_due {
            *due = (*due).max(now + self.timeout);
        }
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

    #[test]
    fn a_silent_client_is_given_up_at_interval_plus_timeout() {
        let start = Instant::now();
        let mut heartbeat = heartbeat(start);
        assert_eq!(heartbeat.due(), secs(start, 10));
        assert_eq!(heartbeat.check(secs(start, 9)), Beat::Wait);
        assert_eq!(heartbeat.check(secs(start, 10)), Beat::Ping);
        heartbeat.pinged(secs(start, 10));
        assert_eq!(heartbeat.due(), secs(start, 15));
        assert_eq!(heartbeat.check(secs(start, 14)), Beat::Wait);
        assert_eq!(heartbeat.check(secs(start, 15)), Beat::GiveUp);
    }

    #[test]
    fn anything_heard_is_an_answer() {
        let start = Instant::now();
        let mut heartbeat = heartbeat(start);
        heartbeat.pinged(secs(start, 10));
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
        heartbeat.pinged(secs(start, 2));
        assert_eq!(heartbeat.check(secs(start, 4)), Beat::Ping);
        heartbeat.pinged(secs(start, 4));
        assert_eq!(heartbeat.check(secs(start, 7)), Beat::GiveUp);
    }

    #[test]
    fn a_client_that_takes_data_lives_a_timeout_longer() {
        let start = Instant::now();
        let mut heartbeat = heartbeat(start);
        heartbeat.pinged(secs(start, 10));
        heartbeat.took(secs(start, 14));
        assert_eq!(heartbeat.check(secs(start, 18)), Beat::Wait);
        assert_eq!(heartbeat.check(secs(start, 19)), Beat::GiveUp);
    }

    #[test]
    fn a_ping_behind_a_backlog_has_a_grace() {
        let start = Instant::now();
        let mut heartbeat = heartbeat(start);
        heartbeat.took(secs(start, 9));
        assert_eq!(heartbeat.due(), secs(start, 10));
        heartbeat.pinged(secs(start, 10));
        assert_eq!(heartbeat.check(secs(start, 17)), Beat::Wait);
        assert_eq!(heartbeat.check(secs(start, 18)), Beat::GiveUp);
        heartbeat.heard();
        heartbeat.pinged(secs(start, 20));
        assert_eq!(heartbeat.due(), secs(start, 25));
    }
}
