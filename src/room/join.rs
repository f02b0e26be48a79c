//! Joining a room: where a client starts in its log.

use std::sync::Arc;

use super::ids::Located;
use super::log::{Log, Member, Reads, Room};
use super::queue::{self, Batches};
use super::receipts::Unacknowledged;
use super::subscription::{Source, Subscription};
use crate::format::{Batch, Encoding};
use crate::message::{Author, MessageId, Unavailable};

/// How a client subscribes to a room.
#[derive(Debug, Clone)]
pub(crate) struct Follow {
    /// The encoding of its events.
    pub(crate) encoding: Encoding,
    /// Whether it can acknowledge messages.
    pub(crate) acknowledges: bool,
    /// What happens where messages are evicted before it has read them.
    pub(crate) on_gap: OnGap,
    /// The last message that it received before it reconnected, if it did.
    pub(crate) since: Option<MessageId>,
    /// The author of its messages, where others have to know of it before the first of them.
    pub(crate) author: Option<Arc<Author>>,
    /// Whether it gets its own messages as well; else it needs an author.
    pub(crate) hears_itself: bool,
    /// Whether it follows the number of clients.
    pub(crate) counts: bool,
}

/// What happens to a client where messages are evicted before it has read them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnGap {
    /// It is closed as behind, as it could not learn of the gap.
    Close,
    /// It gets a gap event and goes on behind it.
    Report,
}

impl Default for Follow {
    /// Any WebSocket client.
    fn default() -> Self {
        Self {
            encoding: Encoding::Plain,
            acknowledges: true,
            on_gap: OnGap::Close,
            since: None,
            author: None,
            hears_itself: true,
            counts: false,
        }
    }
}

/// Where a subscription starts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Start {
    /// Position of its first message.
    pub(crate) next: u64,
    /// The newest message of the room at the join, if there ever was one.
    pub(crate) last: Option<MessageId>,
    /// Whether the subscription continues after the requested id without a gap.
    pub(crate) resumed: bool,
    /// How many messages after that id are skipped; none where the id is not of this log.
    pub(crate) missed: Option<u64>,
    /// How many clients the room has, with this one.
    pub(crate) clients: usize,
}

impl Log {
    /// Where a client starts that has the messages up to `since`, as [`find`](Room::find) has it.
    pub(super) fn start(&self, since: Option<Located>) -> Start {
        let (first, end) = (self.history.replay_from(), self.history.next());
        let newest = self.history.batches_from(end - 1).last();
        let last = newest.map_or_else(|| self.ids.at(end - 1), |batch| batch.last_id());
        let last = Some(last).filter(|last| last.seq > 0);
        let (next, resumed, missed) = match since {
            None => (first, false, Some(0)),
            Some(Located::At(next)) if next < self.history.retained_from() => {
                (first, false, Some(first - next))
            }
            Some(Located::At(next) | Located::Earlier(next)) => (next, true, Some(0)),
            // The whole replay, as the client may start over, and all behind the id.
            Some(Located::Uncertain(next)) => (next.min(first), false, None),
            Some(Located::Nowhere) => (first, false, None),
        };
        Start {
            next,
            last,
            resumed,
            missed,
            clients: self.registry.len(),
        }
    }
}

impl Room {
    /// Where the message behind `id` is. Where only the archive can tell, `is_archived` is what it told.
    pub(super) fn find(&self, log: &Log, id: MessageId, is_archived: bool) -> Located {
        match self.locate(log, id) {
            Located::Earlier(_) if !is_archived => Located::Nowhere,
            Located::Earlier(next) if !log.ids.is_certain(id) || self.has_lost() => {
                Located::Uncertain(next)
            }
            located => located,
        }
    }

    fn has_lost(&self) -> bool {
        self.archive.as_ref().is_some_and(|it| it.has_lost())
    }

    /// Where the message behind `id` is: [earlier](Located::Earlier) if only the archive can tell.
    fn locate(&self, log: &Log, id: MessageId) -> Located {
        match log.ids.locate(id, log.history.next()) {
            Located::At(next) if self.archive.is_some() && next < log.history.retained_from() => {
                Located::Earlier(next)
            }
            Located::Earlier(_) if self.archive.is_none() => Located::Nowhere,
            located => located,
        }
    }

    /// Whether the archive has `id`, or will have: it has that message, forgot it last, or gets it when the
    /// history evicts it, which may be at any moment.
    ///
    /// # Errors
    /// [`Unavailable`] if the archive cannot be asked.
    pub(crate) async fn is_archived(&self, id: MessageId) -> Result<bool, Unavailable> {
        let Some(archive) = &self.archive else {
            return Ok(false);
        };
        match self.locate(&self.log.lock(), id) {
            Located::Earlier(_) => {}
            located => return Ok(matches!(located, Located::At(_))),
        }
        let found = archive.read(id.seq..id.seq.saturating_add(2)).await?;
        let Some(first) = found.first().map(Batch::first_id) else {
            // The last message of all may be forgotten, too.
            let log = self.log.lock();
            let next = log.ids.at(log.history.next());
            return Ok(next.epoch == id.epoch && next.seq == id.seq.saturating_add(1));
        };
        Ok(first.epoch == id.epoch && (first.seq == id.seq || first.seq == id.seq + 1))
    }

    /// Subscribes to the log: first the history, then live messages, without a gap between them.
    ///
    /// It starts after the id in `follow`, where all later messages are retained or that id
    /// [is archived](Self::is_archived), and else with the whole replay.
    pub(crate) fn subscribe(
        self: &Arc<Self>,
        follow: Follow,
        is_archived: bool,
    ) -> (Subscription, Start) {
        let mut log = self.log.lock();
        let since = follow.since.map(|id| self.find(&log, id, is_archived));
        let joined_at = log.history.next();
        let (sender, receiver) = queue::channel();
        let key = log.registry.insert(Member {
            sender,
            reads: Reads::Archive,
        });
        let start = log.start(since);
        let author = follow.author;
        self.presence.join(author.as_deref(), start.clients);
        let unacknowledged = Unacknowledged::new(follow.acknowledges, joined_at);
        log.acknowledging += usize::from(unacknowledged.is_possible());
        log.set_reads(key, Reads::History(start.next));
        let mut subscription = Subscription {
            room: self.clone(),
            receiver,
            key: Some(key),
            encoding: follow.encoding,
            on_gap: follow.on_gap,
            source: Source::History,
            reading: None,
            missed: 0,
            is_anywhere: self.archive.is_some() && !start.resumed,
            unacknowledged,
            author,
            hears_itself: follow.hears_itself,
            headcount: follow
                .counts
                .then(|| Box::new(self.headcount(start.clients))),
            next: start.next,
            last: (log.ids.at(joined_at), 0),
            joined_at,
            restarts: log.restarts,
            taken: Batches::new(),
        };
        // The only error here is that of a sealed room, which the first poll returns again.
        subscription.read_history(&mut log).ok();
        (subscription, start)
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use futures_util::FutureExt;
    use futures_util::future::{BoxFuture, ready};

    use super::*;
    use crate::config::{Config, Mode};
    use crate::format::{BatchBuilder, Plain};
    use crate::message::Kind;
    use crate::room::{Archive, Origin};

    /// An archive without messages.
    #[derive(Debug)]
    struct Empty;

    impl Archive for Empty {
        fn read(&self, _: Range<u64>) -> BoxFuture<'static, Result<Vec<Batch>, Unavailable>> {
            ready(Ok(Vec::new())).boxed()
        }

        fn has_lost(&self) -> bool {
            false
        }
    }

    #[test]
    fn what_memory_has_counts_as_archived_as_it_may_be_evicted_before_the_join() {
        let config = Config::with(|config| config.service.mode = Mode::Broadcast);
        let id = |seq| MessageId { epoch: 7, seq };
        let origin = Origin {
            next: id(5),
            tail: Vec::new(),
            replay_from: 1,
            archive: Some(Arc::new(Empty)),
        };
        let (history, limits) = (&config.history, &config.limits);
        let mode = config.service.mode.into();
        let room = Arc::new(Room::new(mode, history, limits, origin, Arc::default()));
        let mut builder = BatchBuilder::default();
        Plain::new(&config.service).encode(Kind::Text, b"hi", &mut builder);
        let frames = builder.take().unwrap();
        room.append(frames, false, |_, _| {}).unwrap();
        let is_archived = |seq| room.is_archived(id(seq)).now_or_never().unwrap().unwrap();
        assert_eq!([3, 5, 6].map(is_archived), [false, true, false]);
    }
}
