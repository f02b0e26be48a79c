//! What is known of rooms over the lives of many servers, and a database compared with it.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};

use crate::publishing::{Id, Noted, ROOMS};

/// How a server ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum End {
    Killed(Instant),
    Stopped,
}

/// What is known of all rooms over the lives of many servers.
#[derive(Debug, Default)]
pub(crate) struct Chronicle {
    /// The texts of all ids that were ever seen.
    texts: HashMap<(usize, Id), String>,
    /// All texts that are kept.
    kept: HashSet<String>,
    /// The last message that is kept of each room.
    pub(crate) last: [u64; ROOMS.len()],
    /// The newest epoch that was seen in each room.
    pub(crate) epoch: [u64; ROOMS.len()],
    /// How many messages were lost, and the largest age of one.
    pub(crate) lost: usize,
    worst: Duration,
}

impl Chronicle {
    fn note(&mut self, room: usize, id: Id, text: &str) {
        self.epoch[room] = self.epoch[room].max(id.0);
        let known = self.texts.entry((room, id));
        let known = known.or_insert_with(|| text.to_owned());
        assert_eq!(known, text, "{id:?} of {} has two texts", ROOMS[room]);
    }

    /// Compares a database, which a server has just opened, with what was seen before `end`. Messages may be lost
    /// only if they are younger than `bound`.
    pub(crate) fn check(&mut self, database: &Path, noted: &Noted, end: End, bound: Duration) {
        for seen in &noted.seen {
            self.note(seen.room, seen.id, &seen.text);
        }
        let connection =
            Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        let checked: String = connection
            .query_row("PRAGMA integrity_check", [], |row| row.get(0))
            .unwrap();
        assert_eq!(checked, "ok");
        let select = "SELECT epoch, seq, body FROM message
            WHERE room = (SELECT id FROM room WHERE name = ?1) AND seq > ?2 ORDER BY seq";
        let mut select = connection.prepare(select).unwrap();
        let before = self.last;
        let mut ids = HashSet::new();
        for room in 0..ROOMS.len() {
            let mut rows = select.query((ROOMS[room], before[room])).unwrap();
            while let Some(row) = rows.next().unwrap() {
                let (epoch, seq) = (row.get(0).unwrap(), row.get(1).unwrap());
                let text: String = row.get(2).unwrap();
                assert_eq!(seq, self.last[room] + 1, "a hole in {}", ROOMS[room]);
                self.last[room] = seq;
                self.note(room, (epoch, seq), &text);
                assert!(self.kept.insert(text.clone()), "{text:?} is there twice");
                ids.insert((room, (epoch, seq)));
            }
        }
        for seen in &noted.seen {
            if seen.id.1 <= before[seen.room] || ids.contains(&(seen.room, seen.id)) {
                continue;
            }
            let End::Killed(when) = end else {
                panic!("{seen:?} is lost by a clean end");
            };
            let age = when.saturating_duration_since(seen.at);
            assert!(age < bound, "{seen:?} is lost, {age:?} old");
            self.lost += 1;
            self.worst = self.worst.max(age);
        }
    }

    /// Whether a text is kept and has `part` in it.
    pub(crate) fn has(&self, text: &str, part: &str) -> bool {
        text.contains(part) && self.kept.contains(text)
    }

    /// All that was kept once is there still.
    pub(crate) fn check_whole(&self, database: &Path) {
        let connection =
            Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        let mut select = connection.prepare("SELECT text FROM history").unwrap();
        let texts = select.query_map([], |row| row.get(0)).unwrap();
        let texts: HashSet<String> = texts.map(Result::unwrap).collect();
        let gone: Vec<_> = self.kept.difference(&texts).take(3).collect();
        assert!(gone.is_empty(), "kept once, and gone: {gone:?}");
    }
}

impl fmt::Display for Chronicle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (lost, all, worst) = (self.lost, self.texts.len(), self.worst);
        write!(f, "{lost} of {all} messages lost, the oldest {worst:?} old")
    }
}
