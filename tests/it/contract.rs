//! The plain format, as any WebSocket client receives it.

use wscast::config::Size;

use crate::harness::*;

const ECHO_GREETING: &str = "Welcome to the WebSocket server!";
const BROADCAST_GREETING: &str = "Welcome! You\u{2019}re now in the broadcast room.";

#[tokio::test]
async fn echo_greets_and_answers_the_sender_alone() {
    let server = TestServer::echo().await;
    let (mut one, mut other) = (server.client().await, server.client().await);
    one.expect(ECHO_GREETING).await;
    other.expect(ECHO_GREETING).await;
    one.send("hi").await;
    one.expect("Server echo: hi").await;
    // The fence: the next message to the other client is the echo of its own.
    other.send("me").await;
    other.expect("Server echo: me").await;
}

#[tokio::test]
async fn broadcast_greets_and_sends_to_every_client_including_the_sender() {
    let server = TestServer::broadcast().await;
    let (mut one, mut other) = (server.client().await, server.client().await);
    one.expect(BROADCAST_GREETING).await;
    other.expect(BROADCAST_GREETING).await;
    one.send("hi").await;
    one.expect("Broadcast: hi").await;
    other.expect("Broadcast: hi").await;
}

#[tokio::test]
async fn a_late_client_gets_history_then_live() {
    let server = TestServer::broadcast().await;
    let mut early = server.client().await;
    early.expect(BROADCAST_GREETING).await;
    for text in ["one", "two"] {
        early.send(text).await;
        early.expect(&format!("Broadcast: {text}")).await;
    }
    let mut late = server.client().await;
    early.send("three").await;
    for text in [
        BROADCAST_GREETING,
        "Broadcast: one",
        "Broadcast: two",
        "Broadcast: three",
    ] {
        late.expect(text).await;
    }
}

#[tokio::test]
async fn an_echo_room_replays_the_messages_of_other_clients() {
    let server = TestServer::echo().await;
    let mut early = server.client().await;
    early.expect(ECHO_GREETING).await;
    early.send("one").await;
    early.expect("Server echo: one").await;
    early.send_binary(b"\x00two").await;
    early.expect_binary(b"\x00two").await;
    let mut late = server.client().await;
    late.send("three").await;
    late.expect(ECHO_GREETING).await;
    late.expect("Server echo: one").await;
    late.expect_binary(b"\x00two").await;
    late.expect("Server echo: three").await;
    // The echo is not repeated, although it is in the history by now.
    late.send("four").await;
    late.expect("Server echo: four").await;
}

#[tokio::test]
async fn messages_of_every_kind_and_size_arrive_unchanged() {
    let large = "\u{20ac}".repeat((1 << 20) / 3);
    for (server, prefix) in [
        (TestServer::echo().await, "Server echo: "),
        (TestServer::broadcast().await, "Broadcast: "),
    ] {
        let mut client = server.client().await;
        client.next().await;
        for text in ["", "plain", "two\nlines", "\u{2019}\u{1f600}\0", &large] {
            client.send(text).await;
            client.expect(&format!("{prefix}{text}")).await;
        }
        for bytes in [&b""[..], b"\xff\xfe\x00", large.as_bytes()] {
            client.send_binary(bytes).await;
            client.expect_binary(bytes).await;
        }
    }
}

#[tokio::test]
async fn a_message_of_exactly_the_largest_size_is_accepted() {
    let server =
        TestServer::quiet(|config| config.limits.max_message_size = Size::from(1000)).await;
    let mut client = server.client().await;
    client.send_binary(&[7; 1000]).await;
    client.expect_binary(&[7; 1000]).await;
    client.send_binary(&[7; 1001]).await;
    client.expect_close(1009).await;
}

#[tokio::test]
async fn fragments_are_one_message_and_a_ping_between_them_is_answered() {
    let server = TestServer::quiet(|_| {}).await;
    let mut client = server.raw_websocket().await;
    client.send(frame(TEXT, b"fra")).await;
    client.send(frame(FIN | PING, b"you there?")).await;
    assert_eq!(
        client.read_frame().await,
        (FIN | PONG, b"you there?".to_vec())
    );
    // The euro sign is split over two fragments.
    client.send(frame(CONTINUATION, b"g\xe2\x82")).await;
    client.send(frame(FIN | CONTINUATION, b"\xacment")).await;
    assert_eq!(
        client.read_frame().await,
        (FIN | TEXT, "Broadcast: frag€ment".into())
    );
}

#[tokio::test]
async fn bytes_right_behind_the_handshake_are_not_lost() {
    let server = TestServer::quiet(|_| {}).await;
    let mut client = server.raw().await;
    let mut bytes = RawClient::handshake("/", "").into_bytes();
    let cut = frame(FIN | TEXT, b"last");
    for text in ["first", &"x".repeat(5000)] {
        bytes.extend(frame(FIN | TEXT, text.as_bytes()));
    }
    bytes.extend(&cut[..4]);
    client.send(bytes).await;
    client.read_head().await;
    assert_eq!(client.read_frame().await.1, b"Broadcast: first");
    assert_eq!(client.read_frame().await.1.len(), 11 + 5000);
    client.send(&cut[4..]).await;
    assert_eq!(client.read_frame().await.1, b"Broadcast: last");
}

#[tokio::test]
async fn the_texts_can_be_replaced_or_left_out() {
    let server = TestServer::with(|config| {
        config.service.welcome = Some("Moin".into());
        config.service.prefix = Some("> ".into());
    })
    .await;
    let mut client = server.client().await;
    client.expect("Moin").await;
    client.send("hi").await;
    client.expect("> hi").await;

    let pure = TestServer::with(|config| {
        config.service.welcome = Some(String::new());
        config.service.prefix = Some(String::new());
        config.history.limit = 0;
    })
    .await;
    for _ in 0..2 {
        let mut client = pure.client().await;
        client.send("hi").await;
        client.expect("hi").await;
        client.close().await;
    }
}

#[tokio::test]
async fn the_close_code_of_a_client_is_echoed() {
    let server = TestServer::quiet(|_| {}).await;
    for payload in [&b""[..], &[0x03, 0xe8], &[0x0f, 0xa0, b'b', b'y', b'e']] {
        let mut client = server.raw_websocket().await;
        client.send(frame(FIN | CLOSE, payload)).await;
        assert_eq!(client.read_frame().await, (FIN | CLOSE, payload.to_vec()));
        assert_eq!(client.read_to_end().await, b"");
    }
}

#[tokio::test]
async fn a_message_just_before_a_close_or_a_violation_is_published() {
    for ending in [
        frame(FIN | CLOSE, &[0x03, 0xe8]),
        frame(FIN | TEXT, b"\xff"),
    ] {
        let server = TestServer::quiet(|_| {}).await;
        let mut other = server.client().await;
        let mut client = server.raw_websocket().await;
        client
            .send([frame(FIN | TEXT, b"last words"), ending].concat())
            .await;
        other.expect("Broadcast: last words").await;
    }
}

#[tokio::test]
async fn an_echo_is_sent_before_the_close_frame() {
    let server = TestServer::with(|config| config.service.welcome = Some(String::new())).await;
    let mut client = server.raw_websocket().await;
    let close = frame(FIN | CLOSE, &[0x03, 0xe8]);
    client
        .send([frame(FIN | TEXT, b"hi"), close].concat())
        .await;
    assert_eq!(
        client.read_frame().await,
        (FIN | TEXT, b"Server echo: hi".to_vec())
    );
    client.expect_close(1000).await;
}

#[tokio::test]
async fn a_ping_carries_the_id_of_the_last_message_written() {
    let server = TestServer::quiet(|config| config.times.ping_interval = millis(20)).await;
    let mut client = server.raw_websocket().await;
    assert_eq!(client.read_frame().await, (FIN | PING, Vec::new()));
    let mut last = None;
    for seq in 1..=3 {
        client.send(frame(FIN | TEXT, b"hi")).await;
        while client.read_frame().await.0 != FIN | TEXT {}
        let (first, payload) = client.read_frame().await;
        assert_eq!(first, FIN | PING);
        let id = String::from_utf8(payload).unwrap();
        let (epoch, number) = id.split_once('-').unwrap();
        assert_eq!(number, seq.to_string());
        assert_eq!(*last.get_or_insert(epoch.to_owned()), epoch);
    }
}

#[tokio::test]
async fn in_echo_mode_a_ping_carries_the_id_of_the_last_answer() {
    let server = TestServer::with(|config| {
        config.service.welcome = Some(String::new());
        config.times.ping_interval = millis(20);
    })
    .await;
    let mut client = server.raw_websocket().await;
    for seq in 1..=3 {
        client.send(frame(FIN | TEXT, b"hi")).await;
        while client.read_frame().await.0 != FIN | TEXT {}
        let (first, payload) = client.read_frame().await;
        let id = String::from_utf8(payload).unwrap();
        assert_eq!(
            (first, id.rsplit_once('-').unwrap().1),
            (FIN | PING, &*seq.to_string())
        );
    }
}
