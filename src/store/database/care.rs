//! What the file needs now and then: old messages deleted, space given back, the write-ahead log kept short.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::{Connection, Transaction, TransactionBehavior};
use tracing::warn;

use super::file::BUSY_TIMEOUT;
use super::journal::journal_path;
use super::retention::Trimmer;
use super::rooms::{Rooms, Totals};
use crate::config::Retention;

/// Looks after the file once a second.
#[derive(Debug)]
pub(super) struct Care {
    due: Instant,
    /// Whether rooms may exceed their bounds, as those were other ones when the messages were written.
    has_former: bool,
    /// Whether something was written since the last time.
    was_written: bool,
    /// From which size on the next line about the write-ahead log is due.
    worth_a_line: u64,
}

const INTERVAL: Duration = Duration::from_secs(1);

/// Free pages that the file keeps, besides a sixteenth of it, and how many it gives back at a time.
const FREE_PAGES: u64 = 256;
const VACUUM_PAGES: u64 = 1024;

/// A write-ahead log of so many bytes is too long: something keeps SQLite from beginning it anew.
const JOURNAL_LARGE: u64 = 64 << 20;

/// How long readers may keep the writer from beginning the write-ahead log anew.
pub(super) const CHECKPOINT_TIMEOUT: Duration = Duration::from_millis(50);

impl Care {
    pub(super) fn new() -> Self {
        Self {
            due: Instant::now(),
            has_former: true,
            was_written: true,
            worth_a_line: JOURNAL_LARGE,
        }
    }

    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// Something was written.
    pub(super) fn written(&mut self) {
        self.was_written = true;
    }

    /// Does what is due; returns what is left of all rooms.
    pub(super) fn take(
        &mut self,
        connection: &Connection,
        path: &Path,
        retention: &Retention,
        totals: Totals,
    ) -> rusqlite::Result<Totals> {
        self.due = Instant::now() + INTERVAL;
        let mut left = totals;
        if self.has_former || retention.age.is_some() {
            let transaction =
                Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
            let mut trimmer = Trimmer::new(connection, retention);
            if self.has_former {
                left = trimmer.trim_former(left)?;
            }
            left = trimmer.trim(Rooms::new(connection, left))?;
            transaction.commit()?;
            match trimmer.is_exhausted() {
                true => self.due = Instant::now(),
                false => self.has_former = false,
            }
        }
        if std::mem::take(&mut self.was_written) {
            match give_back(connection)? {
                Given::Some => {
                    self.due = Instant::now();
                    self.was_written = true;
                }
                // The file shrinks when this has reached it.
                Given::Rest => {
                    connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?;
                }
                Given::Nothing => {}
            }
            self.shorten_journal(connection, path)?;
        }
        Ok(left)
    }

    /// Begins the write-ahead log anew where it is too long, or says why that cannot be.
    fn shorten_journal(&mut self, connection: &Connection, path: &Path) -> rusqlite::Result<()> {
        let bytes = std::fs::metadata(journal_path(path)).map_or(0, |it| it.len());
        if bytes < JOURNAL_LARGE {
            self.worth_a_line = JOURNAL_LARGE;
            return Ok(());
        }
        connection.busy_timeout(CHECKPOINT_TIMEOUT)?;
        let is_busy = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0));
        connection.busy_timeout(BUSY_TIMEOUT)?;
        if is_busy? && bytes >= self.worth_a_line {
            self.worth_a_line = bytes * 2;
            let (megabytes, path) = (bytes >> 20, path.display());
            warn!(
                "{path}-wal has grown to {megabytes} MiB: another program has been reading the \
                 database for long, and it cannot be shortened before that ends"
            );
        }
        Ok(())
    }
}

/// What of the free pages was given back.
enum Given {
    Nothing,
    /// Some, and there are more.
    Some,
    /// The last ones.
    Rest,
}

/// Gives free pages back to the file system, some at a time.
fn give_back(connection: &Connection) -> rusqlite::Result<Given> {
    let count = |pragma| connection.pragma_query_value(None, pragma, |it| it.get::<_, u64>(0));
    let (free, pages) = (count("freelist_count")?, count("page_count")?);
    let spare = FREE_PAGES + pages / 16;
    if free <= spare {
        return Ok(Given::Nothing);
    }
    let given = (free - spare).min(VACUUM_PAGES);
    let mut vacuum = connection.prepare(&format!("PRAGMA incremental_vacuum({given})"))?;
    let mut rows = vacuum.query([])?;
    // Each step gives back one page.
    while rows.next()?.is_some() {}
    Ok(match free - given > spare {
        true => Given::Some,
        false => Given::Rest,
    })
}
