//! The write-ahead log of the database, which a power cut must not take for longer than a second.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::file::beside;

/// Has the write-ahead log written to the disk, at most a second after the first message that is not.
///
/// SQLite itself does so only with each commit, which is slow, or when the log is long, which in a quiet room takes
/// hours.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    /// Whether it is done here at all.
    is_on: bool,
    /// It stays the same file as long as the database is open.
    file: Option<File>,
    /// When the first message was written that may not be on the disk yet.
    unsafe_since: Option<Instant>,
}

/// How long a message may be unsafe; the rest of the second is for the disk.
const SYNC_INTERVAL: Duration = Duration::from_millis(800);

impl Journal {
    /// The write-ahead log of the database at `path`.
    pub(super) fn new(path: &Path, is_on: bool) -> Self {
        Self {
            path: journal_path(path),
            is_on,
            file: None,
            unsafe_since: None,
        }
    }

    /// Something was written.
    pub(super) fn written(&mut self) {
        if self.is_on {
            self.unsafe_since.get_or_insert_with(Instant::now);
        }
    }

    /// When it has to be written to the disk, if at all.
    pub(super) fn due(&self) -> Option<Instant> {
        Some(self.unsafe_since? + SYNC_INTERVAL)
    }

    /// Writes it to the disk, if that is due.
    pub(super) fn sync_if_due(&mut self) -> io::Result<()> {
        match self.due() {
            Some(due) if due <= Instant::now() => self.sync(),
            _ => Ok(()),
        }
    }

    /// Writes it to the disk.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        if self.is_on {
            let file = match self.file.take() {
                Some(file) => file,
                None => File::open(&self.path)?,
            };
            self.file.insert(file).sync_data()?;
        }
        self.unsafe_since = None;
        Ok(())
    }
}

/// Where the write-ahead log of the database at `path` is.
pub(super) fn journal_path(path: &Path) -> PathBuf {
    beside(path, "-wal")
}
