//! Ids and resuming: the JSON format, `since`, and clients that are cut off.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::SinkExt;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::{Error, Message};
use wscast::config::{Mode, Size};

use crate::harness::*;

fn id_of(event: &Value) -> &str {
    event["id"].as_str().unwrap()
}

/// Epoch and sequence number.
fn parts(id: &str) -> (u64, u64) {
    let (epoch, seq) = id.split_once('-').unwrap();
    (epoch.parse().unwrap(), seq.parse().unwrap())
}

#[tokio::test]
async fn the_json_format_carries_ids_and_times() {
    let server = TestServer::broadcast().await;
    let mut client = Client::json(server.address, "/lobby").await;
    let welcome = client.event().await;
    let expected = json!({
        "type": "welcome", "text": "Welcome! You\u{2019}re now in the broadcast room.",
        "room": "/lobby", "mode": "broadcast", "you": welcome["you"],
        "last_id": null, "resumed": false, "missed": 0, "clients": 1,
        "max_message_size": 1 << 20, "ping_interval": 10, "ping_timeout": 5,
    });
    assert_eq!(welcome, expected);
    client.send("a \"text\"\n").await;
    client.send_binary(&[0, 255, 7]).await;
    let (text, binary) = (client.event().await, client.event().await);
    let (epoch, seq) = parts(id_of(&text));
    assert_eq!(seq, 1);
    assert_eq!(text["text"], "a \"text\"\n");
    assert_eq!(text["type"], "message");
    assert_eq!(binary["binary"], "AP8H");
    assert_eq!(id_of(&binary), format!("{epoch}-2"));
    for event in [&text, &binary] {
        let time = event["time"].as_str().unwrap();
        let time = humantime::parse_rfc3339(time).unwrap();
        assert!(time.elapsed().unwrap() < PATIENCE);
        assert_eq!(event["from"], welcome["you"]);
        assert_eq!(event.as_object().unwrap().len(), 5, "{event}");
    }
    // A client of the plain format gets the same with the prefix.
    let mut plain = server.client_at("/lobby").await;
    plain.next_text().await;
    plain.expect("Broadcast: a \"text\"\n").await;
    // The welcome of a later client has the newest id.
    let mut late = Client::json(server.address, "/lobby").await;
    assert_eq!(late.event().await["last_id"], format!("{epoch}-2"));
    assert_eq!(late.event().await, text);
    assert_eq!(late.event().await, binary);
}

#[tokio::test]
async fn an_echo_has_ids() {
    let server = TestServer::echo().await;
    let mut client = Client::json(server.address, "/").await;
    assert_eq!(client.event().await["mode"], "echo");
    client.send("one").await;
    let answer = client.event().await;
    assert_eq!(
        (parts(id_of(&answer)).1, &answer["text"]),
        (1, &json!("one"))
    );
    let mut again = Client::json(server.address, &format!("/?since={}", id_of(&answer))).await;
    assert_eq!(again.event().await["resumed"], true);
    again.send("two").await;
    assert_eq!(again.event().await["text"], "two");
}

#[tokio::test]
async fn the_format_is_negotiated_as_the_rfc_says() {
    let server = TestServer::broadcast().await;
    for (offer, chosen) in [
        ("Sec-WebSocket-Protocol: wscast.v1.json\r\n", true),
        (
            "Sec-WebSocket-Protocol: chat, wscast.v1.json , v2\r\n",
            true,
        ),
        (
            "Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Protocol: wscast.v1.json\r\n",
            true,
        ),
        ("Sec-WebSocket-Protocol: chat\r\n", false),
        ("Sec-WebSocket-Protocol: wscast.v2.json\r\n", false),
        ("", false),
    ] {
        let mut client = server.raw().await;
        client.send(RawClient::handshake("/", offer)).await;
        let head = client.read_head().await.to_lowercase();
        assert!(head.starts_with("http/1.1 101"), "{head}");
        let answer = "sec-websocket-protocol: wscast.v1.json\r\n";
        assert_eq!(head.contains(answer), chosen, "{offer}: {head}");
        assert_eq!(head.contains("sec-websocket-protocol"), chosen, "{head}");
        let (_, first) = client.read_frame().await;
        assert_eq!(first.starts_with(b"{"), chosen);
    }
}

#[tokio::test]
async fn since_replays_the_messages_after_it_or_reports_a_gap() {
    let server = TestServer::quiet(|config| config.history.limit = 3).await;
    let mut client = Client::json(server.address, "/").await;
    client.event().await;
    let mut ids = Vec::new();
    for number in 1..=5 {
        client.send(&number.to_string()).await;
        ids.push(id_of(&client.event().await).to_owned());
    }
    let epoch = parts(&ids[0]).0;
    // The fields of the welcome, and the first message.
    for (since, resumed, missed, first) in [
        (ids[3].clone(), true, json!(0), Some("5")),
        (ids[1].clone(), true, json!(0), Some("3")),
        (ids[0].clone(), false, json!(1), Some("3")),
        (format!("{epoch}-0"), false, json!(2), Some("3")),
        (format!("{epoch}-6"), false, json!(null), Some("3")),
        (format!("{}-4", epoch - 1), false, json!(null), Some("3")),
        (format!("{}-4", epoch + 1), false, json!(null), Some("3")),
        (
            format!("{epoch}-{}", u64::MAX),
            false,
            json!(null),
            Some("3"),
        ),
        // The last case, as it adds a message.
        (ids[4].clone(), true, json!(0), None),
    ] {
        let path = format!("/?since={since}");
        let mut client = Client::json(server.address, &path).await;
        let welcome = client.event().await;
        let fields = (&welcome["resumed"], &welcome["missed"], &welcome["last_id"]);
        assert_eq!(
            fields,
            (&json!(resumed), &missed, &json!(ids[4])),
            "{since}"
        );
        let mut plain = server.client_at(&path).await;
        if let Some(first) = first {
            assert_eq!(client.event().await["text"], first, "{since}");
            plain.expect(&format!("Broadcast: {first}")).await;
        } else {
            client.send("6").await;
            assert_eq!(client.event().await["text"], "6");
            plain.expect("Broadcast: 6").await;
        }
    }
    for since in [
        "x",
        "1",
        "1-",
        "-1",
        "1-2-3",
        "1-%20",
        "%31-x",
        "99999999999999999999-1",
    ] {
        let refused = Client::connect(server.address, &format!("/?since={since}")).await;
        let Err(Error::Http(response)) = refused else {
            panic!("{since}")
        };
        assert_eq!(response.status(), 400, "{since}");
    }
}

#[tokio::test]
async fn a_restarted_server_never_resumes_an_older_id() {
    let first = TestServer::broadcast().await;
    let mut client = Client::json(first.address, "/").await;
    client.event().await;
    client.send("before").await;
    let before = id_of(&client.event().await).to_owned();
    first.stop().await;
    let second = TestServer::broadcast().await;
    // The new log has as many messages as the old one.
    let mut publisher = Client::json(second.address, "/").await;
    publisher.event().await;
    publisher.send("after").await;
    let after = id_of(&publisher.event().await).to_owned();
    assert!(parts(&after) > parts(&before));
    let mut client = Client::json(second.address, &format!("/?since={before}")).await;
    let welcome = client.event().await;
    assert_eq!(
        (&welcome["resumed"], &welcome["missed"]),
        (&json!(false), &json!(null))
    );
    assert_eq!(client.event().await["text"], "after");
}

#[tokio::test]
async fn ids_do_not_repeat_in_a_forgotten_room() {
    let server = TestServer::quiet(|config| config.history.limit = 0).await;
    let mut last = (0, 0);
    for _ in 0..20 {
        let mut client = Client::json(server.address, "/").await;
        client.event().await;
        client.send("x").await;
        let id = parts(id_of(&client.event().await));
        assert!(id > last, "{id:?} after {last:?}");
        last = id;
        client.close().await;
        eventually("the room is forgotten", || server.monitor.rooms() == 0).await;
    }
}

#[tokio::test]
async fn a_json_client_that_fell_behind_gets_the_size_of_the_gap() {
    let server = TestServer::quiet(|config| {
        config.history.limit = 10;
        config.limits.max_queue = 1;
        config.limits.max_queue_bytes = Size::from(1000);
    })
    .await;
    let mut slow = RawClient::with_small_window(server.address).await;
    slow.send(RawClient::handshake(
        "/",
        "Sec-WebSocket-Protocol: wscast.v1.json\r\n",
    ))
    .await;
    slow.read_head().await;
    let mut publisher = server.client().await;
    // More than all buffers between publisher and client hold.
    let (count, text) = (200, "x".repeat(100_000));
    for number in 1..=count {
        let message = format!("{number} {text}");
        publisher.send(&message).await;
        publisher.next_text().await;
    }
    let mut next = 1;
    let mut gaps = 0;
    while next <= count {
        let (_, payload) = slow.read_frame().await;
        let event: Value = serde_json::from_slice(&payload).unwrap_or_default();
        match event["type"].as_str() {
            Some("message") => {
                let text = event["text"].as_str().unwrap();
                assert!(text.starts_with(&format!("{next} ")), "{}", &text[..20]);
                assert_eq!(parts(id_of(&event)).1, next);
                next += 1;
            }
            Some("gap") => {
                gaps += 1;
                next += event["missed"].as_u64().unwrap();
            }
            _ => {}
        }
    }
    assert!(gaps > 0, "it was never behind");
}

/// A client that publishes numbers as fast as the server accepts them; `stop` returns their count.
struct Flood {
    stop: Arc<AtomicBool>,
    task: JoinHandle<u64>,
}

impl Flood {
    async fn start(server: &TestServer) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, mut client) = (stop.clone(), server.client().await);
        let task = tokio::spawn(async move {
            let mut sent = 0;
            while !stopped.load(Ordering::Relaxed) && sent < 1_000_000 {
                for _ in 0..32 {
                    sent += 1;
                    let message = Message::text(sent.to_string());
                    client.websocket.feed(message).await.unwrap();
                }
                client.websocket.flush().await.unwrap();
                for _ in 0..32 {
                    client.next_text().await;
                }
            }
            sent
        });
        Self { stop, task }
    }

    async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

/// A server whose history holds a whole flood.
async fn with_long_history() -> TestServer {
    TestServer::with(|config| {
        config.service.mode = Mode::Broadcast;
        config.service.welcome = Some(String::new());
        config.service.prefix = Some(String::new());
        config.history.limit = 10_000_000;
        config.history.bytes = Size::from(1 << 30);
        config.history.total = Size::from(1 << 30);
    })
    .await
}

/// Numbers that are the same in every run.
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides as u64) as usize
    }
}

const CUTS: usize = 200;

/// How a connection is cut; half-open ones go to `left_open`.
fn cut(stream: TcpStream, how: usize, left_open: &mut Vec<TcpStream>) {
    match how {
        // A reset.
        0 => stream.set_zero_linger().unwrap(),
        1 => left_open.push(stream),
        // Only a FIN.
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_that_is_cut_off_200_times_misses_nothing() {
    let server = with_long_history().await;
    let flood = Flood::start(&server).await;
    let (mut dice, mut left_open) = (Dice(0x2545_F491_4F6C_DD1D), Vec::new());
    let (mut last_id, mut got) = (String::new(), 0);
    let mut flood = Some(flood);
    let mut count = u64::MAX;
    for round in 0..=CUTS {
        let path = match last_id.as_str() {
            "" => "/".to_owned(),
            id => format!("/?since={id}"),
        };
        let mut client = Client::json(server.address, &path).await;
        let welcome = client.event().await;
        assert_eq!(welcome["resumed"], !last_id.is_empty(), "{welcome}");
        let enough = match round {
            CUTS => {
                count = flood.take().unwrap().stop().await;
                count
            }
            _ => got + dice.throw(300) as u64,
        };
        while got < enough {
            let event = client.event().await;
            got += 1;
            assert_eq!(event["text"], got.to_string());
            last_id = id_of(&event).to_owned();
        }
        match dice.throw(4) {
            3 => {
                client.websocket.close(None).await.ok();
            }
            how => cut(client.websocket.into_inner(), how, &mut left_open),
        }
    }
    assert_eq!(got, count);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_stream_that_is_cut_off_200_times_misses_nothing() {
    let server = with_long_history().await;
    let flood = Flood::start(&server).await;
    let (mut dice, mut left_open) = (Dice(0x9E37_79B9_7F4A_7C15), Vec::new());
    let (mut last_id, mut got) = (String::new(), 0);
    let mut flood = Some(flood);
    let mut count = u64::MAX;
    for round in 0..=CUTS {
        let mut client = server.raw().await;
        let seen = match last_id.as_str() {
            "" => String::new(),
            id => format!("Last-Event-ID: {id}\r\n"),
        };
        let request =
            format!("GET / HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n{seen}\r\n");
        client.send(request).await;
        client.read_head().await;
        let enough = match round {
            CUTS => {
                count = flood.take().unwrap().stop().await;
                count
            }
            _ => got + dice.throw(300) as u64,
        };
        // Cut anywhere, even within an event.
        let mut unread = Vec::new();
        while got < enough {
            let mut piece = vec![0; 1 + dice.throw(5000)];
            let length = client.stream.read(&mut piece).await.unwrap();
            unread.extend_from_slice(&piece[..length]);
            while let Some(end) = unread.windows(2).position(|it| it == b"\n\n") {
                let event: Vec<u8> = unread.drain(..end + 2).collect();
                let event = String::from_utf8(event).unwrap();
                let mut lines = event.lines();
                let Some(id) = lines.next().unwrap().strip_prefix("id: ") else {
                    panic!("{event}")
                };
                got += 1;
                assert!(lines.next().unwrap().starts_with("from: "));
                assert_eq!(lines.next().unwrap(), format!("data: {got}"));
                last_id = id.to_owned();
            }
        }
        cut(client.stream, dice.throw(3), &mut left_open);
    }
    assert_eq!(got, count);
}
