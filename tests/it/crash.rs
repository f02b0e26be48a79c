//! `--database` after kill -9 and after a clean end: what is there, under which ids, and who can resume.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::process::Command;

use crate::chronicle::{Chronicle, End};
use crate::harness::Client;
use crate::process::{Process, wscast};
use crate::publishing::{Follower, Load, Noted, Poster, ROOMS, parse};

/// What kill -9 may take: what the writer has not yet taken. That is below 10 ms where the machine is not busy.
const BOUND: Duration = Duration::from_millis(500);

/// The folder of a database, and how it survives.
pub(crate) trait Disk {
    /// Where the database is.
    fn database(&self) -> PathBuf;

    /// Changes how a server is started.
    fn prepare(&self, _server: &mut Command) {}

    /// The server has ended.
    fn ended(&mut self) {}
}

/// What one process writes, the next one reads.
struct Kept(TempDir);

impl Disk for Kept {
    fn database(&self) -> PathBuf {
        self.0.path().join("rooms.db")
    }
}

/// The server of a database.
pub(crate) async fn start(disk: &impl Disk, sync: &str) -> Process {
    let database = disk.database();
    let mut command = wscast(&format!(
        "--host 127.0.0.1 --port 0 --mode broadcast --database {} --store-sync {sync} \
         --retain-messages 100000000",
        database.display()
    ));
    disk.prepare(&mut command);
    Process::spawn(command).await
}

/// Kills a server.
pub(crate) async fn kill(mut server: Process) -> End {
    let end = End::Killed(Instant::now());
    server.child.kill().await.unwrap();
    end
}

/// Stops a server as an administrator does.
pub(crate) async fn stop(mut server: Process) -> End {
    server.signal("-TERM").await;
    assert_eq!(server.exit_code().await, Some(0));
    End::Stopped
}

/// Has a database outlive `crashes` servers that are killed in the middle of flat-out publishing, and one that ends
/// cleanly. Of messages older than `bound` none may be lost.
pub(crate) async fn survive(mut disk: impl Disk, sync: &str, crashes: usize, bound: Duration) {
    let mut chronicle = Chronicle::default();
    let mut before = None;
    for life in 0..=crashes {
        let server = start(&disk, sync).await;
        let followers = begin(&server, &disk, sync, &mut chronicle, before, bound).await;
        let load = Load::start(server.address, &life.to_string(), followers).await;
        // Beyond the bound, too.
        let longest = bound + Duration::from_millis(700);
        load.run_for(longest.mul_f64(fastrand::f64())).await;
        let end = match life == crashes / 2 {
            true => stop(server).await,
            false => kill(server).await,
        };
        disk.ended();
        before = Some((end, load.noted().await));
    }
    let server = start(&disk, sync).await;
    let followers = begin(&server, &disk, sync, &mut chronicle, before, bound).await;
    for Follower {
        mut client,
        room,
        mut last,
    } in followers
    {
        // It gets the rest.
        while last.1 <= chronicle.last[room] {
            let id = parse(&client.event().await["id"]);
            assert_eq!(id.1, last.1 + 1, "{id:?} in {}", ROOMS[room]);
            last = id;
        }
    }
    chronicle.check_whole(&disk.database());
    println!("{sync}: {chronicle}");
}

/// Checks what a new server has of the time `before` it, which ids it gives, and that clients resume if nothing can be
/// missing.
async fn begin(
    server: &Process,
    disk: &impl Disk,
    sync: &str,
    chronicle: &mut Chronicle,
    before: Option<(End, Noted)>,
    bound: Duration,
) -> Vec<Follower> {
    let Some((end, noted)) = before else {
        return begin_rooms(server).await;
    };
    let is_certain = end == End::Stopped || sync == "always";
    chronicle.check(&disk.database(), &noted, end, bound);
    let poster = Poster::new(server.address);
    let mut followers = Vec::new();
    for (room, path) in ROOMS.iter().enumerate() {
        let text = format!("{path} behind {}", chronicle.last[room]);
        let (code, newest) = poster.post(room, &text).await.unwrap();
        assert_eq!((code, newest.1), (201, chronicle.last[room] + 1));
        let epoch = chronicle.epoch[room];
        match is_certain {
            true => assert_eq!(newest.0, epoch, "the epoch of {path}"),
            false => assert!(newest.0 > epoch, "{newest:?} after epoch {epoch}"),
        }
        let mut last = noted.followed[room];
        let since = format!("{path}?since={}-{}", last.0, last.1);
        let mut client = Client::json(server.address, &since).await;
        let welcome = client.event().await;
        assert_eq!(welcome["resumed"], is_certain, "{end:?}: {welcome}");
        assert_eq!(parse(&welcome["last_id"]), newest);
        if !is_certain {
            // Instead, it gets what a new client gets.
            last = parse(&client.event().await["id"]);
            assert_eq!(last.1, newest.1.saturating_sub(999).max(1));
        }
        followers.push(Follower { client, room, last });
        // A second try publishes nothing twice.
        let mut seen = noted.seen.iter().rev();
        let posted = seen.find(|it| it.room == room && chronicle.has(&it.text, "poster"));
        if let Some(posted) = posted {
            let again = poster.post(room, &posted.text).await;
            assert_eq!(again, Some((200, posted.id)));
        }
    }
    for (room, text) in &noted.unanswered {
        let (code, _) = poster.post(*room, text).await.unwrap();
        assert!([200, 201].contains(&code), "{code} for {text}");
    }
    followers
}

/// The first message of each room, and its follower.
async fn begin_rooms(server: &Process) -> Vec<Follower> {
    let poster = Poster::new(server.address);
    let mut followers = Vec::new();
    for (room, path) in ROOMS.iter().enumerate() {
        let text = format!("first of {path}");
        let (_, first) = poster.post(room, &text).await.unwrap();
        let mut client = Client::json(server.address, path).await;
        client.event().await;
        let last = parse(&client.event().await["id"]);
        assert_eq!(last, first);
        followers.push(Follower { client, room, last });
    }
    followers
}

async fn kills(sync: &str, crashes: usize) {
    let bound = match sync {
        "always" => Duration::ZERO,
        _ => BOUND,
    };
    survive(Kept(TempDir::new().unwrap()), sync, crashes, bound).await;
}

#[tokio::test]
async fn kill_9_loses_nothing_with_always() {
    kills("always", 3).await;
}

#[tokio::test]
async fn kill_9_loses_only_the_newest_with_everysec_and_no_id_repeats() {
    kills("everysec", 3).await;
}

#[tokio::test]
async fn kill_9_loses_only_the_newest_with_off_and_no_id_repeats() {
    kills("off", 3).await;
}

#[tokio::test]
#[ignore = "long: 20 crashes for each --store-sync"]
async fn a_database_survives_20_crashes() {
    for sync in ["always", "everysec", "off"] {
        kills(sync, 20).await;
    }
}
