//! Plain HTTP in and out of a room: publishing, following, reading, receipts, and origins.

use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use wscast::config::Size;

use crate::harness::*;

async fn post(server: &TestServer, path: &str, body: &[u8]) -> Value {
    let answer = server.request(&format!("POST {path}"), "", body).await;
    assert_eq!(answer.code, 201, "{answer:?}");
    answer.json()
}

/// A reader of an event stream.
struct Stream {
    client: RawClient,
    head: String,
    unread: String,
}

impl Stream {
    async fn open(server: &TestServer, path: &str, more: &str) -> Self {
        let mut client = server.raw().await;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: test\r\nAccept: text/event-stream\r\n{more}\r\n");
        client.send(request).await;
        let head = client.read_head().await;
        Self {
            client,
            head,
            unread: String::new(),
        }
    }

    /// The text before the next empty line; none at the end of the stream.
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some((event, rest)) = self.unread.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.unread = rest;
                return Some(event);
            }
            let mut chunk = [0; 4096];
            let length = timeout(PATIENCE, self.client.stream.read(&mut chunk)).await;
            match length.expect("nothing is received").unwrap() {
                0 => return None,
                length => self.unread += std::str::from_utf8(&chunk[..length]).unwrap(),
            }
        }
    }

    async fn expect(&mut self, event: &str) {
        assert_eq!(self.next().await.as_deref(), Some(event));
    }
}

#[tokio::test]
async fn a_posted_body_is_published_as_a_message() {
    let server = TestServer::broadcast().await;
    let mut client = server.client_at("/lobby").await;
    client.next_text().await;
    let mut seq = 0;
    for (content_type, body, kind) in [
        ("", &b"hello"[..], "text"),
        ("", b"\xff\0", "binary"),
        ("application/x-www-form-urlencoded", b"a=b&c", "text"),
        ("application/x-www-form-urlencoded", b"\xff", "binary"),
        ("text/plain", b"text", "text"),
        ("Text/HTML; charset=utf-8", b"<p>", "text"),
        ("application/json", b"{}", "text"),
        ("application/ld+json", b"{}", "text"),
        ("application/octet-stream", b"text", "binary"),
        ("image/png", b"\x89PNG", "binary"),
        ("text/plain", "ä€😀".as_bytes(), "text"),
    ] {
        let field = match content_type {
            "" => String::new(),
            it => format!("Content-Type: {it}\r\n"),
        };
        let answer = server.request("POST /lobby", &field, body).await;
        assert_eq!(answer.code, 201, "{answer:?}");
        assert_eq!(answer.field("content-type"), Some("application/json"));
        assert_eq!(answer.field("cache-control"), Some("no-store"));
        let answer = answer.json();
        seq += 1;
        let id = answer["id"].as_str().unwrap();
        assert!(id.ends_with(&format!("-{seq}")), "{id}");
        assert_eq!(answer, json!({"id": id, "clients": 1}));
        let expected = match kind {
            "text" => Message::text(format!("Broadcast: {}", str::from_utf8(body).unwrap())),
            _ => Message::binary(body.to_vec()),
        };
        assert_eq!(client.next().await, expected, "{content_type}");
    }
}

#[tokio::test]
async fn a_message_posted_to_an_empty_room_is_remembered() {
    let server = TestServer::broadcast().await;
    assert_eq!(post(&server, "/empty", b"for later").await["clients"], 0);
    let mut late = server.client_at("/empty").await;
    late.next_text().await;
    late.expect("Broadcast: for later").await;
}

#[tokio::test]
async fn an_invalid_post_is_refused_with_the_reason() {
    let server = TestServer::quiet(|config| config.limits.max_message_size = Size::from(10)).await;
    let too_long = format!("POST /{}", "x".repeat(1024));
    for (line, more, body, code, reason) in [
        (
            "POST /",
            "Content-Type: text/plain\r\n",
            &b"\xff"[..],
            400,
            "utf-8",
        ),
        (
            "POST /",
            "Content-Type: application/json\r\n",
            b"\xff",
            400,
            "utf-8",
        ),
        ("POST /", "", b"12345678901", 413, "--max-message-size"),
        (
            "POST /",
            "Transfer-Encoding: chunked\r\n",
            b"6\r\n123456\r\n6\r\n123456\r\n0\r\n\r\n",
            413,
            "--max-message-size",
        ),
        (
            "POST /",
            "Transfer-Encoding: chunked\r\n",
            b"nonsense\r\n",
            400,
            "malformed",
        ),
        ("POST /?wait=forever", "", b"x", 400, "wait"),
        (
            "POST /?wait=delivered&timeout=soon",
            "",
            b"x",
            400,
            "timeout",
        ),
        ("POST /?wait=delivered&timeout=2m", "", b"x", 400, "timeout"),
        ("POST /metrics", "", b"x", 404, "reserved"),
        ("POST /healthz", "", b"x", 405, "get"),
        ("PUT /", "", b"x", 405, "post"),
        (&too_long, "", b"x", 414, "1024"),
    ] {
        let answer = server.request(line, more, body).await;
        assert_eq!(answer.code, code, "{line} {more}: {answer:?}");
        assert_eq!(answer.body.lines().count(), 1, "{answer:?}");
        assert!(answer.body.to_lowercase().contains(reason), "{answer:?}");
        assert_eq!(answer.field("allow").is_some(), code == 405, "{answer:?}");
    }
}

#[tokio::test]
async fn a_complete_body_of_the_largest_size_is_published_and_a_truncated_one_is_not() {
    let server = TestServer::quiet(|config| config.limits.max_message_size = Size::from(10)).await;
    let mut client = server.client().await;
    // A truncated body is not published.
    let mut cut = server.raw().await;
    cut.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf")
        .await;
    drop(cut);
    // One of exactly the largest size is, at once or in chunks; the truncated one does not appear.
    post(&server, "/", b"1234567890").await;
    let chunks = "3\r\n123\r\n7\r\n4567890\r\n0\r\n\r\n";
    let answer = server
        .request("POST /", "Transfer-Encoding: chunked\r\n", chunks)
        .await;
    assert_eq!(answer.code, 201);
    client.expect("Broadcast: 1234567890").await;
    client.expect("Broadcast: 1234567890").await;
}

#[tokio::test]
async fn a_request_without_exactly_one_host_is_answered_400() {
    // Admission depends on the host.
    let server = TestServer::echo().await;
    for hosts in ["", "Host: one\r\nHost: two\r\n"] {
        let request = format!("GET / HTTP/1.1\r\n{hosts}\r\n");
        let Answer { code, body, .. } = server.raw().await.exchange(request).await;
        assert_eq!((code, body.as_str()), (400, "a request names one Host\n"));
    }
}

#[tokio::test]
async fn an_echo_server_answers_a_post_405_and_names_broadcast_mode() {
    let server = TestServer::echo().await;
    let answer = server.request("POST /", "", "x").await;
    assert_eq!(answer.code, 405);
    assert_eq!(answer.field("allow"), Some("get, head, options"));
    assert!(answer.body.contains("--mode broadcast"), "{answer:?}");
}

#[tokio::test]
async fn expect_100_continue_is_answered_before_the_body_is_sent() {
    let server = TestServer::quiet(|config| config.limits.max_message_size = Size::from(10)).await;
    let head = |length| {
        format!(
            "POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    let mut client = server.raw().await;
    client.send(head(5)).await;
    assert_eq!(client.read_head().await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.send("hello").await;
    assert_eq!(client.answer().await.code, 201);
    assert_eq!(server.raw().await.exchange(head(11)).await.code, 413);
}

#[tokio::test]
async fn posts_and_websocket_messages_reach_every_client_in_one_order() {
    const EACH: usize = 50;
    let server = TestServer::quiet(|_| {}).await;
    let mut watchers = Vec::new();
    for _ in 0..3 {
        watchers.push(server.client().await);
    }
    let mut stream = Stream::open(&server, "/", "").await;
    let websocket = async |name: &str| {
        let mut client = server.client().await;
        for number in 0..EACH {
            client.send(&format!("{name} {number}")).await;
        }
        for _ in 0..4 * EACH {
            client.next_text().await;
        }
    };
    let poster = async |name: &str| {
        for number in 0..EACH {
            post(&server, "/", format!("{name} {number}").as_bytes()).await;
        }
    };
    tokio::join!(websocket("a"), websocket("b"), poster("c"), poster("d"));
    let mut orders = Vec::new();
    for watcher in &mut watchers {
        let mut order = Vec::new();
        for _ in 0..4 * EACH {
            let text = watcher.next_text().await;
            order.push(text.strip_prefix("Broadcast: ").unwrap().to_owned());
        }
        orders.push(order);
    }
    let mut order = Vec::new();
    for _ in 0..4 * EACH {
        let event = stream.next().await.unwrap();
        order.push(event.split_once("data: ").unwrap().1.to_owned());
    }
    orders.push(order);
    for order in &orders {
        assert_eq!(order, &orders[0]);
        for name in ["a", "b", "c", "d"] {
            let own = order.iter().filter(|it| it.starts_with(name));
            assert!(
                own.eq(&(0..EACH)
                    .map(|it| format!("{name} {it}"))
                    .collect::<Vec<_>>())
            );
        }
    }
}

#[tokio::test]
async fn an_event_stream_follows_a_room() {
    let server = TestServer::broadcast().await;
    let first = post(&server, "/lobby", b"two\nlines\r\nand\rmore\n").await;
    let epoch = first["id"]
        .as_str()
        .unwrap()
        .split('-')
        .next()
        .unwrap()
        .to_owned();
    let mut stream = Stream::open(&server, "/lobby", "").await;
    assert!(
        stream.head.contains("content-type: text/event-stream\r\n"),
        "{}",
        stream.head
    );
    assert!(
        stream
            .head
            .contains("cache-control: no-store, no-transform\r\n"),
        "{}",
        stream.head
    );
    stream
        .expect(": Welcome! You\u{2019}re now in the broadcast room.")
        .await;
    stream
        .expect(&format!(
            "id: {epoch}-1\ndata: two\ndata: lines\ndata: and\ndata: more\ndata: "
        ))
        .await;
    let binary = "Content-Type: application/octet-stream\r\n";
    let answer = server.request("POST /lobby", binary, [0, 255, 7]).await;
    assert_eq!(answer.code, 201);
    stream
        .expect(&format!("id: {epoch}-2\nevent: binary\ndata: AP8H"))
        .await;
}

#[tokio::test]
async fn a_quiet_event_stream_is_kept_alive_by_comments() {
    let server = TestServer::quiet(|config| config.times.ping_interval = millis(50)).await;
    let mut stream = Stream::open(&server, "/", "").await;
    stream.expect(":").await;
    stream.expect(":").await;
}

#[tokio::test]
async fn an_event_stream_counts_as_a_client_until_it_disconnects() {
    let server = TestServer::quiet(|_| {}).await;
    let stream = Stream::open(&server, "/", "").await;
    assert_eq!(post(&server, "/", b"x").await["clients"], 1);
    drop(stream);
    eventually("it is disconnected", || server.monitor.connections() == 0).await;
}

/// A server that remembers the last two of the messages `1` to `4`, and the ids of all four.
async fn with_four_messages() -> (TestServer, Vec<String>) {
    let server = TestServer::quiet(|config| config.history.limit = 2).await;
    let mut ids = Vec::new();
    for text in ["1", "2", "3", "4"] {
        let answer = post(&server, "/", text.as_bytes()).await;
        ids.push(answer["id"].as_str().unwrap().to_owned());
    }
    (server, ids)
}

fn last_event_id(id: &str) -> String {
    format!("Last-Event-ID: {id}\r\n")
}

#[tokio::test]
async fn an_event_stream_resumes_after_the_requested_id() {
    let (server, ids) = with_four_messages().await;
    // The header overrides the query, which an EventSource repeats at each reconnect.
    let since = |id: &str| format!("/?since={id}");
    for (path, more) in [
        (since(&ids[2]), String::new()),
        ("/".to_owned(), last_event_id(&ids[2])),
        (since(&ids[0]), last_event_id(&ids[2])),
        (since(&ids[2]), last_event_id("")),
    ] {
        let mut stream = Stream::open(&server, &path, &more).await;
        stream.expect(&format!("id: {}\ndata: 4", ids[3])).await;
    }
}

#[tokio::test]
async fn an_event_stream_that_cannot_resume_begins_with_a_gap_event() {
    let (server, ids) = with_four_messages().await;
    // An invalid id is one of another log: an EventSource answered 400 never reconnects.
    for (id, missed) in [
        (ids[0].as_str(), "1"),
        ("5-5", "null"),
        ("x", "null"),
        ("\u{e4}", "null"),
        ("18446744073709551615-18446744073709551615", "null"),
    ] {
        let mut stream = Stream::open(&server, "/", &last_event_id(id)).await;
        let gap = format!("event: gap\ndata: {{\"missed\":{missed}}}");
        stream.expect(&gap).await;
        stream.expect(&format!("id: {}\ndata: 3", ids[2])).await;
        stream.expect(&format!("id: {}\ndata: 4", ids[3])).await;
    }
}

#[tokio::test]
async fn an_invalid_since_is_answered_400_unless_last_event_id_overrides_it() {
    let (server, ids) = with_four_messages().await;
    // An empty one is ignored.
    let mut stream = Stream::open(&server, "/?since=", "").await;
    stream.expect(&format!("id: {}\ndata: 3", ids[2])).await;
    let mut stream = Stream::open(&server, "/?since=x", &last_event_id("x")).await;
    stream.expect("event: gap\ndata: {\"missed\":null}").await;
    let more = "Accept: text/event-stream\r\n";
    let answer = server.request("GET /?since=x", more, "").await;
    assert_eq!(answer.code, 400);
    assert!(answer.body.contains("<epoch>-<seq>"), "{answer:?}");
}

#[tokio::test]
async fn a_drain_ends_an_event_stream_with_a_retry_delay() {
    let mut server = TestServer::quiet(|_| {}).await;
    let mut stream = Stream::open(&server, "/", "").await;
    post(&server, "/", b"last").await;
    server.begin_stop();
    let event = stream.next().await.unwrap();
    assert!(event.ends_with("\ndata: last"), "{event}");
    stream.expect("retry: 1000").await;
    assert_eq!(stream.next().await, None);
    server.stop().await;
}

#[tokio::test]
async fn an_event_stream_that_is_not_read_is_dropped_at_the_write_timeout() {
    let server = TestServer::quiet(|config| {
        config.times.write_timeout = millis(100);
        config.limits.max_message_size = Size::from(8 << 20);
    })
    .await;
    let mut stalled = RawClient::with_small_window(server.address).await;
    stalled
        .send("GET / HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n")
        .await;
    stalled.read_head().await;
    post(&server, "/", &vec![b'x'; 8 << 20]).await;
    eventually("it is dropped", || server.monitor.connections() == 0).await;
}

/// Reads the history of `/` with `query` appended: its messages, and whether they begin right after
/// the requested id.
/// A server that asks for receipts only when a publisher waits for them.
async fn without_heartbeat() -> TestServer {
    TestServer::quiet(|config| config.times.ping_interval = millis(0)).await
}

/// Posts `text` and waits for receipts; returns the response.
async fn post_and_wait(server: &TestServer, timeout: &str, text: &str) -> Value {
    let path = format!("/?wait=delivered&timeout={timeout}");
    post(server, &path, text.as_bytes()).await
}

/// Reads a message and the ping behind it; returns its payload.
async fn read_ping(client: &mut RawClient) -> Vec<u8> {
    assert_eq!(client.read_frame().await.0, FIN | TEXT);
    let (first, payload) = client.read_frame().await;
    assert_eq!(first, FIN | PING);
    payload
}

#[tokio::test]
async fn a_publisher_can_wait_for_receipts() {
    let server = without_heartbeat().await;
    let mut silent = server.raw_websocket().await;
    let mut reader = server.client().await;
    let reading = tokio::spawn(async move {
        // Reads, which answers pings, until the test ends.
        loop {
            reader.next().await;
        }
    });
    // A client that cannot answer pings.
    let _stream = Stream::open(&server, "/", "").await;
    let answer = post_and_wait(&server, "2", "one").await;
    let id = answer["id"].as_str().unwrap();
    assert_eq!(answer, json!({"id": id, "clients": 3, "delivered": 1}));
    // The ping follows the message, and carries its id.
    assert_eq!(read_ping(&mut silent).await, id.as_bytes());
    reading.abort();
}

#[tokio::test]
async fn only_the_id_of_the_message_or_a_later_one_is_a_receipt() {
    let server = without_heartbeat().await;
    let mut client = server.raw_websocket().await;
    let wrong = async {
        let ping = read_ping(&mut client).await;
        // An older id, and one that does not exist yet.
        for wrong in [&b"1-1"[..], &[&ping[..], b"0"].concat()] {
            client.send(frame(FIN | PONG, wrong)).await;
        }
        ping
    };
    let (answer, ping) = tokio::join!(post_and_wait(&server, "300ms", "one"), wrong);
    assert_eq!(answer["delivered"], 0);
    let right = async {
        let ping = read_ping(&mut client).await;
        // Clients may also send unsolicited pongs, and all of them may arrive in one read.
        let pongs = [&ping[..], b"", b"\xff", b"mine", b"1-1"];
        let pongs = pongs.map(|payload| frame(FIN | PONG, payload)).concat();
        client.send(pongs).await;
        ping
    };
    let (answer, next) = tokio::join!(post_and_wait(&server, "30", "two"), right);
    assert_eq!(answer["delivered"], 1);
    assert_ne!(ping, next);
}

#[tokio::test]
async fn a_publisher_stops_waiting_for_a_client_that_leaves() {
    let server = without_heartbeat().await;
    let mut client = server.raw_websocket().await;
    let leave = async {
        read_ping(&mut client).await;
        drop(client);
    };
    let (answer, ()) = tokio::join!(post_and_wait(&server, "30", "one"), leave);
    assert_eq!(
        (&answer["clients"], &answer["delivered"]),
        (&json!(1), &json!(0))
    );
}

#[tokio::test]
async fn a_publisher_does_not_wait_in_an_empty_room() {
    let server = without_heartbeat().await;
    let answer = post_and_wait(&server, "30", "one").await;
    assert_eq!(
        (&answer["clients"], &answer["delivered"]),
        (&json!(0), &json!(0))
    );
}

#[tokio::test]
async fn a_page_of_another_origin_is_refused() {
    let server = TestServer::quiet(|_| {}).await;
    let other_origin = "Host: test\r\nOrigin: http://evil.com\r\n";
    let ways = [
        ("GET /", HANDSHAKE, ""),
        ("GET /", "Accept: text/event-stream\r\n", ""),
        ("GET /?history", "", ""),
        ("POST /", "", "x"),
        ("OPTIONS /", "Access-Control-Request-Method: POST\r\n", ""),
    ];
    for (line, more, body) in ways {
        let answer = server
            .request(line, &format!("{other_origin}{more}"), body)
            .await;
        assert_eq!(answer.code, 403, "{line}");
        assert!(!answer.head.contains("access-control"), "{answer:?}");
        for part in [
            "\"http://evil.com\"",
            "\"test\"",
            "--allow-origin http://evil.com",
        ] {
            assert!(answer.body.contains(part), "{answer:?}");
        }
    }
    // The page itself is served to any origin.
    assert_eq!(server.request("GET /", other_origin, "").await.code, 200);
    assert_eq!(server.monitor.rooms(), 0);
}

#[tokio::test]
async fn a_page_of_the_same_origin_can_read_every_response() {
    let server = TestServer::quiet(|_| {}).await;
    for origin in ["http://test", "https://test"] {
        let fields = format!("Host: test\r\nOrigin: {origin}\r\n");
        let preflight = "Access-Control-Request-Method: POST\r\n";
        for (line, more, body, code) in [
            ("POST /", "", "x", 201),
            ("OPTIONS /", preflight, "", 204),
            ("GET /", "Accept: text/event-stream\r\n", "", 200),
            // A refusal, too.
            ("GET /?history&limit=0", "", "", 400),
        ] {
            let answer = server.request(line, &format!("{fields}{more}"), body).await;
            assert_eq!(answer.code, code, "{line}: {answer:?}");
            let allowed = answer.field("access-control-allow-origin");
            assert_eq!(allowed, Some(origin), "{line}: {answer:?}");
            assert_eq!(answer.field("vary"), Some("origin"), "{line}: {answer:?}");
        }
        let answer = server
            .request("GET /", &format!("{fields}{HANDSHAKE}"), "")
            .await;
        assert_eq!(answer.code, 101, "{answer:?}");
    }
}

#[tokio::test]
async fn a_list_of_origins_admits_those_and_the_servers_own_page_only() {
    let server = TestServer::quiet(|config| {
        config.access.allow_origin = vec!["https://*.example.com".parse().unwrap()];
    })
    .await;
    for (origin, code) in [
        ("https://a.example.com", 201),
        ("http://localhost", 403),
        ("null", 403),
        // Its own page.
        ("http://test", 201),
    ] {
        let fields = format!("Host: test\r\nOrigin: {origin}\r\n");
        let answer = server.request("POST /", &fields, "x").await;
        assert_eq!(answer.code, code, "{origin}");
    }
    post(&server, "/", b"not from a browser").await;
}
