//! What has come in and is not a message yet, over all clients: counted, bounded, and made room in.

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
/// When that is reached, nothing more is read of any of them but of the one nearest to its end,
/// until there is room; and the one that grew least in the last `--write-timeout` is cut, so that
/// messages that never end cannot keep others from theirs.
#[derive(Debug)]
pub struct Incoming {
    limit: usize,
    /// The time over which growth is judged.
    window: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    entries: Slab<Entry>,
    /// Bytes that are held, without those of entries that were cut.
    total: usize,
    /// Bytes of entries that were cut, until their tasks have dropped them.
    dropping: usize,
    /// The bytes that each entry lacks, and its key: the first is nearest to its end. Without entries
    /// that were cut, or that are not read now.
    by_end: BTreeSet<(u64, usize)>,
}

#[derive(Debug)]
struct Entry {
    held: usize,
    missing: u64,
    growth: Growth,
    is_cut: bool,
    /// Whether its task is to be woken when it may be read.
    waits_for_room: bool,
    waker: Option<Waker>,
}

/// One message or body that has begun and is not complete; it gives its share back when dropped.
#[derive(Debug)]
pub struct Unfinished {
    incoming: Arc<Incoming>,
    key: usize,
}

/// A message was cut to keep `--max-incoming`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no space for unfinished messages: try again later, or raise --max-incoming")]
pub struct NoSpace;

impl Incoming {
    /// Holds at most `limit` bytes, and judges growth over `window`.
    pub fn new(limit: usize, window: Duration) -> Self {
        Self {
            limit,
            window,
            state: Mutex::default(),
        }
    }

    /// A message that has begun, of which nothing is counted yet.
    pub fn begin(self: &Arc<Self>) -> Unfinished {
        let mut state = self.state.lock();
        let key = state.entries.insert(Entry {
            held: 0,
            missing: u64::MAX,
            growth: Growth::new(Instant::now()),
            is_cut: false,
            waits_for_room: false,
            waker: None,
        });
        state.by_end.insert((u64::MAX, key));
        Unfinished {
            incoming: self.clone(),
            key,
        }
    }

    /// Bytes that all unfinished messages hold.
    pub fn bytes(&self) -> usize {
        self.state.lock().total
    }
}

impl Unfinished {
    /// The message holds `held` bytes now, and lacks `missing` more. Where this is too much for all
    /// together, others are cut, or in the end this one.
    pub fn update(&self, held: usize, missing: u64) {
        let mut guard = self.incoming.state.lock();
        let state = &mut *guard;
        let entry = &mut state.entries[self.key];
        if entry.is_cut {
            return;
        }
        let missing_before = mem::replace(&mut entry.missing, missing);
        let held_before = mem::replace(&mut entry.held, held);
        let grown = held.saturating_sub(held_before);
        entry
            .growth
            .add(grown, Instant::now(), self.incoming.window);
        state.by_end.remove(&(missing_before, self.key));
        state.by_end.insert((missing, self.key));
        state.total = state.total - held_before + held;
        if state.total > self.incoming.limit {
            state.cut(self.key, &self.incoming);
        }
        state.wake(self.incoming.limit);
    }

    /// Waits until more of the message may be read; the task is woken, too, when the message is cut.
    ///
    /// # Errors
    /// [`NoSpace`] when it was cut.
    pub fn poll_room(&self, cx: &mut Context<'_>) -> Poll<Result<(), NoSpace>> {
        let mut guard = self.incoming.state.lock();
        let state = &mut *guard;
        let entry = &mut state.entries[self.key];
        entry.watch(cx)?;
        state.by_end.insert((entry.missing, self.key));
        let is_nearest = state.by_end.first().map(|(_, key)| *key) == Some(self.key);
        let has_room = state.has_room(self.incoming.limit) || is_nearest;
        let entry = &mut state.entries[self.key];
        entry.waits_for_room = !has_room;
        // Time in which nothing is read does not count.
        let now = Instant::now();
        match has_room {
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

    /// Waits until the message is cut, while nothing more of it is read.
    pub fn poll_cut(&self, cx: &mut Context<'_>) -> Poll<NoSpace> {
        let mut guard = self.incoming.state.lock();
        let state = &mut *guard;
        let entry = &mut state.entries[self.key];
        entry.waits_for_room = false;
        entry.growth.pause(Instant::now());
        if let Err(cut) = entry.watch(cx) {
            return Poll::Ready(cut);
        }
        // It does not get nearer to its end now.
        state.by_end.remove(&(entry.missing, self.key));
        state.wake(self.incoming.limit);
        Poll::Pending
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let mut state = self.incoming.state.lock();
        let entry = state.entries.remove(self.key);
        match entry.is_cut {
            true => state.dropping -= entry.held,
            false => state.total -= entry.held,
        }
        state.by_end.remove(&(entry.missing, self.key));
        state.wake(self.incoming.limit);
    }
}

impl State {
    /// Whether what is held, for as long as it is, leaves room for more.
    fn has_room(&self, limit: usize) -> bool {
        self.total + self.dropping <= limit
    }

    /// Cuts the messages that grew least, until there is space; that of `growing` last.
    fn cut(&mut self, growing: usize, incoming: &Incoming) {
        let now = Instant::now();
        let others = self
            .entries
            .iter_mut()
            .filter(|(key, entry)| *key != growing && !entry.is_cut);
        let mut growths: Vec<(usize, usize)> = others
            .map(|(key, entry)| (entry.growth.of_last(incoming.window, now), key))
            .collect();
        growths.sort_unstable();
        let keys = growths.into_iter().map(|(_, key)| key).chain([growing]);
        for key in keys {
            if self.total <= incoming.limit {
                break;
            }
            let entry = &mut self.entries[key];
            entry.is_cut = true;
            // Its task drops what it holds as soon as it is woken.
            self.total -= entry.held;
            self.dropping += entry.held;
            self.by_end.remove(&(entry.missing, key));
            entry.wake();
        }
    }

    /// Wakes the messages that wait and may be read now.
    fn wake(&mut self, limit: usize) {
        if self.has_room(limit) {
            // Nearly always there are none.
            let waiting = self.entries.iter_mut().map(|(_, entry)| entry);
            waiting.filter(|it| it.waits_for_room).for_each(Entry::wake);
        } else if let Some((_, key)) = self.by_end.first() {
            let entry = &mut self.entries[*key];
            if entry.waits_for_room {
                entry.wake();
            }
        }
    }
}

impl Entry {
    /// Has the task woken when something changes.
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

    fn wake(&mut self) {
        self.waits_for_room = false;
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// How much a message grew lately: exact for steps of a window, even between them.
#[derive(Debug)]
struct Growth {
    /// When the current window began.
    since: Instant,
    current: usize,
    previous: usize,
    /// Since when nothing is read of it.
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

    /// Bytes by which it grew in the last `window` in which it was read.
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

    fn incoming(limit: usize) -> Arc<Incoming> {
        Arc::new(Incoming::new(limit, WINDOW))
    }

    /// Counts how often a task is woken.
    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn room(unfinished: &Unfinished) -> Poll<Result<(), NoSpace>> {
        unfinished.poll_room(&mut Context::from_waker(Waker::noop()))
    }

    async fn pass(secs: u64) {
        tokio::time::advance(Duration::from_secs(secs)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_dropped_is_counted_no_more() {
        let incoming = incoming(100);
        let one = incoming.begin();
        one.update(60, 5);
        let other = incoming.begin();
        other.update(30, 5);
        other.update(10, 5);
        assert_eq!(incoming.bytes(), 70);
        drop(one);
        assert_eq!(incoming.bytes(), 10);
        drop(other);
        assert_eq!(incoming.bytes(), 0);
        assert!(incoming.state.lock().by_end.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_one_that_grew_least_in_the_last_window_is_cut_at_once() {
        let incoming = incoming(100);
        let [dripping, steady, new] = [(); 3].map(|()| incoming.begin());
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
        assert_eq!(incoming.bytes(), 60);
        // What it still holds is given back once.
        dripping.update(90, 1);
        drop(dripping);
        assert_eq!(incoming.bytes(), 60);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_too_large_by_itself_is_cut() {
        let incoming = incoming(100);
        let alone = incoming.begin();
        alone.update(101, 1);
        assert_eq!(room(&alone), Poll::Ready(Err(NoSpace)));
        assert_eq!(incoming.bytes(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn as_many_are_cut_as_it_takes() {
        let incoming = incoming(100);
        let small = [(); 5].map(|()| incoming.begin());
        small.iter().for_each(|it| it.update(10, 5));
        let large = incoming.begin();
        large.update(75, 1000);
        let cut = small
            .iter()
            .filter(|it| room(it) == Poll::Ready(Err(NoSpace)));
        assert_eq!((cut.count(), incoming.bytes()), (3, 95));
    }

    #[tokio::test(start_paused = true)]
    async fn until_what_was_cut_is_dropped_only_the_one_nearest_to_its_end_is_read() {
        let incoming = incoming(100);
        let wakes = Arc::<Wakes>::default();
        let waker = Waker::from(wakes.clone());
        let mut cx = Context::from_waker(&waker);
        let [cut, near, far] = [(); 3].map(|()| incoming.begin());
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
    async fn no_task_is_woken_that_does_not_wait_for_room() {
        let incoming = incoming(100);
        let wakes = Arc::<Wakes>::default();
        let waker = Waker::from(wakes.clone());
        let mut cx = Context::from_waker(&waker);
        let writing = incoming.begin();
        writing.update(50, 10);
        assert!(writing.poll_cut(&mut cx).is_pending());
        let other = incoming.begin();
        for held in 1..50 {
            other.update(held, 10);
        }
        assert_eq!(wakes.0.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_it_is_not_read_does_not_count() {
        let incoming = incoming(100);
        let [near, held_up, new] = [(); 3].map(|()| incoming.begin());
        near.update(10, 1);
        held_up.update(90, 20);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(held_up.poll_cut(&mut cx).is_pending());
        pass(30).await;
        // It grew by 90 before it was held up, and the other by nothing lately.
        new.update(10, 1);
        assert_eq!(room(&near), Poll::Ready(Err(NoSpace)));
        assert_ne!(room(&held_up), Poll::Ready(Err(NoSpace)));
        assert_eq!(incoming.bytes(), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cut_wakes_its_task() {
        let incoming = incoming(100);
        let wakes = Arc::<Wakes>::default();
        let waker = Waker::from(wakes.clone());
        let one = incoming.begin();
        one.update(50, 10);
        assert!(one.poll_cut(&mut Context::from_waker(&waker)).is_pending());
        let other = incoming.begin();
        other.update(60, 10);
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert_eq!(
            one.poll_cut(&mut Context::from_waker(&waker)),
            Poll::Ready(NoSpace)
        );
    }
}
