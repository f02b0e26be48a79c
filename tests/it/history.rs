//! `GET /<room>?history`.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::time::{interval, timeout};
use wscast::config::Size;

use crate::harness::*;
use crate::process::Process;

async fn history(server: &TestServer, query: &str) -> (Vec<Value>, bool) {
    let line = format!("GET /?history{query}");
    let fields = "Accept: application/json\r\n";
    let answer = server.request(&line, fields, "").await;
    assert_eq!(answer.code, 200, "{answer:?}");
    assert_eq!(answer.field("cache-control"), Some("no-store"));
    let messages = serde_json::from_str(&answer.body).unwrap();
    (messages, answer.field("wscast-resumed") == Some("true"))
}

#[tokio::test]
async fn the_history_can_be_read() {
    let server = TestServer::quiet(|config| config.history.limit = 3).await;
    let mut publisher = server.raw_websocket().await;
    // The first four, in one write, are one batch, of which the history remembers two messages.
    for texts in [&["1", "2", "3", "4"][..], &["5"]] {
        let frames = texts.iter().map(|text| frame(FIN | TEXT, text.as_bytes()));
        publisher.send(frames.collect::<Vec<_>>().concat()).await;
        for _ in texts {
            publisher.read_frame().await;
        }
    }
    let (all, resumed) = history(&server, "").await;
    let texts: Vec<&Value> = all.iter().map(|it| &it["text"]).collect();
    assert_eq!(texts, ["3", "4", "5"]);
    assert!(!resumed);
    assert_eq!(all[0]["type"], "message");
    let id = all[0]["id"].as_str().unwrap();
    let since = format!("&since={id}");
    assert_eq!(history(&server, &since).await, (all[1..].to_vec(), true));
    assert_eq!(
        history(&server, &format!("{since}&limit=1")).await.0,
        all[1..2]
    );
    assert_eq!(history(&server, "&limit=2").await.0, all[1..]);
    assert_eq!(history(&server, "&since=1-1&limit=2").await.0, all[..2]);
    let before = format!("&before={}", all[2]["id"].as_str().unwrap());
    assert_eq!(history(&server, &before).await.0, all[..2]);
    assert_eq!(
        history(&server, &format!("{before}&limit=1")).await.0,
        all[1..2]
    );
    assert_eq!(history(&server, "&limit=99999999").await.0, all);
    assert_eq!(history(&server, "&since=1-1").await, (all, false));
}

#[tokio::test]
async fn an_invalid_history_query_is_refused_with_the_reason() {
    let server = TestServer::quiet(|_| {}).await;
    for query in [
        "&since=x",
        "&before=x",
        "&since=1-1&before=1-1",
        "&limit=0",
        "&limit=-1",
        "&limit=many",
    ] {
        let answer = server
            .request(&format!("GET /?history{query}"), "", "")
            .await;
        let lines = answer.body.lines().count();
        assert_eq!((answer.code, lines), (400, 1), "{query}: {answer:?}");
    }
}

#[tokio::test]
async fn reading_a_room_does_not_create_it() {
    let server = TestServer::quiet(|_| {}).await;
    let answer = server.request("GET /nowhere?history", "", "").await;
    assert_eq!((answer.code, answer.body.as_str()), (200, "[\n]\n"));
    let stream = "Accept: text/event-stream\r\n";
    for (path, more) in [("/?history", ""), ("/", stream)] {
        let answer = server.request(&format!("HEAD {path}"), more, "").await;
        assert_eq!((answer.code, answer.body.as_str()), (200, ""), "{path}");
    }
    assert_eq!(server.monitor.rooms(), 0);
}

/// Posts `messages` texts of `size` bytes to the room `/`.
pub(crate) async fn fill(address: SocketAddr, messages: usize, size: usize) {
    let mut publisher = RawClient::connect(address).await;
    let text = "x".repeat(size);
    for _ in 0..messages {
        let fields = "Connection: keep-alive\r\n";
        let answer = publisher.request("POST /", fields, &text).await;
        assert_eq!(answer.code, 201, "{answer:?}");
    }
}

/// A client that has asked for the history, and read the head of the answer alone.
pub(crate) async fn unread(address: SocketAddr) -> RawClient {
    let mut client = RawClient::with_small_window(address).await;
    let request = "GET /?history HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    client.send(request).await;
    assert!(client.read_head().await.contains(" 200 OK"));
    client
}

/// Decodes a chunked body.
pub(crate) fn messages_in(chunked: &[u8]) -> Vec<Value> {
    let (mut json, mut rest) = (Vec::new(), chunked);
    loop {
        let end = rest.iter().position(|it| *it == b'\r').unwrap();
        let size = str::from_utf8(&rest[..end]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        json.extend_from_slice(&rest[end + 2..][..size]);
        rest = &rest[end + 2 + size + 2..];
        if size == 0 {
            return serde_json::from_slice(&json).unwrap();
        }
    }
}

#[tokio::test]
async fn messages_evicted_before_their_turn_are_a_gap_in_the_array() {
    let server = TestServer::quiet(|config| config.history.limit = 500).await;
    fill(server.address, 500, 16_000).await;
    let mut reader = unread(server.address).await;
    fill(server.address, 400, 16_000).await;
    let messages = messages_in(&reader.read_to_end().await);
    let (mut expected, mut gaps) = (1, 0);
    for message in &messages {
        if message["type"] == "gap" {
            expected += message["missed"].as_u64().unwrap();
            gaps += 1;
        } else {
            let id = message["id"].as_str().unwrap();
            let (_, seq) = id.split_once('-').unwrap();
            assert_eq!(seq, expected.to_string());
            expected += 1;
        }
    }
    // What was published later does not belong to the answer.
    assert_eq!((expected, gaps), (501, 1));
}

#[tokio::test]
async fn three_hundred_unread_answers_take_under_20_mib() {
    for (messages, size) in [(300, 20_000), (1000, 100)] {
        let server = Process::start("--mode broadcast --welcome= --prefix=").await;
        fill(server.address, messages, size).await;
        // The first ones take what all share.
        let mut clients = Vec::new();
        for _ in 0..20 {
            clients.push(unread(server.address).await);
        }
        let before = server.memory();
        for _ in 0..300 {
            clients.push(unread(server.address).await);
        }
        let memory = server.memory().saturating_sub(before);
        assert!(memory < 20 << 20, "{memory} bytes");
    }
}

/// Reads the history at `rate` bytes a second; returns how many messages it has.
async fn read_at(address: SocketAddr, rate: usize) -> usize {
    let mut client = unread(address).await;
    let tick = Duration::from_millis(20);
    let mut pace = interval(tick);
    let mut piece = vec![0; rate * 20 / 1000];
    let mut body = Vec::new();
    loop {
        pace.tick().await;
        let read = timeout(PATIENCE, client.stream.read(&mut piece)).await;
        match read.unwrap().unwrap() {
            0 => return messages_in(&body).len(),
            length => body.extend_from_slice(&piece[..length]),
        }
    }
}

#[tokio::test]
async fn a_history_that_is_read_slowly_arrives_whole() {
    let server = TestServer::quiet(|config| {
        config.times.open_timeout = millis(300);
        config.times.write_timeout = millis(300);
    })
    .await;
    fill(server.address, 250, 16_000).await;
    assert_eq!(read_at(server.address, 2_000_000).await, 250);
}

#[tokio::test]
#[ignore = "long: 22 MB at 50 kB/s"]
async fn a_history_of_22_mb_arrives_whole_at_50_kb_a_second() {
    let server = TestServer::quiet(|config| {
        config.history.bytes = Size::from(64 << 20);
        config.times = wscast::config::Config::default().times;
    })
    .await;
    fill(server.address, 1000, 22_000).await;
    assert_eq!(read_at(server.address, 50_000).await, 1000);
}

#[tokio::test]
async fn an_answer_that_stands_still_is_cut_at_the_write_timeout() {
    let server = TestServer::quiet(|config| {
        config.times.write_timeout = millis(200);
        config.times.open_timeout = millis(600_000);
        config.times.close_timeout = millis(600_000);
    })
    .await;
    fill(server.address, 500, 16_000).await;
    let reader = unread(server.address).await;
    let start = Instant::now();
    eventually("the place is free", || server.monitor.connections() == 0).await;
    // The kernel would end it, too, 5 seconds after the write timeout.
    assert!(start.elapsed() < Duration::from_secs(5));
    drop(reader);
}

#[tokio::test]
async fn an_upload_is_cut_when_it_stands_still_and_not_for_its_length() {
    let server = TestServer::quiet(|config| config.times.open_timeout = millis(300)).await;
    let head = "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20\r\n\r\n";
    let mut slow = server.raw().await;
    slow.send(head).await;
    let mut pace = interval(Duration::from_millis(50));
    for _ in 0..20 {
        pace.tick().await;
        slow.send("x").await;
    }
    assert_eq!(slow.answer().await.code, 201);
    let mut still = server.raw().await;
    still.send(format!("{head}xxx")).await;
    let answer = still.answer().await;
    assert_eq!(
        (answer.code, &*answer.body),
        (408, "the request took too long: see --open-timeout\n")
    );
    assert_eq!(answer.field("connection"), Some("close"));
}
