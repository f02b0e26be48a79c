//! Which files are open, as a path may come to name others or none.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::bail;

use super::journal::journal_path;

/// The files of a database that is open.
///
/// SQLite goes on with files that were deleted, as the system does: all that it commits is gone with the process.
#[derive(Debug)]
pub(super) struct Identity {
    files: [(PathBuf, Inode); 2],
}

/// Device and number of a file.
type Inode = (u64, u64);

impl Identity {
    /// The files at `path` and beside it, just opened.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let identify = |path: PathBuf| inode(&path).map(|inode| (path, inode));
        let files = [identify(path.to_owned())?, identify(journal_path(path))?];
        Ok(Self { files })
    }

    /// Whether their paths still name them.
    ///
    /// # Errors
    /// What is wrong, and the remedy.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        for (path, opened) in &self.files {
            match inode(path) {
                Ok(found) if found == *opened => {}
                // What cannot be looked at may be there all the same.
                Err(error) if error.kind() != ErrorKind::NotFound => {}
                _ => bail!(
                    "its files were moved, deleted or replaced: put them back, or restart the server"
                ),
            }
        }
        Ok(())
    }
}

fn inode(path: &Path) -> io::Result<Inode> {
    fs::metadata(path).map(|it| (it.dev(), it.ino()))
}
