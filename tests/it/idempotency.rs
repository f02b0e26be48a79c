//! `Idempotency-Key`: what is posted twice is published once.

use futures_util::future::join_all;
use serde_json::json;
use wscast::config::{Mode, Size};

use crate::harness::*;

async fn room() -> TestServer {
    TestServer::quiet(|config| config.service.mode = Mode::Broadcast).await
}

async fn post(server: &TestServer, target: &str, key: &str, body: &str) -> Answer {
    let field = format!("Idempotency-Key: {key}\r\n");
    server
        .request(&format!("POST {target}"), &field, body)
        .await
}

async fn texts(server: &TestServer, room: &str) -> Vec<String> {
    let history = server.request(&format!("GET {room}?history"), "", "").await;
    let history = history.json();
    let texts = history.as_array().unwrap().iter();
    texts
        .map(|it| it["text"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn a_second_try_is_answered_with_the_first_answer() {
    let server = room().await;
    let first = post(&server, "/", "k-1", "hello").await;
    assert_eq!((first.code, &first.json()["clients"]), (201, &json!(0)));
    let _later = server.client_at("/").await;
    for key in ["k-1", "\"k-1\""] {
        let second = post(&server, "/?name=Ann", key, "hello").await;
        assert_eq!((second.code, second.json()), (200, first.json()));
    }
    // A key belongs to its room.
    assert_eq!(post(&server, "/other", "k-1", "hello").await.code, 201);
    assert_eq!(post(&server, "/", "k-2", "hello").await.code, 201);
    assert_eq!(texts(&server, "/").await, ["hello", "hello"]);
    assert_eq!(texts(&server, "/other").await, ["hello"]);
}

#[tokio::test]
async fn a_key_is_for_one_message() {
    let server = room().await;
    assert_eq!(post(&server, "/", "k", "hello").await.code, 201);
    let other = post(&server, "/", "k", "hello!").await;
    assert_eq!(other.code, 422);
    assert!(
        other.body.contains("each message needs a new one"),
        "{}",
        other.body
    );
    let binary = "Idempotency-Key: k\r\nContent-Type: application/octet-stream\r\n";
    let other = server.request("POST /", binary, "hello").await;
    assert_eq!(other.code, 422);
    assert_eq!(texts(&server, "/").await, ["hello"]);
}

#[tokio::test]
async fn what_is_no_key_is_refused() {
    let server = room().await;
    let long = "x".repeat(129);
    for key in ["", "\"\"", "a b", "é", &long, "a\r\nIdempotency-Key: b"] {
        let refused = post(&server, "/", key, "hello").await;
        assert_eq!(refused.code, 400, "{key}");
        assert!(refused.body.contains("Idempotency-Key"), "{}", refused.body);
    }
    assert_eq!(post(&server, "/", &long[1..], "hello").await.code, 201);
}

#[tokio::test]
async fn a_key_holds_as_long_as_its_message_is_kept() {
    let server = TestServer::quiet(|config| {
        config.service.mode = Mode::Broadcast;
        config.history.limit = 2;
    })
    .await;
    let first = post(&server, "/", "k", "one").await;
    post(&server, "/", "other", "two").await;
    assert_eq!(post(&server, "/", "k", "one").await.code, 200);
    assert_eq!(server.request("POST /", "", "three").await.code, 201);
    let again = post(&server, "/", "k", "one").await;
    assert_eq!(again.code, 201);
    assert_ne!(again.json()["id"], first.json()["id"]);
    assert_eq!(texts(&server, "/").await, ["three", "one"]);
}

#[tokio::test]
async fn where_nothing_is_kept_a_key_is_refused() {
    for nothing in 0..3 {
        let server = TestServer::quiet(|config| {
            config.service.mode = Mode::Broadcast;
            match nothing {
                0 => config.history.limit = 0,
                1 => config.history.bytes = Size::from(0),
                _ => config.history.total = Size::from(0),
            }
        })
        .await;
        let refused = post(&server, "/", "k", "hello").await;
        assert_eq!(refused.code, 400);
        assert!(refused.body.contains("nothing is kept"), "{}", refused.body);
        assert_eq!(server.request("POST /", "", "hello").await.code, 201);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_at_once_one_is_published() {
    let server = room().await;
    for round in 0..20 {
        let key = round.to_string();
        let answers = join_all((0..20).map(|_| post(&server, "/", &key, &key))).await;
        let created = answers.iter().filter(|it| it.code == 201).count();
        assert_eq!(created, 1);
        assert!(answers.iter().all(|it| it.json() == answers[0].json()));
    }
    let expected: Vec<_> = (0..20).map(|it| it.to_string()).collect();
    assert_eq!(texts(&server, "/").await, expected);
}

#[tokio::test]
async fn a_second_try_has_clients_pinged_that_have_the_message_already() {
    let server = room().await;
    let mut client = server.raw_websocket().await;
    post(&server, "/", "k", "hello").await;
    client.read_frame().await;
    // The ping that comes now is that of the second try: the first heartbeat comes much later.
    let second = post(&server, "/?wait=delivered&timeout=5", "k", "hello");
    let answering = async {
        let (first_byte, id) = client.read_frame().await;
        assert_eq!(first_byte, FIN | PING);
        client.send(frame(FIN | PONG, &id)).await;
    };
    let (second, ()) = tokio::join!(second, answering);
    assert_eq!((second.code, &second.json()["delivered"]), (200, &json!(1)));
}

#[tokio::test]
async fn receipts_of_a_second_try_are_judged_anew() {
    let server = room().await;
    let mut attentive = server.client_at("/").await;
    // One that answers no ping.
    let mut silent = server.raw_websocket().await;
    let first = post(&server, "/?wait=delivered&timeout=0.05", "k", "hello");
    let reading = async {
        attentive.expect("Broadcast: hello").await;
        attentive.next().await
    };
    let first = tokio::select! {
        answer = first => answer.json(),
        other = reading => panic!("{other:?}"),
    };
    assert_eq!(
        (&first["clients"], &first["delivered"]),
        (&json!(2), &json!(1))
    );
    // A client that came later does not count.
    let _later = server.client_at("/").await;
    silent.read_frame().await;
    let (first_byte, id) = silent.read_frame().await;
    assert_eq!(first_byte, FIN | PING);
    silent.send(frame(FIN | PONG, &id)).await;
    let second = post(&server, "/?wait=delivered", "k", "hello").await;
    assert_eq!(second.code, 200);
    let second = second.json();
    assert_eq!(
        (&second["clients"], &second["delivered"]),
        (&json!(2), &json!(2))
    );
    assert_eq!(second["id"], first["id"]);
    // Without the wait, there is no number.
    assert_eq!(
        post(&server, "/", "k", "hello")
            .await
            .json()
            .get("delivered"),
        None
    );
}
