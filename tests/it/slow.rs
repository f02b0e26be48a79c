//! Clients that read steadily but slowly, directly and through nginx.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{interval, timeout};
use wscast::config::Size;

use crate::harness::*;
use crate::nginx::Nginx;

/// How a client gets its events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Plain,
    Json,
    Events,
}

const WAYS: [Way; 3] = [Way::Plain, Way::Json, Way::Events];

/// The backlog of a client, and the rate at which it reads.
#[derive(Debug, Clone, Copy)]
struct Load {
    messages: usize,
    message_size: usize,
    /// Bytes a second.
    rate: usize,
}

impl Load {
    fn duration(&self) -> Duration {
        let seconds = (self.messages * (self.message_size + 200)) as f64 / self.rate as f64;
        Duration::from_secs_f64(seconds) + PATIENCE
    }
}

/// Publishes the backlog to the room `/`.
async fn publish(server: SocketAddr, load: Load) {
    let (mut publisher, _) = Client::connect(server, "/").await.unwrap();
    let text = "x".repeat(load.message_size);
    for _ in 0..load.messages {
        publisher.send(&text).await;
        publisher.next().await;
    }
    publisher.close().await;
}

/// Reads at the rate of `load` until all messages are received, and answers pings; then, over a
/// WebSocket, sends `done` and expects it back.
async fn read_slowly(address: SocketAddr, host: &'static str, way: Way, load: Load) {
    let mut client = RawClient::connect(address).await;
    let more = match way {
        Way::Plain => "",
        Way::Json => "Sec-WebSocket-Protocol: wscast.v1.json\r\n",
        Way::Events => "Accept: text/event-stream\r\n",
    };
    let request = match way {
        Way::Events => format!("GET / HTTP/1.1\r\nHost: {host}\r\n{more}\r\n"),
        _ => RawClient::handshake("/", more).replace("Host: localhost", &format!("Host: {host}")),
    };
    client.send(request).await;
    let head = client.read_head().await;
    assert!(head.contains(" 101 ") || head.contains(" 200 "), "{head}");
    let mut unread = Vec::new();
    let mut count = 0;
    let tick = Duration::from_millis(20);
    let per_tick = (load.rate as f64 * tick.as_secs_f64()) as usize;
    let mut pace = interval(tick);
    let mut piece = vec![0; per_tick];
    let reading = async {
        while count < load.messages {
            pace.tick().await;
            let mut allowed = per_tick;
            while allowed > 0 && count < load.messages {
                let got = match client.stream.try_read(&mut piece[..allowed]) {
                    Ok(0) => panic!("{way:?}: closed after {count} of {load:?}"),
                    Ok(got) => got,
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                        client.stream.readable().await.unwrap();
                        break;
                    }
                    Err(error) => panic!("{way:?}: {error} after {count} of {load:?}"),
                };
                allowed -= got;
                unread.extend_from_slice(&piece[..got]);
                match way {
                    Way::Events => count += take_events(&mut unread),
                    _ => {
                        while let Some((first, payload)) = take_frame(&mut unread) {
                            match first {
                                0x89 => {
                                    let pong = frame(FIN | PONG, &payload);
                                    client.stream.write_all(&pong).await.unwrap();
                                }
                                0x88 => panic!(
                                    "{way:?}: closed with {} after {count} of {load:?}",
                                    String::from_utf8_lossy(&payload[2..])
                                ),
                                _ if payload.len() >= load.message_size => count += 1,
                                // The greeting of the JSON format.
                                _ => {}
                            }
                        }
                    }
                }
            }
        }
    };
    timeout(load.duration(), reading).await.expect("it hangs");
    if way == Way::Events {
        return;
    }
    // The client is still served.
    client.send(frame(FIN | TEXT, b"done")).await;
    let mut rest = vec![0; 1 << 16];
    let end = async {
        while !unread.windows(4).any(|it| it == b"done") {
            let got = client.stream.read(&mut rest).await.unwrap();
            assert!(got > 0, "{way:?}: closed after all");
            unread.extend_from_slice(&rest[..got]);
        }
    };
    timeout(PATIENCE, end).await.expect("it is not answered");
}

/// Takes a whole frame off the front: its first byte and its payload.
fn take_frame(bytes: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
    let mut rest = &bytes[..];
    let frame = read_frame(&mut rest).now_or_never()?.ok()?;
    let taken = bytes.len() - rest.len();
    bytes.drain(..taken);
    Some(frame)
}

/// Takes whole lines off the front; returns how many of them end an event's text.
fn take_events(bytes: &mut Vec<u8>) -> usize {
    let Some(end) = bytes.iter().rposition(|it| *it == b'\n') else {
        return 0;
    };
    let lines: Vec<u8> = bytes.drain(..=end).collect();
    let lines = lines.split(|it| *it == b'\n');
    lines.filter(|line| line.starts_with(b"data: ")).count()
}

/// A server with short timeouts, so that a slow client meets them within seconds.
async fn with_short_timeouts(write_timeout: u64) -> TestServer {
    TestServer::quiet(|config| {
        config.service.prefix = Some(String::new());
        config.history.limit = 100_000;
        config.history.bytes = Size::from(64 << 20);
        config.times.ping_interval = millis(200);
        config.times.ping_timeout = millis(200);
        config.times.write_timeout = millis(write_timeout);
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_steady_slow_reader_gets_the_whole_backlog() {
    let server = with_short_timeouts(400).await;
    let load = Load {
        messages: 500,
        message_size: 16_000,
        rate: 2_000_000,
    };
    publish(server.address, load).await;
    let readers = WAYS.map(|way| tokio::spawn(read_slowly(server.address, "test", way, load)));
    for reader in readers {
        reader.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_steady_slow_reader_behind_nginx_gets_the_whole_backlog() {
    let server = with_short_timeouts(2000).await;
    let load = Load {
        messages: 200,
        message_size: 16_000,
        rate: 2_000_000,
    };
    publish(server.address, load).await;
    let Some(nginx) = Nginx::in_front_of(server.address).await else {
        return;
    };
    let readers = WAYS.map(|way| tokio::spawn(read_slowly(nginx.address, "localhost", way, load)));
    for reader in readers {
        reader.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ping_behind_unread_data_does_not_time_out_a_slow_reader() {
    let server = with_short_timeouts(400).await;
    // The client's kernel buffers all of it, and the server's queue is empty.
    let load = Load {
        messages: 10,
        message_size: 16_000,
        rate: 80_000,
    };
    publish(server.address, load).await;
    let readers = [Way::Plain, Way::Json]
        .map(|way| tokio::spawn(read_slowly(server.address, "localhost", way, load)));
    for reader in readers {
        reader.await.unwrap();
    }
}

/// Bytes that the kernel buffers for `peer`, a socket of this machine (proc_net_tcp(5)).
fn queued_for(peer: SocketAddr) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let remote = format!(":{:04X}", peer.port());
    let of_peer = table.lines().map(|line| line.split_whitespace());
    let queues = of_peer.filter_map(|mut fields| {
        let remote_of = fields.nth(2)?;
        let queues = fields.nth(1)?;
        remote_of.ends_with(&remote).then(|| queues.to_owned())
    });
    queues
        .map(|it| usize::from_str_radix(it.split(':').next().unwrap(), 16).unwrap())
        .sum()
}

#[tokio::test]
async fn the_kernel_buffers_little_for_a_slow_client() {
    let server = TestServer::quiet(|_| {}).await;
    let load = Load {
        messages: 500,
        message_size: 16_000,
        rate: 1,
    };
    publish(server.address, load).await;
    let mut client = RawClient::with_small_window(server.address).await;
    client.upgrade("/").await;
    let peer = client.stream.local_addr().unwrap();
    eventually("its socket is full", || queued_for(peer) > 32 * 1024).await;
    // Reading frees space, which the server may fill again.
    client.read_frame().await;
    assert!(queued_for(peer) < 512 * 1024, "{}", queued_for(peer));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: 14 minutes"]
async fn slow_readers_get_the_whole_backlog_with_the_defaults() {
    let mut servers = Vec::new();
    let mut readers = Vec::new();
    for megabytes in [1, 4, 16] {
        for rate in [20, 50, 100, 300, 1000] {
            let server = TestServer::quiet(|config| {
                config.history.limit = 100_000;
                config.history.bytes = Size::from(64 << 20);
            })
            .await;
            let load = Load {
                messages: megabytes * 1_000_000 / 16_000,
                message_size: 16_000,
                rate: rate * 1000,
            };
            publish(server.address, load).await;
            // Over loopback nginx adds a second window of 64 KiB, too much for the lowest rates.
            let nginx = match rate {
                50.. => Nginx::in_front_of(server.address).await,
                _ => None,
            };
            let mut addresses = vec![server.address];
            addresses.extend(nginx.as_ref().map(|nginx| nginx.address));
            for address in addresses {
                for way in WAYS {
                    readers.push(tokio::spawn(read_slowly(address, "localhost", way, load)));
                }
            }
            servers.push((server, nginx));
        }
    }
    for reader in readers {
        reader.await.unwrap();
    }
}
