//! A database on a disk that is full, and then is not: a limit on the size of files, which is lifted.

use std::process::Command;

use serde_json::{Value, json};

use crate::database::Place;
use crate::harness::*;
use crate::process::{Process, started_by};

/// A message of which a few hundred are too many.
fn text(number: usize) -> String {
    format!("{number:05}{}", "x".repeat(10_000))
}

/// A server whose files may have 3 MB.
async fn serve(place: &Place, options: &str) -> Process {
    let file = place.file();
    let options = format!(
        "--mode broadcast --host 127.0.0.1 --port 0 --welcome= --prefix= --database {} {options}",
        file.display()
    );
    Process::spawn(started_by("prlimit --fsize=3000000:unlimited", &options)).await
}

fn lift_limit(server: &Process) {
    let pid = server.id().to_string();
    let lifted = Command::new("prlimit")
        .args(["--pid", &pid, "--fsize=unlimited"])
        .status();
    assert!(lifted.unwrap().success());
}

/// Publishes messages until the answer is not 201, or `readyz` has the fault; returns the ids.
async fn fill(server: &Process) -> Vec<String> {
    let mut client = RawClient::connect(server.address).await;
    let mut ids = Vec::new();
    for number in 0..1000 {
        let answer = client.request("POST /", ALIVE, text(number)).await;
        if answer.code != 201 {
            assert_eq!(answer.code, 503);
            assert_eq!(answer.field("retry-after"), Some("1"));
            assert_eq!(answer.body, "the store is unavailable, try again later\n");
            return ids;
        }
        ids.push(answer.json()["id"].as_str().unwrap().to_owned());
        if server.request("GET /readyz", "", "").await.body != "ok" {
            return ids;
        }
    }
    panic!("the disk is never full");
}

/// Reads events until the status of the store comes; returns the ids of the messages before it.
async fn status(client: &mut Client, expected: &str) -> Vec<String> {
    let mut ids = Vec::new();
    loop {
        let event = client.event().await;
        match event["type"].as_str().unwrap() {
            "status" => {
                assert_eq!(event, json!({"type": "status", "store": expected}));
                return ids;
            }
            "message" => ids.push(event["id"].as_str().unwrap().to_owned()),
            _ => {}
        }
    }
}

/// Stops the server, and returns the ids of all messages that a new one gives.
async fn ids_after_restart(mut server: Process, place: &Place) -> Vec<String> {
    server.signal("-TERM").await;
    assert_eq!(server.exit_code().await, Some(0));
    let file = place.file();
    let server = Process::start(&format!("--mode broadcast --database {}", file.display())).await;
    let history = server
        .request("GET /?history&limit=10000", "", "")
        .await
        .json();
    let messages = history.as_array().unwrap().iter();
    messages
        .map(|it| it["id"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn with_always_or_refuse_messages_are_refused_until_there_is_room_and_none_is_lost() {
    for options in ["--store-sync always", "--on-store-error refuse"] {
        let place = Place::new();
        let mut server = serve(&place, options).await;
        let mut json = Client::json(server.address, "/").await;
        let (mut plain, _) = Client::connect(server.address, "/").await.unwrap();
        let mut acknowledged = fill(&server).await;
        crate::process::next_line(&mut server.log, "messages are refused until it can").await;
        let mut seen = status(&mut json, "unavailable").await;
        let ready = server.request("GET /readyz", "", "").await;
        assert_eq!(ready.code, 503);
        assert!(
            ready.body.contains("cannot be written") && ready.body.contains("has room"),
            "{}",
            ready.body
        );
        assert_eq!(server.request("GET /healthz", "", "").await.code, 200);
        assert_eq!(server.request("POST /", "", "refused").await.code, 503);
        json.send("refused").await;
        let error = loop {
            let event = json.event().await;
            match event["type"].as_str().unwrap() {
                "message" => seen.push(event["id"].as_str().unwrap().to_owned()),
                _ => break event,
            }
        };
        let expected =
            json!({"type": "error", "code": "unavailable", "message": 1, "retry_after": 1.0});
        assert_eq!(error, expected);
        plain.send("refused").await;
        let reason = loop {
            if let Some(close) = close_of(plain.next().await) {
                break close;
            }
        };
        assert_eq!(
            reason,
            (1013, "store unavailable: a message was not taken".into())
        );

        lift_limit(&server);
        seen.extend(status(&mut json, "ok").await);
        crate::process::next_line(&mut server.log, "can be written again, after").await;
        assert_eq!(server.request("GET /readyz", "", "").await.body, "ok");
        let answer = server.request("POST /", "", "last").await;
        assert_eq!(answer.code, 201);
        acknowledged.push(answer.json()["id"].as_str().unwrap().to_owned());
        seen.push(json.event().await["id"].as_str().unwrap().to_owned());
        assert_eq!(seen, acknowledged, "{options}");
        drop(json);
        assert_eq!(ids_after_restart(server, &place).await, acknowledged);
    }
}

fn close_of(message: tokio_tungstenite::tungstenite::Message) -> Option<(u16, String)> {
    match message {
        tokio_tungstenite::tungstenite::Message::Close(Some(close)) => {
            Some((close.code.into(), close.reason.to_string()))
        }
        _ => None,
    }
}

#[tokio::test]
async fn with_continue_messages_go_on_from_memory_and_are_written_when_there_is_room() {
    let place = Place::new();
    let mut server = serve(&place, "").await;
    let mut json = Client::json(server.address, "/").await;
    json.event().await;
    let mut ids = fill(&server).await;
    crate::process::next_line(&mut server.log, "messages are in memory alone until it can").await;
    let mut seen = status(&mut json, "unavailable").await;
    let ready = server.request("GET /readyz", "", "").await;
    assert_eq!(ready.code, 200);
    assert!(
        ready.body.starts_with("ok, but the store"),
        "{}",
        ready.body
    );
    for number in 0..50 {
        let answer = server.request("POST /", "", text(number)).await;
        assert_eq!(answer.code, 201);
        ids.push(answer.json()["id"].as_str().unwrap().to_owned());
    }
    // Other rooms, and what is neither in memory nor in the file yet.
    assert_eq!(server.request("POST /new", "", "hi").await.code, 201);
    let history = server.request("GET /new?history", "", "").await.json();
    assert_eq!(history[0]["text"], "hi");
    lift_limit(&server);
    seen.extend(status(&mut json, "ok").await);
    while seen.len() < ids.len() {
        seen.push(json.event().await["id"].as_str().unwrap().to_owned());
    }
    assert_eq!(seen, ids);
    drop(json);
    // One epoch: nothing is lost.
    let (epoch, _) = ids[0].split_once('-').unwrap();
    assert!(ids.iter().all(|it| it.starts_with(epoch)));
    assert_eq!(ids_after_restart(server, &place).await, ids);
}

#[tokio::test]
async fn what_memory_forgot_meanwhile_begins_a_new_epoch() {
    let place = Place::new();
    let mut server = serve(&place, "--history-total 300000").await;
    let mut json = Client::json(server.address, "/").await;
    let ids = fill(&server).await;
    status(&mut json, "unavailable").await;
    for number in 0..100 {
        assert_eq!(server.request("POST /", "", text(number)).await.code, 201);
    }
    // Some of what came behind this is in neither place: before that has a new epoch, too.
    let line = format!("/?since={}", ids[10]);
    let mut client = Client::json(server.address, &line).await;
    assert_eq!(client.event().await["resumed"], false);
    drop(client);
    lift_limit(&server);
    status(&mut json, "ok").await;
    crate::process::next_line(&mut server.log, "can be written again").await;
    crate::process::next_line(&mut server.log, "messages of that time are lost").await;
    let answer = server.request("POST /", "", "new").await.json();
    let id = answer["id"].as_str().unwrap();
    let part = |id: &str| {
        let (epoch, seq) = id.split_once('-').unwrap();
        (epoch.parse::<u64>().unwrap(), seq.parse::<u64>().unwrap())
    };
    let (first, last) = (part(&ids[0]), part(id));
    assert!(last.0 > first.0, "{id}");
    assert_eq!(last.1, ids.len() as u64 + 101);
    // What came behind this is partly lost; what is there is given.
    let since = &ids[10];
    let mut client = Client::json(server.address, &format!("/?since={since}")).await;
    let welcome = client.event().await;
    assert_eq!(
        (&welcome["resumed"], &welcome["missed"]),
        (&json!(false), &Value::Null)
    );
    let mut seqs = Vec::new();
    while seqs.last() != Some(&last.1) {
        let event = client.event().await;
        match event["type"].as_str().unwrap() {
            "message" => seqs.push(part(event["id"].as_str().unwrap()).1),
            "gap" => seqs.push(event["missed"].as_u64().unwrap() + seqs.last().unwrap()),
            other => panic!("{other}"),
        }
    }
    let expected: Vec<u64> = (seqs[0]..=last.1).collect();
    let given = seqs.len();
    assert!(given > 30 && given < expected.len(), "{given}");
    assert!(seqs.is_sorted());
    // The next one resumes.
    let mut resumed = Client::json(server.address, &format!("/?since={id}")).await;
    assert_eq!(resumed.event().await["resumed"], true);
    server.signal("-TERM").await;
    assert_eq!(server.exit_code().await, Some(0));
    // A restart changes nothing of that.
    let file = place.file();
    let server = Process::start(&format!("--mode broadcast --database {}", file.display())).await;
    let mut resumed = Client::json(server.address, &format!("/?since={id}")).await;
    assert_eq!(resumed.event().await["resumed"], true);
    let mut lost = Client::json(server.address, &format!("/?since={since}")).await;
    assert_eq!(lost.event().await["resumed"], false);
}

/// A file system in memory; unmounted with this value.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    /// One of 3 MB, where this user may mount one.
    fn mount(folder: &std::path::Path) -> Option<Self> {
        let mount = ["-t", "tmpfs", "-o", "size=3m", "tmpfs"];
        let mounted = Command::new("mount").args(mount).arg(folder).output();
        let is_mounted = mounted.is_ok_and(|it| it.status.success());
        is_mounted.then(|| Self(folder.to_owned()))
    }

    fn grow(&self) {
        let remount = ["-o", "remount,size=64m"];
        let grown = Command::new("mount").args(remount).arg(&self.0).status();
        assert!(grown.unwrap().success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily, as a test that fails leaves a server there for a moment.
        let unmount = Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(unmount.unwrap().success());
    }
}

#[tokio::test]
async fn a_file_system_that_is_full_loses_nothing_that_was_acknowledged() {
    let place = Place::new();
    let Some(disk) = SmallDisk::mount(place.file().parent().unwrap()) else {
        eprintln!("left out: this user may not mount a file system");
        return;
    };
    let file = place.file();
    let options = format!(
        "--mode broadcast --database {} --store-sync always",
        file.display()
    );
    let mut server = Process::start(&options).await;
    let mut acknowledged = fill(&server).await;
    let ready = server.request("GET /readyz", "", "").await;
    assert!(
        ready.body.contains("is full") && ready.body.contains("make room"),
        "{}",
        ready.body
    );
    disk.grow();
    crate::process::next_line(&mut server.log, "can be written again, after").await;
    let answer = server.request("POST /", "", "last").await;
    acknowledged.push(answer.json()["id"].as_str().unwrap().to_owned());
    assert_eq!(ids_after_restart(server, &place).await, acknowledged);
}
