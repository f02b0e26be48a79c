//! Rooms: names, histories, and the order in which they are forgotten.

use tokio_tungstenite::tungstenite;
use wscast::config::Size;

use crate::harness::*;

/// The history that a new client of `path` gets; it leaves again.
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

/// Sends `texts` to `path` from a client that leaves again.
async fn send_all(server: &TestServer, path: &str, texts: &[&str]) {
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
        Ok(_) => panic!("{path} was admitted"),
    }
}

#[tokio::test]
async fn the_path_names_the_room_and_each_room_has_its_own_clients_and_history() {
    let server = TestServer::quiet(|_| {}).await;
    let mut lobby = server.client_at("/lobby").await;
    let mut other = server.client_at("/Lobby?query=not-part-of-the-name").await;
    send_all(&server, "/lobby", &["to the lobby"]).await;
    lobby.expect("Broadcast: to the lobby").await;
    other.send("fence").await;
    other.expect("Broadcast: fence").await;
    assert_eq!(history(&server, "/lobby").await, ["to the lobby"]);
    assert_eq!(server.monitor.rooms(), 2);
}

#[tokio::test]
async fn a_room_without_clients_is_kept_only_for_its_history() {
    let server = TestServer::quiet(|_| {}).await;
    server.client_at("/silent").await.close().await;
    eventually("the silent room is forgotten", || {
        server.monitor.rooms() == 0
    })
    .await;
    send_all(&server, "/kept", &["remember me"]).await;
    eventually("the client is gone", || server.monitor.connections() == 0).await;
    assert_eq!(server.monitor.rooms(), 1);
    assert_eq!(history(&server, "/kept").await, ["remember me"]);
}

#[tokio::test]
async fn a_room_remembers_the_newest_messages_up_to_its_limits() {
    let by_count = TestServer::quiet(|config| config.history.limit = 2).await;
    send_all(&by_count, "/", &["one", "two", "three"]).await;
    assert_eq!(history(&by_count, "/").await, ["two", "three"]);

    // Each message takes about 330.
    let by_bytes = TestServer::quiet(|config| config.history.bytes = Size::from(800)).await;
    send_all(&by_bytes, "/", &["one", "two", "three"]).await;
    assert_eq!(history(&by_bytes, "/").await, ["two", "three"]);

    let none = TestServer::quiet(|config| config.history.limit = 0).await;
    send_all(&none, "/", &["one", "two", "three"]).await;
    assert_eq!(history(&none, "/").await, [""; 0]);
}

#[tokio::test]
async fn empty_messages_count_towards_the_bytes_of_the_history() {
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
    // Each takes its frame, two bytes, and the offset of its end.
    assert!((2000..9000).contains(&count), "{count}");
}

#[tokio::test]
async fn at_max_rooms_the_room_empty_for_longest_is_forgotten() {
    let server = TestServer::quiet(|config| config.limits.max_rooms = 2).await;
    send_all(&server, "/first", &["one"]).await;
    eventually("it is empty", || server.monitor.connections() == 0).await;
    send_all(&server, "/second", &["two"]).await;
    eventually("it is empty", || server.monitor.connections() == 0).await;
    let mut third = server.client_at("/third").await;
    assert_eq!(server.monitor.rooms(), 2);
    assert_eq!(history(&server, "/second").await, ["two"]);

    // Now every room has clients.
    let second = server.client_at("/second").await;
    assert_eq!(refusal(&server, "/fourth").await, (503, Some("1".into())));
    third.send("still here").await;
    third.expect("Broadcast: still here").await;
    second.close().await;
}

#[tokio::test]
async fn beyond_the_history_total_empty_rooms_are_forgotten_before_messages_of_the_largest() {
    let server = TestServer::quiet(|config| config.history.total = Size::from(1020)).await;
    send_all(&server, "/empty", &["0123456789"]).await;
    eventually("it is empty", || server.monitor.connections() == 0).await;
    let _small = server.client_at("/small").await;
    let _large = server.client_at("/large").await;
    send_all(&server, "/small", &["small"]).await;
    send_all(&server, "/large", &["0123456789"]).await;
    assert_eq!(server.monitor.rooms(), 3);
    send_all(&server, "/large", &["abcdefghij"]).await;
    assert_eq!(server.monitor.rooms(), 2);
    send_all(&server, "/large", &["ABCDEFGHIJ"]).await;
    assert_eq!(
        history(&server, "/large").await,
        ["abcdefghij", "ABCDEFGHIJ"]
    );
    assert_eq!(history(&server, "/small").await, ["small"]);
}

#[tokio::test]
async fn beyond_max_connections_clients_are_answered_503_until_a_client_leaves() {
    let server = TestServer::quiet(|config| config.limits.max_connections = 2).await;
    let (one, two) = (server.client().await, server.client().await);
    assert_eq!(refusal(&server, "/").await, (503, Some("1".into())));
    // Health checks are still answered.
    assert_eq!(server.request("GET /healthz", "", "").await.code, 200);
    one.close().await;
    eventually("a place is free", || server.monitor.connections() == 1).await;
    server.client().await.close().await;
    two.close().await;
    eventually("all places are free", || server.monitor.connections() == 0).await;
}
