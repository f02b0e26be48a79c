//! What publishing costs where rooms are kept in a database, under each policy and beside memory: messages a
//! second, the time until a message is delivered, and the CPU time of the server.
//!
//! `cargo bench --bench store [-- NAME…]` runs the loads whose names contain one of the NAMEs. The server is a
//! process of its own, driven over loopback; the database is in the folder for temporary files. Each load runs
//! under all policies in turn, several times; the medians count.

#![allow(clippy::unwrap_used, reason = "a benchmark that fails says where")]

use std::collections::VecDeque;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use wscast::audience::{frame_length, masked_frame};

const ROUNDS: usize = 3;
const WARM_UP: Duration = Duration::from_millis(500);
const MEASURED: Duration = Duration::from_secs(2);

/// Bytes of a message.
const SIZE: usize = 128;

/// Clients, each in a room of its own, that keep so many messages on their way.
struct Load {
    name: &'static str,
    clients: usize,
    window: usize,
}

const LOADS: [Load; 4] = [
    Load {
        name: "1 in flight",
        clients: 1,
        window: 1,
    },
    Load {
        name: "64 in flight",
        clients: 1,
        window: 64,
    },
    Load {
        name: "64 in flight, 16 rooms",
        clients: 16,
        window: 4,
    },
    Load {
        name: "2048 in flight",
        clients: 1,
        window: 2048,
    },
];

/// `--store-sync`; none for memory alone.
const POLICIES: [Option<&str>; 4] = [None, Some("off"), Some("everysec"), Some("always")];

/// What one run has shown.
#[derive(Debug, Clone, Copy)]
struct Run {
    /// Messages a second.
    rate: f64,
    /// Milliseconds from the write of a message to its delivery.
    median: f64,
    p99: f64,
    /// Microseconds of CPU time of the server a message.
    cpu: f64,
}

fn main() {
    let names: Vec<String> = std::env::args()
        .skip(1)
        .filter(|it| it != "--bench")
        .collect();
    println!("| load | policy | messages/s | p50 ms | p99 ms | CPU µs a message |");
    println!("|---|---|---:|---:|---:|---:|");
    for load in LOADS {
        if !names.is_empty() && !names.iter().any(|it| load.name.contains(it.as_str())) {
            continue;
        }
        let mut runs = POLICIES.map(|_| Vec::new());
        for _ in 0..ROUNDS {
            for (policy, runs) in POLICIES.iter().zip(&mut runs) {
                runs.push(measure(&load, *policy));
            }
        }
        for (policy, runs) in POLICIES.iter().zip(&runs) {
            let median = |value: fn(&Run) -> f64| {
                let mut values: Vec<f64> = runs.iter().map(value).collect();
                values.sort_by(f64::total_cmp);
                values[values.len() / 2]
            };
            println!(
                "| {} | {} | {:.0} | {:.2} | {:.2} | {:.2} |",
                load.name,
                policy.unwrap_or("memory"),
                median(|it| it.rate),
                median(|it| it.median),
                median(|it| it.p99),
                median(|it| it.cpu),
            );
        }
    }
}

fn measure(load: &Load, policy: Option<&str>) -> Run {
    let server = Server::start(policy);
    let begin = Instant::now() + WARM_UP;
    let end = begin + MEASURED;
    let clients: Vec<_> = (0..load.clients)
        .map(|number| {
            let (address, window) = (server.address, load.window);
            thread::spawn(move || talk(address, number, window, begin, end))
        })
        .collect();
    thread::sleep(begin.saturating_duration_since(Instant::now()));
    let cpu = server.cpu();
    thread::sleep(end.saturating_duration_since(Instant::now()));
    let cpu = server.cpu() - cpu;
    let mut times: Vec<Duration> = clients
        .into_iter()
        .flat_map(|it| it.join().unwrap())
        .collect();
    times.sort();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1000.0;
    Run {
        rate: times.len() as f64 / MEASURED.as_secs_f64(),
        median: at(0.5),
        p99: at(0.99),
        cpu: cpu / times.len() as f64,
    }
}

/// Keeps `window` messages on their way; returns how long each took that came in the measured time.
fn talk(
    address: SocketAddr,
    number: usize,
    window: usize,
    begin: Instant,
    end: Instant,
) -> Vec<Duration> {
    let mut stream = join(address, number);
    let one = masked_frame(0x81, &[b'x'; SIZE]);
    let all = one.repeat(window);
    let mut sent = VecDeque::from(vec![Instant::now(); window]);
    stream.write_all(&all).unwrap();
    let (mut buffer, mut kept) = (vec![0; 256 * 1024], 0);
    let mut times = Vec::new();
    loop {
        let read = stream.read(&mut buffer[kept..]).unwrap();
        assert!(read > 0, "the server left");
        let now = Instant::now();
        if now >= end {
            return times;
        }
        let (mut at, filled, mut frames) = (0, kept + read, 0);
        while let Some(length) = frame_length(&buffer[at..filled]) {
            at += length;
            frames += 1;
            let time = now - sent.pop_front().unwrap();
            if now >= begin {
                times.push(time);
            }
        }
        buffer.copy_within(at..filled, 0);
        kept = filled - at;
        sent.extend(vec![now; frames]);
        stream.write_all(&all[..one.len() * frames]).unwrap();
    }
}

fn join(address: SocketAddr, number: usize) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    let request = format!(
        "GET /{number} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    stream
}

/// A server process and its database; both end with this value.
struct Server {
    child: Child,
    address: SocketAddr,
    _folder: TempDir,
}

impl Server {
    fn start(policy: Option<&str>) -> Self {
        let folder = TempDir::new().unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let mut command = Command::new(env!("CARGO_BIN_EXE_wscast"));
        let options = [
            "--mode=broadcast",
            "--host=127.0.0.1",
            "--welcome=",
            "--prefix=",
        ];
        command
            .env_clear()
            .args(options)
            .arg(format!("--port={}", address.port()));
        if let Some(policy) = policy {
            let file = folder.path().join("rooms.db");
            command
                .arg("--database")
                .arg(file)
                .args(["--store-sync", policy]);
        }
        let child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let start = Instant::now();
        while TcpStream::connect(address).is_err() {
            let waited = start.elapsed();
            assert!(
                waited < Duration::from_secs(10),
                "the server does not listen"
            );
            thread::sleep(Duration::from_millis(1));
        }
        Self {
            child,
            address,
            _folder: folder,
        }
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
        let ticks = fields[11..13]
            .iter()
            .map(|ticks| ticks.parse::<f64>().unwrap());
        ticks.sum::<f64>() * 10_000.0
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
