//! Servers whose logs are in a store that does what it is told: the promises that hold for every store.

#![cfg(test)]

use std::sync::Arc;

use fastrand::Rng;
use futures_util::SinkExt;
use serde_json::{Value, json};
use tokio::time::{Duration, sleep, timeout};
use tokio_tungstenite::tungstenite::Message;

use super::Server;
use crate::config::{Config, Mode, Size};
use crate::harness::*;
use crate::store::NumberedBy;
use crate::store::double::Double;

/// A broadcast server without greeting and prefix, whose memory is short.
async fn serve(double: &Arc<Double>, change: impl FnOnce(&mut Config)) -> TestServer {
    let config = TestServer::config(|config| {
        config.service.mode = Mode::Broadcast;
        config.service.welcome = Some(String::new());
        config.service.prefix = Some(String::new());
        config.history.limit = 5;
        change(config);
    });
    TestServer::run(Server::bind_with(config, double.store()).await.unwrap())
}

/// A client of the JSON format that has read its welcome, and the welcome.
async fn json_client(server: &TestServer, path: &str) -> (Client, Value) {
    let mut client = Client::json(server.address, path).await;
    let welcome = client.event().await;
    assert_eq!(welcome["type"], "welcome");
    (client, welcome)
}

/// Expects a message of the JSON format.
async fn expect(client: &mut Client, id: &str, text: &str) {
    let event = client.event().await;
    assert_eq!(
        (&event["id"], &event["text"]),
        (&json!(id), &json!(text)),
        "{event}"
    );
}

async fn queued(double: &Double, rooms: &[&str]) {
    eventually("the publications are in the store", || {
        double.queued() == rooms
    })
    .await;
}

/// Publishes messages named after their numbers, one a POST.
async fn post(server: &TestServer, path: &str, numbers: impl IntoIterator<Item = u64>) {
    let mut client = server.raw().await;
    for number in numbers {
        let line = format!("POST {path}");
        let answer = client.request(&line, ALIVE, number.to_string()).await;
        assert_eq!(answer.code, 201, "{answer:?}");
    }
}

/// What `client` gets until nothing comes for a moment, which proves the absence of nothing by itself.
async fn is_silent(client: &mut Client) -> bool {
    timeout(Duration::from_millis(30), client.next())
        .await
        .is_err()
}

#[tokio::test]
async fn messages_are_delivered_when_the_store_has_placed_them_and_rooms_do_not_wait_for_others() {
    let double = Double::new(NumberedBy::Store);
    let server = serve(&double, |_| {}).await;
    let (mut one, _) = json_client(&server, "/a").await;
    let (mut other, _) = json_client(&server, "/b").await;
    let mut events = server.raw().await;
    events
        .send("GET /a HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n")
        .await;
    events.read_head().await;
    one.send("first").await;
    queued(&double, &["/a"]).await;
    other.send("elsewhere").await;
    queued(&double, &["/a", "/b"]).await;
    one.send("second").await;
    queued(&double, &["/a", "/b", "/a"]).await;
    assert!(is_silent(&mut one).await && is_silent(&mut other).await);
    double.place("/b");
    expect(&mut other, "7-1", "elsewhere").await;
    assert!(is_silent(&mut one).await);
    double.place_all();
    expect(&mut one, "7-1", "first").await;
    expect(&mut one, "7-2", "second").await;
    assert_eq!(
        events
            .read_to("data: second\n\n")
            .await
            .matches("id: 7-")
            .count(),
        2
    );
}

#[tokio::test]
async fn clients_of_a_room_see_one_order_without_gap_or_duplicate() {
    const PUBLISHERS: usize = 3;
    const MESSAGES: usize = 40;
    for numbered_by in [NumberedBy::Store, NumberedBy::Room] {
        let double = Double::new(numbered_by);
        let server = serve(&double, |config| config.limits.max_queue = 8).await;
        let rooms = ["/a", "/b", "/c"];
        let mut clients = Vec::new();
        for _ in 0..PUBLISHERS {
            for room in rooms {
                clients.push((room, json_client(&server, room).await.0));
            }
        }
        let mut sent = tokio::task::JoinSet::new();
        for (number, (room, mut client)) in clients.into_iter().enumerate() {
            sent.spawn(async move {
                let (mut sent, mut got) = (0, Vec::new());
                while got.len() < PUBLISHERS * MESSAGES {
                    if sent < MESSAGES {
                        let text = Message::text(format!("{number} {sent}"));
                        client.websocket.feed(text).await.unwrap();
                        client.websocket.flush().await.unwrap();
                        sent += 1;
                    }
                    if sent == MESSAGES || sent % 3 == 0 {
                        got.push(client.event().await);
                    }
                }
                (room, got)
            });
        }
        let mut random = Rng::with_seed(1);
        let place = async {
            loop {
                for _ in 0..random.usize(0..4) {
                    if let Some(room) = random.choice(&double.queued()) {
                        double.place(room);
                    }
                }
                tokio::task::yield_now().await;
            }
        };
        let all = async {
            let mut runs: Vec<(&str, Vec<Value>)> = Vec::new();
            while let Some(run) = sent.join_next().await {
                runs.push(run.unwrap());
            }
            runs
        };
        let runs = tokio::select! {
            () = place => unreachable!(),
            runs = timeout(PATIENCE, all) => runs.unwrap(),
        };
        for room in rooms {
            let runs: Vec<_> = runs.iter().filter(|(it, _)| *it == room).collect();
            for (_, run) in &runs {
                assert_eq!(run, &runs[0].1);
                let seqs = run.iter().map(|event| {
                    let id = event["id"].as_str().unwrap();
                    id.strip_prefix("7-").unwrap().parse::<usize>().unwrap()
                });
                assert!(seqs.eq(1..=PUBLISHERS * MESSAGES));
            }
            // Each publisher's messages are in its own order.
            for publisher in 0..9 {
                let prefix = format!("{publisher} ");
                let of = runs[0]
                    .1
                    .iter()
                    .filter_map(|event| event["text"].as_str().unwrap().strip_prefix(&prefix));
                let of: Vec<usize> = of.map(|it| it.parse().unwrap()).collect();
                assert!(
                    of.is_sorted() && [0, MESSAGES].contains(&of.len()),
                    "{of:?}"
                );
            }
            assert_eq!(double.kept(room), PUBLISHERS * MESSAGES);
        }
    }
}

#[tokio::test]
async fn a_refused_message_is_reported_to_its_sender_alone() {
    let double = Double::new(NumberedBy::Store);
    let server = Arc::new(serve(&double, |_| {}).await);
    let (mut sender, _) = json_client(&server, "/").await;
    let mut plain = server.client().await;
    for text in ["one", "two", "three"] {
        sender.send(text).await;
        eventually("it is in the store", || !double.queued().is_empty()).await;
        if text == "two" {
            double.refuse("/");
            let error = sender.event().await;
            let expected =
                json!({"type": "error", "code": "unavailable", "message": 2, "retry_after": 1.5});
            assert_eq!(error, expected);
        } else {
            double.place("/");
            assert_eq!(sender.event().await["text"], text);
            plain.expect(text).await;
        }
    }
    // Nothing is admitted at all: the next ones are judged for themselves.
    double.set_takes_nothing(true);
    sender.send("four").await;
    assert_eq!(sender.event().await["message"], 4);
    let answer = server.request("POST /", "", "five").await;
    assert_eq!((answer.code, answer.field("retry-after")), (503, Some("2")));
    assert_eq!(answer.body, "the store is unavailable, try again later\n");
    plain.send("six").await;
    let reason = plain.expect_close(1013).await;
    assert_eq!(reason, "store unavailable: a message was not taken");
    double.set_takes_nothing(false);
    let posting = tokio::spawn({
        let server = server.clone();
        async move { server.request("POST /", "", "seven").await }
    });
    queued(&double, &["/"]).await;
    double.refuse("/");
    assert_eq!(posting.await.unwrap().code, 503);
    sender.send("eight").await;
    queued(&double, &["/"]).await;
    double.place("/");
    expect(&mut sender, "7-3", "eight").await;
}

#[tokio::test]
async fn a_store_that_does_not_keep_up_holds_publishers_back_and_nobody_else() {
    let double = Double::new(NumberedBy::Store);
    let server = serve(&double, |config| {
        config.times.ping_interval = millis(20);
        config.times.ping_timeout = millis(20);
        config.times.write_timeout = millis(100);
    })
    .await;
    let (mut publisher, _) = json_client(&server, "/").await;
    let mut reader = server.client().await;
    publisher.send("before").await;
    queued(&double, &["/"]).await;
    double.set_keeps_up(false);
    let mut raw = server.raw_websocket().await;
    let begun = frame(FIN | TEXT, b"cut in two");
    raw.send(&begun[..8]).await;
    publisher.send("held back").await;
    let server = Arc::new(server);
    let posting = tokio::spawn({
        let server = server.clone();
        async move { server.request("POST /", "", "posted").await.code }
    });
    // Longer than any patience with a client that does not answer.
    sleep(Duration::from_millis(300)).await;
    queued(&double, &["/"]).await;
    double.place_all();
    reader.expect("before").await;
    expect(&mut publisher, "7-1", "before").await;
    assert!(!posting.is_finished());
    // It is not dead, nor has it stood still: nothing was read.
    raw.send(&begun[8..]).await;
    double.set_keeps_up(true);
    eventually("all are in the store", || double.queued().len() == 3).await;
    double.place_all();
    let mut texts = Vec::new();
    for _ in 0..3 {
        texts.push(reader.next_text().await);
    }
    texts.sort();
    assert_eq!(texts, ["cut in two", "held back", "posted"]);
    assert_eq!(posting.await.unwrap(), 201);
}

#[tokio::test]
async fn a_session_whose_publications_wait_reads_no_more_than_some() {
    let double = Double::new(NumberedBy::Store);
    let server = serve(&double, |_| {}).await;
    let mut client = server.client().await;
    let text = "x".repeat(20_000);
    for _ in 0..300 {
        client
            .websocket
            .feed(Message::text(text.clone()))
            .await
            .unwrap();
    }
    let flush = async {
        client.websocket.flush().await.unwrap();
        sleep(Duration::from_millis(200)).await;
    };
    timeout(PATIENCE, flush).await.unwrap();
    // The bound, and what one read brought.
    let waiting = double.queued().len();
    assert!((64..=100).contains(&waiting), "{waiting}");
    let placing = async {
        loop {
            double.place_all();
            sleep(Duration::from_millis(1)).await;
        }
    };
    let reading = async {
        for _ in 0..300 {
            client.expect(&text).await;
        }
    };
    tokio::select! {
        () = placing => unreachable!(),
        () = reading => {}
    }
}

#[tokio::test]
async fn echoes_are_answered_in_order_and_before_the_close() {
    let double = Double::new(NumberedBy::Store);
    let server = serve(&double, |config| config.service.mode = Mode::Echo).await;
    let mut client = server.client().await;
    let mut other = server.client().await;
    for (number, text) in ["one", "two", "three"].into_iter().enumerate() {
        client.send(text).await;
        eventually("it is in the store", || double.queued().len() == number + 1).await;
    }
    assert!(is_silent(&mut client).await);
    double.place("/");
    client.expect("one").await;
    client.websocket.close(None).await.unwrap();
    // Read by the server before the rest is placed, as far as can be known.
    sleep(Duration::from_millis(20)).await;
    double.place_all();
    client.expect("two").await;
    client.expect("three").await;
    assert!(matches!(client.next().await, Message::Close(_)));
    assert!(is_silent(&mut other).await);
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
        ("8-14", true),
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
async fn receipts_count_the_clients_at_the_moment_of_delivery() {
    let double = Double::new(NumberedBy::Store);
    let server = Arc::new(serve(&double, |_| {}).await);
    let posting = tokio::spawn({
        let server = server.clone();
        async move { server.request("POST /?wait=delivered", "", "hi").await }
    });
    queued(&double, &["/"]).await;
    let mut clients = [server.client().await, server.client().await];
    double.place("/");
    for client in &mut clients {
        client.expect("hi").await;
        client.websocket.flush().await.unwrap();
    }
    let pongs = async {
        for client in &mut clients {
            timeout(Duration::from_millis(200), client.next())
                .await
                .ok();
        }
    };
    let (answer, ()) = tokio::join!(posting, pongs);
    assert_eq!(
        answer.unwrap().json(),
        json!({"id": "7-1", "clients": 2, "delivered": 2})
    );
}

#[tokio::test]
async fn a_drain_waits_for_what_the_store_has_taken() {
    for is_placed in [true, false] {
        let double = Double::new(NumberedBy::Store);
        let mut server = serve(&double, |_| {}).await;
        let mut client = server.client().await;
        let mut publisher = server.client().await;
        publisher.send("in time").await;
        queued(&double, &["/"]).await;
        server.begin_stop();
        assert!(is_silent(&mut client).await);
        if is_placed {
            double.place("/");
            client.expect("in time").await;
            client.expect_close(1001).await;
            publisher.expect("in time").await;
            publisher.expect_close(1001).await;
        } else {
            double.refuse("/");
            client.expect_close(1001).await;
            publisher.expect_close(1013).await;
        }
        server.stop().await;
    }
}
