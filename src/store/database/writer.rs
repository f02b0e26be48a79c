//! The writer: one thread, which alone writes the database.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rusqlite::{Connection, Transaction, TransactionBehavior};
use tracing::{error, info};

use super::care::{CHECKPOINT_TIMEOUT, Care};
use super::file::{BUSY_TIMEOUT, DatabaseFile, explain};
use super::identity::Identity;
use super::journal::Journal;
use super::queue::{Kept, Work};
use super::retention::Trimmer;
use super::rooms::{Rooms, Totals};
use super::rows::{self, Insert};
use super::shared::{Shared, Turn, meanwhile};
use crate::config::{OnStoreError, Retention, Storage, StoreSync};
use crate::format::{Batch, Plain};
use crate::message::MessageId;
use crate::store::{Fed, Health, Numbered};

/// The thread that writes: it takes what waits, in one transaction each time, and keeps the file within its
/// bounds.
#[derive(Debug)]
pub(super) struct Writer {
    shared: Arc<Shared>,
    file: DatabaseFile,
    identity: Arc<Identity>,
    plain: Arc<Plain>,
    on_error: OnStoreError,
    retention: Retention,
    totals: Totals,
    journal: Journal,
    care: Care,
    /// Since when nothing could be written, if that is so.
    failing: Option<Failing>,
}

#[derive(Debug)]
struct Failing {
    since: Instant,
    /// Bytes that could not be written.
    bytes: usize,
}

/// What a transaction has written.
struct Written {
    totals: Totals,
    /// What is to be delivered now, and how many clients its room had before.
    numbered: Vec<(Arc<str>, Numbered, usize)>,
    /// New epochs of rooms.
    begun: Vec<(Arc<str>, u64)>,
}

/// How long it rests before it tries again what has failed.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// The most bytes of a test whether anything can be written.
const PROBE_MAX: usize = 1 << 20;

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        file: DatabaseFile,
        identity: Arc<Identity>,
        storage: &Storage,
        plain: Arc<Plain>,
    ) -> rusqlite::Result<Self> {
        let sync = storage.sync();
        let synchronous = match sync {
            StoreSync::Always => "FULL",
            StoreSync::Everysec => "NORMAL",
            StoreSync::Off => "OFF",
        };
        file.connection
            .pragma_update(None, "synchronous", synchronous)?;
        Ok(Self {
            totals: Totals::load(&file.connection)?,
            journal: Journal::new(&file.path, sync == StoreSync::Everysec),
            care: Care::new(),
            shared,
            file,
            identity,
            plain,
            on_error: storage.on_error(),
            retention: storage.retention(),
            failing: None,
        })
    }

    /// Writes until the store is closed.
    pub(super) fn run(mut self) {
        loop {
            let turn = self.shared.wait(self.due(), self.failing.is_some());
            self.shared.set_busy(true);
            match turn {
                Turn::Work => self.write(),
                Turn::Due if self.failing.is_some() => self.try_again(),
                Turn::Due => self.meet_deadlines(),
                Turn::Close => return self.finish(),
            }
            if self.failing.is_none() {
                self.recover();
            }
            self.shared.set_busy(false);
        }
    }

    fn due(&self) -> Instant {
        match (&self.failing, self.journal.due()) {
            (Some(_), _) => Instant::now() + RETRY_INTERVAL,
            (None, Some(due)) => due.min(self.care.due()),
            (None, None) => self.care.due(),
        }
    }

    /// Makes safe what is not yet, and looks after the file.
    fn meet_deadlines(&mut self) {
        if let Err(error) = self.identity.check() {
            return self.fail(error, 0);
        }
        if let Err(error) = self.journal.sync_if_due() {
            return self.fail(error.into(), 0);
        }
        let Self {
            file,
            retention,
            totals,
            ..
        } = self;
        match self
            .care
            .take(&file.connection, &file.path, retention, *totals)
        {
            Ok(totals) => self.totals = totals,
            Err(error) => self.fail(error.into(), 0),
        }
    }

    /// Writes what waits, in one transaction, and delivers what waits for that.
    fn write(&mut self) {
        let work = self.shared.work();
        let written = match self.write_work(&work) {
            Ok(written) => written,
            Err(error) => {
                let bytes = work.appended.iter().map(|(_, it)| it.frames.bytes()).sum();
                self.fail(error, bytes);
                return self.shared.failed(&work);
            }
        };
        self.totals = written.totals;
        self.journal.written();
        self.care.written();
        // Before the loss is forgotten.
        for (name, epoch) in written.begun {
            self.shared.begin_epoch(&name, epoch);
        }
        self.shared.done(&work);
        for (name, messages, clients) in written.numbered {
            self.deliver(&name, &messages, clients);
        }
        match self.journal.sync_if_due() {
            Ok(()) => self.recover(),
            Err(error) => self.fail(error.into(), 0),
        }
    }

    /// Writes `work`, trims, and commits.
    fn write_work(&self, work: &Work) -> anyhow::Result<Written> {
        let connection = &self.file.connection;
        let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
        let mut rooms = Rooms::new(connection, self.totals);
        let mut insert = Insert::new(connection)?;
        for (name, kept) in &work.kept {
            for Kept { batch, clients } in kept {
                let (first, time) = (batch.first_id(), batch.time());
                let room = rooms.find_or_create(name, || first)?;
                insert.write(room, first, time, batch.frames(), *clients)?;
            }
        }
        let mut begun = Vec::new();
        for name in &work.lost {
            let epoch = self.shared.epochs.begin();
            if let Some(room) = rooms.find(name)? {
                room.epoch = epoch;
            }
            begun.push((name.clone(), epoch));
        }
        let mut numbered = Vec::new();
        let time = SystemTime::now();
        for (name, it) in &work.appended {
            let room = rooms.find_or_create(name, || it.next)?;
            let first = MessageId {
                epoch: room.epoch.max(self.shared.epoch_min),
                seq: room.last_seq + 1,
            };
            insert.write(room, first, time, &it.frames, it.clients)?;
            let messages = Numbered {
                first,
                time,
                frames: it.frames.clone(),
                ticket: Some(it.ticket),
            };
            numbered.push((name.clone(), messages, it.clients));
        }
        drop(insert);
        let totals = Trimmer::new(connection, &self.retention).trim(rooms)?;
        self.identity.check()?;
        transaction.commit()?;
        Ok(Written {
            totals,
            numbered,
            begun,
        })
    }

    /// Delivers messages that are written, and notes how many clients got them where that may be asked for.
    fn deliver(&self, name: &Arc<str>, messages: &Numbered, announced: usize) {
        let Some(feed) = self.shared.feed() else {
            return;
        };
        let mut fed = feed.deliver(name, messages.clone());
        while let Fed::Gap(next) = fed {
            // Never, as rooms are opened with all that is written; but a hole would be for ever.
            let seqs = next.seq..messages.first.seq;
            let missing = rows::read(&self.file.connection, &self.plain, name, seqs);
            let missing = missing.unwrap_or_default();
            if missing.is_empty() {
                error!("the database lacks messages of {name}, from {next} on");
                return;
            }
            for batch in &missing {
                feed.deliver(name, as_read(batch));
            }
            fed = feed.deliver(name, messages.clone());
        }
        let has_key = messages.frames.author().is_some_and(|it| it.key.is_some());
        if let Fed::Taken { clients } = fed
            && has_key
            && clients != announced
        {
            let (connection, seq) = (&self.file.connection, messages.first.seq);
            if let Err(error) = rows::set_clients(connection, name, seq, clients) {
                info!("the answer to a second try will not be that to the first: {error}");
            }
        }
    }

    /// Something could not be written: from now on that is tried again and again.
    fn fail(&mut self, error: anyhow::Error, bytes: usize) {
        let is_new = self.failing.is_none();
        let failing = self.failing.get_or_insert(Failing {
            since: Instant::now(),
            bytes: 0,
        });
        failing.bytes = failing.bytes.max(bytes).min(PROBE_MAX);
        if is_new {
            let (health, meanwhile) = meanwhile(self.on_error);
            let (path, why) = (self.file.path.display(), explain(error));
            error!("{path} cannot be written: {why}; {meanwhile} until it can");
            // Anybody may ask for it: without the path.
            let fault = format!("the database cannot be written: {why}");
            self.shared.set_health(health, Some(fault));
        }
        self.shared.refuse_all();
    }

    /// Tries again what has failed.
    fn try_again(&mut self) {
        self.shared.refuse_all();
        // What the write-ahead log takes of a full disk can be used again then. It is no fault if not.
        let checkpoint = "PRAGMA wal_checkpoint(PASSIVE)";
        self.file
            .connection
            .query_row(checkpoint, [], |_| Ok(()))
            .ok();
        if self.shared.has_work() {
            return self.write();
        }
        match self
            .probe()
            .and_then(|()| self.journal.sync().map_err(anyhow::Error::from))
        {
            Ok(()) => self.recover(),
            Err(error) => self.fail(error, 0),
        }
    }

    /// Writes as much as could not be written, and deletes it.
    fn probe(&self) -> anyhow::Result<()> {
        self.identity.check()?;
        let bytes = self.failing.as_ref().map_or(0, |it| it.bytes);
        let connection = &self.file.connection;
        connection.execute("UPDATE store SET probe = zeroblob(?1)", [bytes])?;
        connection.execute("UPDATE store SET probe = NULL", [])?;
        Ok(())
    }

    fn recover(&mut self) {
        let failing = self.failing.take();
        // The disk may have come back late without any error.
        if failing.is_some() || self.shared.health() != Health::Well {
            self.shared.set_health(Health::Well, None);
            let path = self.file.path.display();
            let seconds = failing.map_or_else(|| self.shared.busy(), |it| it.since.elapsed());
            let seconds = seconds.as_secs_f32();
            info!("{path} can be written again, after {seconds:.1} s");
            match self.shared.take_dropped() {
                0 => {}
                lost => {
                    error!(
                        "up to {lost} messages of that time are lost: memory had no room for them"
                    )
                }
            }
        }
    }

    /// Writes the rest, and that nothing can have been lost.
    fn finish(mut self) {
        while self.shared.has_work() {
            self.write();
            if self.failing.is_some() {
                break;
            }
        }
        self.shared.refuse_all();
        let path = self.file.path.display();
        match self.shared.waiting() + self.shared.take_dropped() {
            0 => {}
            rest => error!("{rest} messages are lost: {path} cannot be written"),
        }
        if self.failing.is_none()
            && let Err(error) = finish(&self.file.connection)
        {
            error!("{path} cannot be written: {error}");
        }
    }
}

/// Makes all of it safe, and then notes that it is.
fn finish(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "synchronous", "FULL")?;
    // A checkpoint syncs the file only if it has something to move there; with --store-sync off, nothing is synced yet.
    connection.execute("UPDATE store SET probe = zeroblob(1)", [])?;
    // Where another program reads, the write-ahead log stays, which is as safe.
    connection.busy_timeout(CHECKPOINT_TIMEOUT)?;
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.execute("UPDATE store SET is_certain = 1, probe = NULL", [])?;
    Ok(())
}

/// Messages that were read, as a store delivers them.
fn as_read(batch: &Batch) -> Numbered {
    Numbered {
        first: batch.first_id(),
        time: batch.time(),
        frames: batch.frames().clone(),
        ticket: None,
    }
}
