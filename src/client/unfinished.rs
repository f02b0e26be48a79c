//! A message that is incomplete: counted, waited for, and given up.

use std::task::{Context, Poll, ready};

use tokio::time::Instant;

use super::alarm::Alarm;
use super::budget::Share;
use super::websocket::WebSocket;
use crate::disconnect::Disconnect;
use crate::transport::Transport;

/// The progress of an incomplete message.
#[derive(Debug)]
pub(super) struct Progress {
    /// Its share of `--max-incoming`; none below [`COUNTED_FROM`].
    pub(super) share: Option<Share>,
    /// Bytes received of it.
    pub(super) held: usize,
    /// When its last byte was received; time without reads is added.
    pub(super) since: Instant,
    /// When reads paused, as for want of space in `--max-incoming`.
    pub(super) paused: Option<Instant>,
    pub(super) alarm: Alarm,
}

impl Progress {
    fn new(now: Instant) -> Self {
        Self {
            share: None,
            held: 0,
            since: now,
            paused: None,
            alarm: Alarm::default(),
        }
    }
}

/// Bytes from which on an unfinished message is counted. Smaller ones are frequent, as a read of many
/// messages mostly ends within one, and belong to the fixed cost of a client.
pub(super) const COUNTED_FROM: usize = 1024;

impl<S: Transport> WebSocket<S> {
    /// Waits until `--max-incoming` permits more of an unfinished message.
    pub(super) fn poll_budget(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Disconnect>> {
        let Some(progress) = &mut self.unfinished else {
            return Poll::Ready(Ok(()));
        };
        match progress.share.as_ref().map(|share| share.poll_room(cx)) {
            None | Some(Poll::Ready(Ok(()))) => {
                if let Some(paused) = progress.paused.take() {
                    progress.since += paused.elapsed();
                }
                Poll::Ready(Ok(()))
            }
            Some(Poll::Ready(Err(_))) => {
                Poll::Ready(Err(self.drop_unfinished(Disconnect::NoSpace)))
            }
            Some(Poll::Pending) => {
                self.pause_reads();
                Poll::Pending
            }
        }
    }

    /// Reads pause for a reason that the client does not know: nothing is expected of it meanwhile.
    pub(crate) fn pause_reads(&mut self) {
        // Counts as received: the heartbeat cannot expect an answer.
        self.has_received = true;
        if let Some(progress) = &mut self.unfinished {
            progress.paused.get_or_insert_with(Instant::now);
        }
    }

    /// Counts the incomplete message, if there is one and it has `least` bytes; `anew` means that it began
    /// after the one counted last.
    pub(super) fn count_unfinished(&mut self, least: usize, anew: bool) -> Option<&mut Progress> {
        let Some((held, missing)) = self.decoder.unfinished() else {
            self.unfinished = None;
            return None;
        };
        if held < least && self.unfinished.is_none() {
            return None;
        }
        let now = Instant::now();
        let progress = self
            .unfinished
            .get_or_insert_with(|| Box::new(Progress::new(now)));
        if progress.held != held || anew {
            (progress.held, progress.since) = (held, now);
        }
        if progress.share.is_none() && held >= COUNTED_FROM {
            progress.share = Some(self.budget.begin());
        }
        if let Some(share) = &progress.share {
            share.update(held, missing);
        }
        Some(progress)
    }

    /// Waits for the rest of the incomplete message, if there is one, at most for the write timeout.
    pub(super) fn poll_unfinished(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Disconnect>> {
        if self.count_unfinished(0, false).is_none() {
            return Poll::Pending;
        }
        // The count may have cut this message.
        ready!(self.poll_budget(cx))?;
        let patience = self.settings.times.write_timeout.get();
        let Some(progress) = &mut self.unfinished else {
            return Poll::Pending;
        };
        ready!(progress.alarm.poll(Some(progress.since + patience), cx));
        Poll::Ready(Err(self.drop_unfinished(Disconnect::Unfinished)))
    }

    /// Drops the unfinished message; nothing more is decoded.
    pub(super) fn drop_unfinished(&mut self, why: Disconnect) -> Disconnect {
        self.decoder.abandon();
        self.unfinished = None;
        why
    }
}
