//! What a message, a delivery, a connection and an idle client cost, beside a plain
//! tokio-tungstenite server written as its public examples are.
//!
//! `cargo bench --bench versus [-- NAME…]` runs the scenarios whose names contain one of the NAMEs.
//! Both servers are processes of their own, driven over loopback with frames made in advance; their
//! CPU time is read from /proc. Each scenario runs both in turn, several times; the medians count.

#![allow(clippy::unwrap_used, reason = "a benchmark that fails says where")]

use std::cell::Cell;
use std::collections::HashMap;
use std::fs;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use wscast::audience::{frame_length, masked_frame};

const ROUNDS: usize = 3;
const WARM_UP: Duration = Duration::from_millis(300);
const MEASURED: Duration = Duration::from_millis(1500);

/// What is done to a server, and what is counted.
#[derive(Debug, Clone, Copy)]
enum Load {
    /// Each client keeps so many messages of so many bytes on their way.
    Echo {
        clients: usize,
        window: usize,
        size: usize,
    },
    /// One of the clients keeps so many messages on their way to all of them.
    FanOut { clients: usize, window: usize },
    /// Clients connect, upgrade and leave.
    Connect { at_a_time: usize },
    /// Clients do nothing.
    Idle { clients: usize },
    /// A publisher posts one message after the other, over one connection or each over its own. The
    /// plain server has no such thing.
    Post { keep_alive: bool },
}

const SCENARIOS: [(&str, Load); 10] = [
    (
        "echo, 100 clients, 1 in flight",
        Load::Echo {
            clients: 100,
            window: 1,
            size: 64,
        },
    ),
    (
        "echo, 100 clients, 32 in flight",
        Load::Echo {
            clients: 100,
            window: 32,
            size: 64,
        },
    ),
    (
        "echo of 16 KiB, 100 clients, 1 in flight",
        Load::Echo {
            clients: 100,
            window: 1,
            size: 16384,
        },
    ),
    (
        "fan-out to 100, 1 in flight",
        Load::FanOut {
            clients: 100,
            window: 1,
        },
    ),
    (
        "fan-out to 100, 32 in flight",
        Load::FanOut {
            clients: 100,
            window: 32,
        },
    ),
    (
        "fan-out to 1000, 32 in flight",
        Load::FanOut {
            clients: 1000,
            window: 32,
        },
    ),
    ("connect, upgrade, leave", Load::Connect { at_a_time: 16 }),
    ("idle clients", Load::Idle { clients: 1000 }),
    ("POST over one connection", Load::Post { keep_alive: true }),
    ("POST, a connection each", Load::Post { keep_alive: false }),
];

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|it| it != "--bench");
    let names: Vec<String> = match arguments.next() {
        Some(first) if first == SERVE => return serve_plainly(&arguments.next().unwrap()),
        first => first.into_iter().chain(arguments).collect(),
    };
    rlimit::increase_nofile_limit(u64::MAX).ok();
    println!("| scenario | wscast | plain | ratio | unit |\n|---|---:|---:|---:|---|");
    for (name, load) in SCENARIOS {
        if names.is_empty() || names.iter().any(|it| name.contains(it.as_str())) {
            let (mut ours, mut plain) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                ours.push(measure(&Server::wscast(load), load));
                if !matches!(load, Load::Post { .. }) {
                    plain.push(measure(&Server::plain(load), load));
                }
            }
            let ours = median(ours);
            let unit = match load {
                Load::Idle { .. } => "bytes a client",
                Load::Connect { .. } => "CPU µs a connection",
                Load::Echo { .. } => "CPU µs a message",
                Load::FanOut { .. } => "CPU µs a delivery",
                Load::Post { .. } => "a second, one at a time",
            };
            if plain.is_empty() {
                println!("| {name} | {ours:.2} | | | {unit} |");
                continue;
            }
            let plain = median(plain);
            println!(
                "| {name} | {ours:.2} | {plain:.2} | {:.2} | {unit} |",
                ours / plain
            );
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The mode of the server under `load`.
fn mode(load: Load) -> &'static str {
    match load {
        Load::FanOut { .. } | Load::Post { .. } => "broadcast",
        Load::Echo { .. } | Load::Connect { .. } | Load::Idle { .. } => "echo",
    }
}

/// A server process; it ends with this value.
struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    fn wscast(load: Load) -> Self {
        let mode = mode(load);
        let mut command = Command::new(env!("CARGO_BIN_EXE_wscast"));
        command.args([
            "--mode",
            mode,
            "--host",
            "127.0.0.1",
            "--welcome=",
            "--prefix=",
        ]);
        command
            .args(["--history-limit", "0"])
            .env("RUST_LOG", "warn");
        Self::start(command)
    }

    fn plain(load: Load) -> Self {
        let mode = mode(load);
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([SERVE, mode]);
        Self::start(command)
    }

    /// Starts it on a port that was free a moment ago, and waits until it listens.
    fn start(mut command: Command) -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        command.env("PORT", address.port().to_string());
        // What the environment says is not what is measured.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("WSCAST_") {
                command.env_remove(name);
            }
        }
        command.env("WSCAST_PORT", address.port().to_string());
        let child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let start = Instant::now();
        while std::net::TcpStream::connect(address).is_err() {
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "the server does not listen"
            );
        }
        Self { child, address }
    }

    /// CPU time in microseconds, user and system (proc(5)); a tick is 10 ms on Linux.
    fn cpu(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .unwrap()
            .1
            .split_whitespace()
            .collect();
        fields[11..13]
            .iter()
            .map(|ticks| ticks.parse::<f64>().unwrap() * 10_000.0)
            .sum()
    }

    fn memory(&self) -> f64 {
        let statm = fs::read_to_string(format!("/proc/{}/statm", self.child.id())).unwrap();
        statm
            .split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<f64>()
            .unwrap()
            * 4096.0
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The cost of one unit of `load`.
fn measure(server: &Server, load: Load) -> f64 {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async {
        let count = Rc::new(Cell::new(0_u64));
        if let Load::Idle { clients } = load {
            let before = server.memory();
            let mut idle = Vec::new();
            for _ in 0..clients {
                idle.push(connect(server.address).await);
            }
            return (server.memory() - before) / clients as f64;
        }
        start(server.address, load, &count).await;
        tokio::time::sleep(WARM_UP).await;
        let (cpu, before) = (server.cpu(), count.get());
        tokio::time::sleep(MEASURED).await;
        if matches!(load, Load::Post { .. }) {
            return (count.get() - before) as f64 / MEASURED.as_secs_f64();
        }
        (server.cpu() - cpu) / (count.get() - before) as f64
    })
}

/// Starts the clients of `load`, which count what they get.
async fn start(address: SocketAddr, load: Load, count: &Rc<Cell<u64>>) {
    match load {
        Load::Echo {
            clients,
            window,
            size,
        } => {
            for _ in 0..clients {
                let stream = connect(address).await;
                tokio::task::spawn_local(talk(stream, window, size, count.clone()));
            }
        }
        Load::FanOut { clients, window } => {
            for _ in 1..clients {
                let stream = connect(address).await;
                tokio::task::spawn_local(talk(stream, 0, 64, count.clone()));
            }
            let stream = connect(address).await;
            tokio::task::spawn_local(talk(stream, window, 64, count.clone()));
        }
        Load::Connect { at_a_time } => {
            for _ in 0..at_a_time {
                let count = count.clone();
                tokio::task::spawn_local(async move {
                    loop {
                        let mut stream = connect(address).await;
                        stream
                            .write_all(&masked_frame(0x88, &[0x03, 0xe8]))
                            .await
                            .unwrap();
                        let mut rest = Vec::new();
                        stream.read_to_end(&mut rest).await.ok();
                        count.set(count.get() + 1);
                    }
                });
            }
        }
        Load::Idle { .. } => {}
        Load::Post { keep_alive } => {
            tokio::task::spawn_local(publish(address, keep_alive, count.clone()));
        }
    }
}

/// Posts one message after the other, and counts the answers.
async fn publish(address: SocketAddr, keep_alive: bool, count: Rc<Cell<u64>>) {
    let connection = if keep_alive { "keep-alive" } else { "close" };
    let request = format!(
        "POST / HTTP/1.1\r\nHost: localhost\r\nConnection: {connection}\r\n\
         Content-Length: 64\r\n\r\n{}",
        "x".repeat(64)
    );
    let mut kept = None;
    loop {
        let mut stream = match kept.take() {
            Some(stream) => stream,
            None => TcpStream::connect(address).await.unwrap(),
        };
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // The answer ends with its JSON object.
        while !answer.trim_ascii_end().ends_with(b"}") {
            let read = stream.read_buf(&mut answer).await.unwrap();
            assert!(read > 0, "the server left");
        }
        assert!(answer.starts_with(b"HTTP/1.1 201 "));
        count.set(count.get() + 1);
        kept = keep_alive.then_some(stream);
    }
}

/// Keeps `window` messages on their way, and counts the frames that come.
async fn talk(mut stream: TcpStream, window: usize, size: usize, count: Rc<Cell<u64>>) {
    let one = masked_frame(0x81, &vec![b'x'; size]);
    let all = one.repeat(window.max(1));
    stream.write_all(&all[..one.len() * window]).await.unwrap();
    let mut buffer = vec![0; 256 * 1024];
    let mut kept = 0;
    loop {
        let read = stream.read(&mut buffer[kept..]).await.unwrap();
        assert!(read > 0, "the server left");
        let (mut at, end, mut frames) = (0, kept + read, 0);
        while let Some(length) = frame_length(&buffer[at..end]) {
            at += length;
            frames += 1;
        }
        buffer.copy_within(at..end, 0);
        kept = end - at;
        count.set(count.get() + frames as u64);
        if window > 0 {
            stream
                .write_all(&all[..one.len() * frames.min(window)])
                .await
                .unwrap();
        }
    }
}

async fn connect(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let request = "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    stream
}

const SERVE: &str = "serve-plainly";

/// A server as the examples `echo-server.rs` and `server.rs` of tokio-tungstenite are written: a
/// split stream, forwarded, and an unbounded channel a client.
#[tokio::main]
async fn serve_plainly(mode: &str) {
    type Peers = std::sync::Arc<
        std::sync::Mutex<
            HashMap<SocketAddr, mpsc::UnboundedSender<tokio_tungstenite::tungstenite::Message>>,
        >,
    >;
    let port: u16 = std::env::var("PORT").unwrap().parse().unwrap();
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let peers = Peers::default();
    let echo = mode == "echo";
    while let Ok((stream, address)) = listener.accept().await {
        let peers = peers.clone();
        tokio::spawn(async move {
            let Ok(websocket) = tokio_tungstenite::accept_async(stream).await else {
                return;
            };
            let (mut sink, mut stream) = websocket.split();
            if echo {
                let data = stream.filter(|message| {
                    let data = message
                        .as_ref()
                        .is_ok_and(|it| it.is_text() || it.is_binary());
                    std::future::ready(data)
                });
                data.forward(sink).await.ok();
                return;
            }
            let (sender, mut receiver) = mpsc::unbounded_channel();
            peers.lock().unwrap().insert(address, sender);
            let read = async {
                while let Some(Ok(message)) = stream.next().await {
                    if message.is_text() || message.is_binary() {
                        for peer in peers.lock().unwrap().values() {
                            peer.send(message.clone()).ok();
                        }
                    }
                }
            };
            let write = async {
                while let Some(message) = receiver.recv().await {
                    if sink.send(message).await.is_err() {
                        break;
                    }
                }
            };
            tokio::select! { () = read => {}, () = write => {} }
            peers.lock().unwrap().remove(&address);
        });
    }
}
