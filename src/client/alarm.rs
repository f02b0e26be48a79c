//! An alarm: one timer for the earliest of a client's deadlines.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::time::{Instant, Sleep, sleep_until};

/// The timer of a client that has any number of deadlines, or none. It is made when a deadline is first
/// waited for.
///
/// The owner says at each poll which deadline is the earliest, so that a deadline can move without a word
/// to the alarm. The timer itself is set anew only for an earlier one and when it fires: most deadlines
/// move on with each message.
#[derive(Debug, Default)]
pub(crate) struct Alarm(Option<Pin<Box<Sleep>>>);

impl Alarm {
    /// Ready once `due` has come; never without one.
    pub(crate) fn poll(&mut self, due: Option<Instant>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(due) = due else {
            return Poll::Pending;
        };
        let timer = self.0.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if due < timer.deadline() {
            timer.as_mut().reset(due);
        }
        while timer.as_mut().poll(cx).is_ready() {
            if due <= Instant::now() {
                return Poll::Ready(());
            }
            timer.as_mut().reset(due);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::poll_fn;
    use std::time::Duration;

    use tokio::time::{sleep, timeout};

    use super::*;

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[tokio::test(start_paused = true)]
    async fn an_alarm_fires_at_its_deadline_wherever_that_moves() {
        let start = Instant::now();
        let mut alarm = Alarm::default();
        // Later, earlier, the same again, and in the past.
        for (due, fires) in [(9, 9), (30, 30), (33, 33), (33, 33), (1, 33)] {
            // Set for a later time before, which the earlier deadline replaces.
            let later = Some(start + secs(100));
            poll_fn(|cx| Poll::Ready(alarm.poll(later, cx)))
                .await
                .is_ready();
            poll_fn(|cx| alarm.poll(Some(start + secs(due)), cx)).await;
            assert_eq!(start.elapsed(), secs(fires));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_that_moves_on_is_met_without_another_poll() {
        let start = Instant::now();
        let due = Cell::new(start + secs(10));
        let mut alarm = Alarm::default();
        let fired = poll_fn(|cx| alarm.poll(Some(due.get()), cx));
        let moved = async {
            sleep(secs(9)).await;
            due.set(start + secs(25));
        };
        tokio::join!(fired, moved);
        assert_eq!(start.elapsed(), secs(25));
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_deadline_there_is_no_timer() {
        let mut alarm = Alarm::default();
        let fired = poll_fn(|cx| alarm.poll(None, cx));
        timeout(secs(1000), fired).await.unwrap_err();
        assert!(alarm.0.is_none());
    }
}
