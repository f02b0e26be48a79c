//! What the database keeps: the oldest messages go, and rooms that are silent for longest.

use std::time::SystemTime;

use rusqlite::{Connection, OptionalExtension, params};

use super::rooms::{COLUMNS, RoomRow, Rooms, Totals};
use super::rows::{ROW_BYTES, millis};
use crate::config::Retention;

/// Messages that are deleted in one go, so that nothing waits long behind that.
const DELETED_MAX: usize = 10_000;

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
