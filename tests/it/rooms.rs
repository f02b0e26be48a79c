//! Rooms: their names, their histories, and which of them is forgotten.

use tokio_tungstenite::tungstenite;
use wscast::config::Size;

use crate::harness::*;

/// What a new client of `path` gets as history; it leaves again.
async fn history(server: &TestServer, path: &str) -> Vec<String> {
    let mut client = server.client_at(path).await;
    client.send("fence").await;
    let mut texts = Vec::new();
    loop {
        match client.next_text().await.as_str() {
            "Broadcast: fence" => break,
            text => texts.push(text.trim_start_matches("Broadcast: ").to_owned()),
        }
    }
    client.close().await;
    texts
}

/// Sends `texts` to `path` and leaves again.
async fn tell(server: &TestServer, path: &str, texts: &[&str]) {
    let mut client = server.client_at(path).await;
    for text in texts {
        client.send(text).await;
        while client.next_text().await != format!("Broadcast: {text}") {}
    }
    client.close().await;
}

/// The status with which the server refuses a client of `path`.
async fn refusal(server: &TestServer, path: &str) -> (u16, Option<String>) {
    match Client::connect(server.address, path).await {
        Err(tungstenite::Error::Http(response)) => {
            let retry = response.headers().get("retry-after");
            (
                response.status().as_u16(),
                retry.map(|value| value.to_str().unwrap().to_owned()),
            )
        }
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("{path} was let in"),
    }
}

#[tokio::test]
async fn the_path_names_the_room_and_each_has_its_own_clients_and_history() {
    let server = TestServer::quiet(|_| {}).await;
    let mut lobby = server.client_at("/lobby").await;
    let mut other = server.client_at("/Lobby?query=not-part-of-the-name").await;
    tell(&server, "/lobby", &["to the lobby"]).await;
    lobby.expect("Broadcast: to the lobby").await;
    other.send("fence").await;
    other.expect("Broadcast: fence").await;
    assert_eq!(history(&server, "/lobby").await, ["to the lobby"]);
    assert_eq!(server.monitor.rooms(), 2);
}

#[tokio::test]
async fn a_room_without_clients_lives_on_by_its_history_alone() {
    let server = TestServer::quiet(|_| {}).await;
    server.client_at("/silent").await.close().await;
    eventually("the silent room is forgotten", || {
        server.monitor.rooms() == 0
    })
    .await;
    tell(&server, "/told", &["remember me"]).await;
    eventually("the client is gone", || server.monitor.connections() == 0).await;
    assert_eq!(server.monitor.rooms(), 1);
    assert_eq!(history(&server, "/told").await, ["remember me"]);
}

#[tokio::test]
async fn a_room_remembers_the_newest_messages_up_to_its_limits() {
    let by_count = TestServer::quiet(|config| config.history.limit = 2).await;
    tell(&by_count, "/", &["one", "two", "three"]).await;
    assert_eq!(history(&by_count, "/").await, ["two", "three"]);

    // Of which each takes a little more than 200.
    let by_bytes = TestServer::quiet(|config| config.history.bytes = Size::from(500)).await;
    tell(&by_bytes, "/", &["one", "two", "three"]).await;
    assert_eq!(history(&by_bytes, "/").await, ["two", "three"]);

    let none = TestServer::quiet(|config| config.history.limit = 0).await;
    tell(&none, "/", &["one", "two", "three"]).await;
    assert_eq!(history(&none, "/").await, [""; 0]);
}

#[tokio::test]
async fn messages_that_say_nothing_are_remembered_up_to_the_bytes_that_they_take() {
    let server = TestServer::quiet(|config| {
        config.service.prefix = Some(String::new());
        config.history.limit = usize::MAX;
        config.history.bytes = Size::from(100_000);
    })
    .await;
    let mut client = server.raw_websocket().await;
    let empty = frame(FIN | TEXT, b"");
    for _ in 0..100 {
        client.send(empty.repeat(100)).await;
        for _ in 0..100 {
            client.read_frame().await;
        }
    }
    let mut late = Client::json(server.address, "/").await;
    let welcome = late.event().await;
    let last_id = welcome["last_id"].as_str().unwrap();
    let mut count = 1;
    while late.event().await["id"] != last_id {
        count += 1;
    }
    // Each takes its frame and where that ends.
    assert!((1000..4000).contains(&count), "{count}");
}

#[tokio::test]
async fn when_rooms_run_out_the_one_left_longest_ago_is_forgotten() {
    let server = TestServer::quiet(|config| config.limits.max_rooms = 2).await;
    tell(&server, "/first", &["one"]).await;
    eventually("it is empty", || server.monitor.connections() == 0).await;
    tell(&server, "/second", &["two"]).await;
    eventually("it is empty", || server.monitor.connections() == 0).await;
    let mut third = server.client_at("/third").await;
    assert_eq!(server.monitor.rooms(), 2);
    assert_eq!(history(&server, "/second").await, ["two"]);

    // Now every place is taken by a room with clients.
    let second = server.client_at("/second").await;
    assert_eq!(refusal(&server, "/fourth").await, (503, Some("1".into())));
    third.send("still here").await;
    third.expect("Broadcast: still here").await;
    second.close().await;
}

#[tokio::test]
async fn when_all_histories_are_too_large_empty_rooms_go_first_then_the_oldest_of_the_largest() {
    let server = TestServer::quiet(|config| config.history.total = Size::from(750)).await;
    tell(&server, "/empty", &["0123456789"]).await;
    eventually("it is empty", || server.monitor.connections() == 0).await;
    let _small = server.client_at("/small").await;
    let _large = server.client_at("/large").await;
    tell(&server, "/small", &["small"]).await;
    tell(&server, "/large", &["0123456789"]).await;
    assert_eq!(server.monitor.rooms(), 3);
    tell(&server, "/large", &["abcdefghij"]).await;
    assert_eq!(server.monitor.rooms(), 2);
    tell(&server, "/large", &["ABCDEFGHIJ"]).await;
    assert_eq!(
        history(&server, "/large").await,
        ["abcdefghij", "ABCDEFGHIJ"]
    );
    assert_eq!(history(&server, "/small").await, ["small"]);
}

#[tokio::test]
async fn beyond_max_connections_clients_are_answered_503_and_a_place_is_free_again_at_once() {
    let server = TestServer::quiet(|config| config.limits.max_connections = 2).await;
    let (one, two) = (server.client().await, server.client().await);
    assert_eq!(refusal(&server, "/").await, (503, Some("1".into())));
    // Somebody who looks after the server still sees that it lives.
    assert_eq!(server.request("GET /healthz", "", "").await.code, 200);
    one.close().await;
    eventually("a place is free", || server.monitor.connections() == 1).await;
    server.client().await.close().await;
    two.close().await;
    eventually("all places are free", || server.monitor.connections() == 0).await;
}
