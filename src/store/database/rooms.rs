//! Rows of the table `room`.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use rusqlite::{Connection, OptionalExtension, params};

use super::rows::millis;
use crate::message::MessageId;

/// The row of a room.
#[derive(Debug, Clone)]
pub(super) struct RoomRow {
    pub(super) id: i64,
    pub(super) epoch: u64,
    /// The first message that is kept; behind the last one where none is.
    pub(super) first_seq: u64,
    pub(super) last_seq: u64,
    pub(super) bytes: u64,
    /// Unix times in seconds: of the first message that is kept, and of the last one.
    pub(super) oldest: Option<i64>,
    pub(super) newest: i64,
    /// The times that are in the database.
    saved: (Option<i64>, i64),
}

/// What all rooms have together.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Totals {
    pub(super) rooms: u64,
    pub(super) bytes: u64,
}

impl Totals {
    pub(super) fn load(connection: &Connection) -> rusqlite::Result<Self> {
        let select = "SELECT count(*), ifnull(sum(bytes), 0) FROM room";
        connection.query_row(select, [], |row| {
            Ok(Self {
                rooms: row.get(0)?,
                bytes: row.get(1)?,
            })
        })
    }
}

pub(super) const COLUMNS: &str = "id, epoch, first_seq, last_seq, bytes, oldest, newest";

impl RoomRow {
    /// The row of the room `name`, if it has one.
    pub(super) fn load(connection: &Connection, name: &str) -> rusqlite::Result<Option<Self>> {
        let select = format!("SELECT {COLUMNS} FROM room WHERE name = ?1");
        let mut select = connection.prepare_cached(&select)?;
        select.query_row([name], Self::read).optional()
    }

    /// A row for the room `name`, whose first message has this id.
    pub(super) fn create(
        connection: &Connection,
        name: &str,
        first: MessageId,
    ) -> rusqlite::Result<Self> {
        let MessageId {
            epoch,
            seq: first_seq,
        } = first;
        let insert = "INSERT INTO room (name, epoch, first_seq, last_seq, bytes, newest)
            VALUES (?1, ?2, ?3, ?3 - 1, 0, 0)";
        let mut insert = connection.prepare_cached(insert)?;
        let id = insert.insert(params![name, epoch, first_seq])?;
        Ok(Self {
            id,
            epoch,
            first_seq,
            last_seq: first_seq - 1,
            bytes: 0,
            oldest: None,
            newest: 0,
            saved: (None, 0),
        })
    }

    pub(super) fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        let (oldest, newest) = (row.get(5)?, row.get(6)?);
        Ok(Self {
            id: row.get(0)?,
            epoch: row.get(1)?,
            first_seq: row.get(2)?,
            last_seq: row.get(3)?,
            bytes: row.get(4)?,
            oldest,
            newest,
            saved: (oldest, newest),
        })
    }

    /// Writes the row.
    pub(super) fn save(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let update = "UPDATE room SET epoch = ?2, first_seq = ?3, last_seq = ?4, bytes = ?5
            WHERE id = ?1";
        let mut update = connection.prepare_cached(update)?;
        let Self {
            id,
            epoch,
            first_seq,
            last_seq,
            bytes,
            ..
        } = *self;
        update.execute(params![id, epoch, first_seq, last_seq, bytes])?;
        // The indexes of the times are left alone within a second.
        let times = (self.oldest, self.newest);
        if self.saved != times {
            let update = "UPDATE room SET oldest = ?2, newest = ?3 WHERE id = ?1";
            let mut update = connection.prepare_cached(update)?;
            update.execute(params![id, self.oldest, self.newest])?;
            self.saved = times;
        }
        Ok(())
    }

    /// Notes messages that were written behind the last one, of so many bytes.
    pub(super) fn append(&mut self, epoch: u64, seqs: Range<u64>, bytes: u64, time: SystemTime) {
        let at = millis(time) / 1000;
        if self.oldest.is_none() {
            self.first_seq = seqs.start;
            self.oldest = Some(at);
        }
        self.epoch = self.epoch.max(epoch);
        self.last_seq = seqs.end - 1;
        self.bytes += bytes;
        self.newest = self.newest.max(at);
    }
}

/// The rooms of a transaction.
#[derive(Debug)]
pub(super) struct Rooms<'c> {
    connection: &'c Connection,
    pub(super) rows: HashMap<Arc<str>, RoomRow>,
    /// Those of all rooms before the transaction, with the rooms that were made in it.
    pub(super) totals: Totals,
    /// Bytes of `rows` before the transaction.
    pub(super) bytes: u64,
}

impl<'c> Rooms<'c> {
    pub(super) fn new(connection: &'c Connection, totals: Totals) -> Self {
        Self {
            connection,
            rows: HashMap::new(),
            totals,
            bytes: 0,
        }
    }

    /// The room `name`, if it has a row.
    pub(super) fn find(&mut self, name: &Arc<str>) -> rusqlite::Result<Option<&mut RoomRow>> {
        if !self.rows.contains_key(name)
            && let Some(row) = RoomRow::load(self.connection, name)?
        {
            self.bytes += row.bytes;
            self.rows.insert(name.clone(), row);
        }
        Ok(self.rows.get_mut(name))
    }

    /// The room `name`; where it has no row, its log begins with the id of `first`.
    pub(super) fn find_or_create(
        &mut self,
        name: &Arc<str>,
        first: impl FnOnce() -> MessageId,
    ) -> rusqlite::Result<&mut RoomRow> {
        if self.find(name)?.is_none() {
            let row = RoomRow::create(self.connection, name, first())?;
            self.totals.rooms += 1;
            self.rows.insert(name.clone(), row);
        }
        Ok(self.rows.get_mut(name).expect("it was found or made"))
    }
}
