//! The logs in a store: opened, read beyond memory, forgotten, begun anew.

#![cfg(test)]

use std::sync::Arc;

use serde_json::{Value, json};

use super::{expect, json_client, post, queued, serve};
use crate::config::Size;
use crate::harness::*;
use crate::store::NumberedBy;
use crate::store::double::Double;

#[tokio::test]
async fn what_the_feed_has_lost_is_filled_in_and_what_it_repeats_is_passed_over() {
    let double = Double::new(NumberedBy::Store);
    let server = serve(&double, |_| {}).await;
    let (mut client, _) = json_client(&server, "/").await;
    let mut plain = server.client().await;
    double.keep_undelivered("/", "lost");
    double.keep_undelivered("/", "lost, too");
    client.send("own").await;
    queued(&double, &["/"]).await;
    double.place("/");
    for (number, text) in ["lost", "lost, too", "own"].into_iter().enumerate() {
        expect(&mut client, &format!("7-{}", number + 1), text).await;
        plain.expect(text).await;
    }
    double.deliver_again("/", 2);
    client.send("next").await;
    queued(&double, &["/"]).await;
    double.place("/");
    expect(&mut client, "7-4", "next").await;
    plain.expect("next").await;
}

#[tokio::test]
async fn a_room_is_opened_once_for_all_that_wait_and_for_no_one_else() {
    let double = Double::new(NumberedBy::Room);
    let server = Arc::new(serve(&double, |_| {}).await);
    let mut open = server.client_at("/open").await;
    double.set_opens(false);
    let mut joining = tokio::task::JoinSet::new();
    for _ in 0..5 {
        let server = server.clone();
        joining.spawn(async move { server.client_at("/closed").await });
    }
    eventually("they wait", || server.monitor.connections() == 6).await;
    eventually("the room is being opened", || double.opened() == 2).await;
    post(&server, "/open", [1]).await;
    open.expect("1").await;
    // One that gives up leaves nothing behind.
    let mut gone = server.raw().await;
    gone.send(RawClient::handshake("/gone", "")).await;
    eventually("it waits", || server.monitor.rooms() == 3).await;
    drop(gone);
    double.set_opens(true);
    eventually("its room is forgotten", || server.monitor.rooms() == 2).await;
    let mut clients = joining.join_all().await;
    assert_eq!(double.opened(), 3);
    post(&server, "/closed", [1]).await;
    for client in &mut clients {
        client.expect("1").await;
    }
}

#[tokio::test]
async fn a_room_that_cannot_be_opened_is_refused_for_now() {
    let double = Double::new(NumberedBy::Room);
    let server = serve(&double, |_| {}).await;
    double.set_cannot_be_read(true);
    for (line, fields) in [
        ("GET /", HANDSHAKE),
        ("GET /?history", ""),
        ("GET /", "Accept: text/event-stream\r\n"),
    ] {
        let answer = server.request(line, fields, "").await;
        assert_eq!((answer.code, answer.field("retry-after")), (503, Some("2")));
    }
    let browser = "Accept: text/event-stream\r\nReferer: http://test/\r\n";
    let answer = server.request("GET /", browser, "").await;
    let retry = "retry: 1500\n: the store is unavailable, try again later\n\n";
    assert_eq!((answer.code, &*answer.body), (200, retry));
    assert_eq!(server.monitor.rooms(), 0);
    double.set_cannot_be_read(false);
    post(&server, "/", [1]).await;
}

#[tokio::test]
async fn a_read_that_fails_is_tried_again() {
    let double = Double::new(NumberedBy::Room);
    let server = Arc::new(serve(&double, |_| {}).await);
    post(&server, "/", 1..=20).await;
    double.set_cannot_be_read(true);
    let reading = tokio::spawn({
        let server = server.clone();
        async move { server.request("GET /?history&limit=20", "", "").await }
    });
    eventually("it is read", || double.reads() > 0).await;
    double.set_cannot_be_read(false);
    let messages = reading.await.unwrap().json();
    let texts = messages.as_array().unwrap().iter().map(|it| &it["text"]);
    let expected: Vec<_> = (1..=20).map(|it| json!(it.to_string())).collect();
    assert!(texts.eq(&expected), "{messages}");
}

#[tokio::test]
async fn a_slow_client_is_served_from_the_store_after_memory_has_forgotten() {
    let double = Double::new(NumberedBy::Room);
    let server = serve(&double, |config| {
        config.limits.max_queue = 4;
        config.limits.max_queue_bytes = Size::from(300_000);
        config.history.bytes = Size::from(300_000);
    })
    .await;
    let mut slow = RawClient::with_small_window(server.address).await;
    slow.upgrade("/").await;
    let payload = vec![b'x'; 100_000];
    let mut publisher = server.raw().await;
    const MESSAGES: usize = 150;
    for number in 0..MESSAGES {
        let body = [number.to_string().as_bytes(), &payload].concat();
        assert_eq!(publisher.request("POST /", ALIVE, body).await.code, 201);
    }
    for number in 0..MESSAGES {
        let (_, read) = slow.read_frame().await;
        assert!(
            read.starts_with(format!("{number}x").as_bytes()),
            "{number}"
        );
    }
    assert!(double.reads() > 10, "{}", double.reads());
    // It is live again.
    assert_eq!(publisher.request("POST /", ALIVE, "live").await.code, 201);
    assert_eq!(slow.read_frame().await.1, b"live");
    let reads = double.reads();
    assert_eq!(publisher.request("POST /", ALIVE, "live").await.code, 201);
    assert_eq!(
        (slow.read_frame().await.1, double.reads()),
        (b"live".to_vec(), reads)
    );
}

#[tokio::test]
async fn what_the_store_has_forgotten_as_well_is_a_gap_of_its_exact_size() {
    let double = Double::new(NumberedBy::Room);
    let server = serve(&double, |_| {}).await;
    post(&server, "/", 1..=50).await;
    double.forget("/", 20);
    // From the id 7-10 on, which is gone.
    let (mut client, welcome) = json_client(&server, "/?since=7-10").await;
    assert_eq!(
        (&welcome["resumed"], &welcome["missed"]),
        (&json!(false), &json!(null))
    );
    for number in 46..=50 {
        expect(&mut client, &format!("7-{number}"), &number.to_string()).await;
    }
    // The oldest that is kept is the next one.
    let (mut client, welcome) = json_client(&server, "/?since=7-30").await;
    assert_eq!(
        (&welcome["resumed"], &welcome["last_id"]),
        (&json!(true), &json!("7-50"))
    );
    expect(&mut client, "7-31", "31").await;
}

#[tokio::test]
async fn what_the_store_forgets_on_the_way_of_a_slow_client_is_a_gap() {
    let double = Double::new(NumberedBy::Room);
    let server = serve(&double, |_| {}).await;
    let payload = vec![b'x'; 300_000];
    let mut publisher = server.raw().await;
    for number in 1..=50 {
        let body = [format!("{number:02}").as_bytes(), &payload].concat();
        assert_eq!(publisher.request("POST /", ALIVE, body).await.code, 201);
    }
    let mut clients = Vec::new();
    for protocol in ["", "Sec-WebSocket-Protocol: wscast.v1.json\r\n"] {
        let mut client = RawClient::with_small_window(server.address).await;
        client
            .send(RawClient::handshake("/?since=7-1", protocol))
            .await;
        client.read_head().await;
        clients.push(client);
    }
    eventually("the first pieces are read", || double.reads() == 2 + 2).await;
    double.forget("/", 2);
    let [plain, json] = &mut clients[..] else {
        unreachable!()
    };
    for number in 2..=6 {
        let (_, text) = plain.read_frame().await;
        assert!(text.starts_with(format!("{number:02}").as_bytes()));
    }
    let (first, payload) = plain.read_frame().await;
    assert_eq!(
        (first, &payload[..2]),
        (FIN | CLOSE, &1013_u16.to_be_bytes()[..])
    );
    let mut run = Vec::new();
    while run.last() != Some(&50) {
        let event: Value = serde_json::from_slice(&json.read_frame().await.1).unwrap();
        match event["type"].as_str().unwrap() {
            "gap" => run.push(-event["missed"].as_i64().unwrap()),
            "message" => run.push(event["text"].as_str().unwrap()[..2].parse().unwrap()),
            _ => {}
        }
    }
    // Of the rest, memory has the last five.
    let expected: Vec<i64> = (2..=6).chain([-39]).chain(46..=50).collect();
    assert_eq!(run, expected);
}

#[tokio::test]
async fn clients_and_readers_reach_all_that_the_store_keeps() {
    let double = Double::new(NumberedBy::Room);
    let server = serve(&double, |_| {}).await;
    post(&server, "/", 1..=40).await;
    let (mut client, welcome) = json_client(&server, "/?since=7-3").await;
    assert_eq!(
        (&welcome["resumed"], &welcome["missed"]),
        (&json!(true), &json!(0))
    );
    for number in 4..=40 {
        expect(&mut client, &format!("7-{number}"), &number.to_string()).await;
    }
    post(&server, "/", [41]).await;
    expect(&mut client, "7-41", "41").await;
    drop(client);
    let seqs = async |query: &str| {
        let answer = server
            .request(&format!("GET /?history&{query}"), "", "")
            .await;
        let resumed = answer.field("wscast-resumed") == Some("true");
        let messages = answer.json();
        let ids = messages.as_array().unwrap().iter().map(|it| {
            let id = it["id"].as_str().unwrap_or_else(|| panic!("{it}"));
            id.strip_prefix("7-").unwrap().parse::<u64>().unwrap()
        });
        (ids.collect::<Vec<_>>(), resumed)
    };
    assert_eq!(seqs("").await.0, (37..=41).collect::<Vec<_>>());
    assert_eq!(seqs("limit=30").await.0, (12..=41).collect::<Vec<_>>());
    assert_eq!(seqs("limit=100").await.0, (1..=41).collect::<Vec<_>>());
    assert_eq!(seqs("since=7-2&limit=10").await, ((3..=12).collect(), true));
    assert_eq!(seqs("before=7-9&limit=3").await.0, [6, 7, 8]);
    assert_eq!(seqs("before=7-3&limit=3").await.0, [1, 2]);
    double.forget("/", 10);
    assert_eq!(seqs("limit=100").await.0, (32..=41).collect::<Vec<_>>());
    assert_eq!(
        seqs("since=7-2&limit=10").await,
        ((37..=41).collect(), false)
    );
    // With a room that is not in memory as well.
    eventually("the room is empty", || server.monitor.connections() == 0).await;
    assert_eq!(seqs("before=7-36&limit=2").await.0, [34, 35]);
}

#[tokio::test]
async fn a_room_that_memory_forgets_goes_on_where_it_was() {
    let double = Double::new(NumberedBy::Room);
    let server = serve(&double, |config| config.limits.max_rooms = 1).await;
    post(&server, "/a", 1..=9).await;
    post(&server, "/b", [1]).await;
    assert_eq!(server.monitor.rooms(), 1);
    let (mut client, welcome) = json_client(&server, "/a?since=7-8").await;
    assert_eq!(
        (&welcome["resumed"], &welcome["last_id"]),
        (&json!(true), &json!("7-9"))
    );
    expect(&mut client, "7-9", "9").await;
    post(&server, "/a", [10]).await;
    expect(&mut client, "7-10", "10").await;
    // A new client gets as much as a history in memory has.
    let (mut client, _) = json_client(&server, "/a").await;
    for number in 6..=10 {
        expect(&mut client, &format!("7-{number}"), &number.to_string()).await;
    }
}

#[tokio::test]
async fn a_new_epoch_goes_on_with_the_sequence_numbers_or_begins_anew() {
    let double = Double::new(NumberedBy::Store);
    let server = Arc::new(serve(&double, |_| {}).await);
    let (mut client, _) = json_client(&server, "/").await;
    let publish = async |client: &mut Client, text: &str| {
        client.send(text).await;
        queued(&double, &["/"]).await;
        double.place("/");
    };
    publish(&mut client, "one").await;
    expect(&mut client, "7-1", "one").await;
    double.begin_epoch("/", 2);
    publish(&mut client, "two").await;
    expect(&mut client, "8-2", "two").await;
    // Nothing is missing between the two.
    for (since, resumed) in [("7-1", true), ("8-1", false), ("7-2", false), ("8-2", true)] {
        let (_, welcome) = json_client(&server, &format!("/?since={since}")).await;
        assert_eq!(welcome["resumed"], resumed, "{since}");
    }
    for number in 3..=20 {
        publish(&mut client, "more").await;
        expect(&mut client, &format!("8-{number}"), "more").await;
    }
    let (mut behind, _) = json_client(&server, "/?since=7-1").await;
    expect(&mut behind, "8-2", "two").await;
    // The store has lost the messages from 15 on: what is live goes on, and resumes from there.
    double.begin_epoch("/", 15);
    publish(&mut client, "again").await;
    expect(&mut client, "9-15", "again").await;
    for (since, resumed) in [
        ("9-15", true),
        ("8-15", false),
        // Others may have seen more behind it.
        ("8-14", false),
        ("8-20", false),
    ] {
        let (mut joined, welcome) = json_client(&server, &format!("/?since={since}")).await;
        assert_eq!(welcome["resumed"], resumed, "{since}");
        if since == "8-14" {
            expect(&mut joined, "9-15", "again").await;
        }
    }
    // It has lost everything.
    double.begin_epoch("/", 1);
    publish(&mut client, "from the start").await;
    expect(&mut client, "10-1", "from the start").await;
    let (mut joined, welcome) = json_client(&server, "/?since=9-15").await;
    assert_eq!(
        (&welcome["resumed"], &welcome["missed"]),
        (&json!(false), &json!(null))
    );
    expect(&mut joined, "10-1", "from the start").await;
}

#[tokio::test]
async fn a_client_behind_a_log_that_begins_anew_is_told_of_a_gap_of_unknown_size() {
    let double = Double::new(NumberedBy::Store);
    let server = serve(&double, |config| config.limits.max_queue = 1).await;
    let mut slow = RawClient::with_small_window(server.address).await;
    slow.send(RawClient::handshake(
        "/",
        "Sec-WebSocket-Protocol: wscast.v1.json\r\n",
    ))
    .await;
    slow.read_head().await;
    slow.read_frame().await;
    let mut publisher = server.client().await;
    let text = "x".repeat(500_000);
    for _ in 0..30 {
        publisher.send(&text).await;
        queued(&double, &["/"]).await;
        double.place("/");
        publisher.expect(&text).await;
    }
    double.begin_epoch("/", 1);
    publisher.send("new").await;
    queued(&double, &["/"]).await;
    double.place("/");
    let mut events = Vec::new();
    while !events.iter().any(|event: &Value| event["text"] == "new") {
        let (_, payload) = slow.read_frame().await;
        events.push(serde_json::from_slice(&payload).unwrap());
    }
    let gap = &events[events.len() - 2];
    assert_eq!(
        gap,
        &json!({"type": "gap", "missed": null}),
        "{}",
        events.len()
    );
}

#[tokio::test]
async fn a_room_that_is_opened_in_a_new_epoch_has_the_ids_of_both() {
    let double = Double::new(NumberedBy::Room);
    let server = serve(&double, |config| config.limits.max_rooms = 1).await;
    post(&server, "/a", 1..=3).await;
    post(&server, "/b", [1]).await;
    double.begin_epoch("/a", 4);
    // What followed may be lost.
    let (mut client, welcome) = json_client(&server, "/a?since=7-3").await;
    assert_eq!(
        (&welcome["resumed"], &welcome["missed"], &welcome["last_id"]),
        (&json!(false), &json!(null), &json!("7-3"))
    );
    post(&server, "/a", [4]).await;
    for (id, text) in [("7-1", "1"), ("7-2", "2"), ("7-3", "3"), ("8-4", "4")] {
        expect(&mut client, id, text).await;
    }
    client.close().await;
    eventually("it has left", || server.monitor.connections() == 0).await;
    // Opened again, with messages of both epochs.
    post(&server, "/b", [2]).await;
    post(&server, "/a", [5]).await;
    let (mut client, welcome) = json_client(&server, "/a?since=7-2").await;
    assert_eq!(
        (&welcome["resumed"], &welcome["last_id"]),
        (&json!(false), &json!("8-5"))
    );
    for (id, text) in [
        ("7-1", "1"),
        ("7-2", "2"),
        ("7-3", "3"),
        ("8-4", "4"),
        ("8-5", "5"),
    ] {
        expect(&mut client, id, text).await;
    }
}

#[tokio::test]
async fn a_new_client_gets_what_the_store_has_left_and_misses_nothing() {
    let double = Double::new(NumberedBy::Room);
    let server = serve(&double, |config| config.limits.max_rooms = 1).await;
    post(&server, "/a", 1..=9).await;
    post(&server, "/b", [1]).await;
    // Fewer than a history in memory may have.
    double.forget("/a", 2);
    let (mut client, _) = json_client(&server, "/a").await;
    let mut plain = server.client_at("/a").await;
    for text in ["8", "9"] {
        expect(&mut client, &format!("7-{text}"), text).await;
        plain.expect(text).await;
    }
}
