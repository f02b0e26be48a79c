//! One room for all spellings of its path, and the paths that name no room.

use serde_json::Value;
use tokio::io::AsyncReadExt;

use crate::harness::*;

#[tokio::test]
async fn all_spellings_of_a_path_reach_the_same_room() {
    let server = TestServer::quiet(|_| {}).await;
    let mut json = Client::json(server.address, "/caf%c3%a9/%6dain//").await;
    assert_eq!(json.event().await["room"], "/caf%C3%A9/main");
    let mut plain = server.client_at("/%63af%C3%A9/main").await;
    let mut events = server.raw().await;
    let path = "/caf%C3%a9/main/";
    events
        .send(format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"
        ))
        .await;
    assert!(events.read_head().await.starts_with("HTTP/1.1 200 "));

    let posted = server.request("POST /caf%c3%A9/mai%6E", "", "hello").await;
    assert_eq!(posted.code, 201);
    assert_eq!(json.event().await["text"], "hello");
    plain.expect("Broadcast: hello").await;
    let mut event = Vec::new();
    while !event.ends_with(b"data: hello\n\n") {
        event.push(events.stream.read_u8().await.unwrap());
    }
    let history = server
        .request("GET /caf%C3%A9/%6Dain/?history", "", "")
        .await;
    assert!(history.body.contains("\"hello\""), "{history:?}");
    assert_eq!(server.monitor.rooms(), 1);
    // Other paths name other rooms.
    for path in ["/caf%C3%A9//main", "/caf%C3%A9%2Fmain", "/caf%C3%A9/./main"] {
        let other = Client::json(server.address, path).await.event().await;
        assert_eq!(
            (&other["room"], &other["last_id"]),
            (&path.into(), &Value::Null)
        );
    }
}

#[tokio::test]
async fn a_reserved_path_is_answered_404_with_a_remedy() {
    let server = TestServer::quiet(|_| {}).await;
    for (path, remedy) in [
        ("/-", "/-/"),
        ("/-/anything", "/-/"),
        ("/%2D/", "/-/"),
        ("/.well-known/security.txt", "nothing"),
        (
            "/socket.io/?EIO=4&transport=polling",
            "plain WebSocket server",
        ),
        (
            "/socket%2eio/?EIO=4&transport=websocket",
            "plain WebSocket server",
        ),
        ("/health", "/healthz"),
        ("/healthz/", "/healthz"),
        ("/metrics", "metrics"),
        ("/metrics/", "metrics"),
        ("/favicon.ico", "icon"),
        ("/robots.txt", "robots"),
    ] {
        for (method, more) in [
            ("GET", ""),
            ("GET", HANDSHAKE),
            ("GET", "Accept: text/event-stream\r\n"),
            ("POST", ""),
        ] {
            let line = format!("{method} {path}");
            let Answer { code, body, .. } = server.request(&line, more, "").await;
            assert_eq!(code, 404, "{line}");
            assert!(
                body.contains("reserved") && body.contains(remedy),
                "{line}: {body}"
            );
            assert_eq!(body.lines().count(), 1, "{body}");
        }
        let answer = server.request(&format!("HEAD {path}"), "", "").await;
        assert_eq!(answer.code, 404);
    }
    assert_eq!(server.monitor.rooms(), 0);
}
