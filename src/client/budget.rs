//! The budget of unfinished incoming messages over all clients: counts them, bounds them, cuts them.

use std::collections::BTreeSet;
use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use slab::Slab;
use tokio::time::Instant;

/// The unfinished messages and bodies of all clients, which together hold at most `--max-incoming`.
///
/// At the limit only the message nearest to its end is read, until there is space; and the message that
/// grew least in the last `--write-timeout` is cut, so that messages without an end cannot block others.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: usize,
    /// The time over which growth is measured.
    window: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    entries: Slab<Entry>,
    /// Bytes held, without those of cut entries.
    total: usize,
    /// Bytes of cut entries, until their tasks drop them.
    dropping: usize,
    /// Missing bytes and key of each entry: the first is nearest to its end. Without entries that are
    /// cut, or whose task is writing.
    by_end: BTreeSet<(u64, usize)>,
    /// How many entries wait for space.
    waiting: usize,
}

#[derive(Debug)]
struct Entry {
    held: usize,
    missing: u64,
    growth: Growth,
    is_cut: bool,
    /// Whether its task waits for space to read more.
    waits_for_space: bool,
    waker: Option<Waker>,
}

/// One unfinished message or body; it releases its share when dropped.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Arc<Budget>,
    key: usize,
}

/// A message was cut to keep `--max-incoming`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no space for unfinished messages: try again later, or raise --max-incoming")]
pub(crate) struct NoSpace;

impl Budget {
    /// A budget of `limit` bytes that measures growth over `window`.
    pub(crate) fn new(limit: usize, window: Duration) -> Self {
        Self {
            limit,
            window,
            state: Mutex::default(),
        }
    }

    /// A new message, with nothing counted yet.
    pub(crate) fn begin(self: &Arc<Self>) -> Share {
        let mut state = self.state.lock();
        let key = state.entries.insert(Entry {
            held: 0,
            missing: u64::MAX,
            growth: Growth::new(Instant::now()),
            is_cut: false,
            waits_for_space: false,
            waker: None,
        });
        state.by_end.insert((u64::MAX, key));
        Share {
            budget: self.clone(),
            key,
        }
    }

    /// Bytes of all unfinished messages.
    pub(crate) fn bytes(&self) -> usize {
        self.state.lock().total
    }
}

impl Share {
    /// Counts `held` bytes of the message, and `missing` ones. Beyond the limit other messages are cut,
    /// and this one last.
    pub(crate) fn update(&self, held: usize, missing: u64) {
        let mut guard = self.budget.state.lock();
        let state = &mut *guard;
        let entry = &mut state.entries[self.key];
        if entry.is_cut {
            return;
        }
        let missing_before = mem::replace(&mut entry.missing, missing);
        let held_before = mem::replace(&mut entry.held, held);
        let grown = held.saturating_sub(held_before);
        entry.growth.add(grown, Instant::now(), self.budget.window);
        state.by_end.remove(&(missing_before, self.key));
        state.by_end.insert((missing, self.key));
        state.total = state.total - held_before + held;
        if state.total > self.budget.limit {
            state.cut(self.key, &self.budget);
        }
        state.wake(self.budget.limit);
    }

    /// Waits until more of the message may be read; a cut wakes the task as well.
    ///
    /// # Errors
    /// [`NoSpace`] when it was cut.
    pub(crate) fn poll_room(&self, cx: &mut Context<'_>) -> Poll<Result<(), NoSpace>> {
        let mut guard = self.budget.state.lock();
        let state = &mut *guard;
        let entry = &mut state.entries[self.key];
        entry.watch(cx)?;
        state.by_end.insert((entry.missing, self.key));
        let is_nearest = state.by_end.first().map(|(_, key)| *key) == Some(self.key);
        let has_space = state.has_space(self.budget.limit) || is_nearest;
        state.set_waits(self.key, !has_space);
        let entry = &mut state.entries[self.key];
        // Growth is measured only while the message is read.
        let now = Instant::now();
        match has_space {
            true => {
                entry.growth.resume(now);
                Poll::Ready(Ok(()))
            }
            false => {
                entry.growth.pause(now);
                Poll::Pending
            }
        }
    }

    /// Waits until the message is cut, while its task does not read.
    pub(crate) fn poll_cut(&self, cx: &mut Context<'_>) -> Poll<NoSpace> {
        let mut guard = self.budget.state.lock();
        let state = &mut *guard;
        state.set_waits(self.key, false);
        let entry = &mut state.entries[self.key];
        entry.growth.pause(Instant::now());
        if let Err(cut) = entry.watch(cx) {
            return Poll::Ready(cut);
        }
        // Without reads it cannot be the one to finish first.
        state.by_end.remove(&(entry.missing, self.key));
        state.wake(self.budget.limit);
        Poll::Pending
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut state = self.budget.state.lock();
        state.set_waits(self.key, false);
        let entry = state.entries.remove(self.key);
        match entry.is_cut {
            true => state.dropping -= entry.held,
            false => state.total -= entry.held,
        }
        state.by_end.remove(&(entry.missing, self.key));
        state.wake(self.budget.limit);
    }
}

impl State {
    /// Whether there is space, with cut entries counted until they are dropped.
    fn has_space(&self, limit: usize) -> bool {
        self.total + self.dropping <= limit
    }

    /// Cuts the messages that grew least, until the limit is kept; `growing` last.
    fn cut(&mut self, growing: usize, budget: &Budget) {
        let now = Instant::now();
        let others = self
            .entries
            .iter_mut()
            .filter(|(key, entry)| *key != growing && !entry.is_cut);
        let mut growths: Vec<(usize, usize)> = others
            .map(|(key, entry)| (entry.growth.of_last(budget.window, now), key))
            .collect();
        growths.sort_unstable();
        let keys = growths.into_iter().map(|(_, key)| key).chain([growing]);
        for key in keys {
            if self.total <= budget.limit {
                break;
            }
            let entry = &mut self.entries[key];
            entry.is_cut = true;
            // Its task drops the bytes when it runs.
            self.total -= entry.held;
            self.dropping += entry.held;
            self.by_end.remove(&(entry.missing, key));
            self.wake_entry(key);
        }
    }

    /// Wakes the tasks that wait for space and may read now.
    fn wake(&mut self, limit: usize) {
        // Mostly none waits, whatever their number.
        if self.waiting == 0 {
            return;
        }
        if self.has_space(limit) {
            let waiting = self.entries.iter().filter(|(_, it)| it.waits_for_space);
            let keys: Vec<usize> = waiting.map(|(key, _)| key).collect();
            keys.into_iter().for_each(|key| self.wake_entry(key));
        } else if let Some((_, key)) = self.by_end.first().copied()
            && self.entries[key].waits_for_space
        {
            self.wake_entry(key);
        }
    }

    fn wake_entry(&mut self, key: usize) {
        self.set_waits(key, false);
        if let Some(waker) = self.entries[key].waker.take() {
            waker.wake();
        }
    }

    fn set_waits(&mut self, key: usize, waits: bool) {
        let before = mem::replace(&mut self.entries[key].waits_for_space, waits);
        self.waiting = self.waiting - usize::from(before) + usize::from(waits);
    }
}

impl Entry {
    /// Registers the task for the next change.
    fn watch(&mut self, cx: &mut Context<'_>) -> Result<(), NoSpace> {
        if self.is_cut {
            return Err(NoSpace);
        }
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Ok(())
    }
}

/// The growth of a message in a sliding window: exact at its steps, interpolated between them.
#[derive(Debug)]
struct Growth {
    /// When the current window began.
    since: Instant,
    current: usize,
    previous: usize,
    /// When reads of it paused.
    paused: Option<Instant>,
}

impl Growth {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            current: 0,
            previous: 0,
            paused: None,
        }
    }

    fn add(&mut self, bytes: usize, now: Instant, window: Duration) {
        self.resume(now);
        self.roll(window, now);
        self.current += bytes;
    }

    /// Growth in the last `window` of reading.
    fn of_last(&mut self, window: Duration, now: Instant) -> usize {
        let now = self.paused.unwrap_or(now);
        self.roll(window, now);
        let elapsed = now.duration_since(self.since).as_secs_f64() / window.as_secs_f64();
        self.current + (self.previous as f64 * (1.0 - elapsed).max(0.0)) as usize
    }

    fn roll(&mut self, window: Duration, now: Instant) {
        let elapsed = now.duration_since(self.since);
        if elapsed >= 2 * window {
            (self.previous, self.current, self.since) = (0, 0, now);
        } else if elapsed >= window {
            self.previous = mem::take(&mut self.current);
            self.since += window;
        }
    }

    fn pause(&mut self, now: Instant) {
        self.paused.get_or_insert(now);
    }

    fn resume(&mut self, now: Instant) {
        if let Some(paused) = self.paused.take() {
            self.since += now.duration_since(paused);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    const WINDOW: Duration = Duration::from_secs(10);

    fn budget(limit: usize) -> Arc<Budget> {
        Arc::new(Budget::new(limit, WINDOW))
    }

    /// Counts how often a task is woken.
    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn room(unfinished: &Share) -> Poll<Result<(), NoSpace>> {
        unfinished.poll_room(&mut Context::from_waker(Waker::noop()))
    }

    async fn pass(secs: u64) {
        tokio::time::advance(Duration::from_secs(secs)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn dropped_messages_are_no_longer_counted() {
        let budget = budget(100);
        let one = budget.begin();
        one.update(60, 5);
        let other = budget.begin();
        other.update(30, 5);
        other.update(10, 5);
        assert_eq!(budget.bytes(), 70);
        drop(one);
        assert_eq!(budget.bytes(), 10);
        drop(other);
        assert_eq!(budget.bytes(), 0);
        assert!(budget.state.lock().by_end.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_message_that_grew_least_in_the_last_window_is_cut_at_once() {
        let budget = budget(100);
        let [dripping, steady, new] = [(); 3].map(|()| budget.begin());
        dripping.update(50, 1);
        steady.update(10, 10);
        for held in 11..=20 {
            pass(2).await;
            dripping.update(50, 1);
            steady.update(held, 10);
        }
        new.update(40, 1000);
        assert_eq!(room(&dripping), Poll::Ready(Err(NoSpace)));
        assert_ne!(room(&steady), Poll::Ready(Err(NoSpace)));
        assert_ne!(room(&new), Poll::Ready(Err(NoSpace)));
        assert_eq!(budget.bytes(), 60);
        // Its bytes are released once.
        dripping.update(90, 1);
        drop(dripping);
        assert_eq!(budget.bytes(), 60);
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_larger_than_the_space_is_cut() {
        let budget = budget(100);
        let alone = budget.begin();
        alone.update(101, 1);
        assert_eq!(room(&alone), Poll::Ready(Err(NoSpace)));
        assert_eq!(budget.bytes(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn as_many_messages_are_cut_as_necessary() {
        let budget = budget(100);
        let small = [(); 5].map(|()| budget.begin());
        small.iter().for_each(|it| it.update(10, 5));
        let large = budget.begin();
        large.update(75, 1000);
        let cut = small
            .iter()
            .filter(|it| room(it) == Poll::Ready(Err(NoSpace)));
        assert_eq!((cut.count(), budget.bytes()), (3, 95));
    }

    #[tokio::test(start_paused = true)]
    async fn until_a_cut_message_is_dropped_only_the_message_nearest_its_end_is_read() {
        let budget = budget(100);
        let wakes = Arc::<Wakes>::default();
        let waker = Waker::from(wakes.clone());
        let mut cx = Context::from_waker(&waker);
        let [cut, near, far] = [(); 3].map(|()| budget.begin());
        cut.update(40, 5);
        pass(30).await;
        near.update(30, 10);
        far.update(50, 20);
        assert_eq!(room(&cut), Poll::Ready(Err(NoSpace)));
        assert_eq!(room(&near), Poll::Ready(Ok(())));
        assert_eq!(far.poll_room(&mut cx), Poll::Pending);
        assert_eq!(wakes.0.load(Ordering::Relaxed), 0);
        // While the nearest one is not read, the other is.
        assert!(
            near.poll_cut(&mut Context::from_waker(Waker::noop()))
                .is_pending()
        );
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert_eq!(far.poll_room(&mut cx), Poll::Ready(Ok(())));
        assert_eq!(room(&near), Poll::Ready(Ok(())));
        assert_eq!(far.poll_room(&mut cx), Poll::Pending);
        drop(cut);
        assert_eq!(wakes.0.load(Ordering::Relaxed), 2);
        assert_eq!(far.poll_room(&mut cx), Poll::Ready(Ok(())));
    }

    #[tokio::test(start_paused = true)]
    async fn only_tasks_that_wait_for_space_are_woken() {
        let budget = budget(100);
        let wakes = Arc::<Wakes>::default();
        let waker = Waker::from(wakes.clone());
        let mut cx = Context::from_waker(&waker);
        let writing = budget.begin();
        writing.update(50, 10);
        assert!(writing.poll_cut(&mut cx).is_pending());
        let other = budget.begin();
        for held in 1..50 {
            other.update(held, 10);
        }
        assert_eq!(wakes.0.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn time_without_reading_does_not_count() {
        let budget = budget(100);
        let [near, paused, new] = [(); 3].map(|()| budget.begin());
        near.update(10, 1);
        paused.update(90, 20);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(paused.poll_cut(&mut cx).is_pending());
        pass(30).await;
        // It grew by 90 before the pause, and the other by nothing lately.
        new.update(10, 1);
        assert_eq!(room(&near), Poll::Ready(Err(NoSpace)));
        assert_ne!(room(&paused), Poll::Ready(Err(NoSpace)));
        assert_eq!(budget.bytes(), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cut_wakes_its_task() {
        let budget = budget(100);
        let wakes = Arc::<Wakes>::default();
        let waker = Waker::from(wakes.clone());
        let one = budget.begin();
        one.update(50, 10);
        assert!(one.poll_cut(&mut Context::from_waker(&waker)).is_pending());
        let other = budget.begin();
        other.update(60, 10);
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert_eq!(
            one.poll_cut(&mut Context::from_waker(&waker)),
            Poll::Ready(NoSpace)
        );
    }
}
