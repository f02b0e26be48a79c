//! Rows of the table `message`, read as batches and written from them.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{CachedStatement, Connection, OptionalExtension, Row, ToSql, params};

use super::rooms::RoomRow;
use crate::format::{Batch, BatchBuilder, Frames, Plain};
use crate::message::{Author, Key, Kind, MessageId};
use crate::store::{Found, Opened};

/// What a row takes besides its text, name and key; `--retain-bytes` counts it.
pub(super) const ROW_BYTES: u64 = 64;

/// How much is read at a time, where a single message is not more.
pub(super) const READ_MESSAGES: u64 = 256;
pub(super) const READ_BYTES: usize = 64 * 1024;

/// How much a room that is opened has in memory at once: what new clients need beyond is read for each.
const TAIL_MESSAGES: u64 = 1000;
const TAIL_BYTES: u64 = 1 << 20;

const INSERT: &str = "INSERT INTO message (room, seq, epoch, at, sender, name, key, clients, body)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";

const READ: &str = "SELECT seq, epoch, at, sender, name, key, body FROM message
    WHERE room = (SELECT id FROM room WHERE name = ?1) AND seq >= ?2 AND seq < ?3 ORDER BY seq";

const FIND: &str = "SELECT seq, epoch, at, sender, name, key, body, clients FROM message
    WHERE room = (SELECT id FROM room WHERE name = ?1) AND key = ?2";

const ROOM: &str = "SELECT id, epoch, last_seq, bytes FROM room WHERE name = ?1";

const SIZES: &str = "SELECT seq, octet_length(body) FROM message WHERE room = ?1 ORDER BY seq DESC";

/// Writes messages of one room.
pub(super) struct Insert<'c>(CachedStatement<'c>);

impl<'c> Insert<'c> {
    pub(super) fn new(connection: &'c Connection) -> rusqlite::Result<Self> {
        connection.prepare_cached(INSERT).map(Self)
    }

    /// Writes `frames`, whose ids begin with `first`, behind the last message of `room`; those that it has
    /// already are passed over.
    pub(super) fn write(
        &mut self,
        room: &mut RoomRow,
        first: MessageId,
        time: SystemTime,
        frames: &Frames,
        clients: usize,
    ) -> rusqlite::Result<()> {
        let after = room.last_seq;
        if first.seq + frames.len() as u64 <= after + 1 {
            return Ok(());
        }
        let Self(insert) = self;
        let author = frames.author().map(|it| &**it);
        let sender = author.and_then(|it| it.connection).map(|it| it.to_string());
        let name = author.and_then(|it| it.name.as_ref()).map(|it| it.as_str());
        let key = author.and_then(|it| it.key.as_ref()).map(|it| it.as_str());
        let clients = key.map(|_| clients);
        // What is bound stays for the next message.
        insert.raw_bind_parameter(1, room.id)?;
        insert.raw_bind_parameter(3, first.epoch)?;
        insert.raw_bind_parameter(4, millis(time))?;
        insert.raw_bind_parameter(5, sender)?;
        insert.raw_bind_parameter(6, name)?;
        insert.raw_bind_parameter(7, key)?;
        insert.raw_bind_parameter(8, clients)?;
        let shared = ROW_BYTES + (name.map_or(0, str::len) + key.map_or(0, str::len)) as u64;
        let mut bytes = 0;
        for (seq, (kind, payload)) in (first.seq..).zip(frames.payloads()) {
            if seq > after {
                insert.raw_bind_parameter(2, seq)?;
                insert.raw_bind_parameter(9, Body(kind, payload))?;
                insert.raw_execute()?;
                bytes += shared + payload.len() as u64;
            }
        }
        let last_seq = first.seq + frames.len() as u64 - 1;
        room.append(
            first.epoch,
            first.seq.max(after + 1)..last_seq + 1,
            bytes,
            time,
        );
        Ok(())
    }
}

/// A payload: TEXT or BLOB by its kind.
struct Body<'a>(Kind, &'a [u8]);

impl ToSql for Body<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        let Self(kind, payload) = *self;
        let value = match kind {
            Kind::Text => ValueRef::Text(payload),
            Kind::Binary => ValueRef::Blob(payload),
        };
        Ok(ToSqlOutput::Borrowed(value))
    }
}

/// Unix time in milliseconds.
pub(super) fn millis(time: SystemTime) -> i64 {
    let since_1970 = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since_1970.as_millis() as i64
}

/// How much of a room a new client is given.
#[derive(Debug, Clone, Copy)]
pub(super) struct Replay {
    pub(super) messages: u64,
    pub(super) bytes: u64,
}

/// What is kept of the room `name`: its next id, its last messages, and where the replay for new clients begins;
/// nothing of a room that has no row. Ids are of no epoch before `epoch_min`.
pub(super) fn open(
    connection: &Connection,
    plain: &Plain,
    name: &str,
    replay: Replay,
    epoch_min: u64,
) -> rusqlite::Result<Option<Opened>> {
    // One state of the database for all that is read.
    let transaction = connection.unchecked_transaction()?;
    let mut room = transaction.prepare_cached(ROOM)?;
    let room = room.query_row([name], |row| {
        let (epoch, last_seq): (u64, u64) = (row.get(1)?, row.get(2)?);
        Ok((row.get(0)?, epoch, last_seq, row.get::<_, u64>(3)?))
    });
    let Some((id, epoch, last_seq, kept)) = room.optional()? else {
        return Ok(None);
    };
    let next = MessageId {
        epoch: epoch.max(epoch_min),
        seq: last_seq + 1,
    };
    let tail = Replay {
        messages: replay.messages.min(TAIL_MESSAGES),
        bytes: TAIL_BYTES,
    };
    let from = last_from(&transaction, id, next.seq, tail)?;
    let tail = Run::of(from..next.seq).read(&transaction, plain, name)?;
    let replay_from = match kept <= replay.bytes {
        true => 1,
        false => last_from(&transaction, id, next.seq, replay)?,
    };
    Ok(Some(Opened {
        next,
        tail,
        replay_from,
    }))
}

/// Where the last messages of a room begin that are within `limit`, before `next` and without a hole.
fn last_from(
    connection: &Connection,
    room: i64,
    next: u64,
    limit: Replay,
) -> rusqlite::Result<u64> {
    let mut sizes = connection.prepare_cached(SIZES)?;
    let mut rows = sizes.query([room])?;
    let (mut from, mut bytes) = (next, 0);
    while next - from < limit.messages
        && let Some(row) = rows.next()?
    {
        bytes += ROW_BYTES + row.get::<_, u64>(1)?;
        if row.get::<_, u64>(0)? + 1 != from || bytes > limit.bytes {
            break;
        }
        from -= 1;
    }
    Ok(from)
}

/// The messages of the room `name` with these sequence numbers, as far as they are kept and as much as is read
/// at a time: one run.
pub(super) fn read(
    connection: &Connection,
    plain: &Plain,
    name: &str,
    seqs: Range<u64>,
) -> rusqlite::Result<Vec<Batch>> {
    let run = Run {
        messages: READ_MESSAGES,
        bytes: READ_BYTES,
        ..Run::of(seqs)
    };
    run.read(connection, plain, name)
}

/// The message of the room `name` that was published under `key`.
pub(super) fn find(
    connection: &Connection,
    plain: &Plain,
    name: &str,
    key: &Key,
) -> rusqlite::Result<Option<Found>> {
    let mut find = connection.prepare_cached(FIND)?;
    let mut rows = find.query(params![name, key.as_str()])?;
    let Some(row) = rows.next()? else {
        return Ok(None);
    };
    let clients = row.get::<_, Option<usize>>(7)?.unwrap_or_default();
    let mut batches = Batches::new(plain);
    batches.push(row)?;
    let batch = batches.finish().pop();
    Ok(batch.map(|batch| Found { batch, clients }))
}

/// Notes how many clients got the message of the room `name` with this sequence number.
pub(super) fn set_clients(
    connection: &Connection,
    name: &str,
    seq: u64,
    clients: usize,
) -> rusqlite::Result<()> {
    let update = "UPDATE message SET clients = ?3
        WHERE room = (SELECT id FROM room WHERE name = ?1) AND seq = ?2";
    let mut update = connection.prepare_cached(update)?;
    update.execute(params![name, seq, clients]).map(drop)
}

/// Messages that are read together.
struct Run {
    seqs: Range<u64>,
    messages: u64,
    bytes: usize,
}

impl Run {
    /// All of these.
    fn of(seqs: Range<u64>) -> Self {
        Self {
            seqs,
            messages: u64::MAX,
            bytes: usize::MAX,
        }
    }

    fn read(
        &self,
        connection: &Connection,
        plain: &Plain,
        name: &str,
    ) -> rusqlite::Result<Vec<Batch>> {
        // What a client names may be more than the database counts to.
        let bound = |seq: u64| i64::try_from(seq).unwrap_or(i64::MAX);
        let mut read = connection.prepare_cached(READ)?;
        let mut rows = read.query(params![name, bound(self.seqs.start), bound(self.seqs.end)])?;
        let mut batches = Batches::new(plain);
        let (mut messages, mut bytes) = (0, 0);
        while messages < self.messages
            && bytes < self.bytes
            && let Some(row) = rows.next()?
        {
            if !batches.follows(row)? {
                break;
            }
            messages += 1;
            bytes += batches.push(row)?;
        }
        Ok(batches.finish())
    }
}

/// Batches that are made of rows.
struct Batches<'a> {
    plain: &'a Plain,
    batches: Vec<Batch>,
    builder: BatchBuilder,
    /// What the messages in the builder have in common.
    common: Option<Common>,
    /// The sequence number behind the last row; none before the first.
    next: Option<u64>,
}

struct Common {
    first: MessageId,
    at: i64,
    /// The columns that tell of the author.
    columns: [Option<String>; 3],
    author: Option<Arc<Author>>,
}

impl<'a> Batches<'a> {
    fn new(plain: &'a Plain) -> Self {
        Self {
            plain,
            batches: Vec::new(),
            builder: BatchBuilder::default(),
            common: None,
            next: None,
        }
    }

    /// Whether a row is the next of the same run.
    fn follows(&self, row: &Row<'_>) -> rusqlite::Result<bool> {
        let seq: u64 = row.get(0)?;
        Ok(self.next.is_none_or(|next| next == seq))
    }

    /// Takes a row; returns the bytes of its message.
    fn push(&mut self, row: &Row<'_>) -> rusqlite::Result<usize> {
        let (seq, epoch, at) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let columns = [3, 4, 5].map(|column| row.get_ref(column));
        let [sender, name, key] = columns;
        let columns = [sender?, name?, key?].map(|it| it.as_str_or_null().unwrap_or_default());
        let is_common = self.common.as_ref().is_some_and(|common| {
            (common.first.epoch, common.at) == (epoch, at)
                && common.columns.each_ref().map(|it| it.as_deref()) == columns
        });
        if !is_common {
            // Connections publish by turns.
            let known = self.common.as_ref();
            let known = known.filter(|it| it.columns.each_ref().map(|it| it.as_deref()) == columns);
            let author = match known {
                Some(common) => common.author.clone(),
                None => author(columns),
            };
            self.cut();
            self.common = Some(Common {
                first: MessageId { epoch, seq },
                at,
                columns: columns.map(|it| it.map(str::to_owned)),
                author,
            });
        }
        let (kind, payload) = match row.get_ref(6)? {
            ValueRef::Blob(payload) => (Kind::Binary, payload),
            ValueRef::Text(payload) => (Kind::Text, payload),
            // Written by another program.
            _ => (Kind::Text, &b""[..]),
        };
        self.plain.encode(kind, payload, &mut self.builder);
        self.next = Some(seq + 1);
        Ok(payload.len())
    }

    /// Ends the messages that have something in common.
    fn cut(&mut self) {
        let Some(Common {
            mut first,
            at,
            author,
            ..
        }) = self.common.take()
        else {
            return;
        };
        let time = UNIX_EPOCH + Duration::from_millis(at.try_into().unwrap_or_default());
        while let Some(frames) = self.builder.take() {
            let frames = frames.by(author.clone());
            let batch = Batch::new(first.seq, first, time, frames);
            first.seq += batch.len() as u64;
            self.batches.push(batch);
        }
    }

    fn finish(mut self) -> Vec<Batch> {
        self.cut();
        self.batches
    }
}

/// The author in these columns; what cannot be one counts as none.
fn author([sender, name, key]: [Option<&str>; 3]) -> Option<Arc<Author>> {
    let author = Author {
        connection: sender.and_then(|it| it.parse().ok()),
        name: name.and_then(|it| it.parse().ok()),
        key: key.and_then(|it| Key::unquoted(it).ok()),
    };
    (author != Author::default()).then(|| Arc::new(author))
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::format::testing::plain;
    use crate::store::database::file::DatabaseFile;

    /// A database whose room `/` has these messages: sequence number, time, name and body.
    fn database(messages: &[(u64, i64, Option<&str>, &str)]) -> (TempDir, Connection) {
        let folder = TempDir::new().unwrap();
        let file = DatabaseFile::open(&folder.path().join("x.db")).unwrap();
        let connection = file.connection;
        let room = "INSERT INTO room VALUES (1, '/', 7, 1, ?1, 0, 0, 0)";
        connection
            .execute(room, [messages.last().map(|it| it.0)])
            .unwrap();
        for (seq, at, name, body) in messages {
            let insert = "INSERT INTO message (room, seq, epoch, at, name, body) VALUES (1, ?1, 7, ?2, ?3, ?4)";
            connection
                .execute(insert, params![seq, at, name, body])
                .unwrap();
        }
        (folder, connection)
    }

    /// So many messages of any size.
    fn replay(messages: u64) -> Replay {
        Replay {
            messages,
            bytes: u64::MAX,
        }
    }

    /// The first and last sequence number, and the name, of each batch.
    fn shape(batches: &[Batch]) -> Vec<(u64, u64, Option<String>)> {
        let shape = batches.iter().map(|batch| {
            let name = batch.author().and_then(|it| it.name.as_ref());
            let name = name.map(|it| it.to_string());
            (batch.first_id().seq, batch.last_id().seq, name)
        });
        shape.collect()
    }

    #[test]
    fn what_was_published_together_is_a_batch_and_a_hole_ends_a_run() {
        let (ann, bob) = (Some("Ann"), Some("Bob"));
        let (_folder, database) = database(&[
            (1, 5, ann, "a"),
            (2, 5, ann, "b"),
            (3, 6, ann, "c"),
            (4, 6, bob, "d"),
            (7, 6, bob, "e"),
            (8, 6, bob, "f"),
        ]);
        let read = |seqs| shape(&read(&database, &plain(""), "/", seqs).unwrap());
        let name = |name: &str| Some(name.to_owned());
        let expected = [
            (1, 2, name("Ann")),
            (3, 3, name("Ann")),
            (4, 4, name("Bob")),
        ];
        assert_eq!(read(0..100), expected);
        assert_eq!(read(2..4), [(2, 2, name("Ann")), (3, 3, name("Ann"))]);
        assert_eq!(read(5..u64::MAX), [(7, 8, name("Bob"))]);
        assert_eq!(read(9..100), []);
        // A room begins with its last run.
        let opened = open(&database, &plain(""), "/", replay(1000), 0)
            .unwrap()
            .unwrap();
        assert_eq!(opened.next, MessageId { epoch: 7, seq: 9 });
        assert_eq!(shape(&opened.tail), [(7, 8, name("Bob"))]);
        let opened = open(&database, &plain(""), "/", replay(1), 9)
            .unwrap()
            .unwrap();
        assert_eq!(opened.next, MessageId { epoch: 9, seq: 9 });
        assert_eq!(shape(&opened.tail), [(8, 8, name("Bob"))]);
        assert!(
            open(&database, &plain(""), "/other", replay(1), 9)
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn only_so_much_is_read_at_a_time() {
        let long = "x".repeat(READ_BYTES / 2);
        let short: Vec<_> = (1..=600).map(|seq| (seq, 5, None, "x")).collect();
        let (_folder, database) = database(&short);
        let count = |database: &Connection, seqs| {
            let batches = read(database, &plain(""), "/", seqs).unwrap();
            batches.iter().map(Batch::len).sum::<usize>()
        };
        assert_eq!(count(&database, 1..601), READ_MESSAGES as usize);
        let update = "UPDATE message SET body = ?1 WHERE seq > 10";
        database.execute(update, [&long]).unwrap();
        assert_eq!(count(&database, 1..601), 12);
        // One message in any case.
        let huge = long.repeat(5);
        database.execute(update, [&huge]).unwrap();
        assert_eq!(count(&database, 11..601), 1);
        // And so of a tail.
        let opened = open(&database, &plain(""), "/", replay(1000), 0)
            .unwrap()
            .unwrap();
        let bytes: usize = opened.tail.iter().map(Batch::frame_bytes).sum();
        assert!(
            bytes <= TAIL_BYTES as usize + 100 && bytes > TAIL_BYTES as usize / 2,
            "{bytes}"
        );
    }
}
