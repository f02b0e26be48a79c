//! A recording of all that a server sends: each event, and each kind of answer to each request, provoked.

use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use wscast::config::{Config, Mode, Size};

use crate::harness::*;
use crate::history::{fill, messages_in, unread};

/// Events that only a store or a right makes a server send: none of today's servers does. A test in
/// `src/format.rs` holds them against the code.
const OF_A_STORE: &str = include_str!("events_of_a_store.jsonl");

const EVENTS: &str = "Accept: text/event-stream\r\n";
/// A handshake without its version.
const UPGRADE: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
/// Milliseconds between two signs of life that a recording need not wait for.
const OFTEN: u64 = 100;

/// What servers have sent.
#[derive(Debug, Default)]
pub(crate) struct Recording {
    /// Events of the JSON format.
    pub(crate) events: Vec<Value>,
    /// Event streams, whole.
    pub(crate) streams: Vec<String>,
    /// Requests and their answers.
    pub(crate) exchanges: Vec<Exchange>,
}

/// A request and its answer.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) method: String,
    pub(crate) target: String,
    /// Header lines of the request.
    fields: String,
    pub(crate) answer: Answer,
}

impl Exchange {
    /// It in JSON, with names of header fields in lower case.
    fn to_json(&self) -> Value {
        let fields = |lines: &str| -> Value {
            let pairs = lines.lines().filter_map(|line| line.split_once(": "));
            pairs
                .map(|(name, value)| (name.to_lowercase(), json!(value)))
                .collect::<serde_json::Map<_, _>>()
                .into()
        };
        json!({
            "method": self.method.to_lowercase(),
            "target": self.target,
            "fields": fields(&self.fields),
            "status": self.answer.code,
            "head": fields(&self.answer.head),
            "body": self.answer.body,
        })
    }
}

impl Recording {
    /// Provokes all of it.
    pub(crate) async fn new() -> Self {
        let mut this = Self::default();
        let of_a_store = OF_A_STORE.lines().map(serde_json::from_str);
        this.events = of_a_store.collect::<Result<_, _>>().unwrap();
        this.record_messages().await;
        this.record_starts().await;
        this.record_gaps().await;
        this.record_streams().await;
        this.record_answers().await;
        this.record_posts_with_a_key().await;
        this.record_refusals().await;
        this.record_standstills().await;
        this.record_health().await;
        this
    }

    /// It in JSON.
    pub(crate) fn to_json(&self) -> Value {
        let exchanges: Vec<_> = self.exchanges.iter().map(Exchange::to_json).collect();
        json!({"events": self.events, "exchanges": exchanges})
    }

    /// Asks, records the answer, and returns its body.
    async fn ask(&mut self, server: &TestServer, line: &str, fields: &str, body: &str) -> &Answer {
        let answer = server.request(line, fields, body).await;
        self.keep(line, fields, answer)
    }

    fn keep(&mut self, line: &str, fields: &str, answer: Answer) -> &Answer {
        let (method, target) = line.split_once(' ').unwrap();
        self.exchanges.push(Exchange {
            method: method.into(),
            target: target.into(),
            fields: fields.into(),
            answer,
        });
        &self.exchanges.last().unwrap().answer
    }

    /// Asks, and expects this status.
    async fn expect(
        &mut self,
        server: &TestServer,
        code: u16,
        line: &str,
        fields: &str,
        body: &str,
    ) {
        let answer = self.ask(server, line, fields, body).await;
        assert_eq!(answer.code, code, "{line}: {answer:?}");
    }

    /// Reads events of `client` up to one of this type.
    async fn read(&mut self, client: &mut Client, kind: &str) -> Value {
        loop {
            let event = next_event(client).await;
            self.events.push(event.clone());
            if event["type"] == kind {
                return event;
            }
        }
    }

    /// Joins, and records the welcome.
    async fn join(&mut self, server: &TestServer, target: &str) -> (Client, Value) {
        let mut client = Client::json(server.address, target).await;
        let welcome = self.read(&mut client, "welcome").await;
        (client, welcome)
    }

    /// Messages of authors of all kinds; signs of life; counts of clients.
    async fn record_messages(&mut self) {
        let server = often().await;
        let (mut ann, _) = self.join(&server, "/?name=Ann&clients").await;
        self.read(&mut ann, "alive").await;
        let (mut nameless, _) = self.join(&server, "/").await;
        self.read(&mut ann, "clients").await;
        publish(&server, [&mut ann, &mut nameless]).await;
        let (mut reader, welcome) = self.join(&server, "/").await;
        while self.read(&mut reader, "message").await["id"] != welcome["last_id"] {}
        reader.send(&"x".repeat(70_000)).await;
        self.read(&mut reader, "large").await;
    }

    /// Where a client starts: with an id, and without.
    async fn record_starts(&mut self) {
        for mode in [Mode::Echo, Mode::Broadcast] {
            let server = TestServer::with(|config| {
                config.service.mode = mode;
                config.history.limit = 2;
            })
            .await;
            let (mut client, _) = self.join(&server, "/").await;
            let mut ids = Vec::new();
            for _ in 0..4 {
                client.send("hello").await;
                let event = self.read(&mut client, "message").await;
                ids.push(event["id"].as_str().unwrap().to_owned());
            }
            let starts = [&ids[0], &ids[3], "1-1"].map(|id| format!("/?since={id}"));
            let [partly, fully, elsewhere] = starts;
            for (target, resumed, missed) in [
                (&partly, false, json!(1)),
                (&fully, true, json!(0)),
                (&elsewhere, false, json!(null)),
            ] {
                let (_, welcome) = self.join(&server, target).await;
                assert_eq!(
                    (&welcome["resumed"], &welcome["missed"]),
                    (&json!(resumed), &missed)
                );
            }
            let (_, welcome) = self.join(&server, "/new?since=1-1").await;
            assert_eq!(welcome["last_id"], Value::Null);
        }
    }

    /// Gaps, of a client that falls behind and in a history that is read too slowly.
    async fn record_gaps(&mut self) {
        let server = TestServer::quiet(|config| {
            config.history.limit = 10;
            config.limits.max_queue = 1;
            config.limits.max_queue_bytes = Size::from(1000);
        })
        .await;
        let mut slow = RawClient::with_small_window(server.address).await;
        let protocol = "Sec-WebSocket-Protocol: wscast.v1.json\r\n";
        slow.send(RawClient::handshake("/", protocol)).await;
        slow.read_head().await;
        // More than all buffers on the way hold.
        fill(server.address, 200, 100_000).await;
        loop {
            let (_, payload) = slow.read_frame().await;
            let event: Value = serde_json::from_slice(&payload).unwrap_or_default();
            if event["type"] == "gap" {
                self.events.push(event);
                break;
            }
        }

        let server = TestServer::quiet(|config| config.history.limit = 500).await;
        fill(server.address, 500, 16_000).await;
        let mut reader = unread(server.address).await;
        fill(server.address, 400, 16_000).await;
        let mut messages = messages_in(&reader.read_to_end().await);
        // The rest is long.
        messages.retain(|event| event["type"] == "gap");
        assert_eq!(messages.len(), 1);
        let mut answer = server.request("GET /?history&limit=1", "", "").await;
        answer.body = json!(messages).to_string();
        self.keep("GET /?history&limit=1", "", answer);
    }

    /// Event streams: with messages of all kinds, resumed in vain, and of a server that ends or is full.
    async fn record_streams(&mut self) {
        let mut server = TestServer::with(|config| {
            config.service.mode = Mode::Broadcast;
            config.history.limit = 8;
            config.times.ping_interval = millis(OFTEN);
        })
        .await;
        let mut ann = Client::json(server.address, "/?name=Ann").await;
        let mut nameless = Client::json(server.address, "/").await;
        ann.send("forgotten").await;
        let _welcome = ann.event().await;
        let first = ann.event().await["id"].as_str().unwrap().to_owned();
        ann.send("forgotten, too").await;
        publish(&server, [&mut ann, &mut nameless]).await;
        let mut streams = Vec::new();
        for (target, fields) in [
            (format!("/?name=Bob&since={first}"), EVENTS.to_owned()),
            (
                "/".to_owned(),
                format!("{EVENTS}Last-Event-ID: nonsense\r\n"),
            ),
        ] {
            let line = format!("GET {target}");
            self.expect(&server, 200, &line, &fields, "").await;
            let mut stream = server.raw().await;
            let head = format!("{line} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n");
            stream.send(head).await;
            stream.read_head().await;
            let text = stream.read_to("\n:\n\n").await;
            streams.push((stream, text));
        }
        server.begin_stop();
        for (mut stream, mut text) in streams {
            text += str::from_utf8(&stream.read_to_end().await).unwrap();
            self.streams.push(text);
        }
        drop((ann, nameless));
        server.stop().await;

        let full = TestServer::quiet(|config| config.limits.max_connections = 1).await;
        let _client = full.raw_websocket().await;
        let fields = format!("{EVENTS}Sec-Fetch-Mode: cors\r\n");
        let answer = self.ask(&full, "GET /", &fields, "").await;
        assert_eq!(answer.code, 200);
        let text = answer.body.clone();
        self.streams.push(text);
    }

    /// Answers with what was asked for.
    async fn record_answers(&mut self) {
        let server = often().await;
        let mut ann = Client::json(server.address, "/?name=Ann").await;
        let mut nameless = Client::json(server.address, "/").await;
        publish(&server, [&mut ann, &mut nameless]).await;
        let id = ann.event().await["last_id"].clone();
        assert_eq!(id, Value::Null);
        let id = ann.event().await["id"].as_str().unwrap().to_owned();
        for target in [
            "/?history".to_owned(),
            format!("/?history&since={id}&limit=3"),
            format!("/?history&before={id}"),
        ] {
            self.expect(&server, 200, &format!("GET {target}"), "", "")
                .await;
        }
        let last = format!("Last-Event-ID: {id}\r\n");
        for (code, line, fields) in [
            (200, "GET /?history", &*last),
            (200, "GET /?clients", ""),
            (200, "GET /", ""),
            (304, "GET /", "If-None-Match: *\r\n"),
            (200, "HEAD /", ""),
            (304, "HEAD /", "If-None-Match: *\r\n"),
            (200, "HEAD /?clients", ""),
            (200, "HEAD /?history", ""),
            (200, "HEAD /", EVENTS),
            (204, "OPTIONS /", ""),
            (
                204,
                "OPTIONS /",
                "Origin: http://localhost\r\nAccess-Control-Request-Method: POST\r\n",
            ),
            (201, "POST /?name=Job", "Content-Type: text/plain\r\n"),
            (201, "POST /", "Content-Type: application/octet-stream\r\n"),
            (201, "POST /?wait=delivered&timeout=10ms", ""),
            (201, "POST /", "Origin: http://localhost\r\n"),
        ] {
            let body = if line.starts_with("POST") {
                "hello"
            } else {
                ""
            };
            self.expect(&server, code, line, fields, body).await;
        }
        for path in ["/-/wscast.js", "/-/wscast.d.ts"] {
            let line = format!("GET {path}");
            self.expect(&server, 200, &line, "", "").await;
            self.expect(&server, 304, &line, "If-None-Match: *\r\n", "")
                .await;
        }
        let websocket = format!(
            "{UPGRADE}Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: wscast.v1.json\r\n{last}"
        );
        let line = format!("GET /?name=Eve&echo=off&clients&since={id}");
        self.expect(&server, 101, &line, &websocket, "").await;
    }

    /// A second try, and another message with the same key.
    async fn record_posts_with_a_key(&mut self) {
        let server = TestServer::broadcast().await;
        let key = "Idempotency-Key: k-1\r\n";
        for (code, target, body) in [
            (201, "/", "hello"),
            (200, "/", "hello"),
            (200, "/?wait=delivered", "hello"),
            (422, "/", "another"),
        ] {
            let line = format!("POST {target}");
            self.expect(&server, code, &line, key, body).await;
        }
    }

    /// Refusals of what is wrong with a request.
    async fn record_refusals(&mut self) {
        let server = TestServer::quiet(|config| {
            config.limits.max_message_size = Size::from(10);
        })
        .await;
        let long = format!("/{}", "x".repeat(1024));
        let many = "Field: x\r\n".repeat(101);
        for method in ["GET", "HEAD", "POST", "OPTIONS"] {
            let body = if method == "POST" { "x" } else { "" };
            let mut expect = async |code, target: &str, fields: &str| {
                let line = format!("{method} {target}");
                self.expect(&server, code, &line, fields, body).await;
            };
            expect(400, "/", "Host: a b\r\n").await;
            expect(403, "/?history", "Host: elsewhere.example\r\n").await;
            expect(404, "/metrics", "").await;
            expect(414, &long, "").await;
            expect(431, "/", &many).await;
        }
        let old = format!("{UPGRADE}Sec-WebSocket-Version: 8\r\n");
        for (code, line, fields, body) in [
            (426, "GET /", &*old, ""),
            (413, "POST /", "", "12345678901"),
            (415, "POST /", "Content-Encoding: gzip\r\n", "x"),
            (501, "POST /", "Transfer-Encoding: gzip\r\n", "x"),
        ] {
            self.expect(&server, code, line, fields, body).await;
        }
        let echo = TestServer::echo().await;
        self.expect(&echo, 405, "POST /", "", "x").await;

        let full = TestServer::quiet(|config| config.limits.max_connections = 1).await;
        let _client = full.raw_websocket().await;
        for line in ["GET /", "HEAD /", "POST /", "OPTIONS /"] {
            self.expect(&full, 503, line, "", "").await;
        }
    }

    /// Requests that stand still.
    async fn record_standstills(&mut self) {
        let server = TestServer::quiet(|config| config.times.open_timeout = millis(500)).await;
        let mut begun = Vec::new();
        for line in ["GET /", "HEAD /", "POST /", "OPTIONS /"] {
            let mut client = server.raw().await;
            client.send(format!("{line} HTTP/1.1\r\nHost: x\r\n")).await;
            begun.push((line, client));
        }
        for (line, mut client) in begun {
            let answer = client.answer().await;
            assert_eq!(answer.code, 408);
            self.keep(line, "", answer);
        }
    }

    /// Health checks, of a server that serves and of one that drains.
    async fn record_health(&mut self) {
        let mut server = often().await;
        for path in ["/livez", "/healthz", "/readyz"] {
            self.expect(&server, 200, &format!("GET {path}"), "", "")
                .await;
        }
        let mut begun = Vec::new();
        for path in ["/healthz", "/readyz"] {
            let mut client = server.raw().await;
            client
                .send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n"))
                .await;
            begun.push((path, client));
        }
        eventually("both are there", || server.monitor.connections() == 2).await;
        server.begin_stop();
        for (path, mut client) in begun {
            let answer = client.answer().await;
            assert_eq!(answer.code, 503);
            self.keep(&format!("GET {path}"), "", answer);
        }
        server.stop().await;
    }
}

/// A broadcast server with frequent signs of life.
async fn often() -> TestServer {
    TestServer::with(|config: &mut Config| {
        config.service.mode = Mode::Broadcast;
        config.times.ping_interval = millis(OFTEN);
    })
    .await
}

/// The next event of the JSON format, signs of life included.
async fn next_event(client: &mut Client) -> Value {
    loop {
        let message = timeout(PATIENCE, client.websocket.next()).await.unwrap();
        if let Message::Text(text) = message.unwrap().unwrap() {
            return serde_json::from_str(&text).unwrap();
        }
    }
}

/// Has each of the clients publish a text and a binary message, and POSTs both with a name and without.
async fn publish(server: &TestServer, clients: [&mut Client; 2]) {
    for client in clients {
        client.send("one\ntwo").await;
        client.send_binary(b"\0").await;
    }
    for target in ["POST /?name=Job", "POST /"] {
        for kind in ["text/plain", "application/octet-stream"] {
            let fields = format!("Content-Type: {kind}\r\n");
            assert_eq!(server.request(target, &fields, "x").await.code, 201);
        }
    }
    // All of it is in the log.
    eventually_async("all is published", async || {
        let history = server.request("GET /?history&limit=8", "", "").await.json();
        let from = |event: &Value| event["from"].is_string();
        history
            .as_array()
            .unwrap()
            .iter()
            .filter(|it| from(it))
            .count()
            == 4
    })
    .await;
}
