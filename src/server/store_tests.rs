//! Servers with the store of the tests: what holds for publications to any store, and in `logs` for its logs.

#![cfg(test)]

mod logs;

use std::sync::Arc;

use fastrand::Rng;
use futures_util::SinkExt;
use serde_json::{Value, json};
use tokio::time::{Duration, sleep, timeout};
use tokio_tungstenite::tungstenite::Message;

use super::Server;
use crate::config::{Config, Mode};
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
    TestServer::run(
        Server::bind_with(config, |_| Ok(double.store()))
            .await
            .unwrap(),
    )
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

/// The event that says how the store is.
fn status(store: &str) -> Value {
    json!({"type": "status", "store": store})
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

/// Whether nothing comes for a moment. It may miss a fault, and never reports one that is not there.
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
    assert_eq!(sender.event().await, status("unavailable"));
    // One that joins now gets it as well.
    let (mut late, _) = json_client(&server, "/").await;
    assert_eq!(late.event().await, status("unavailable"));
    for text in ["one", "three"] {
        assert_eq!(late.event().await["text"], text);
    }

    sender.send("four").await;
    assert_eq!(sender.event().await["message"], 4);
    let answer = server.request("POST /", "", "five").await;
    assert_eq!((answer.code, answer.field("retry-after")), (503, Some("2")));
    assert_eq!(answer.body, "the store is unavailable, try again later\n");
    plain.send("six").await;
    let reason = plain.expect_close(1013).await;
    assert_eq!(reason, "store unavailable: a message was not taken");
    let answer = server.request("GET /readyz", "", "").await;
    assert_eq!(answer.code, 503);
    assert_eq!(
        answer.body,
        "the store is unavailable: the test has it fail\n"
    );
    assert_eq!(server.request("GET /healthz", "", "").await.code, 200);
    double.set_takes_nothing(false);
    assert_eq!(server.request("GET /readyz", "", "").await.code, 200);
    for client in [&mut sender, &mut late] {
        assert_eq!(client.event().await, status("ok"));
    }
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
    // A message that has begun, as far as the server counts it.
    let mut raw = server.raw_websocket().await;
    let cut = "cut in two ".repeat(300);
    let begun = frame(FIN | TEXT, cut.as_bytes());
    raw.send(&begun[..2000]).await;
    eventually("it has begun", || server.monitor.incoming() > 1900).await;
    double.set_keeps_up(false);
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
    raw.send(&begun[2000..]).await;
    double.set_keeps_up(true);
    eventually("all are in the store", || double.queued().len() == 3).await;
    double.place_all();
    let mut texts = Vec::new();
    for _ in 0..3 {
        texts.push(reader.next_text().await);
    }
    texts.sort();
    assert_eq!(texts, [&*cut, "held back", "posted"]);
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
    timeout(PATIENCE, client.websocket.flush())
        .await
        .unwrap()
        .unwrap();
    eventually("it reads up to the bound", || double.queued().len() >= 64).await;
    assert!(is_silent(&mut client).await);
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
    // The answer to the close frame waits for the rest.
    assert!(is_silent(&mut client).await);
    double.place_all();
    client.expect("two").await;
    client.expect("three").await;
    assert!(matches!(client.next().await, Message::Close(_)));
    assert!(is_silent(&mut other).await);
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

#[tokio::test]
async fn a_second_try_waits_for_the_first_and_takes_its_place_if_that_is_refused() {
    let double = Double::new(NumberedBy::Store);
    let server = serve(&double, |_| {}).await;
    let try_once = || {
        let server = server.address;
        tokio::spawn(async move {
            let mut client = RawClient::connect(server).await;
            let request =
                "POST /a HTTP/1.1\r\nHost: x\r\nIdempotency-Key: k\r\nContent-Length: 2\r\n\r\nhi";
            client.send(request).await;
            client.answer().await
        })
    };
    let first = try_once();
    queued(&double, &["/a"]).await;
    // It hangs up; the store has its message.
    first.abort();
    let (second, third) = (try_once(), try_once());
    eventually("all are here", || server.monitor.connections() == 3).await;
    // None of them publishes meanwhile. It may miss a fault, and never reports one that is not there.
    sleep(Duration::from_millis(30)).await;
    assert_eq!(double.queued(), ["/a"]);
    double.place("/a");
    let [second, third] = [second.await.unwrap(), third.await.unwrap()];
    assert_eq!((second.code, second.json()), (200, third.json()));
    assert_eq!(second.json()["id"], "7-1");
    assert_eq!(double.kept("/a"), 1);

    let post = async || {
        let key = "Idempotency-Key: l\r\n";
        server.request("POST /b", key, "hi").await
    };
    let tries = async { tokio::join!(post(), post()) };
    let decisions = async {
        queued(&double, &["/b"]).await;
        double.refuse("/b");
        queued(&double, &["/b"]).await;
        double.place("/b");
    };
    let ((one, other), ()) = tokio::join!(tries, decisions);
    let mut codes = [one.code, other.code];
    codes.sort_unstable();
    assert_eq!(codes, [201, 503]);
    assert_eq!(double.kept("/b"), 1);
}
