//! The file of the database: opened, checked, locked and brought to the present schema.

use std::fs::{self, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail, ensure};
use rusqlite::{Connection, ErrorCode, OpenFlags};

/// A database that this process alone writes.
#[derive(Debug)]
pub(super) struct DatabaseFile {
    pub(super) path: PathBuf,
    /// The one connection that writes.
    pub(super) connection: Connection,
    /// Held as long as the server runs.
    pub(super) _lock: fs::File,
}

/// Marks a database of ours: "wscd".
const APPLICATION_ID: i32 = 0x7773_6364;

/// The scripts that lead from each version of the schema to the next.
const MIGRATIONS: &[&str] = &[include_str!("v1.sql")];

/// How long another program may hold a lock, as `sqlite3` does for a moment.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of the log of changes, beyond which they go to the database itself, and what is left of it then.
const CHECKPOINT_PAGES: u32 = 2000;
const JOURNAL_SIZE: u32 = 16 << 20;

/// Kibibytes of the cache of the writer.
const CACHE: i32 = 16 << 10;

/// The largest file that is checked as a whole at the start.
const CHECKED_MAX: u64 = 256 << 20;

impl DatabaseFile {
    /// Opens the database at `path`, and makes it where there is none.
    ///
    /// # Errors
    /// What is wrong, and the remedy.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let path = resolve(path)?;
        let lock = lock(&path)?;
        let connection = open_checked(&path).map_err(explain)?;
        Ok(Self {
            path,
            connection,
            _lock: lock,
        })
    }
}

/// One name for each file.
fn resolve(path: &Path) -> anyhow::Result<PathBuf> {
    ensure!(!path.is_dir(), "this is a folder: name a file in it");
    ensure!(
        path.is_file() || !path.exists(),
        "this is not a regular file: name another one"
    );
    if let Ok(path) = fs::canonicalize(path) {
        // Each name has a lock and a write-ahead log of its own: two servers would damage the file.
        let names = fs::metadata(&path).map_or(1, |it| it.nlink());
        ensure!(
            names <= 1,
            "this file has {names} names (hard links): delete the others, or name a copy of it"
        );
        return Ok(path);
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let name = path.file_name().context("this names no file")?;
    let folder = fs::canonicalize(folder).map_err(|error| {
        let folder = folder.display();
        anyhow!("the folder {folder} cannot be used ({error}): create it, or name another one")
    })?;
    Ok(folder.join(name))
}

/// The path with `suffix` behind the name of the file.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// Takes the lock that tells servers apart; SQLite's own let several write.
fn lock(path: &Path) -> anyhow::Result<fs::File> {
    let path = beside(path, "-lock");
    let mut options = fs::File::options();
    let lock = options.create(true).truncate(false).write(true).open(&path);
    let lock = lock.map_err(|error| {
        let path = path.display();
        anyhow!("{path} cannot be written ({error}): see that this user may write in the folder")
    })?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            bail!("another server has it open: stop that one, or name another file")
        }
        Err(TryLockError::Error(error)) => {
            bail!("{} cannot be locked: {error}", path.display())
        }
    }
}

fn open_checked(path: &Path) -> anyhow::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    let is_new = is_new(&connection)?;
    if is_new {
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
        connection.pragma_update(None, "application_id", APPLICATION_ID)?;
    } else if fs::metadata(path)?.len() <= CHECKED_MAX {
        let found: String = connection.query_row("PRAGMA quick_check(1)", [], |it| it.get(0))?;
        ensure!(found == "ok", Damaged(found));
    }
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    ensure!(
        mode == "wal",
        "SQLite cannot have a write-ahead log there: name a file on a local disk"
    );
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    connection.pragma_update(None, "journal_size_limit", JOURNAL_SIZE)?;
    connection.pragma_update(None, "cache_size", -CACHE)?;
    connection.set_prepared_statement_cache_capacity(64);
    migrate(&mut connection, MIGRATIONS)?;
    Ok(connection)
}

/// Whether there is nothing in it yet.
///
/// # Errors
/// Where it is not ours.
fn is_new(connection: &Connection) -> anyhow::Result<bool> {
    let count = "SELECT count(*) FROM sqlite_schema";
    let objects: u32 = connection.query_row(count, [], |row| row.get(0))?;
    if objects == 0 {
        return Ok(true);
    }
    let application: i32 = connection.pragma_query_value(None, "application_id", |it| it.get(0))?;
    ensure!(
        application == APPLICATION_ID,
        "this is a database of another program: name another file; this one is left as it is"
    );
    Ok(false)
}

/// Brings the schema to the present version, in one transaction.
fn migrate(connection: &mut Connection, migrations: &[&str]) -> anyhow::Result<()> {
    let version: usize = connection.pragma_query_value(None, "user_version", |it| it.get(0))?;
    ensure!(
        version <= migrations.len(),
        "a newer version of wscast has written it: use that one, or name another file"
    );
    if version < migrations.len() {
        let transaction = connection.transaction()?;
        for script in &migrations[version..] {
            transaction.execute_batch(script)?;
        }
        transaction.pragma_update(None, "user_version", migrations.len())?;
        transaction.commit()?;
    }
    Ok(())
}

/// What a check has found.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Damaged(String);

/// Adds the remedy to errors of SQLite.
pub(super) fn explain(error: anyhow::Error) -> anyhow::Error {
    let damaged = |why: &str| {
        anyhow!(
            "the file is damaged ({why}): put a backup in its place, or save what is left as \
             docs/database.md says; it is left as it is"
        )
    };
    if let Some(Damaged(found)) = error.downcast_ref() {
        return damaged(found);
    }
    let Some(sqlite) = error.downcast_ref::<rusqlite::Error>() else {
        return error;
    };
    match sqlite.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => anyhow!(
            "this is not a database ({sqlite}): name another file; this one is left as it is"
        ),
        Some(ErrorCode::DatabaseCorrupt) => damaged(&sqlite.to_string()),
        Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
            anyhow!("{sqlite}: see that this user may write the file and its folder")
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            anyhow!("another program holds a lock on it ({sqlite}): end that one")
        }
        Some(ErrorCode::DiskFull) => anyhow!("{sqlite}: make room on the disk"),
        _ => anyhow!("{sqlite}: see whether the disk works and has room"),
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn refused(path: &Path) -> String {
        DatabaseFile::open(path).unwrap_err().to_string()
    }

    #[test]
    fn a_file_that_is_not_ours_or_damaged_is_refused_and_left_alone() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("x.db");
        fs::write(
            &path,
            "not a database at all, and long enough to be read as one".repeat(40),
        )
        .unwrap();
        let before = fs::read(&path).unwrap();
        let why = refused(&path);
        assert!(
            why.contains("not a database") && why.contains("name another"),
            "{why}"
        );
        assert_eq!(fs::read(&path).unwrap(), before);

        let other = folder.path().join("other.db");
        let connection = Connection::open(&other).unwrap();
        connection.execute_batch("CREATE TABLE other (x)").unwrap();
        drop(connection);
        let before = fs::read(&other).unwrap();
        let why = refused(&other);
        assert!(why.contains("another program"), "{why}");
        assert_eq!(fs::read(&other).unwrap(), before);

        let ours = folder.path().join("ours.db");
        let opened = DatabaseFile::open(&ours).unwrap();
        let fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 2000)
                    INSERT INTO message (room, seq, epoch, at, body)
                    SELECT 1, i, 1, 1, 'a text of a message' FROM n";
        opened.connection.execute_batch(fill).unwrap();
        drop(opened);
        let mut bytes = fs::read(&ours).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle..middle + 8192].fill(0xa5);
        fs::write(&ours, &bytes).unwrap();
        let why = refused(&ours);
        assert!(why.contains("damaged") && why.contains("backup"), "{why}");
        assert_eq!(fs::read(&ours).unwrap(), bytes);
    }

    #[test]
    fn errors_name_the_remedy() {
        let folder = TempDir::new().unwrap();
        assert!(refused(folder.path()).contains("name a file in it"));
        assert!(refused(&folder.path().join("none/x.db")).contains("create it"));
        // Of a device, nothing is made beside it either.
        assert!(refused(Path::new("/dev/null")).contains("regular file"));
        assert!(!Path::new("/dev/null-lock").exists());
        let path = folder.path().join("x.db");
        let first = DatabaseFile::open(&path).unwrap();
        assert!(refused(&path).contains("another server"));
        // By another name, too.
        let link = folder.path().join("link.db");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(refused(&link).contains("another server"));
        // A hard link would have other files beside it.
        let hard = folder.path().join("hard.db");
        fs::hard_link(&path, &hard).unwrap();
        assert!(refused(&hard).contains("2 names"));
        fs::remove_file(&hard).unwrap();
        drop(first);
        DatabaseFile::open(&link).unwrap();
    }

    #[test]
    fn the_schema_is_brought_up_to_date_once_and_never_back() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("x.db");
        let mut opened = DatabaseFile::open(&path).unwrap();
        let insert = "INSERT INTO room VALUES (1, '/', 7, 1, 3, 100, 1, 1)";
        opened.connection.execute_batch(insert).unwrap();
        let next = [
            MIGRATIONS[0],
            "ALTER TABLE room ADD COLUMN topic TEXT DEFAULT 'none'",
        ];
        for _ in 0..2 {
            migrate(&mut opened.connection, &next).unwrap();
        }
        let topic = opened
            .connection
            .query_row("SELECT topic FROM room", [], |it| it.get(0));
        assert_eq!(topic, Ok("none".to_string()));
        drop(opened);
        assert!(refused(&path).contains("newer version"));
    }

    #[test]
    fn a_migration_that_fails_changes_nothing() {
        let folder = TempDir::new().unwrap();
        let mut opened = DatabaseFile::open(&folder.path().join("x.db")).unwrap();
        let next = [
            MIGRATIONS[0],
            "ALTER TABLE room ADD COLUMN topic TEXT; SELECT wrong",
        ];
        migrate(&mut opened.connection, &next).unwrap_err();
        let version = opened
            .connection
            .pragma_query_value(None, "user_version", |it| it.get(0));
        assert_eq!(version, Ok(1));
        assert!(opened.connection.prepare("SELECT topic FROM room").is_err());
    }
}
