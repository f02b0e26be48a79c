//! Plain HTTP in and out of a room: publishing, following, reading, receipts, and who may.

use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use wscast::config::{Mode, Size};

use crate::harness::*;

/// Status code, head in lower case, and body of the answer to a request with these header lines.
async fn ask(server: &TestServer, line: &str, more: &str, body: &[u8]) -> (u16, String, String) {
    let mut client = server.raw().await;
    let mut request = format!("{line} HTTP/1.1\r\nHost: test\r\n{more}").into_bytes();
    if !body.is_empty() {
        request.extend(format!("Content-Length: {}\r\n", body.len()).bytes());
    }
    request.extend(b"\r\n");
    request.extend(body);
    client.send(request).await;
    answer(&mut client).await
}

async fn answer(client: &mut RawClient) -> (u16, String, String) {
    let response = String::from_utf8(client.read_to_end().await).unwrap();
    let (head, body) = response.split_once("\r\n\r\n").expect("a head");
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    let head = head.to_lowercase();
    let body = match head.contains("transfer-encoding: chunked") {
        true => unchunked(body),
        false => body.to_owned(),
    };
    (code, head, body)
}

/// A body that came in chunks (RFC 9112, section 7.1).
fn unchunked(mut body: &str) -> String {
    let mut whole = String::new();
    loop {
        let (size, rest) = body.split_once("\r\n").expect("the size of a chunk");
        let size = usize::from_str_radix(size, 16).unwrap();
        whole += &rest[..size];
        body = rest[size..].strip_prefix("\r\n").unwrap();
        if size == 0 {
            return whole;
        }
    }
}

async fn post(server: &TestServer, path: &str, body: &[u8]) -> Value {
    let (code, _, answer) = ask(server, &format!("POST {path}"), "", body).await;
    assert_eq!(code, 201, "{answer}");
    serde_json::from_str(&answer).unwrap()
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

    /// What stands before the next empty line; nothing at the end.
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some((event, rest)) = self.unread.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.unread = rest;
                return Some(event);
            }
            let mut piece = [0; 4096];
            let length = timeout(PATIENCE, self.client.stream.read(&mut piece)).await;
            match length.expect("nothing comes").unwrap() {
                0 => return None,
                length => self.unread += std::str::from_utf8(&piece[..length]).unwrap(),
            }
        }
    }

    async fn expect(&mut self, event: &str) {
        assert_eq!(self.next().await.as_deref(), Some(event));
    }
}

#[tokio::test]
async fn a_body_that_is_posted_is_a_message() {
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
        let (code, head, answer) = ask(&server, "POST /lobby", &field, body).await;
        assert_eq!(code, 201, "{answer}");
        assert!(head.contains("content-type: application/json"), "{head}");
        assert!(head.contains("cache-control: no-store"), "{head}");
        let answer: Value = serde_json::from_str(&answer).unwrap();
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
    // Nobody is there, and it is remembered all the same.
    assert_eq!(post(&server, "/empty", b"for later").await["clients"], 0);
    let mut late = server.client_at("/empty").await;
    late.next_text().await;
    late.expect("Broadcast: for later").await;
}

#[tokio::test]
async fn what_cannot_be_published_is_refused_with_the_reason() {
    let server = TestServer::quiet(|config| config.max_message_size = Size::from(10)).await;
    let mut client = server.client().await;
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
            "Transfer-Encoding: chunked\r\n\r\n6\r\n123456\r\n6\r\n123456\r\n0\r\n",
            b"",
            413,
            "--max-message-size",
        ),
        (
            "POST /",
            "Transfer-Encoding: chunked\r\n\r\nnonsense\r\n",
            b"",
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
    ] {
        let (status, head, answer) = ask(&server, line, more, body).await;
        assert_eq!(status, code, "{line} {more}: {answer}");
        assert_eq!(answer.lines().count(), 1, "{answer}");
        assert!(answer.to_lowercase().contains(reason), "{answer}");
        assert_eq!(head.contains("allow: "), code == 405, "{head}");
    }
    let (code, ..) = ask(&server, &format!("POST /{}", "x".repeat(1024)), "", b"x").await;
    assert_eq!(code, 414);
    // A body that ends too early is no message.
    let mut cut = server.raw().await;
    cut.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf")
        .await;
    drop(cut);
    // Exactly the largest size is, in one piece or in chunks, and nothing else came through.
    post(&server, "/", b"1234567890").await;
    let chunked = "Transfer-Encoding: chunked\r\n\r\n3\r\n123\r\n7\r\n4567890\r\n0\r\n";
    assert_eq!(ask(&server, "POST /", chunked, b"").await.0, 201);
    client.expect("Broadcast: 1234567890").await;
    client.expect("Broadcast: 1234567890").await;

    // Which host is meant decides who may come in.
    for hosts in ["", "Host: one\r\nHost: two\r\n"] {
        let mut client = server.raw().await;
        client.send(format!("GET / HTTP/1.1\r\n{hosts}\r\n")).await;
        let (code, _, answer) = answer(&mut client).await;
        assert_eq!((code, answer.as_str()), (400, "a request names one Host\n"));
    }

    let echo = TestServer::echo().await;
    let (code, head, answer) = ask(&echo, "POST /", "", b"x").await;
    assert_eq!(code, 405);
    assert!(head.contains("allow: get, head, options\r\n"), "{head}");
    assert!(answer.contains("--mode broadcast"), "{answer}");
}

#[tokio::test]
async fn who_waits_to_be_told_to_go_on_is_told_or_refused_before() {
    let server = TestServer::quiet(|config| config.max_message_size = Size::from(10)).await;
    let head = |length| {
        format!(
            "POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    let mut client = server.raw().await;
    client.send(head(5)).await;
    assert_eq!(client.read_head().await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.send("hello").await;
    assert_eq!(answer(&mut client).await.0, 201);
    let mut client = server.raw().await;
    client.send(head(11)).await;
    assert_eq!(answer(&mut client).await.0, 413);
}

#[tokio::test]
async fn posts_and_websockets_are_in_one_order_for_all() {
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
    let server = TestServer::with(|config| {
        config.mode = Mode::Broadcast;
        config.ping_interval = millis(100);
    })
    .await;
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
    // What keeps the connection alive.
    stream.expect(":").await;
    stream.expect(":").await;
    let mut client = server.client_at("/lobby").await;
    client.send_binary(&[0, 255, 7]).await;
    let mut event = stream.next().await.unwrap();
    while event == ":" {
        event = stream.next().await.unwrap();
    }
    assert_eq!(event, format!("id: {epoch}-2\nevent: binary\ndata: AP8H"));
    // It counts as a client, and is none any more once it is gone.
    assert_eq!(post(&server, "/lobby", b"x").await["clients"], 2);
    drop(stream);
    eventually("it is gone", || server.monitor.connections() == 1).await;
}

#[tokio::test]
async fn an_event_stream_resumes_or_says_that_it_cannot() {
    let server = TestServer::quiet(|config| config.history_limit = 2).await;
    let mut ids = Vec::new();
    for text in ["1", "2", "3", "4"] {
        let answer = post(&server, "/", text.as_bytes()).await;
        ids.push(answer["id"].as_str().unwrap().to_owned());
    }
    let event = |number: usize| format!("id: {}\ndata: {number}", ids[number - 1]);
    // The header goes before the query: that is where a stream began that has gone on since.
    let since = |id: &str| format!("/?since={id}");
    let last = |id: &str| format!("Last-Event-ID: {id}\r\n");
    for (path, more) in [
        (since(&ids[2]), String::new()),
        ("/".to_owned(), last(&ids[2])),
        (since(&ids[0]), last(&ids[2])),
        (since(&ids[2]), last("")),
    ] {
        Stream::open(&server, &path, &more)
            .await
            .expect(&event(4))
            .await;
    }
    // What is no id is one of another log: an EventSource that is answered 400 never comes back.
    for (id, missed) in [
        (ids[0].as_str(), "1"),
        ("5-5", "null"),
        ("x", "null"),
        ("\u{e4}", "null"),
        ("18446744073709551615-18446744073709551615", "null"),
    ] {
        let mut stream = Stream::open(&server, "/", &last(id)).await;
        let gap = format!("event: gap\ndata: {{\"missed\":{missed}}}");
        stream.expect(&gap).await;
        stream.expect(&event(3)).await;
        stream.expect(&event(4)).await;
    }
    // An empty one is none, a malformed one is a mistake, unless the header goes before it.
    let first = Stream::open(&server, "/?since=", "").await.next().await;
    assert_eq!(first.unwrap(), event(3));
    let mut stream = Stream::open(&server, "/?since=x", &last("x")).await;
    stream.expect("event: gap\ndata: {\"missed\":null}").await;
    let more = "Accept: text/event-stream\r\n";
    let (code, _, answer) = ask(&server, "GET /?since=x", more, b"").await;
    assert_eq!(code, 400);
    assert!(answer.contains("<epoch>-<seq>"), "{answer}");
}

#[tokio::test]
async fn a_drain_ends_an_event_stream_and_says_when_to_come_back() {
    let mut server = TestServer::quiet(|_| {}).await;
    let mut stream = Stream::open(&server, "/", "").await;
    post(&server, "/", b"last").await;
    server.tell_to_stop();
    let event = stream.next().await.unwrap();
    assert!(event.ends_with("\ndata: last"), "{event}");
    stream.expect("retry: 1000").await;
    assert_eq!(stream.next().await, None);
    server.stop().await;
}

#[tokio::test]
async fn an_event_stream_that_takes_nothing_is_given_up() {
    let server = TestServer::quiet(|config| {
        config.write_timeout = millis(100);
        config.max_message_size = Size::from(8 << 20);
    })
    .await;
    let mut stalled = RawClient::with_small_window(server.address).await;
    stalled
        .send("GET / HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n")
        .await;
    stalled.read_head().await;
    post(&server, "/", &vec![b'x'; 8 << 20]).await;
    eventually("it is given up", || server.monitor.connections() == 0).await;
}

#[tokio::test]
async fn the_history_can_be_read() {
    let server = TestServer::quiet(|config| config.history_limit = 3).await;
    let mut publisher = server.client().await;
    // One batch that the history remembers a part of, maybe.
    for frames in [&b"1234"[..], b"5"] {
        for text in frames {
            publisher.websocket.send_text(*text).await;
        }
    }
    for _ in 0..5 {
        publisher.next_text().await;
    }
    let read = async |query: &str| {
        let more = "Accept: application/json\r\n";
        let (code, head, body) = ask(&server, &format!("GET /?history{query}"), more, b"").await;
        assert_eq!(code, 200, "{body}");
        assert!(head.contains("cache-control: no-store"), "{head}");
        let resumed = head.contains("wscast-resumed: true");
        let messages: Vec<Value> = serde_json::from_str(&body).unwrap();
        (messages, resumed)
    };
    let texts = |messages: &[Value]| -> Vec<String> {
        let text = |it: &Value| it["text"].as_str().unwrap().to_owned();
        messages.iter().map(text).collect()
    };
    let (all, resumed) = read("").await;
    assert_eq!(
        (texts(&all), resumed),
        (vec!["3".into(), "4".into(), "5".into()], false)
    );
    assert_eq!(all[0]["type"], "message");
    let id = all[0]["id"].as_str().unwrap();
    let (rest, resumed) = read(&format!("&since={id}")).await;
    assert_eq!(
        (texts(&rest), resumed),
        (vec!["4".into(), "5".into()], true)
    );
    assert_eq!(rest, all[1..]);
    assert_eq!(read(&format!("&since={id}&limit=1")).await.0, all[1..2]);
    assert_eq!(read("&limit=2").await.0, all[..2]);
    assert_eq!(read("&since=1-1").await, (all, false));
    for (path, more) in [("/?history", ""), ("/", "Accept: text/event-stream\r\n")] {
        let (code, head, body) = ask(&server, &format!("HEAD {path}"), more, b"").await;
        assert_eq!((code, body.as_str()), (200, ""), "{head}");
    }
    // To look is not to make a room.
    let (code, _, body) = ask(&server, "GET /nowhere?history", "", b"").await;
    assert_eq!(
        (code, body.as_str(), server.monitor.rooms()),
        (200, "[\n]\n", 1)
    );
    for query in ["&since=x", "&limit=0", "&limit=-1", "&limit=many"] {
        let (code, _, body) = ask(&server, &format!("GET /?history{query}"), "", b"").await;
        assert_eq!((code, body.lines().count()), (400, 1), "{query}: {body}");
    }
}

trait SendText {
    async fn send_text(&mut self, byte: u8);
}

impl SendText for tokio_tungstenite::WebSocketStream<tokio::net::TcpStream> {
    async fn send_text(&mut self, byte: u8) {
        let text = Message::text(char::from(byte).to_string());
        futures_util::SinkExt::send(self, text).await.unwrap();
    }
}

#[tokio::test]
async fn who_publishes_can_wait_for_receipts() {
    let server = TestServer::quiet(|config| config.ping_interval = millis(0)).await;
    // One that answers by hand.
    let mut silent = server.raw_websocket().await;
    let mut stock = server.client().await;
    let reading = tokio::spawn(async move {
        stock.expect("Broadcast: one").await;
        // Reads, and so answers pings, until the test ends.
        loop {
            stock.next().await;
        }
    });
    let _stream = Stream::open(&server, "/", "").await;

    let waiting = post(&server, "/?wait=delivered&timeout=2", b"one");
    let answer = waiting.await;
    let id = answer["id"].as_str().unwrap().to_owned();
    // The stream is a client that cannot answer.
    assert_eq!(answer, json!({"id": id, "clients": 3, "delivered": 1}));
    // The ping came behind the message, and carries its id.
    assert_eq!(silent.read_frame().await.1, b"Broadcast: one");
    assert_eq!(
        silent.read_frame().await,
        (FIN | PING, id.clone().into_bytes())
    );

    // A receipt for something older or not yet there is none for this.
    let next = async {
        silent.read_frame().await;
        let (_, ping) = silent.read_frame().await;
        let of_the_future = format!("{id}0");
        for wrong in [id.as_bytes(), of_the_future.as_bytes()] {
            silent.send(frame(FIN | PONG, wrong)).await;
        }
        // Clients send pongs of their own, too, and all of them may come in one piece.
        let pongs = [&ping[..], b"", b"\xff", b"mine", b"1-1"];
        let pongs = pongs.map(|payload| frame(FIN | PONG, payload)).concat();
        silent.send(pongs).await;
    };
    let (answer, ()) = tokio::join!(post(&server, "/?wait=delivered&timeout=30", b"two"), next);
    assert_eq!(answer["delivered"], 2);

    // Who leaves is waited for no longer.
    let leave = async {
        silent.read_frame().await;
        silent.read_frame().await;
        drop(silent);
    };
    let (answer, ()) = tokio::join!(
        post(&server, "/?wait=delivered&timeout=30", b"three"),
        leave
    );
    assert_eq!(
        (&answer["clients"], &answer["delivered"]),
        (&json!(3), &json!(1))
    );
    reading.abort();
    // In an empty room there is nothing to wait for.
    let answer = post(&server, "/empty?wait=delivered&timeout=30", b"x").await;
    assert_eq!(
        (&answer["clients"], &answer["delivered"]),
        (&json!(0), &json!(0))
    );
}

#[tokio::test]
async fn a_page_of_another_origin_may_not_come_in() {
    let server = TestServer::quiet(|_| {}).await;
    let handshake = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let ways = [
        ("GET /", handshake, &b""[..]),
        ("GET /", "Accept: text/event-stream\r\n", b""),
        ("GET /?history", "", b""),
        ("POST /", "", b"x"),
        ("OPTIONS /", "Access-Control-Request-Method: POST\r\n", b""),
    ];
    for (line, more, body) in ways {
        let more = format!("{more}Origin: http://evil.com\r\n");
        let (code, head, answer) = ask(&server, line, &more, body).await;
        assert_eq!(code, 403, "{line}");
        assert!(!head.contains("access-control"), "{head}");
        for part in [
            "\"http://evil.com\"",
            "\"test\"",
            "--allow-origin http://evil.com",
        ] {
            assert!(answer.contains(part), "{answer}");
        }
    }
    // The page itself is for everybody.
    assert_eq!(
        ask(&server, "GET /", "Origin: http://evil.com\r\n", b"")
            .await
            .0,
        200
    );
    assert_eq!(server.monitor.rooms(), 0);

    for origin in ["http://test", "https://test"] {
        let allowed = format!("access-control-allow-origin: {origin}\r\n");
        let origin = format!("Origin: {origin}\r\n");
        let (code, head, _) = ask(&server, "POST /", &origin, b"x").await;
        assert_eq!(code, 201);
        assert!(
            head.contains(&allowed) && head.contains("vary: origin"),
            "{head}"
        );
        let preflight = format!("{origin}Access-Control-Request-Method: POST\r\n");
        let (code, head, _) = ask(&server, "OPTIONS /", &preflight, b"").await;
        assert_eq!(code, 204);
        assert!(
            head.contains(&allowed) && head.contains("access-control-allow-methods: get, post"),
            "{head}"
        );
        let stream = Stream::open(&server, "/", &origin).await;
        assert!(stream.head.contains(&allowed), "{}", stream.head);
        let mut client = server.raw().await;
        let handshake = RawClient::handshake("/", &origin).replace("localhost", "test");
        client.send(handshake).await;
        assert!(client.read_head().await.starts_with("HTTP/1.1 101"));
        // A refusal that the page may read.
        let (code, head, _) = ask(&server, "GET /?history&limit=0", &origin, b"").await;
        assert_eq!(code, 400);
        assert!(head.contains(&allowed), "{head}");
    }

    let server = TestServer::quiet(|config| {
        config.allow_origin = vec!["https://*.example.com".parse().unwrap()];
    })
    .await;
    for (origin, code) in [
        ("https://a.example.com", 201),
        ("http://localhost", 403),
        ("null", 403),
        // Its own page.
        ("http://test", 201),
    ] {
        let more = format!("Origin: {origin}\r\n");
        assert_eq!(
            ask(&server, "POST /", &more, b"x").await.0,
            code,
            "{origin}"
        );
    }
    post(&server, "/", b"not from a browser").await;
}
