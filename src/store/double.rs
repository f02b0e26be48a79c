//! A store for tests, which control each of its steps.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{
    Backend, Fed, Feed, Found, Health, Numbered, NumberedBy, Opened, Publishing, Store, Ticket,
};
use crate::format::testing::plain;
use crate::format::{Batch, BatchBuilder, Frames};
use crate::message::{Key, Kind, MessageId, Unavailable};

/// What the store says when it takes nothing.
pub(crate) const AWAY: Unavailable = Unavailable {
    retry_after: Duration::from_millis(1500),
};

/// A store of logs in memory. It numbers messages itself or has the room do that; it opens rooms, places
/// publications and keeps up only as told.
#[derive(Debug)]
pub(crate) struct Double {
    numbered_by: NumberedBy,
    feed: OnceLock<Weak<dyn Feed>>,
    state: Mutex<State>,
    opens: watch::Sender<bool>,
    keeps_up: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    logs: HashMap<String, Kept>,
    /// Publications that are not placed.
    queue: VecDeque<(String, Frames, Ticket)>,
    takes_nothing: bool,
    cannot_be_read: bool,
    /// How often rooms were opened, and logs were read.
    opened: usize,
    reads: usize,
}

/// One log, of single messages.
#[derive(Debug, Clone)]
struct Kept {
    next: MessageId,
    messages: VecDeque<(MessageId, SystemTime, Frames)>,
}

/// Messages of one read, and of the tail of a room that is opened.
const PIECE: usize = 5;

impl Double {
    pub(crate) fn new(numbered_by: NumberedBy) -> Arc<Self> {
        Arc::new(Self {
            numbered_by,
            feed: OnceLock::new(),
            state: Mutex::default(),
            opens: watch::Sender::new(true),
            keeps_up: watch::Sender::new(true),
        })
    }

    pub(crate) fn store(self: &Arc<Self>) -> Store {
        Store::Backend(self.clone())
    }

    /// Whether rooms are opened, or wait for it.
    pub(crate) fn set_opens(&self, opens: bool) {
        self.opens.send_replace(opens);
    }

    /// Whether publishers are let on, or held back.
    pub(crate) fn set_keeps_up(&self, keeps_up: bool) {
        self.keeps_up.send_replace(keeps_up);
    }

    /// Whether publications are refused at once.
    pub(crate) fn set_takes_nothing(&self, takes_nothing: bool) {
        self.state.lock().takes_nothing = takes_nothing;
        let feed = self.feed.get().and_then(Weak::upgrade);
        feed.inspect(|it| it.health_changed());
    }

    /// Whether reads and opens fail.
    pub(crate) fn set_cannot_be_read(&self, cannot_be_read: bool) {
        self.state.lock().cannot_be_read = cannot_be_read;
    }

    /// The rooms of the publications that are not placed, in order.
    pub(crate) fn queued(&self) -> Vec<String> {
        let state = self.state.lock();
        state.queue.iter().map(|(name, ..)| name.clone()).collect()
    }

    pub(crate) fn opened(&self) -> usize {
        self.state.lock().opened
    }

    pub(crate) fn reads(&self) -> usize {
        self.state.lock().reads
    }

    /// How many messages are kept of the room `name`.
    pub(crate) fn kept(&self, name: &str) -> usize {
        let state = self.state.lock();
        state.logs.get(name).map_or(0, |log| log.messages.len())
    }

    /// Forgets all but the last `count` messages of the room `name`.
    pub(crate) fn forget(&self, name: &str, count: usize) {
        let mut state = self.state.lock();
        let messages = &mut state.log(name).messages;
        messages.drain(..messages.len() - count);
    }

    /// The log of the room `name` goes on in a new epoch: with `seq`, and the messages before that.
    pub(crate) fn begin_epoch(&self, name: &str, seq: u64) {
        let mut state = self.state.lock();
        let log = state.log(name);
        log.next = MessageId {
            epoch: log.next.epoch + 1,
            seq,
        };
        log.messages.retain(|(id, ..)| id.seq < seq);
    }

    /// Takes the oldest publication in the room `name` out of the queue.
    fn take(&self, name: &str) -> Option<(Frames, Ticket)> {
        let mut state = self.state.lock();
        let index = state.queue.iter().position(|(it, ..)| it == name)?;
        let (_, frames, ticket) = state.queue.remove(index)?;
        Some((frames, ticket))
    }

    /// Places the oldest publication in the room `name`; returns whether there was one.
    pub(crate) fn place(&self, name: &str) -> bool {
        let Some((frames, ticket)) = self.take(name) else {
            return false;
        };
        let (first, time) = self.state.lock().log(name).push(&frames);
        self.deliver(name, first, time, &frames, Some(ticket));
        true
    }

    /// Places all publications in their order.
    pub(crate) fn place_all(&self) {
        while let Some(name) = self.queued().first() {
            self.place(name);
        }
    }

    /// Keeps a text of another process in the room `name`, and does not deliver it, as a feed that loses
    /// messages.
    pub(crate) fn keep_undelivered(&self, name: &str, text: &str) {
        let mut builder = BatchBuilder::default();
        plain("").encode(Kind::Text, text.as_bytes(), &mut builder);
        let frames = builder.take().expect("it was encoded just now");
        self.state.lock().log(name).push(&frames);
    }

    /// Delivers the message `seq` of the room `name`, which has been delivered.
    pub(crate) fn deliver_again(&self, name: &str, seq: u64) {
        let kept = self.state.lock().log(name).clone();
        let (id, time, frames) = kept.messages.iter().find(|(id, ..)| id.seq == seq).unwrap();
        self.deliver(name, *id, *time, frames, None);
    }

    /// Refuses the oldest publication in the room `name`.
    pub(crate) fn refuse(&self, name: &str) {
        let (_, ticket) = self.take(name).unwrap();
        self.feed
            .get()
            .unwrap()
            .upgrade()
            .unwrap()
            .refuse(ticket, AWAY);
    }

    /// Delivers to the feed, and before that what it lacks.
    fn deliver(
        &self,
        name: &str,
        first: MessageId,
        time: SystemTime,
        frames: &Frames,
        ticket: Option<Ticket>,
    ) {
        let Some(feed) = self.feed.get().and_then(Weak::upgrade) else {
            return;
        };
        let numbered = |frames| Numbered {
            first,
            time,
            frames,
            ticket,
        };
        while let Fed::Gap(next) = feed.deliver(name, numbered(frames.clone())) {
            let (id, time, frames) = {
                let mut state = self.state.lock();
                let mut messages = state.log(name).messages.iter();
                messages
                    .find(|(id, ..)| id.seq == next.seq)
                    .unwrap()
                    .clone()
            };
            let missing = Numbered {
                first: id,
                time,
                frames,
                ticket: None,
            };
            let fed = feed.deliver(name, missing);
            assert!(matches!(fed, Fed::Taken { .. }), "{fed:?}");
        }
    }
}

impl State {
    fn log(&mut self, name: &str) -> &mut Kept {
        self.logs.entry(name.to_owned()).or_insert_with(|| Kept {
            next: MessageId { epoch: 7, seq: 1 },
            messages: VecDeque::new(),
        })
    }
}

impl Kept {
    /// Appends messages; returns the first id, and the time.
    fn push(&mut self, frames: &Frames) -> (MessageId, SystemTime) {
        let (first, time) = (self.next, SystemTime::now());
        self.keep(first, time, frames);
        (first, time)
    }

    fn keep(&mut self, first: MessageId, time: SystemTime, frames: &Frames) {
        self.next = first;
        for frames in frames.singles() {
            self.messages.push_back((self.next, time, frames));
            self.next.seq += 1;
        }
    }

    fn batches(&self, seqs: Range<u64>) -> Vec<Batch> {
        let messages = self
            .messages
            .iter()
            .filter(|(id, ..)| seqs.contains(&id.seq));
        messages
            .map(|(id, time, frames)| Batch::new(id.seq, *id, *time, frames.clone()))
            .collect()
    }
}

impl Backend for Double {
    fn feed(&self, feed: Weak<dyn Feed>) {
        self.feed.set(feed).expect("a store has one feed");
    }

    fn open(&self, name: &Arc<str>) -> BoxFuture<'static, Result<Opened, Unavailable>> {
        let mut state = self.state.lock();
        state.opened += 1;
        let (log, fails) = (state.log(name).clone(), state.cannot_be_read);
        let mut opens = self.opens.subscribe();
        async move {
            opens.wait_for(|opens| *opens).await.map_err(|_| AWAY)?;
            if fails {
                return Err(AWAY);
            }
            let next = log.next;
            let tail = log.batches(next.seq.saturating_sub(PIECE as u64)..next.seq);
            Ok(Opened {
                next,
                tail,
                replay_from: 1,
            })
        }
        .boxed()
    }

    fn read(
        &self,
        name: &str,
        seqs: Range<u64>,
    ) -> BoxFuture<'static, Result<Vec<Batch>, Unavailable>> {
        let mut state = self.state.lock();
        state.reads += 1;
        let fails = state.cannot_be_read;
        let mut batches = state.log(name).batches(seqs);
        batches.truncate(PIECE);
        async move {
            tokio::task::yield_now().await;
            if fails { Err(AWAY) } else { Ok(batches) }
        }
        .boxed()
    }

    fn has_lost(&self, _name: &str) -> bool {
        false
    }

    fn is_ready(&self) -> bool {
        *self.keeps_up.borrow()
    }

    fn ready(&self) -> BoxFuture<'static, ()> {
        let mut keeps_up = self.keeps_up.subscribe();
        async move { keeps_up.wait_for(|it| *it).map(drop).await }.boxed()
    }

    fn admit(&self) -> Result<NumberedBy, Unavailable> {
        match self.state.lock().takes_nothing {
            true => Err(AWAY),
            false => Ok(self.numbered_by),
        }
    }

    fn keep(&self, name: &Arc<str>, batch: &Arc<Batch>, _clients: usize) {
        let mut state = self.state.lock();
        let log = state.log(name);
        assert_eq!(batch.first_id(), log.next, "not in the order of the ids");
        log.keep(batch.first_id(), batch.time(), batch.frames());
    }

    fn append(&self, name: &Arc<str>, messages: Publishing) {
        let Publishing { frames, ticket, .. } = messages;
        let mut state = self.state.lock();
        state.queue.push_back((name.to_string(), frames, ticket));
    }

    fn find(
        &self,
        name: &Arc<str>,
        key: &Key,
    ) -> BoxFuture<'static, Result<Option<Found>, Unavailable>> {
        let mut state = self.state.lock();
        let fails = state.cannot_be_read;
        let batches = state.log(name).batches(0..u64::MAX).into_iter();
        let mut found =
            batches.filter(|it| it.author().is_some_and(|it| it.key.as_ref() == Some(key)));
        let found = found.next().map(|batch| Found { batch, clients: 7 });
        async move { if fails { Err(AWAY) } else { Ok(found) } }.boxed()
    }

    fn health(&self) -> Health {
        match self.state.lock().takes_nothing {
            true => Health::Refusing,
            false => Health::Well,
        }
    }

    fn fault(&self) -> Option<String> {
        let takes_nothing = self.state.lock().takes_nothing;
        takes_nothing.then(|| "the test has it fail".into())
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        ready(()).boxed()
    }
}
