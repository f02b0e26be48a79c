//! What the database keeps: the oldest messages go, and rooms that are silent for longest.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use rusqlite::{Connection, OptionalExtension, params};

use super::rows::{ROW_BYTES, millis};
use crate::config::Retention;
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

/// Messages that are deleted in one go, so that nothing waits long behind that.
const DELETED_MAX: usize = 10_000;

const COLUMNS: &str = "id, epoch, first_seq, last_seq, bytes, oldest, newest";

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

    fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
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
    rows: HashMap<Arc<str>, RoomRow>,
    /// Those of all rooms before the transaction, with the rooms that were made in it.
    totals: Totals,
    /// Bytes of `rows` before the transaction.
    bytes: u64,
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

/// What one room may keep.
#[derive(Debug, Clone, Copy)]
struct Limit {
    messages: u64,
    bytes: u64,
    /// Unix time in milliseconds: older messages go.
    since: i64,
}

/// Deletes what is beyond the bounds.
#[derive(Debug)]
pub(super) struct Trimmer<'c> {
    connection: &'c Connection,
    retention: &'c Retention,
    /// Unix time in milliseconds: older messages go.
    since: i64,
    totals: Totals,
    /// Messages that may still be deleted in this go.
    budget: usize,
    /// Bytes that may be freed in any case: as many as were written, or the bounds could be outrun.
    written: u64,
}

impl<'c> Trimmer<'c> {
    pub(super) fn new(connection: &'c Connection, retention: &'c Retention) -> Self {
        let now = SystemTime::now();
        let since = retention.age.and_then(|age| now.checked_sub(age));
        Self {
            connection,
            retention,
            since: since.map_or(0, millis),
            totals: Totals::default(),
            budget: DELETED_MAX,
            written: 0,
        }
    }

    /// Whether more may be left to delete.
    pub(super) fn is_exhausted(&self) -> bool {
        self.budget == 0 && self.written == 0
    }

    /// Deletes what is beyond the bounds of `rooms`, which are written then, and of all rooms together; returns
    /// what all rooms have then.
    pub(super) fn trim(&mut self, rooms: Rooms<'_>) -> rusqlite::Result<Totals> {
        let Rooms {
            mut rows,
            totals,
            bytes,
            ..
        } = rooms;
        let written: u64 = rows.values().map(|room| room.bytes).sum();
        self.totals = Totals {
            bytes: (totals.bytes + written).saturating_sub(bytes),
            ..totals
        };
        self.written = written.saturating_sub(bytes);
        for room in rows.values_mut() {
            self.trim_room(room)?;
            room.save(self.connection)?;
        }
        self.trim_all()?;
        Ok(self.totals)
    }

    /// Deletes the oldest messages of a room, as its bounds require; returns whether any had to go.
    fn trim_room(&mut self, room: &mut RoomRow) -> rusqlite::Result<bool> {
        let Retention {
            messages, bytes, ..
        } = *self.retention;
        let since = self.since;
        self.delete(
            room,
            Limit {
                messages,
                bytes,
                since,
            },
        )
    }

    /// Deletes the oldest messages of all rooms, as all bounds require.
    fn trim_all(&mut self) -> rusqlite::Result<()> {
        let oldest =
            format!("SELECT {COLUMNS} FROM room WHERE oldest IS NOT NULL ORDER BY oldest LIMIT 1");
        while !self.is_exhausted() {
            let excess = self.totals.bytes.saturating_sub(self.retention.total);
            if excess == 0 && self.retention.age.is_none() {
                break;
            }
            let mut select = self.connection.prepare_cached(&oldest)?;
            let Some(mut room) = select.query_row([], RoomRow::read).optional()? else {
                break;
            };
            let is_old = room.oldest.is_some_and(|it| it < self.since / 1000);
            if excess == 0 && !is_old {
                break;
            }
            // Of each of the oldest rooms a little, as others may be hardly younger.
            let bytes = match excess {
                0 => u64::MAX,
                _ => room.bytes - excess.min(room.bytes).min(STEP),
            };
            let limit = Limit {
                messages: u64::MAX,
                bytes,
                since: self.since,
            };
            if !self.delete(&mut room, limit)? {
                break;
            }
            room.save(self.connection)?;
        }
        while self.totals.rooms > self.retention.rooms && !self.is_exhausted() {
            self.forget_silent_room()?;
        }
        Ok(())
    }

    /// Deletes messages of the rooms that were kept under other bounds; returns what all rooms have then.
    pub(super) fn trim_former(&mut self, totals: Totals) -> rusqlite::Result<Totals> {
        self.totals = totals;
        let select = format!(
            "SELECT {COLUMNS} FROM room WHERE last_seq - first_seq >= ?1 OR bytes > ?2 LIMIT 1"
        );
        while !self.is_exhausted() {
            let Retention {
                messages, bytes, ..
            } = *self.retention;
            let bound = |it: u64| i64::try_from(it).unwrap_or(i64::MAX);
            let mut select = self.connection.prepare_cached(&select)?;
            let found = select.query_row(params![bound(messages), bound(bytes)], RoomRow::read);
            let Some(mut room) = found.optional()? else {
                break;
            };
            if !self.trim_room(&mut room)? {
                break;
            }
            room.save(self.connection)?;
        }
        Ok(self.totals)
    }

    /// Forgets the room that has been silent for longest.
    fn forget_silent_room(&mut self) -> rusqlite::Result<()> {
        let select = format!("SELECT {COLUMNS} FROM room ORDER BY newest LIMIT 1");
        let mut select = self.connection.prepare_cached(&select)?;
        let mut room = select.query_row([], RoomRow::read)?;
        let nothing = Limit {
            messages: 0,
            bytes: 0,
            since: 0,
        };
        self.delete(&mut room, nothing)?;
        if room.first_seq <= room.last_seq {
            // The rest of it in the next go.
            return room.save(self.connection);
        }
        let mut delete = self
            .connection
            .prepare_cached("DELETE FROM room WHERE id = ?1")?;
        delete.execute([room.id])?;
        self.totals.rooms -= 1;
        self.budget = self.budget.saturating_sub(1);
        // A room of that name begins in a later epoch, whatever the clock says.
        let note = "UPDATE store SET epoch_max = max(epoch_max, ?1)";
        self.connection
            .prepare_cached(note)?
            .execute([room.epoch])?;
        Ok(())
    }

    /// Deletes the oldest messages of a room beyond `limit`; returns whether there were any.
    fn delete(&mut self, room: &mut RoomRow, limit: Limit) -> rusqlite::Result<bool> {
        let is_old = room
            .oldest
            .is_some_and(|oldest| oldest <= limit.since / 1000);
        let kept = room.last_seq + 1 - room.first_seq;
        if kept == 0 || (kept <= limit.messages && room.bytes <= limit.bytes && !is_old) {
            return Ok(false);
        }
        let select = format!(
            "SELECT seq, at, octet_length(body) + ifnull(octet_length(name), 0)
                + ifnull(octet_length(key), 0) + {ROW_BYTES}
             FROM message WHERE room = ?1 ORDER BY seq"
        );
        let mut select = self.connection.prepare_cached(&select)?;
        let mut rows = select.query([room.id])?;
        let mut freed = 0;
        let mut last_gone = None;
        // Where no row is left, no message is.
        let (mut first_seq, mut oldest) = (room.last_seq + 1, None);
        while let Some(row) = rows.next()? {
            let (seq, at): (u64, i64) = (row.get(0)?, row.get(1)?);
            let goes = room.last_seq - seq >= limit.messages
                || room.bytes.saturating_sub(freed) > limit.bytes
                || at < limit.since;
            if !goes || self.is_exhausted() {
                (first_seq, oldest) = (seq, Some(at / 1000));
                break;
            }
            let bytes = row.get(2)?;
            freed += bytes;
            last_gone = Some(seq);
            self.budget = self.budget.saturating_sub(1);
            self.written = self.written.saturating_sub(bytes);
        }
        drop(rows);
        if let Some(last_gone) = last_gone {
            let delete = "DELETE FROM message WHERE room = ?1 AND seq <= ?2";
            let mut delete = self.connection.prepare_cached(delete)?;
            delete.execute(params![room.id, last_gone])?;
        }
        // What is counted may differ where another program has written to the file.
        let freed = match oldest {
            None => room.bytes,
            Some(_) => freed.min(room.bytes),
        };
        room.bytes -= freed;
        self.totals.bytes = self.totals.bytes.saturating_sub(freed);
        (room.first_seq, room.oldest) = (first_seq, oldest);
        Ok(last_gone.is_some())
    }
}

/// Bytes that one room gives at a time for the total.
const STEP: u64 = 1 << 20;
