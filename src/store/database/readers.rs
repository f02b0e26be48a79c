//! Connections that only read, each for a moment.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tracing::warn;

use super::file::BUSY_TIMEOUT;
use super::identity::Identity;
use super::shared::UNAVAILABLE;
use crate::message::Unavailable;

/// A few connections for all that read; a reader waits for one, and never for the writer.
#[derive(Debug)]
pub(super) struct Readers {
    path: PathBuf,
    identity: Arc<Identity>,
    permits: Arc<Semaphore>,
    /// Those that are not in use.
    idle: Mutex<Vec<Connection>>,
    /// When the last line about an error was logged.
    warned: Mutex<Option<Instant>>,
}

const CONNECTIONS: usize = 4;

/// At most one line about errors in so much time.
const WARN_INTERVAL: Duration = Duration::from_secs(10);

impl Readers {
    /// Readers of the database at `path`.
    pub(super) fn new(path: PathBuf, identity: Arc<Identity>) -> Self {
        Self {
            path,
            identity,
            permits: Arc::new(Semaphore::new(CONNECTIONS)),
            idle: Mutex::default(),
            warned: Mutex::default(),
        }
    }

    /// Reads something, on a thread that may wait for the disk.
    pub(super) async fn read<T: Send + 'static>(
        self: Arc<Self>,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Unavailable> {
        let permit = self.permits.clone().acquire_owned().await;
        let permit = permit.map_err(|_| UNAVAILABLE)?;
        let reading = spawn_blocking(move || {
            let _permit = permit;
            let found = self.take().and_then(|connection| {
                let found = read(&connection)?;
                self.idle.lock().push(connection);
                Ok(found)
            });
            found.inspect_err(|error| self.warn(error))
        });
        match reading.await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(_)) | Err(_) => Err(UNAVAILABLE),
        }
    }

    /// Closes the connections; none is made any more.
    pub(super) fn close(&self) {
        self.permits.close();
        self.idle.lock().clear();
    }

    fn take(&self) -> anyhow::Result<Connection> {
        if let Some(connection) = self.idle.lock().pop() {
            return Ok(connection);
        }
        self.identity.check()?;
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        Ok(connection)
    }

    fn warn(&self, error: &anyhow::Error) {
        let mut warned = self.warned.lock();
        if warned.is_none_or(|it| it.elapsed() >= WARN_INTERVAL) {
            *warned = Some(Instant::now());
            warn!("{} cannot be read: {error}", self.path.display());
        }
    }
}
