//! The voice of clients: who has sent a message, who else is here, and signs of life.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::ClientRequestBuilder;
use tokio_tungstenite::tungstenite::{Error, Message};
use wscast::config::{Mode, Size, Time};

use crate::harness::*;
use crate::tools::tool;

async fn room() -> TestServer {
    TestServer::quiet(|config| config.service.mode = Mode::Broadcast).await
}

/// A client of the JSON format, and its welcome.
async fn join(server: &TestServer, path: &str) -> (Client, Value) {
    let mut client = Client::json(server.address, path).await;
    let welcome = client.event().await;
    assert_eq!(welcome["type"], "welcome");
    (client, welcome)
}

const ACCEPT: &str = "Accept: text/event-stream\r\n";

/// A client that follows a room by an event stream.
async fn follow(server: &TestServer, path: &str) -> RawClient {
    let mut client = server.raw().await;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{ACCEPT}\r\n");
    client.send(request).await;
    client.read_head().await;
    client
}

async fn post(server: &TestServer, target: &str, text: &str) -> Answer {
    let answer = server.request(&format!("POST {target}"), "", text).await;
    assert_eq!(answer.code, 201, "{}", answer.body);
    answer
}

async fn get(server: &TestServer, target: &str) -> Answer {
    server.request(&format!("GET {target}"), "", "").await
}

/// The status of the answer to a WebSocket handshake.
async fn upgrade(server: &TestServer, target: &str) -> u16 {
    match Client::connect(server.address, target).await {
        Ok(_) => 101,
        Err(Error::Http(response)) => response.status().as_u16(),
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn a_message_says_which_connection_sent_it_and_what_that_calls_itself() {
    let server = room().await;
    let (mut ann, welcome) = join(&server, "/?name=Ann").await;
    let (mut other, others) = join(&server, "/").await;
    let mut plain = server.client_at("/?name=B%C3%B6b").await;
    let you = welcome["you"].as_str().unwrap();
    assert_eq!(you.len(), 16);
    assert_ne!(welcome["you"], others["you"]);

    ann.send("one").await;
    ann.send_binary(b"\0").await;
    for client in [&mut ann, &mut other] {
        let event = client.event().await;
        assert_eq!(
            (&event["from"], &event["name"]),
            (&json!(you), &json!("Ann"))
        );
        let event = client.event().await;
        assert_eq!(
            (&event["from"], &event["binary"]),
            (&json!(you), &json!("AA=="))
        );
    }
    other.send("two").await;
    let event = ann.event().await;
    assert_eq!((&event["from"], event.get("name")), (&others["you"], None));
    // A client of the plain format has an author as well, and its messages are as ever.
    plain.expect("Broadcast: one").await;
    plain.expect_binary(b"\0").await;
    plain.expect("Broadcast: two").await;
    plain.send("three").await;
    let _ = other.event().await;
    let [event, again] = [ann.event().await, other.event().await];
    assert_eq!(event, again);
    assert_eq!(
        (&event["name"], event["from"].as_str().unwrap().len()),
        (&json!("Böb"), 16)
    );
    // A POST is of no connection.
    post(&server, "/?name=Job", "four").await;
    let event = ann.event().await;
    assert_eq!((event.get("from"), &event["name"]), (None, &json!("Job")));
    post(&server, "/", "five").await;
    let event = ann.event().await;
    assert_eq!((event.get("from"), event.get("name")), (None, None));
    // All of it is in the history, and stays when the connection goes.
    ann.close().await;
    let history = get(&server, "/?history").await.json();
    let from: Vec<_> = history
        .as_array()
        .unwrap()
        .iter()
        .map(|it| (it["from"].clone(), it["name"].clone()))
        .collect();
    assert_eq!(from.len(), 6);
    assert_eq!(from[0], (json!(you), json!("Ann")));
    assert_eq!(from[2], (others["you"].clone(), Value::Null));
    assert_eq!(from[4], (Value::Null, json!("Job")));
}

#[tokio::test]
async fn event_streams_have_lines_for_it_that_parsers_pass_over() {
    let server = room().await;
    let (mut ann, welcome) = join(&server, "/?name=Ann").await;
    ann.send("one\ntwo").await;
    let id = ann.event().await["id"].as_str().unwrap().to_owned();
    let mut events = follow(&server, "/").await;
    let you = welcome["you"].as_str().unwrap();
    let expected = format!("id: {id}\nfrom: {you}\nname: Ann\ndata: one\ndata: two\n\n");
    let text = events.read_to("\n\n").await;
    assert_eq!(text, expected);
}

#[tokio::test]
async fn a_welcome_tells_what_a_client_has_to_know() {
    let server = TestServer::quiet(|config| {
        config.service.mode = Mode::Broadcast;
        config.limits.max_message_size = Size::from(1000);
        config.times.ping_interval = Time::from(Duration::from_secs(20));
        config.times.ping_timeout = Time::from(Duration::from_millis(1500));
    })
    .await;
    let _plain = server.client_at("/").await;
    let _stream = follow(&server, "/").await;
    let _elsewhere = server.client_at("/other").await;
    let (_client, welcome) = join(&server, "/").await;
    assert_eq!(
        (&welcome["clients"], &welcome["max_message_size"]),
        (&json!(3), &json!(1000))
    );
    assert_eq!(
        (&welcome["ping_interval"], &welcome["ping_timeout"]),
        (&json!(20), &json!(1.5))
    );
}

#[tokio::test]
async fn signs_of_life_come_with_the_pings_and_only_in_json() {
    let interval = Duration::from_millis(100);
    let server =
        TestServer::quiet(|config| config.times.ping_interval = Time::from(interval)).await;
    let mut plain = server.client_at("/").await;
    let (mut client, _) = join(&server, "/").await;
    let start = Instant::now();
    for number in 1..=3 {
        client.expect(r#"{"type":"alive"}"#).await;
        assert!(start.elapsed() >= interval * number - interval / 2);
    }
    plain.send("hello").await;
    plain.expect("Broadcast: hello").await;
}

#[tokio::test]
async fn changes_of_the_number_of_clients_are_told_at_most_once_a_second() {
    let server = room().await;
    let (mut watcher, welcome) = join(&server, "/?clients").await;
    let (mut other, _) = join(&server, "/").await;
    assert_eq!(welcome["clients"], 1);
    let count = async |client: &mut Client| {
        let event = client.event().await;
        assert_eq!(event["type"], "clients");
        (event["count"].as_u64().unwrap(), Instant::now())
    };
    let (two, at) = count(&mut watcher).await;
    assert_eq!(two, 2);
    let mut crowd = Vec::new();
    for _ in 0..10 {
        crowd.push(server.client_at("/").await);
    }
    let (twelve, then) = count(&mut watcher).await;
    assert_eq!(twelve, 12);
    assert!(then - at >= Duration::from_millis(990), "{:?}", then - at);
    // One that goes and comes within the second is no change.
    crowd.pop().unwrap().close().await;
    crowd.push(server.client_at("/").await);
    crowd.clear();
    loop {
        let (number, at) = count(&mut watcher).await;
        assert!(at - then < Duration::from_secs(5), "{number} clients");
        if number == 2 {
            break;
        }
    }
    // A client that has not asked is not told.
    watcher.send("last").await;
    assert_eq!(other.event().await["text"], "last");
}

#[tokio::test]
async fn who_is_here_can_be_asked() {
    let server = room().await;
    let clients = async |path: &str| get(&server, path).await.json();
    assert_eq!(
        clients("/?clients").await,
        json!({"clients": 0, "names": []})
    );
    let (bob, _) = join(&server, "/?name=Bob").await;
    let _ann = server.client_at("/?name=Ann").await;
    let _ann_again = follow(&server, "/?name=Ann").await;
    let _nameless = server.client_at("/").await;
    let _elsewhere = server.client_at("/other?name=Eve").await;
    assert_eq!(
        clients("/?clients").await,
        json!({"clients": 4, "names": ["Ann", "Bob"]})
    );
    assert_eq!(clients("/other/?clients").await["names"], json!(["Eve"]));
    bob.close().await;
    eventually_async("Bob has gone", async || {
        clients("/?clients").await == json!({"clients": 3, "names": ["Ann"]})
    })
    .await;
    let head = server.request("HEAD /?clients", "", "").await;
    assert_eq!((head.code, &*head.body), (200, ""));
    // It makes no room.
    assert_eq!(clients("/nowhere?clients").await["clients"], 0);
}

#[tokio::test]
async fn a_client_can_leave_out_its_own_messages() {
    let server = room().await;
    let (mut deaf, welcome) = join(&server, "/?echo=off").await;
    let (mut other, _) = join(&server, "/").await;
    for round in 0..3 {
        deaf.send("mine").await;
        assert_eq!(other.event().await["from"], welcome["you"]);
        other.send(&format!("theirs {round}")).await;
        other.event().await;
        assert_eq!(deaf.event().await["text"], format!("theirs {round}"));
    }
    // Receipts cover what it has left out.
    deaf.send("mine").await;
    other.event().await;
    let answered = post(&server, "/?wait=delivered", "for all");
    // A client answers pings as it reads.
    let reading = async {
        loop {
            let events = tokio::join!(deaf.event(), other.event());
            assert_eq!(events.0, events.1);
        }
    };
    tokio::select! {
        answer = answered => assert_eq!(answer.json()["delivered"], 2),
        () = reading => {}
    }
    let mut plain = server.client_at("/?echo=off").await;
    while plain.next().await != Message::text("Broadcast: for all") {}
    plain.send("silence").await;
    post(&server, "/", "heard").await;
    plain.expect("Broadcast: heard").await;
}

#[tokio::test]
async fn the_plain_format_has_a_name_for_clients_that_offer_one() {
    let server = room().await;
    for (offered, expected) in [
        (&["wscast.v1.plain"][..], Some("wscast.v1.plain")),
        (&["token.x", "wscast.v1.plain"], Some("wscast.v1.plain")),
        (
            &["wscast.v1.plain", "wscast.v1.json"],
            Some("wscast.v1.json"),
        ),
        (&["other"], None),
    ] {
        let url = format!("ws://{}/", server.address).parse().unwrap();
        let mut request = ClientRequestBuilder::new(url);
        for protocol in offered {
            request = request.with_sub_protocol(*protocol);
        }
        let stream = tokio::net::TcpStream::connect(server.address)
            .await
            .unwrap();
        let chosen = match tokio_tungstenite::client_async(request, stream).await {
            Ok((_, response)) => response.headers().get("sec-websocket-protocol").cloned(),
            // tungstenite wants one of those that it offers.
            Err(Error::Protocol(_)) => None,
            Err(error) => panic!("{error}"),
        };
        assert_eq!(chosen.as_ref().map(|it| it.to_str().unwrap()), expected);
    }
}

#[tokio::test]
async fn what_cannot_be_a_name_is_refused_with_the_remedy() {
    let server = room().await;
    for (target, reason) in [
        ("/?name=a%0Ab", "name: a name has no line breaks"),
        (
            "/?name=%E2%80%AEnnA",
            "no other characters that control how text is shown",
        ),
        (
            &*format!("/?name={}", "x".repeat(65)),
            "name: a name has 1 to 64 characters",
        ),
    ] {
        assert_eq!(upgrade(&server, target).await, 400, "{target}");
        for response in [
            server.request(&format!("POST {target}"), "", "hello").await,
            server.request(&format!("GET {target}"), ACCEPT, "").await,
        ] {
            assert_eq!(response.code, 400, "{target}");
            assert!(response.body.contains(reason), "{}", response.body);
        }
    }
    assert_eq!(upgrade(&server, "/?echo=no").await, 400);
    assert_eq!(upgrade(&server, "/?echo=off&name=").await, 101);
    assert_eq!(post(&server, "/?name=", "hello").await.code, 201);
}

#[tokio::test]
async fn a_client_of_the_python_library_is_served_as_ever() {
    const SCRIPT: &str = r#"
import sys
from websockets.sync.client import connect
with connect(sys.argv[1] + "/?name=Ann", ping_interval=0.1, ping_timeout=5) as client:
    assert client.recv(10) == "Welcome! You’re now in the broadcast room."
    for number in range(100):
        client.send(f"{number}")
        client.send(bytes([number]))
        assert client.recv(10) == f"Broadcast: {number}"
        assert client.recv(10) == bytes([number])
with connect(sys.argv[1], subprotocols=["wscast.v1.plain", "other"]) as client:
    assert client.subprotocol == "wscast.v1.plain"
    assert client.recv(10) == "Welcome! You’re now in the broadcast room."
    assert client.recv(10) == "Broadcast: 0"
"#;
    let Some(python) = tool("bin/python") else {
        return;
    };
    let server = TestServer::broadcast().await;
    let url = format!("ws://{}", server.address);
    let mut command = Command::new(python);
    command.args(["-c", SCRIPT, &url]).kill_on_drop(true);
    let output = timeout(PATIENCE, command.output()).await.unwrap().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
}
