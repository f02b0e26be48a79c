//! `--database` after a power cut, which leaves of its files what was synced: a library that is preloaded into the
//! server (powercut.c) keeps just that beside them.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::{interval, sleep};

use crate::chronicle::Chronicle;
use crate::crash::{Disk, kill, start, stop, survive};
use crate::harness::{RawClient, eventually};
use crate::process::{Process, next_line};
use crate::publishing::{Noted, Poster, Seen};
use crate::tools;

/// What a power cut may take with `--store-sync everysec`: a second, and the rest for a busy machine.
const BOUND: Duration = Duration::from_millis(1500);

/// A disk whose unsynced bytes are lost when the server ends.
struct Volatile {
    folder: TempDir,
    library: PathBuf,
    cuts: usize,
}

impl Volatile {
    /// One; none where there is no C compiler, which `WSCAST_TEST_ALL` does not allow.
    fn new() -> Option<Self> {
        let folder = TempDir::new().unwrap();
        let library = folder.path().join("powercut.so");
        let compiling = std::process::Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
            .arg(&library)
            .arg(tools::path("tests/it/powercut.c"))
            .arg("-ldl")
            .status();
        let Ok(status) = compiling else {
            tools::left_out("cc");
            return None;
        };
        assert!(status.success());
        let disk = Self {
            folder,
            library,
            cuts: 0,
        };
        std::fs::create_dir(disk.present()).unwrap();
        std::fs::create_dir(disk.shadow()).unwrap();
        Some(disk)
    }

    /// The folder of the files.
    fn present(&self) -> PathBuf {
        self.numbered(self.cuts)
    }

    /// The folder of what is synced of them.
    fn shadow(&self) -> PathBuf {
        self.numbered(self.cuts + 1)
    }

    /// While this file exists, no sync ends.
    fn standstill(&self) -> PathBuf {
        self.folder.path().join("standstill")
    }

    fn numbered(&self, number: usize) -> PathBuf {
        let folder = self.folder.path().canonicalize().unwrap();
        folder.join(number.to_string())
    }
}

impl Disk for Volatile {
    fn database(&self) -> PathBuf {
        self.present().join("rooms.db")
    }

    fn prepare(&self, server: &mut Command) {
        server
            .env("LD_PRELOAD", &self.library)
            .env("POWERCUT_DISK", self.present())
            .env("POWERCUT_SHADOW", self.shadow())
            .env("POWERCUT_STANDSTILL", self.standstill());
    }

    fn ended(&mut self) {
        std::fs::remove_dir_all(self.present()).unwrap();
        self.cuts += 1;
        std::fs::create_dir(self.shadow()).unwrap();
        for file in std::fs::read_dir(self.present()).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), self.shadow().join(file.file_name())).unwrap();
        }
    }
}

/// Publishes `count` messages, one each `pace`.
async fn publish(server: &Process, count: usize, pace: Duration) -> Noted {
    let poster = Poster::new(server.address);
    let mut noted = Noted::default();
    let mut pace = interval(pace);
    for number in 0..count {
        pace.tick().await;
        let text = number.to_string();
        let (_, id) = poster.post(0, &text).await.unwrap();
        noted.seen.push(Seen {
            room: 0,
            id,
            text,
            at: Instant::now(),
        });
    }
    noted
}

/// Publishes so, and cuts the power after `silence`; returns how many messages are lost.
async fn slowly(count: usize, pace: Duration, silence: Duration) -> usize {
    let Some(mut disk) = Volatile::new() else {
        return 0;
    };
    let server = start(&disk, "everysec").await;
    let noted = publish(&server, count, pace).await;
    sleep(silence).await;
    let end = kill(server).await;
    disk.ended();
    let _server = start(&disk, "everysec").await;
    let mut chronicle = Chronicle::default();
    chronicle.check(&disk.database(), &noted, end, BOUND);
    println!("one each {pace:?}, then {silence:?}: {chronicle}");
    chronicle.lost
}

/// Cuts the power in the middle of flat-out publishing.
async fn cuts(sync: &str, crashes: usize) {
    let bound = match sync {
        "always" => Duration::ZERO,
        _ => BOUND,
    };
    if let Some(disk) = Volatile::new() {
        survive(disk, sync, crashes, bound).await;
    }
}

#[tokio::test]
async fn a_power_cut_loses_nothing_with_always() {
    cuts("always", 2).await;
}

#[tokio::test]
async fn a_power_cut_loses_a_second_with_everysec() {
    cuts("everysec", 2).await;
}

#[tokio::test]
async fn a_power_cut_loses_nothing_of_a_room_that_has_gone_quiet() {
    let lost = slowly(5, Duration::from_millis(1), BOUND).await;
    assert_eq!(lost, 0);
}

#[tokio::test]
async fn a_power_cut_loses_a_second_of_a_slow_room() {
    slowly(60, Duration::from_millis(50), Duration::ZERO).await;
}

#[tokio::test]
async fn a_clean_end_syncs_what_off_has_not() {
    let Some(mut disk) = Volatile::new() else {
        return;
    };
    let server = start(&disk, "off").await;
    let noted = publish(&server, 100, Duration::from_millis(1)).await;
    // All is in the file, and nothing is synced or left to be written, as after a checkpoint of the server.
    let other = Connection::open(disk.database()).unwrap();
    other.pragma_update(None, "synchronous", "OFF").unwrap();
    let count = "SELECT count(*) FROM message";
    eventually("all is written", || {
        other.query_row(count, [], |row| row.get(0)) == Ok(noted.seen.len())
    })
    .await;
    let checkpoint = "PRAGMA wal_checkpoint(PASSIVE)";
    let (pages, moved): (i64, i64) = other
        .query_row(checkpoint, [], |row| Ok((row.get(1)?, row.get(2)?)))
        .unwrap();
    assert_eq!(pages, moved);
    // While another program has it open, SQLite does not sync it at the end by itself.
    let end = stop(server).await;
    drop(other);
    disk.ended();
    let _server = start(&disk, "off").await;
    Chronicle::default().check(&disk.database(), &noted, end, Duration::ZERO);
}

#[tokio::test]
#[ignore = "long: 10 power cuts for each --store-sync"]
async fn a_database_survives_10_power_cuts() {
    for sync in ["always", "everysec"] {
        cuts(sync, 10).await;
    }
    for _ in 0..10 {
        let silence = Duration::from_millis(fastrand::u64(0..1000));
        slowly(20, Duration::from_millis(50), silence).await;
    }
}

/// A disk that reports no error, and does not end what it was asked to do.
async fn stand_still(policy: &str) {
    let Some(disk) = Volatile::new() else {
        return;
    };
    let mut server = start(&disk, policy).await;
    let post = async |server: &Process| server.request("POST /", "", "hi").await.code;
    assert_eq!(post(&server).await, 201);
    std::fs::write(disk.standstill(), "").unwrap();
    let mut waiting = RawClient::connect(server.address).await;
    let request =
        "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi";
    waiting.send(request).await;
    next_line(&mut server.log, "has not answered for 5 s").await;
    let ready = server.request("GET /readyz", "", "").await;
    let (refused, code) = match policy {
        "always" => (503, 503),
        _ => (201, 200),
    };
    assert_eq!(
        (post(&server).await, ready.code),
        (refused, code),
        "{policy}"
    );
    assert!(ready.body.contains("has not answered"), "{}", ready.body);
    std::fs::remove_file(disk.standstill()).unwrap();
    next_line(&mut server.log, "can be written again").await;
    assert_eq!(waiting.answer().await.code, 201);
    assert_eq!(post(&server).await, 201);
    assert_eq!(server.request("GET /readyz", "", "").await.body, "ok");
}

#[tokio::test]
async fn a_disk_that_stands_still_is_a_fault_until_it_goes_on() {
    tokio::join!(stand_still("always"), stand_still("everysec"));
}
