//! A store that keeps the logs in an SQLite file: written by one thread, read by a few connections.

mod care;
mod file;
mod identity;
mod journal;
mod queue;
mod readers;
mod retention;
mod rooms;
mod rows;
mod shared;
mod writer;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rusqlite::Connection;
use tokio::sync::watch;
use tokio::time::{interval, timeout};
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, warn};

use super::epochs::Epochs;
use super::{Backend, Feed, Found, Health, NumberedBy, Opened, Publishing};
use crate::config::{Config, OnStoreError, StoreSync};
use crate::format::{Batch, Plain};
use crate::message::{Key, MessageId, Unavailable};
use file::DatabaseFile;
use identity::Identity;
use readers::Readers;
use rows::Replay;
use shared::{Shared, UNAVAILABLE, meanwhile};
use writer::Writer;

/// The logs of all rooms in one file.
#[derive(Debug)]
pub(crate) struct Database {
    shared: Arc<Shared>,
    readers: Arc<Readers>,
    plain: Arc<Plain>,
    sync: StoreSync,
    replay: Replay,
    /// True when the writer has ended.
    ended: watch::Receiver<bool>,
    /// Looks whether the disk answers.
    _watch: AbortOnDropHandle<()>,
}

/// How long the disk may take for one transaction.
const STUCK: Duration = Duration::from_secs(5);

/// How often it is looked for that.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// How long the writer has for the rest at the end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

impl Database {
    /// Opens the database at `path`, and starts to write it.
    ///
    /// # Errors
    /// What is wrong, and the remedy.
    pub(super) fn open(path: &Path, config: &Config) -> anyhow::Result<Self> {
        let file = DatabaseFile::open(path)?;
        let storage = &config.storage;
        let sync = storage.sync();
        let (epochs, epoch_min) = begin(&file.connection, sync == StoreSync::Always)?;
        let memory_max = config.history.total.bytes();
        let shared = Arc::new(Shared::new(memory_max, epochs, epoch_min));
        let plain = Arc::new(Plain::new(&config.service));
        let identity = Arc::new(Identity::of(&file.path)?);
        let readers = Arc::new(Readers::new(file.path.clone(), identity.clone()));
        let writer = Writer::new(shared.clone(), file, identity, storage, plain.clone())?;
        let (has_ended, ended) = watch::channel(false);
        let for_writer = shared.clone();
        let write = move || {
            if catch_unwind(AssertUnwindSafe(|| writer.run())).is_err() {
                error!("the writer of the database ended by a fault of this server");
                for_writer.die();
            }
            has_ended.send_replace(true);
        };
        let thread = thread::Builder::new().name("database".into());
        thread.spawn(write).context("cannot start a thread")?;
        let watch = tokio::spawn(watch_disk(shared.clone(), storage.on_error()));
        Ok(Self {
            shared,
            readers,
            plain,
            sync,
            _watch: AbortOnDropHandle::new(watch),
            replay: Replay {
                messages: config.history.limit as u64,
                bytes: config.history.bytes.bytes() as u64,
            },
            ended,
        })
    }
}

/// Looks whether the writer waits for the disk for too long, which is a fault of its own: such a disk reports none.
async fn watch_disk(shared: Arc<Shared>, on_error: OnStoreError) {
    let mut ticks = interval(WATCH_INTERVAL);
    loop {
        ticks.tick().await;
        if shared.busy() < STUCK || shared.health() != Health::Well {
            continue;
        }
        let (health, meanwhile) = meanwhile(on_error);
        let seconds = STUCK.as_secs();
        error!(
            "the disk of the database has not answered for {seconds} s; {meanwhile} until it does"
        );
        let fault = format!("the disk has not answered for {seconds} s");
        shared.set_health(health, Some(fault));
        shared.refuse_all();
    }
}

/// Begins to write: notes whether the database is `certain` to have all that is delivered, and finds where epochs
/// go on, which is a new one where messages may have been lost.
fn begin(connection: &Connection, certain: bool) -> rusqlite::Result<(Epochs, u64)> {
    let select = "SELECT is_certain, epoch_min, max(epoch_max, epoch_min,
        ifnull((SELECT max(epoch) FROM room), 0)) FROM store";
    let (was_certain, mut epoch_min, last): (bool, u64, u64) =
        connection.query_row(select, [], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })?;
    let epochs = Epochs::after(last);
    if !was_certain {
        epoch_min = epochs.begin();
        warn!(
            "the last server that had this database did not end cleanly: its last messages may be \
             lost, and ids go on in a new epoch"
        );
    }
    let update = "UPDATE store SET is_certain = ?1, epoch_min = ?2";
    connection.execute(update, (certain, epoch_min))?;
    Ok((epochs, epoch_min))
}

impl Backend for Database {
    fn feed(&self, feed: Weak<dyn Feed>) {
        self.shared.set_feed(feed);
    }

    fn open(&self, name: &Arc<str>) -> BoxFuture<'static, Result<Opened, Unavailable>> {
        // Before the database is read: what is not in the one is in the other.
        let (waiting, has_lost) = {
            let queue = self.shared.queue.lock();
            (queue.waiting(name), queue.has_lost(name))
        };
        let (shared, plain, name) = (self.shared.clone(), self.plain.clone(), name.clone());
        let (replay, epoch_min) = (self.replay, shared.epoch_min);
        let read = self
            .readers
            .clone()
            .read(move |it| rows::open(it, &plain, &name, replay, epoch_min));
        async move {
            let new = || MessageId {
                epoch: shared.epochs.begin(),
                seq: 1,
            };
            // Its first message may be among what waits.
            let first = || waiting.first().map_or_else(new, |batch| batch.first_id());
            let opened = read.await?.unwrap_or_else(|| Opened {
                next: first(),
                tail: Vec::new(),
                replay_from: 1,
            });
            let mut opened = with_waiting(opened, &waiting);
            if has_lost {
                // The writer may tell of it before there is a room that could hear that.
                opened.next.epoch = shared.epochs.begin();
            }
            Ok(opened)
        }
        .boxed()
    }

    fn read(
        &self,
        name: &str,
        seqs: Range<u64>,
    ) -> BoxFuture<'static, Result<Vec<Batch>, Unavailable>> {
        let waiting = self.shared.queue.lock().waiting_in(name, seqs.clone());
        let (plain, name) = (self.plain.clone(), name.to_owned());
        let (start, end) = (seqs.start, seqs.end);
        let read = self
            .readers
            .clone()
            .read(move |it| rows::read(it, &plain, &name, start..end));
        async move {
            let mut batches = read.await?;
            extend_run(&mut batches, &waiting, seqs);
            Ok(batches)
        }
        .boxed()
    }

    fn find(
        &self,
        name: &Arc<str>,
        key: &Key,
    ) -> BoxFuture<'static, Result<Option<Found>, Unavailable>> {
        let found = self.shared.queue.lock().find(name, key);
        let (plain, name, key) = (self.plain.clone(), name.clone(), key.clone());
        let readers = self.readers.clone();
        async move {
            if found.is_some() {
                return Ok(found);
            }
            readers
                .read(move |it| rows::find(it, &plain, &name, &key))
                .await
        }
        .boxed()
    }

    fn has_lost(&self, name: &str) -> bool {
        self.shared.queue.lock().has_lost(name)
    }

    fn is_ready(&self) -> bool {
        self.shared.is_ready()
    }

    fn ready(&self) -> BoxFuture<'static, ()> {
        let shared = self.shared.clone();
        async move { shared.ready().await }.boxed()
    }

    fn admit(&self) -> Result<NumberedBy, Unavailable> {
        match (self.shared.health(), self.sync) {
            (Health::Refusing, _) => Err(UNAVAILABLE),
            (Health::Failing, _) if self.shared.is_overwhelmed() => Err(UNAVAILABLE),
            (_, StoreSync::Always) => Ok(NumberedBy::Store),
            (_, StoreSync::Everysec | StoreSync::Off) => Ok(NumberedBy::Room),
        }
    }

    fn keep(&self, name: &Arc<str>, batch: &Arc<Batch>, clients: usize) {
        self.shared.keep(name, batch, clients);
    }

    fn append(&self, name: &Arc<str>, messages: Publishing) {
        self.shared.append(name, messages);
    }

    fn health(&self) -> Health {
        self.shared.health()
    }

    fn fault(&self) -> Option<String> {
        self.shared.fault()
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        self.readers.close();
        self.shared.close();
        let (shared, mut ended) = (self.shared.clone(), self.ended.clone());
        async move {
            let ended = ended.wait_for(|it| *it);
            if timeout(CLOSE_TIMEOUT, ended).await.is_err() {
                match shared.waiting() {
                    0 => {
                        warn!("the database is too slow to be closed, but all messages are written")
                    }
                    rest => error!("the database is too slow: {rest} messages may be lost"),
                }
            }
        }
        .boxed()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        self.shared.close();
    }
}

/// What the database has of a room, and behind it what waits to be written.
fn with_waiting(mut opened: Opened, waiting: &[Arc<Batch>]) -> Opened {
    for batch in waiting {
        let (first, last) = (batch.first_id(), batch.last_id());
        if last.seq < opened.next.seq {
            continue;
        }
        if first.seq != opened.next.seq {
            // Others were dropped before it.
            opened.tail.clear();
        }
        opened.next = MessageId {
            epoch: last.epoch.max(opened.next.epoch),
            seq: last.seq + 1,
        };
        opened.tail.push(batch.without_copies());
    }
    opened
}

/// Goes on with what waits to be written, where that follows.
fn extend_run(batches: &mut Vec<Batch>, waiting: &[Arc<Batch>], seqs: Range<u64>) {
    for batch in waiting {
        let (first, last) = (batch.first_id().seq, batch.last_id().seq);
        let follows = match batches.last() {
            Some(before) => first == before.last_id().seq + 1,
            None => seqs.contains(&first) || (first..=last).contains(&seqs.start),
        };
        if follows && first < seqs.end {
            batches.push(batch.without_copies());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use tempfile::TempDir;

    use super::*;
    use crate::config::Size;
    use crate::format::BatchBuilder;
    use crate::message::Kind;

    /// A batch of one message, of so many bytes.
    fn batch(plain: &Plain, seq: u64, bytes: usize) -> Arc<Batch> {
        let mut builder = BatchBuilder::default();
        plain.encode(Kind::Text, "x".repeat(bytes).as_bytes(), &mut builder);
        let frames = builder.take().unwrap();
        let first = MessageId { epoch: 7, seq };
        Arc::new(Batch::new(seq, first, SystemTime::now(), frames))
    }

    #[tokio::test]
    async fn what_waits_to_be_written_is_read_in_bounded_pieces() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("x.db");
        let config = Config::default();
        let database = Database::open(&path, &config).unwrap();
        // Nothing can be written meanwhile.
        let other = Connection::open(&path).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let plain = Plain::new(&config.service);
        let name: Arc<str> = "/".into();
        const SHORT: u64 = 2000;
        const ALL: u64 = 2100;
        for seq in 1..=ALL {
            let bytes = if seq <= SHORT { 1 } else { 10_000 };
            database.keep(&name, &batch(&plain, seq, bytes), 0);
        }
        let (mut next, mut pieces) = (1, 0);
        while next <= ALL {
            let read = database.read(&name, next..ALL + 1).await.unwrap();
            let (messages, bytes) = read.iter().fold((0, 0), |(messages, bytes), it| {
                assert_eq!(it.first_id().seq, next + messages);
                (messages + it.len() as u64, bytes + it.frame_bytes())
            });
            assert!(messages > 0 && messages <= 512, "{messages} from {next}");
            assert!(bytes <= 2 * (64 * 1024 + 10_100), "{bytes} from {next}");
            next += messages;
            pieces += 1;
        }
        assert!(pieces > 15, "{pieces}");
        // Not beyond what is asked for.
        let read = database.read(&name, 5..8).await.unwrap();
        assert_eq!(read.len(), 3);
        drop(other);
        database.close().await;
    }

    #[tokio::test]
    async fn a_room_whose_first_message_waits_goes_on_behind_that() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("x.db");
        let config = Config::default();
        let database = Database::open(&path, &config).unwrap();
        // Nothing can be written meanwhile.
        let other = Connection::open(&path).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let (plain, name) = (Plain::new(&config.service), Arc::from("/"));
        database.keep(&name, &batch(&plain, 1, 1), 0);
        let opened = database.open(&name).await.unwrap();
        assert_eq!(opened.next, MessageId { epoch: 7, seq: 2 });
        assert_eq!(opened.tail.len(), 1);
        drop(other);
        database.close().await;
    }

    #[tokio::test]
    async fn a_room_of_which_messages_were_lost_is_opened_in_a_new_epoch() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("x.db");
        let mut config = Config::default();
        config.history.total = Size::from(1000);
        let database = Database::open(&path, &config).unwrap();
        let plain = Plain::new(&config.service);
        let name: Arc<str> = "/".into();
        let other = Connection::open(&path).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        database
            .shared
            .set_health(Health::Failing, Some("a test".into()));
        for seq in 1..=5 {
            database.keep(&name, &batch(&plain, seq, 600), 0);
        }
        assert!(database.has_lost(&name));
        let Opened { next, tail, .. } = database.open(&name).await.unwrap();
        assert!(next.epoch > 7 && next.seq == 6, "{next}");
        assert_eq!(tail[0].first_id().epoch, 7);
        drop(other);
        database.close().await;
    }
}
