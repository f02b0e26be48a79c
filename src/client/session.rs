//! A session: one WebSocket from the 101 to the close frame.

use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::task::yield_now;
use tokio::time::Instant;
use tracing::Span;

use crate::admission::Grant;
use crate::client::Settings;
use crate::client::alarm::Alarm;
use crate::client::budget::Budget;
use crate::client::heartbeat::{Beat, Heartbeat};
use crate::client::record::ConnectionRecord;
use crate::client::unplaced::Unplaced;
use crate::client::websocket::WebSocket;
use crate::disconnect::Disconnect;
use crate::format::{BatchBuilder, Event, Outbox, Plain, StoreStatus};
use crate::hub::{Membership, RoomGuard};
use crate::message::MessageId;
use crate::protocol::decoder::Received;
use crate::protocol::frame;
use crate::room::{Behaviour, Headcount, Subscription};
use crate::transport::Transport;

/// One WebSocket client; a single task reads its socket, writes to it and runs its heartbeat.
#[derive(Debug)]
pub(crate) struct Session<S> {
    pub(super) socket: WebSocket<S>,
    pub(super) subscription: Subscription,
    pub(super) room_guard: RoomGuard,
    pub(super) grant: Arc<Grant>,
    heartbeat: Option<Box<Heartbeat>>,
    /// For the earliest of all [deadlines](Self::due).
    alarm: Alarm,
    /// The newest id from a pong, not yet passed on as an acknowledgement.
    receipt: Option<MessageId>,
    /// Messages read and not yet published.
    pub(super) batch_builder: BatchBuilder,
    /// What waits for the store, if anything does.
    pub(super) unplaced: Option<Box<Unplaced>>,
    /// Chunks to write next.
    pub(super) outbox: Outbox,
    /// Whether the store was well when the client was last told of it.
    is_store_well: bool,
    pub(super) record: ConnectionRecord,
}

/// Why a turn ends, other than with nothing to read and nothing to write.
#[derive(Debug)]
enum Pause {
    /// The rest of the outbox waits for the socket.
    Write,
    /// Other tasks are due to run.
    Yield,
    /// A deadline has come.
    Deadline,
}

impl<S: Transport> Session<S> {
    /// A session after the 101; `ahead` holds the bytes read after the handshake request, and `span`
    /// labels the log lines.
    pub(crate) fn new(
        stream: S,
        ahead: Vec<u8>,
        membership: Membership,
        grant: impl Into<Arc<Grant>>,
        settings: Arc<Settings>,
        budget: Arc<Budget>,
        span: Span,
    ) -> Self {
        let record = ConnectionRecord::new(span);
        let heartbeat = Heartbeat::start(&settings.times).map(Box::new);
        let mut socket = WebSocket::new(stream, settings, budget);
        let mut batch_builder = BatchBuilder::default();
        let epoch = membership.subscription.epoch();
        let mut receipt = None;
        socket.decode_ahead(
            ahead,
            received_sink(
                membership.room_guard.plain(),
                epoch,
                &mut batch_builder,
                &mut receipt,
            ),
        );
        Self {
            socket,
            outbox: membership.greeting().into_iter().collect(),
            subscription: membership.subscription,
            room_guard: membership.room_guard,
            grant: grant.into(),
            heartbeat,
            alarm: Alarm::default(),
            receipt,
            batch_builder,
            unplaced: None,
            is_store_well: true,
            record,
        }
    }

    /// Runs until the client disconnects or is closed, then performs the closing handshake.
    pub(crate) async fn run(&mut self) {
        let Err(why) = self.serve().await;
        // Boxed: the future of a session should not hold this memory for the whole connection.
        Box::pin(self.finish(why)).await;
    }

    /// Answers what is still to be answered, leaves the room, and performs the closing handshake.
    async fn finish(&mut self, why: Disconnect) {
        if self.unplaced.is_some() && !why.is_of_transport() {
            self.write_outcomes().await;
        }
        // Before the closing handshake, which may wait for the client.
        self.subscription.leave();
        let why = self.record.why.insert(why);
        let unread = match &self.heartbeat {
            Some(heartbeat) => heartbeat.unread(self.socket.written()),
            None => self.socket.written(),
        };
        self.socket.finish(why, unread).await;
    }

    async fn serve(&mut self) -> Result<Infallible, Disconnect> {
        Box::pin(self.begin()).await?;
        // A turn handles messages without waiting. The futures that wait are boxed, so that the future
        // of a session stays small.
        loop {
            match poll_fn(|cx| self.poll_turn(cx)).await? {
                Pause::Write => Box::pin(self.write()).await?,
                Pause::Deadline => Box::pin(self.meet_deadlines()).await?,
                Pause::Yield => {
                    yield_now().await;
                    self.socket.turn.renew();
                }
            }
        }
    }

    /// Writes the welcome and publishes the messages read ahead.
    async fn begin(&mut self) -> Result<(), Disconnect> {
        if self.room_guard.behaviour() == Behaviour::Echo {
            self.replay().await?;
        }
        self.report_store();
        self.write().await?;
        self.publish_read()?;
        self.write().await
    }

    /// Reports how the store is, if that has changed and the format has an event for it.
    fn report_store(&mut self) {
        let is_well = self.room_guard.is_store_well();
        if is_well != self.is_store_well {
            self.is_store_well = is_well;
            let store = match is_well {
                true => StoreStatus::Ok,
                false => StoreStatus::Unavailable,
            };
            let encoding = self.subscription.encoding();
            self.outbox.extend(encoding.event(&Event::Status { store }));
        }
    }

    /// Writes the history of an echo room before the first read, so that echoes follow it.
    async fn replay(&mut self) -> Result<(), Disconnect> {
        loop {
            let (subscription, outbox) = (&mut self.subscription, &mut self.outbox);
            let sent = poll_fn(|cx| subscription.poll_replay(cx, outbox)).await?;
            if sent == 0 {
                return Ok(());
            }
            self.record.sent += sent;
            self.write().await?;
        }
    }

    /// Publishes messages from the client and writes messages from the room, until neither has more or
    /// a [`Pause`] is due.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<Pause, Disconnect>> {
        // First, as it may set a deadline.
        if self.poll_headcount(cx)? {
            return Poll::Ready(Ok(Pause::Write));
        }
        if self.alarm.poll(self.due(), cx).is_ready() {
            return Poll::Ready(Ok(Pause::Deadline));
        }
        // Whether the room has no more messages, and wakes this task for later ones.
        let mut watched = false;
        while !self.socket.turn.is_over() {
            self.socket.turn.spend_round();
            if self.unplaced.is_some() && self.poll_outcomes(cx)? {
                return Poll::Ready(Ok(Pause::Write));
            }
            // The outbox is empty here: a client that sends without reading gets backpressure.
            let read = match self.poll_may_publish(cx) {
                Poll::Ready(()) => self.poll_read(cx)?,
                Poll::Pending => Poll::Pending,
            };
            if read == Poll::Ready(true) {
                self.publish_read()?;
                // Echoes are written at once: the end of the room must not overtake them.
                if !self.socket.try_write(&mut self.outbox)? {
                    return Poll::Ready(Ok(Pause::Write));
                }
            }
            // Once for each read, so that neither direction starves, not even for a client that is
            // always behind.
            if !watched {
                let given = self.subscription.poll_next(cx, &mut self.outbox)?;
                if let Poll::Ready(sent) = given {
                    self.record.sent += sent;
                    if self.subscription.take_ping_request() {
                        self.push_ping();
                    }
                    self.report_store();
                    if !self.socket.try_write(&mut self.outbox)? {
                        return Poll::Ready(Ok(Pause::Write));
                    }
                }
                watched = given.is_pending() || self.subscription.is_watched();
            }
            if read.is_pending() && watched {
                if self.outbox.capacity() > KEPT_CAPACITY {
                    self.outbox = Outbox::new();
                }
                self.socket.turn.renew();
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(Pause::Yield))
    }

    /// Reports the number of clients, if this one follows it and it has changed; returns whether this waits
    /// for the socket.
    fn poll_headcount(&mut self, cx: &mut Context<'_>) -> Result<bool, Disconnect> {
        let Some(headcount) = self.subscription.headcount_mut() else {
            return Ok(false);
        };
        let Poll::Ready(count) = headcount.poll_change(cx) else {
            return Ok(false);
        };
        let encoding = self.subscription.encoding();
        self.outbox
            .extend(encoding.event(&Event::Clients { count }));
        Ok(!self.socket.try_write(&mut self.outbox)?)
    }

    /// Reads into the batch builder; returns whether there were messages or pongs.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Disconnect>> {
        let epoch = self.subscription.epoch();
        let sink = received_sink(
            self.room_guard.plain(),
            epoch,
            &mut self.batch_builder,
            &mut self.receipt,
        );
        self.socket.poll_read(cx, sink)
    }

    /// Writes the whole outbox, and waits for the socket where necessary.
    pub(super) async fn write(&mut self) -> Result<(), Disconnect> {
        let waited = self.socket.write(&mut self.outbox).await?;
        if waited && let Some(heartbeat) = &mut self.heartbeat {
            let written = self.socket.written();
            heartbeat.wrote_after_wait(Instant::now(), written);
        }
        Ok(())
    }

    /// The earliest deadline, if there is any.
    fn due(&self) -> Option<Instant> {
        let beat = self.heartbeat.as_ref().map(|it| it.due());
        let headcount = self.subscription.headcount().and_then(Headcount::due);
        let due = beat.into_iter().chain(self.grant.until).chain(headcount);
        due.min()
    }

    /// Does what the deadlines that have come require.
    async fn meet_deadlines(&mut self) -> Result<(), Disconnect> {
        self.grant.check_expiry()?;
        if let Some(headcount) = self.subscription.headcount_mut() {
            headcount.check(Instant::now());
        }
        self.beat().await
    }

    /// Checks the heartbeat.
    async fn beat(&mut self) -> Result<(), Disconnect> {
        self.note_received();
        let Some(heartbeat) = &mut self.heartbeat else {
            return Ok(());
        };
        match heartbeat.check(Instant::now()) {
            Beat::Wait => {}
            Beat::Ping => {
                let alive = self.subscription.encoding().event(&Event::Alive);
                self.outbox.extend(alive);
                let last = self.push_ping();
                self.write().await?;
                if let Some(heartbeat) = &mut self.heartbeat {
                    let written = self.socket.written();
                    heartbeat.pinged(Instant::now(), written, last);
                }
            }
            Beat::GiveUp => self.read_before_giving_up().await?,
        }
        Ok(())
    }

    /// Queues a ping that carries the id of the last message written, and returns that id.
    ///
    /// A ping for a receipt does not reach the heartbeat: otherwise repeated requests would postpone the
    /// detection of a dead client.
    fn push_ping(&mut self) -> Option<MessageId> {
        let last = self.subscription.last();
        self.outbox.push(frame::ping(last));
        last
    }

    /// Passes on the client's last pong, which acknowledges all messages up to its id.
    pub(super) fn take_receipt(&mut self) {
        let Some(id) = self.receipt.take() else {
            return;
        };
        self.subscription.acknowledge(id);
        if let Some(heartbeat) = &mut self.heartbeat {
            heartbeat.acknowledged(id);
        }
    }

    /// Closes the client as dead, unless its answer arrived during a write and is still unread.
    async fn read_before_giving_up(&mut self) -> Result<(), Disconnect> {
        // The runtime polls the sockets meanwhile.
        yield_now().await;
        let read = poll_fn(|cx| Poll::Ready(self.poll_read(cx)));
        if read.await? == Poll::Ready(true) {
            self.publish_read()?;
            return self.write().await;
        }
        if self.note_received() {
            Ok(())
        } else {
            Err(Disconnect::NoPong)
        }
    }

    /// Passes on to the heartbeat whether bytes were received, and returns it.
    pub(super) fn note_received(&mut self) -> bool {
        let has_received = self.socket.take_received();
        if has_received && let Some(heartbeat) = &mut self.heartbeat {
            heartbeat.received();
        }
        has_received
    }
}

/// A sink for received frames: encodes messages into `batch_builder`, and keeps as `receipt` the id of the
/// last pong of this log. Other pongs are ignored, as clients may send unsolicited ones.
fn received_sink(
    plain: &Plain,
    epoch: u64,
    batch_builder: &mut BatchBuilder,
    receipt: &mut Option<MessageId>,
) -> impl FnMut(Received<'_>) {
    move |received| match received {
        Received::Message(kind, payload) => plain.encode(kind, payload, batch_builder),
        Received::Pong(payload) => {
            let id = str::from_utf8(payload).ok().and_then(|id| id.parse().ok());
            *receipt = id.filter(|id: &MessageId| id.epoch == epoch).or(*receipt);
        }
    }
}

/// A list that grew beyond this in a burst is freed, so that idle clients stay small.
const KEPT_CAPACITY: usize = 16;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::task::JoinHandle;
    use tokio::time::timeout;

    use super::*;
    use crate::client::turn::ROUNDS;
    use crate::client::websocket::tests::Stub;
    use crate::config::{Config, Mode, Time};
    use crate::format::Encoding;
    use crate::hub::Hub;
    use crate::message::Kind;
    use crate::protocol::frame::Header;
    use crate::room::Follow;
    use crate::room::reader::{Part, Piece};
    use crate::store::Store;

    const CLOSE: u8 = 0x88;
    const PING: u8 = 0x89;

    /// The other end of a session, and the clock since its start.
    struct Peer {
        stream: DuplexStream,
        session: JoinHandle<()>,
        start: Instant,
    }

    fn budget() -> Arc<Budget> {
        Arc::new(Budget::new(1 << 20, secs(10)))
    }

    /// A broadcast hub without texts.
    fn hub(change: impl FnOnce(&mut Config)) -> (Arc<Hub>, Arc<Settings>) {
        let mut config = Config::with(|config| {
            config.service.mode = Mode::Broadcast;
            config.service.welcome = Some(String::new());
            config.service.prefix = Some(String::new());
        });
        change(&mut config);
        let settings = Arc::new(Settings::from(&config));
        (Hub::new(&config, Store::memory()), settings)
    }

    impl Peer {
        /// A session in the default room, whose socket buffers `window` bytes.
        async fn join(hub: &Arc<Hub>, settings: &Arc<Settings>, window: usize) -> Self {
            Self::granted(hub, settings, window, Encoding::Plain, Grant::ALL).await
        }

        async fn granted(
            hub: &Arc<Hub>,
            settings: &Arc<Settings>,
            window: usize,
            encoding: Encoding,
            grant: Grant,
        ) -> Self {
            let (stream, theirs) = duplex(window);
            let follow = Follow {
                encoding,
                ..Follow::default()
            };
            let membership = hub.join("/", follow).await.unwrap();
            let (ahead, span) = (Vec::new(), Span::none());
            let mut session = Session::new(
                theirs,
                ahead,
                membership,
                grant,
                settings.clone(),
                budget(),
                span,
            );
            Self {
                stream,
                session: tokio::spawn(async move { session.run().await }),
                start: Instant::now(),
            }
        }

        /// A session with these changes to the defaults, and a large socket buffer.
        async fn with(change: impl FnOnce(&mut Config)) -> Self {
            let (hub, settings) = hub(change);
            Self::join(&hub, &settings, 1 << 20).await
        }

        /// The first byte and the payload of the next frame.
        async fn frame(&mut self) -> (u8, Vec<u8>) {
            let mut bytes = Vec::new();
            let header = loop {
                bytes.push(self.stream.read_u8().await.unwrap());
                if let Some(header) = Header::parse(&bytes) {
                    break header;
                }
            };
            let mut payload = vec![0; header.payload as usize];
            self.stream.read_exact(&mut payload).await.unwrap();
            (header.first, payload)
        }

        async fn expect_close(&mut self, code: u16) {
            let (first, payload) = self.frame().await;
            assert_eq!((first, &payload[..2]), (CLOSE, &code.to_be_bytes()[..]));
        }

        fn elapsed(&self) -> Duration {
            self.start.elapsed()
        }

        /// Waits for the session to end; returns when it did.
        async fn end(self) -> Duration {
            self.session.await.unwrap();
            self.start.elapsed()
        }
    }

    /// A frame of text, masked with zeros.
    fn text(text: &str) -> Vec<u8> {
        frame::encode_masked(0x81, text.as_bytes(), [0; 4])
    }

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    /// Publishes `count` messages of `size` bytes, each alone.
    async fn publish(hub: &Arc<Hub>, count: usize, size: usize) {
        let publisher = hub.join("/", Follow::default()).await.unwrap();
        for _ in 0..count {
            let mut builder = BatchBuilder::default();
            let payload = vec![7; size];
            publisher
                .room_guard
                .plain()
                .encode(Kind::Binary, &payload, &mut builder);
            publisher
                .room_guard
                .publish(builder.take().unwrap(), false)
                .unwrap();
        }
    }

    #[tokio::test]
    async fn a_client_that_never_pauses_does_not_starve_others() {
        // In broadcast mode its own messages would wake the session.
        let (hub, settings) = hub(|config| config.service.mode = Mode::Echo);
        let membership = hub.join("/", Follow::default()).await.unwrap();
        let mut endless = Stub::new(b"\x81\x82\0\0\0\0hi");
        endless.repeats = true;
        let mut session = Session::new(
            endless,
            Vec::new(),
            membership,
            Grant::ALL,
            settings,
            budget(),
            Span::none(),
        );
        let session = tokio::spawn(async move { session.run().await });
        let published = || {
            let hub = hub.clone();
            tokio::spawn(async move {
                match hub.read("/", Part::Last, 1).await.unwrap().next().await {
                    Some(Piece::Messages(_, seqs)) => seqs.start,
                    _ => 0,
                }
            })
        };
        assert_eq!(published().await.unwrap(), ROUNDS as u64);
        // The session runs again.
        yield_now().await;
        assert!(published().await.unwrap() > ROUNDS as u64);
        session.abort();
    }

    #[tokio::test]
    async fn a_client_that_never_pauses_and_sends_no_message_does_not_starve_others() {
        let (hub, settings) = hub(|_| {});
        let membership = hub.join("/", Follow::default()).await.unwrap();
        let mut endless = Stub::new(b"\x89\x82\0\0\0\0hi");
        endless.repeats = true;
        let (ahead, span) = (Vec::new(), Span::none());
        let mut session = Session::new(
            endless,
            ahead,
            membership,
            Grant::ALL,
            settings,
            budget(),
            span,
        );
        let session = tokio::spawn(async move { session.run().await });
        for _ in 0..3 {
            yield_now().await;
        }
        session.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_is_closed_at_interval_plus_timeout() {
        let mut peer = Peer::with(|_| {}).await;
        assert_eq!(peer.frame().await, (PING, Vec::new()));
        assert_eq!(peer.elapsed(), secs(10));
        peer.expect_close(1011).await;
        assert_eq!(peer.elapsed(), secs(15));
        // The close frame is not answered either.
        assert_eq!(peer.end().await, secs(15 + 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_only_sends_data_stays() {
        let mut peer = Peer::with(|_| {}).await;
        for round in 1..20 {
            tokio::time::sleep_until(peer.start + secs(4 * round)).await;
            peer.stream.write_all(&text("hi")).await.unwrap();
            while peer.frame().await.0 == PING {}
        }
        assert!(!peer.session.is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_in_the_middle_of_a_long_message_stays() {
        let mut peer = Peer::with(|_| {}).await;
        for byte in text("a long message") {
            tokio::time::sleep(secs(4)).await;
            peer.stream.write_all(&[byte]).await.unwrap();
        }
        while peer.frame().await.0 == PING {}
        assert_eq!(peer.elapsed(), secs(4 * 20));
    }

    #[tokio::test(start_paused = true)]
    async fn without_an_interval_no_ping_is_sent() {
        let mut peer =
            Peer::with(|config| config.times.ping_interval = Time::from(Duration::ZERO)).await;
        tokio::time::sleep(secs(1000)).await;
        peer.stream.write_all(&text("still here")).await.unwrap();
        assert_eq!(peer.frame().await, (0x81, b"still here".to_vec()));
    }

    /// A grant that expires so many seconds from now.
    fn expires_in(seconds: u64) -> Grant {
        let until = Some(Instant::now() + secs(seconds));
        Grant {
            until,
            ..Grant::ALL
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_is_closed_when_its_permission_expires_also_without_heartbeats() {
        let (hub, settings) = hub(|config| config.times.ping_interval = Time::from(Duration::ZERO));
        let grant = expires_in(60);
        let mut peer = Peer::granted(&hub, &settings, 1 << 20, Encoding::Plain, grant).await;
        let closed = timeout(secs(1000), peer.frame()).await;
        let reason = b"\x03\xf0the permission has expired".to_vec();
        assert_eq!(closed.unwrap(), (CLOSE, reason));
        assert_eq!(peer.elapsed(), secs(60));
        assert_eq!(peer.end().await, secs(60 + 2));
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_of_two_deadlines_comes_first() {
        let (hub, settings) = hub(|_| {});
        let grant = expires_in(14);
        let mut peer = Peer::granted(&hub, &settings, 1 << 20, Encoding::Json, grant).await;
        let (_, welcome) = peer.frame().await;
        assert!(welcome.starts_with(b"{\"type\":\"welcome\""));
        let alive = b"{\"type\":\"alive\"}".to_vec();
        assert_eq!(peer.frame().await, (0x81, alive));
        assert_eq!(peer.frame().await.0, PING);
        assert_eq!(peer.elapsed(), secs(10));
        // Without an answer to the ping, which is due a second later.
        peer.expect_close(1008).await;
        assert_eq!(peer.elapsed(), secs(14));
    }

    #[tokio::test(start_paused = true)]
    async fn a_plain_client_that_may_not_publish_and_does_is_closed_with_1008() {
        let (hub, settings) = hub(|_| {});
        let mut reader = Peer::join(&hub, &settings, 1 << 20).await;
        let grant = Grant {
            may_publish: false,
            ..Grant::ALL
        };
        let mut peer = Peer::granted(&hub, &settings, 1 << 20, Encoding::Plain, grant).await;
        publish(&hub, 1, 5).await;
        assert_eq!(peer.frame().await.1, [7; 5]);
        peer.stream.write_all(&text("hi")).await.unwrap();
        let (first, payload) = peer.frame().await;
        assert_eq!(first, CLOSE);
        assert_eq!(payload, b"\x03\xf0publishing is not permitted");
        publish(&hub, 1, 3).await;
        assert_eq!(reader.frame().await.1, [7; 5]);
        assert_eq!(reader.frame().await.1, [7; 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_json_client_that_may_not_publish_learns_which_messages_were_not_taken() {
        let (hub, settings) = hub(|config| config.service.mode = Mode::Echo);
        let grant = Grant {
            may_publish: false,
            ..Grant::ALL
        };
        let mut peer = Peer::granted(&hub, &settings, 1 << 20, Encoding::Json, grant).await;
        peer.frame().await;
        for numbers in [1..=1, 2..=4] {
            let messages = text("hi").repeat(numbers.clone().count());
            peer.stream.write_all(&messages).await.unwrap();
            for number in numbers {
                let expected =
                    format!(r#"{{"type":"error","code":"forbidden","message":{number}}}"#);
                assert_eq!(peer.frame().await, (0x81, expected.into_bytes()));
            }
        }
        let mut reader = hub.read("/", Part::Last, 1).await.unwrap();
        assert!(reader.next().await.is_none());
        assert!(!peer.session.is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_a_backlog_stays_and_is_pinged_behind_it() {
        let (hub, settings) = hub(|_| {});
        // Keeps the room when its publisher leaves.
        let _room = hub.join("/", Follow::default()).await.unwrap();
        publish(&hub, 100, 1000).await;
        let mut peer = Peer::join(&hub, &settings, 64).await;
        for _ in 0..100 {
            tokio::time::sleep(secs(4)).await;
            assert_eq!(peer.frame().await.1.len(), 1000);
        }
        let (first, id) = peer.frame().await;
        assert_eq!(first, PING);
        assert!(id.ends_with(b"-100"), "{}", id.escape_ascii());
        // The pong is late, but within the grace for a client under backpressure.
        tokio::time::sleep(secs(9)).await;
        let pong = [0x8a, 0x80, 0, 0, 0, 0];
        peer.stream.write_all(&pong).await.unwrap();
        assert_eq!(peer.frame().await.0, PING);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_received_during_a_write_counts() {
        let (hub, settings) = hub(|_| {});
        let mut peer = Peer::join(&hub, &settings, 64).await;
        assert_eq!(peer.frame().await.0, PING);
        publish(&hub, 1, 1000).await;
        // The pong, half of the message before the deadline, and the rest after it.
        let pong = [0x8a, 0x80, 0, 0, 0, 0];
        peer.stream.write_all(&pong).await.unwrap();
        let mut half = [0; 500];
        peer.stream.read_exact(&mut half).await.unwrap();
        tokio::time::sleep(secs(9)).await;
        let mut rest = [0; 504];
        peer.stream.read_exact(&mut rest).await.unwrap();
        assert_eq!(peer.frame().await.0, PING);
        assert_eq!(peer.elapsed(), secs(20));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_is_dropped_at_the_write_timeout() {
        let (hub, settings) = hub(|_| {});
        let peer = Peer::join(&hub, &settings, 64).await;
        publish(&hub, 1, 1000).await;
        assert_eq!(peer.end().await, secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn every_byte_written_restarts_the_write_timeout() {
        let (hub, settings) = hub(|_| {});
        let mut peer = Peer::join(&hub, &settings, 64).await;
        publish(&hub, 1, 1000).await;
        for _ in 0..10 {
            tokio::time::sleep(secs(9)).await;
            peer.stream.read_u8().await.unwrap();
        }
        assert_eq!(peer.end().await, secs(10 * 9 + 10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stalled_message_closes_its_client_at_the_write_timeout() {
        let pings_off =
            |config: &mut Config| config.times.ping_interval = Time::from(Duration::ZERO);
        let mut peer = Peer::with(pings_off).await;
        let fragment = |first| [first, 0x81, 0, 0, 0, 0, b'x'];
        peer.stream.write_all(&fragment(0x01)).await.unwrap();
        tokio::time::sleep(secs(9)).await;
        peer.stream.write_all(&fragment(0x00)).await.unwrap();
        tokio::time::sleep(secs(9)).await;
        // A ping is no part of the message.
        peer.stream.write_all(&fragment(0x89)).await.unwrap();
        assert_eq!(peer.frame().await, (0x8a, b"x".to_vec()));
        peer.expect_close(1013).await;
        assert_eq!(peer.elapsed(), secs(9 + 10));
        assert_eq!(peer.end().await, secs(9 + 10 + 2));
    }

    #[tokio::test(start_paused = true)]
    async fn pings_and_pongs_do_not_prolong_a_stalled_message() {
        let interval = |config: &mut Config| config.times.ping_interval = Time::from(secs(4));
        let mut peer = Peer::with(interval).await;
        peer.stream
            .write_all(&[0x01, 0x81, 0, 0, 0, 0, b'x'])
            .await
            .unwrap();
        for _ in 0..2 {
            assert_eq!(peer.frame().await.0, PING);
            peer.stream
                .write_all(&[0x8a, 0x80, 0, 0, 0, 0])
                .await
                .unwrap();
        }
        peer.expect_close(1013).await;
        assert_eq!(peer.elapsed(), secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn time_without_reading_does_not_count_against_a_message() {
        let (hub, settings) = hub(|_| {});
        let mut peer = Peer::join(&hub, &settings, 64).await;
        let message = text("a long message");
        peer.stream.write_all(&message[..8]).await.unwrap();
        yield_now().await;
        publish(&hub, 1, 1000).await;
        // The session does not read during the write.
        for _ in 0..4 {
            tokio::time::sleep(secs(9)).await;
            peer.stream.read_u8().await.unwrap();
        }
        let mut rest = [0; 1000];
        peer.stream.read_exact(&mut rest).await.unwrap();
        tokio::time::sleep(secs(4)).await;
        peer.stream.write_all(&message[8..]).await.unwrap();
        loop {
            match peer.frame().await {
                (PING, _) => {}
                other => break assert_eq!(other, (0x81, b"a long message".to_vec())),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_client_has_time_to_read_up_to_the_close_frame() {
        let (hub, settings) = hub(|_| {});
        let mut peer = Peer::join(&hub, &settings, 1 << 20).await;
        publish(&hub, 100, 1000).await;
        yield_now().await;
        hub.seal();
        tokio::time::sleep(secs(5)).await;
        for _ in 0..100 {
            assert_eq!(peer.frame().await.1.len(), 1000);
        }
        peer.expect_close(1001).await;
        let close = [0x88, 0x82, 0, 0, 0, 0, 3, 233];
        peer.stream.write_all(&close).await.unwrap();
        assert_eq!(peer.end().await, secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pong_behind_our_close_frame_changes_nothing() {
        let pong = [0x8a, 0x81, 0, 0, 0, 0, b'x'];
        for (closes, end) in [(true, secs(0)), (false, secs(2))] {
            let (hub, settings) = hub(|_| {});
            let mut peer = Peer::join(&hub, &settings, 1 << 20).await;
            hub.seal();
            peer.expect_close(1001).await;
            peer.stream.write_all(&pong).await.unwrap();
            if closes {
                let close = [0x88, 0x82, 0, 0, 0, 0, 3, 233];
                peer.stream.write_all(&close).await.unwrap();
            }
            assert_eq!(peer.end().await, end);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_answer_the_close_frame_is_dropped_at_the_close_timeout() {
        let (hub, settings) = hub(|_| {});
        let mut peer = Peer::join(&hub, &settings, 1 << 20).await;
        publish(&hub, 3, 5).await;
        hub.seal();
        for _ in 0..3 {
            assert_eq!(peer.frame().await.1.len(), 5);
        }
        peer.expect_close(1001).await;
        // Data is no answer.
        peer.stream.write_all(&text("x")).await.unwrap();
        assert_eq!(peer.end().await, secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_whose_messages_were_evicted_is_closed_with_1013() {
        let (hub, settings) = hub(|config| {
            config.history.limit = 2;
            config.limits.max_queue = 1;
            config.limits.max_queue_bytes = 100.into();
        });
        let mut peer = Peer::join(&hub, &settings, 64).await;
        publish(&hub, 1, 1000).await;
        // The session is in the middle of a write now.
        peer.stream.read_u8().await.unwrap();
        publish(&hub, 10, 50).await;
        let mut rest = vec![0; 1003];
        peer.stream.read_exact(&mut rest).await.unwrap();
        assert_eq!(peer.frame().await.1.len(), 50);
        peer.expect_close(1013).await;
    }

    #[tokio::test(start_paused = true)]
    async fn messages_from_a_client_behind_are_published() {
        let (hub, settings) = hub(|config| config.limits.max_queue_bytes = 1000.into());
        let mut receiver = Peer::join(&hub, &settings, 1 << 20).await;
        publish(&hub, 10, 1000).await;
        for _ in 0..10 {
            assert_eq!(receiver.frame().await.1.len(), 1000);
        }
        // Each step of the history exceeds the socket's buffer.
        let mut behind = Peer::join(&hub, &settings, 64).await;
        behind.stream.write_all(&text("I am here")).await.unwrap();
        for _ in 0..3 {
            assert_eq!(behind.frame().await.1.len(), 1000);
        }
        assert_eq!(receiver.frame().await.1, b"I am here");
        assert_eq!(receiver.elapsed(), secs(0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_has_caught_up_gets_live_messages() {
        let (hub, settings) = hub(|config| config.limits.max_queue = 1);
        let mut peer = Peer::join(&hub, &settings, 64).await;
        publish(&hub, 1, 1000).await;
        // The session is in the middle of a write now, and its queue overflows.
        peer.stream.read_u8().await.unwrap();
        publish(&hub, 2, 10).await;
        let mut rest = vec![0; 1003];
        peer.stream.read_exact(&mut rest).await.unwrap();
        for _ in 0..2 {
            assert_eq!(peer.frame().await.1.len(), 10);
        }
        publish(&hub, 1, 5).await;
        assert_eq!(peer.frame().await.1.len(), 5);
        assert_eq!(peer.elapsed(), secs(0));
    }

    #[tokio::test(start_paused = true)]
    async fn an_echo_client_gets_all_of_the_history_before_its_answers() {
        let (hub, settings) = hub(|config| config.service.mode = Mode::Echo);
        let _room = hub.join("/", Follow::default()).await.unwrap();
        publish(&hub, 20, 100).await;
        let mut peer = Peer::join(&hub, &settings, 64).await;
        peer.stream.write_all(&text("answer me")).await.unwrap();
        for _ in 0..20 {
            assert_eq!(peer.frame().await.1, [7; 100]);
        }
        assert_eq!(peer.frame().await.1, b"answer me");
    }

    #[tokio::test(start_paused = true)]
    async fn an_echo_room_echoes_beside_broadcast_rooms() {
        let (hub, settings) = hub(|_| {});
        hub.open_as("/", Behaviour::Echo);
        let mut sender = Peer::join(&hub, &settings, 1 << 20).await;
        let mut other = Peer::join(&hub, &settings, 1 << 20).await;
        sender.stream.write_all(&text("mine")).await.unwrap();
        assert_eq!(sender.frame().await.1, b"mine");
        other.stream.write_all(&text("yours")).await.unwrap();
        assert_eq!(other.frame().await.1, b"yours");
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_client_costs_little() {
        let (hub, settings) = hub(|_| {});
        let (_peer, theirs) = duplex(64);
        let membership = hub.join("/", Follow::default()).await.unwrap();
        let mut session = Session::new(
            theirs,
            Vec::new(),
            membership,
            Grant::ALL,
            settings,
            budget(),
            Span::none(),
        );
        let size = size_of_val(&session) + size_of_val(&session.run());
        assert!(size <= 800, "a session has {size} bytes");
    }
}
