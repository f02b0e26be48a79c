//! Real servers and clients for tests.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::handshake::client::Response;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, ClientRequestBuilder, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};
use wscast::config::{Config, Mode, Time};
use wscast::server::{Monitor, Server};

/// Longer than any wait of a test that passes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Milliseconds as the value of an option.
pub(crate) fn millis(millis: u64) -> Time {
    Time::from(Duration::from_millis(millis))
}

/// A server in this process, on a free port of 127.0.0.1.
pub(crate) struct TestServer {
    pub(crate) address: SocketAddr,
    pub(crate) monitor: Monitor,
    stop: Option<oneshot::Sender<()>>,
    running: Option<JoinHandle<()>>,
}

impl TestServer {
    pub(crate) async fn echo() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn broadcast() -> Self {
        Self::with(|config| config.service.mode = Mode::Broadcast).await
    }

    /// A broadcast server without greeting, with these changes to its defaults.
    pub(crate) async fn quiet(change: impl FnOnce(&mut Config)) -> Self {
        Self::with(|config| {
            config.service.mode = Mode::Broadcast;
            config.service.welcome = Some(String::new());
            change(config);
        })
        .await
    }

    /// An echo server with these changes to its defaults.
    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        Self::run(Server::bind(Self::config(change)).await.unwrap())
    }

    /// The configuration of a server on a free port, with these changes.
    pub(crate) fn config(change: impl FnOnce(&mut Config)) -> Config {
        let mut config = Config::with(|config| {
            config.listening.host = "127.0.0.1".into();
            config.listening.port = 0;
            config.access.allow_host = ["test", "x"].map(|it| it.parse().unwrap()).into();
        });
        change(&mut config);
        config
    }

    /// Runs `server`.
    pub(crate) fn run(server: Server) -> Self {
        let address = server.local_addrs().unwrap()[0];
        let monitor = server.monitor();
        let (stop, stopped) = oneshot::channel::<()>();
        let running = tokio::spawn(server.run(async {
            stopped.await.ok();
        }));
        Self {
            address,
            monitor,
            stop: Some(stop),
            running: Some(running),
        }
    }

    /// Begins the shutdown of the server.
    pub(crate) fn begin_stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    /// Stops the server; returns when it is drained.
    pub(crate) async fn stop(mut self) {
        if self.stop.is_some() {
            self.begin_stop();
        }
        timeout(PATIENCE, self.running.take().unwrap())
            .await
            .unwrap()
            .unwrap();
    }

    pub(crate) async fn client(&self) -> Client {
        self.client_at("/").await
    }

    pub(crate) async fn client_at(&self, path: &str) -> Client {
        Client::connect(self.address, path).await.unwrap().0
    }

    pub(crate) async fn raw(&self) -> RawClient {
        RawClient::connect(self.address).await
    }

    /// Sends a request on a new connection, as [`RawClient::request`] does.
    pub(crate) async fn request(&self, line: &str, fields: &str, body: impl AsRef<[u8]>) -> Answer {
        self.raw().await.request(line, fields, body).await
    }

    /// A raw client of the default room, its handshake done.
    pub(crate) async fn raw_websocket(&self) -> RawClient {
        let mut client = self.raw().await;
        client.upgrade("/").await;
        client
    }
}

/// Waits until `done` returns true; for states that no client can observe.
pub(crate) async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let wait = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(timeout(PATIENCE, wait).await.is_ok(), "{what}");
}

/// The same with an asynchronous check.
pub(crate) async fn eventually_async(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(timeout(PATIENCE, wait).await.is_ok(), "{what}");
}

/// A tungstenite client.
pub(crate) struct Client {
    pub(crate) websocket: WebSocketStream<TcpStream>,
}

impl Client {
    pub(crate) async fn connect(
        address: SocketAddr,
        path: &str,
    ) -> Result<(Self, Response), tungstenite::Error> {
        let stream = TcpStream::connect(address).await?;
        Self::over(stream, address, path).await
    }

    pub(crate) async fn over(
        stream: TcpStream,
        address: SocketAddr,
        path: &str,
    ) -> Result<(Self, Response), tungstenite::Error> {
        stream.set_nodelay(true)?;
        let url = format!("ws://{address}{path}").parse().unwrap();
        Self::ask(stream, ClientRequestBuilder::new(url)).await
    }

    /// A client that offers the JSON format.
    pub(crate) async fn json(address: SocketAddr, path: &str) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let url = format!("ws://{address}{path}").parse().unwrap();
        let request = ClientRequestBuilder::new(url).with_sub_protocol("wscast.v1.json");
        Self::ask(stream, request).await.unwrap().0
    }

    async fn ask(
        stream: TcpStream,
        request: ClientRequestBuilder,
    ) -> Result<(Self, Response), tungstenite::Error> {
        // Small reads, so that no large buffer hides a slow reader.
        let config = WebSocketConfig::default().read_buffer_size(4096);
        let handshake = client_async_with_config(request, stream, Some(config));
        let (websocket, response) = timeout(PATIENCE, handshake)
            .await
            .expect("the handshake hangs")?;
        Ok((Self { websocket }, response))
    }

    /// The next event of the JSON format, signs of life aside.
    pub(crate) async fn event(&mut self) -> Value {
        loop {
            let event: Value = serde_json::from_str(&self.next_text().await).unwrap();
            if event["type"] != "alive" {
                return event;
            }
        }
    }

    pub(crate) async fn send(&mut self, text: &str) {
        self.websocket.send(Message::text(text)).await.unwrap();
    }

    pub(crate) async fn send_binary(&mut self, bytes: &[u8]) {
        self.websocket
            .send(Message::binary(bytes.to_vec()))
            .await
            .unwrap();
    }

    /// The next message, pings and pongs aside.
    pub(crate) async fn next(&mut self) -> Message {
        loop {
            match timeout(PATIENCE, self.websocket.next())
                .await
                .expect("no message comes")
            {
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(message)) => return message,
                other => panic!("the connection ended without a close frame: {other:?}"),
            }
        }
    }

    pub(crate) async fn next_text(&mut self) -> String {
        match self.next().await {
            Message::Text(text) => text.to_string(),
            other => panic!("expected text, got {other:?}"),
        }
    }

    pub(crate) async fn expect(&mut self, text: &str) {
        assert_eq!(self.next().await, Message::text(text));
    }

    pub(crate) async fn expect_binary(&mut self, bytes: &[u8]) {
        assert_eq!(self.next().await, Message::binary(bytes.to_vec()));
    }

    /// Expects a close frame with `code`, then the end of the connection.
    pub(crate) async fn expect_close(&mut self, code: u16) -> String {
        let Message::Close(Some(frame)) = self.next().await else {
            panic!("no close frame")
        };
        assert_eq!(u16::from(frame.code), code);
        self.expect_end().await;
        frame.reason.to_string()
    }

    /// Expects the end of the connection after the closing handshake.
    pub(crate) async fn expect_end(&mut self) {
        let end = timeout(PATIENCE, self.websocket.next())
            .await
            .expect("the server hangs on");
        assert!(end.is_none(), "{end:?}");
    }

    /// Closes with 1000 and expects the answer.
    pub(crate) async fn close(mut self) {
        self.websocket.close(None).await.unwrap();
        while let Some(message) = timeout(PATIENCE, self.websocket.next()).await.unwrap() {
            message.unwrap();
        }
    }
}

pub(crate) const TEXT: u8 = 0x1;
pub(crate) const BINARY: u8 = 0x2;
pub(crate) const CONTINUATION: u8 = 0x0;
pub(crate) const CLOSE: u8 = 0x8;
pub(crate) const PING: u8 = 0x9;
pub(crate) const PONG: u8 = 0xa;
pub(crate) const FIN: u8 = 0x80;

/// The header lines of an opening handshake (the key is the example of RFC 6455, section 1.3).
pub(crate) const HANDSHAKE: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";

/// The response to a request.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    /// Status line and header lines, in lower case.
    pub(crate) head: String,
    /// Decoded if chunked; empty for a WebSocket or an event stream.
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.body))
    }

    /// The value of a header field, its name in lower case.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            (found == name).then_some(value)
        })
    }
}

/// Decodes a chunked body (RFC 9112, section 7.1).
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

/// A masked frame as a client sends it; `first` is its first byte.
pub(crate) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x11, 0x22, 0x33, 0x44];
    let mut frame = vec![first];
    match payload.len() {
        length @ 0..126 => frame.push(0x80 | length as u8),
        length @ 126..0x1_0000 => {
            frame.push(0x80 | 126);
            frame.extend((length as u16).to_be_bytes());
        }
        length => {
            frame.push(0x80 | 127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend(mask);
    frame.extend(
        payload
            .iter()
            .zip(mask.iter().cycle())
            .map(|(byte, mask)| byte ^ mask),
    );
    frame
}

/// Reads one frame as a server sends it: its first byte and its payload.
pub(crate) async fn read_frame(
    mut stream: impl AsyncRead + Unpin,
) -> std::io::Result<(u8, Vec<u8>)> {
    let first = stream.read_u8().await?;
    let length = match stream.read_u8().await? {
        126 => stream.read_u16().await?.into(),
        127 => stream.read_u64().await?,
        length => length.into(),
    };
    let mut payload = vec![0; usize::try_from(length).unwrap()];
    stream.read_exact(&mut payload).await?;
    Ok((first, payload))
}

/// The header line that keeps a connection, for [`RawClient::request`].
pub(crate) const ALIVE: &str = "Connection: keep-alive\r\n";

/// A client that sends and receives bytes.
pub(crate) struct RawClient {
    pub(crate) stream: TcpStream,
}

impl RawClient {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self {
            stream: TcpStream::connect(address).await.unwrap(),
        }
    }

    /// A client with a small receive buffer.
    pub(crate) async fn with_small_window(address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        Self {
            stream: socket.connect(address).await.unwrap(),
        }
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// A handshake for `path`, with `more` header lines.
    pub(crate) fn handshake(path: &str, more: &str) -> String {
        format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{HANDSHAKE}{more}\r\n")
    }

    /// Does the opening handshake.
    pub(crate) async fn upgrade(&mut self, path: &str) {
        self.send(Self::handshake(path, "")).await;
        let head = self.read_head().await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    }

    /// Reads a response up to the end of its head.
    pub(crate) async fn read_head(&mut self) -> String {
        self.read_to("\r\n\r\n").await
    }

    /// Reads up to `end`.
    pub(crate) async fn read_to(&mut self, end: &str) -> String {
        let mut read = Vec::new();
        while !read.ends_with(end.as_bytes()) {
            let byte = timeout(PATIENCE, self.stream.read_u8()).await;
            read.push(byte.expect("nothing comes").unwrap());
        }
        String::from_utf8(read).unwrap()
    }

    /// Reads to the end of the connection.
    pub(crate) async fn read_to_end(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        timeout(PATIENCE, self.stream.read_to_end(&mut rest))
            .await
            .unwrap()
            .unwrap();
        rest
    }

    /// Sends a request with these header lines and this body, and reads the response. `Host`,
    /// `Connection` and the length of the body are added where the lines do not have them.
    pub(crate) async fn request(
        &mut self,
        line: &str,
        fields: &str,
        body: impl AsRef<[u8]>,
    ) -> Answer {
        let body = body.as_ref();
        let given = format!("\r\n{}", fields.to_lowercase());
        let mut head = format!("{line} HTTP/1.1\r\n");
        if !given.contains("\r\nhost:") {
            head += "Host: localhost\r\n";
        }
        if !given.contains("\r\nconnection:") {
            head += "Connection: close\r\n";
        }
        if !body.is_empty() && !given.contains("\r\ntransfer-encoding:") {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        self.exchange([format!("{head}{fields}\r\n").as_bytes(), body].concat())
            .await
    }

    /// Sends these bytes, and reads the response.
    pub(crate) async fn exchange(&mut self, request: impl AsRef<[u8]>) -> Answer {
        self.send(request).await;
        self.answer().await
    }

    /// Reads a response: to the end of the connection if that is its last, and else as long as it says;
    /// only the head of an upgrade or of an event stream.
    pub(crate) async fn answer(&mut self) -> Answer {
        let head = self.read_head().await.to_lowercase();
        let mut answer = Answer {
            code: head.split(' ').nth(1).unwrap().parse().unwrap(),
            head,
            body: String::new(),
        };
        let is_chunked = answer.field("transfer-encoding") == Some("chunked");
        let length = answer.field("content-length").map(|it| it.parse().unwrap());
        let is_stream = answer.field("content-type") == Some("text/event-stream");
        let mut body = Vec::new();
        if answer.code == 101 || (is_stream && length.is_none()) {
            return answer;
        } else if answer.field("connection") == Some("close") {
            body = self.read_to_end().await;
        } else if is_chunked {
            body = self.read_to("0\r\n\r\n").await.into_bytes();
        } else {
            body.resize(length.unwrap_or(0), 0);
            let read = self.stream.read_exact(&mut body);
            timeout(PATIENCE, read).await.unwrap().unwrap();
        }
        answer.body = String::from_utf8(body).unwrap();
        if is_chunked {
            answer.body = unchunked(&answer.body);
        }
        answer
    }

    /// Reads one frame: its first byte and its payload.
    pub(crate) async fn read_frame(&mut self) -> (u8, Vec<u8>) {
        timeout(PATIENCE, read_frame(&mut self.stream))
            .await
            .expect("no frame comes")
            .unwrap()
    }

    /// Expects a close frame with `code`, then the end of the connection.
    pub(crate) async fn expect_close(&mut self, code: u16) {
        let (first, payload) = self.read_frame().await;
        assert_eq!(first, FIN | CLOSE);
        assert_eq!(
            payload[..2],
            code.to_be_bytes(),
            "{}",
            payload[..2].escape_ascii()
        );
        assert_eq!(self.read_to_end().await, b"");
    }
}
