//! Peers that violate the protocol or speak another one.

use std::time::Duration;

use socket2::SockRef;

use crate::harness::*;
use crate::process::*;

#[tokio::test]
async fn each_violation_has_its_close_code() {
    let server = TestServer::quiet(|config| {
        config.limits.max_message_size = 1000.into();
        // Far beyond what a test waits: the server must not need it.
        config.times.close_timeout = millis(600_000);
    })
    .await;
    let mut unmasked = frame(FIN | TEXT, b"");
    unmasked[1] = 0;
    let two = |one: Vec<u8>, other: Vec<u8>| [one, other].concat();
    for (what, bytes, code) in [
        ("reserved bit 1", frame(FIN | TEXT | 0x40, b"x"), 1002),
        ("reserved bit 3", frame(FIN | BINARY | 0x10, b"x"), 1002),
        (
            "reserved bit on a ping",
            frame(FIN | PING | 0x20, b""),
            1002,
        ),
        ("unmasked", unmasked, 1002),
        ("reserved data opcode", frame(FIN | 0x3, b""), 1002),
        ("reserved control opcode", frame(FIN | 0xb, b""), 1002),
        ("fragmented ping", frame(PING, b""), 1002),
        ("long ping", frame(FIN | PING, &[0; 126]), 1002),
        (
            "continuation of nothing",
            frame(FIN | CONTINUATION, b"x"),
            1002,
        ),
        (
            "text amid fragments",
            two(frame(TEXT, b"a"), frame(FIN | TEXT, b"b")),
            1002,
        ),
        ("close with half a code", frame(FIN | CLOSE, &[3]), 1002),
        (
            "close with a forbidden code",
            frame(FIN | CLOSE, &1005_u16.to_be_bytes()),
            1002,
        ),
        (
            "close with a reason that is not UTF-8",
            frame(FIN | CLOSE, b"\x03\xe8\xff"),
            1007,
        ),
        ("text that is not UTF-8", frame(FIN | TEXT, b"ab\xff"), 1007),
        (
            "text that ends in half a character",
            frame(FIN | TEXT, b"\xe2\x82"),
            1007,
        ),
        ("fragment that is not UTF-8", frame(TEXT, b"ab\xff"), 1007),
        ("surrogate", frame(FIN | TEXT, b"\xed\xa0\x80"), 1007),
        ("long frame", frame(FIN | BINARY, &[0; 1001]), 1009),
        (
            "frame that says it is endless",
            b"\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff".to_vec(),
            1009,
        ),
        (
            "long message in fragments",
            two(
                frame(BINARY, &[0; 600]),
                frame(FIN | CONTINUATION, &[0; 600]),
            ),
            1009,
        ),
    ] {
        let mut client = server.raw_websocket().await;
        // Data behind it must not turn the close frame into a reset.
        client.send(two(bytes, vec![0xff; 100_000])).await;
        let (first, payload) = client.read_frame().await;
        assert_eq!((what, first), (what, FIN | CLOSE));
        assert_eq!((what, &payload[..2]), (what, &u16::to_be_bytes(code)[..]));
        assert_eq!(client.read_to_end().await, b"", "{what}");
    }
    eventually("all are gone", || server.monitor.connections() == 0).await;
}

#[tokio::test]
async fn data_after_a_close_frame_does_not_reset_the_connection() {
    let server = TestServer::echo().await;
    for _ in 0..20 {
        let mut client = server.raw_websocket().await;
        client.read_frame().await;
        let close = frame(FIN | CLOSE, &1014_u16.to_be_bytes());
        client
            .send([close, frame(FIN | TEXT, &[b'x'; 1000]).repeat(100)].concat())
            .await;
        client.expect_close(1014).await;
    }
}

#[tokio::test]
async fn input_that_is_not_http_is_refused_and_closed() {
    let server = TestServer::echo().await;
    let long_head = format!(
        "GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n",
        "x".repeat(1 << 20)
    );
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(1000));
    for (what, bytes, status) in [
        ("garbage", "\u{1}\u{2}\u{3} not http\r\n\r\n", "400"),
        (
            "TLS",
            "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\u{fc}\u{3}\u{3}\r\n\r\n",
            "400",
        ),
        ("HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "400"),
        ("1 MiB header", &long_head, "431"),
        ("1000 headers", &many, "431"),
    ] {
        let mut client = server.raw().await;
        // The response may arrive before all is sent.
        let (mut read, mut write) = client.stream.split();
        let sending = tokio::io::AsyncWriteExt::write_all(&mut write, bytes.as_bytes());
        let mut response = Vec::new();
        let reading = tokio::io::AsyncReadExt::read_to_end(&mut read, &mut response);
        let (_, result) = tokio::time::timeout(PATIENCE, async { tokio::join!(sending, reading) })
            .await
            .expect(what);
        result.expect(what);
        let response = String::from_utf8_lossy(&response);
        // hyper may close a connection that speaks HTTP/2 without a response.
        let hung_up = what == "HTTP/2" && response.is_empty();
        assert!(
            hung_up || response.starts_with(&format!("HTTP/1.1 {status} ")),
            "{what}: {response}"
        );
    }
    eventually("all are gone", || server.monitor.connections() == 0).await;
}

#[tokio::test]
async fn a_dripping_request_is_answered_408_at_the_open_timeout() {
    let server = TestServer::with(|config| config.times.open_timeout = millis(200)).await;
    let mut client = server.raw().await;
    let (mut read, mut write) = client.stream.split();
    let drip = async {
        let mut pace = tokio::time::interval(Duration::from_millis(10));
        for byte in RawClient::handshake("/", &"X: y\r\n".repeat(1000)).bytes() {
            pace.tick().await;
            if tokio::io::AsyncWriteExt::write_all(&mut write, &[byte])
                .await
                .is_err()
            {
                break;
            }
        }
    };
    let mut response = String::new();
    let reading = tokio::io::AsyncReadExt::read_to_string(&mut read, &mut response);
    tokio::select! {
        () = drip => panic!("it dripped to the end"),
        result = reading => assert!(result.is_ok()),
    }
    assert!(response.starts_with("HTTP/1.1 408 "), "{response}");
}

#[tokio::test]
async fn a_ping_flood_is_answered_while_other_clients_are_served() {
    let server = TestServer::quiet(|_| {}).await;
    let mut flood = server.raw_websocket().await;
    let pings = frame(FIN | PING, b"ping").repeat(100_000);
    let flooding = async {
        let (mut read, mut write) = flood.stream.split();
        let sending = tokio::io::AsyncWriteExt::write_all(&mut write, &pings);
        let mut pongs = vec![0; 6 * 1000];
        let reading = tokio::io::AsyncReadExt::read_exact(&mut read, &mut pongs);
        tokio::try_join!(sending, reading).unwrap();
        assert!(pongs.chunks(6).all(|pong| pong == b"\x8a\x04ping"));
    };
    let talking = async {
        let mut client = server.client().await;
        for number in 0..100 {
            client.send(&number.to_string()).await;
            client.expect(&format!("Broadcast: {number}")).await;
        }
    };
    tokio::join!(flooding, talking);
}

#[tokio::test]
async fn unread_pongs_do_not_accumulate() {
    const PINGS: usize = 200_000;
    let process = Process::start("--mode broadcast --welcome= --write-timeout 10m").await;
    let mut flood = RawClient::with_small_window(process.address).await;
    flood.upgrade("/").await;
    let (mut other, _) = Client::connect(process.address, "/").await.unwrap();
    let before = process.memory();
    let pings = frame(FIN | PING, &[b'x'; 125]).repeat(1000);
    for _ in 0..PINGS / 1000 {
        flood.send(&pings).await;
    }
    // All of them are read, and the client is still served.
    flood.send(frame(FIN | TEXT, b"done")).await;
    other.expect("Broadcast: done").await;
    let grown = process.memory().saturating_sub(before);
    let all = PINGS * 125;
    assert!(grown < all / 4, "{grown} bytes kept of {all}");
}

#[tokio::test]
async fn churn_leaves_no_connection_task_or_room_behind() {
    let server = TestServer::quiet(|config| {
        config.times.ping_interval = millis(50);
        config.times.ping_timeout = millis(50);
        config.times.close_timeout = millis(50);
        config.history.limit = 0;
    })
    .await;
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    let before = tasks();
    let mut half_open = Vec::new();
    for number in 0..500 {
        let path = format!("/{}", number % 7);
        match number % 5 {
            0 => server.client_at(&path).await.close().await,
            1 => drop(server.client_at(&path).await),
            2 => {
                let client = server.raw().await;
                SockRef::from(&client.stream)
                    .set_linger(Some(Duration::ZERO))
                    .unwrap();
            }
            3 => {
                let mut client = server.raw_websocket().await;
                client.send(frame(FIN | TEXT, b"cut off here")).await;
                SockRef::from(&client.stream)
                    .set_linger(Some(Duration::ZERO))
                    .unwrap();
            }
            _ => half_open.push(server.raw_websocket().await),
        }
    }
    // The half-open ones are silent, and are dropped by their heartbeat.
    eventually("every place is free", || server.monitor.connections() == 0).await;
    eventually("every task is gone", || tasks() == before).await;
    assert_eq!(server.monitor.rooms(), 0);
}
