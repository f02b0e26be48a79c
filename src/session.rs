//! A session: one WebSocket from the 101 to the close frame.

use std::convert::Infallible;
use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::select;
use tokio::time::{Instant, sleep_until};
use tracing::{Level, Span, debug, enabled, error, info};

use crate::config::{Config, Mode};
use crate::disconnect::Disconnect;
use crate::heartbeat::{Beat, Heartbeat};
use crate::hub::Membership;
use crate::message::Payload;
use crate::socket::Socket;
use crate::wire;

/// One client: the one task that reads its socket, writes to it and keeps its time.
#[derive(Debug)]
pub struct Session<S> {
    config: Arc<Config>,
    socket: Socket<S>,
    membership: Membership,
    heartbeat: Option<Heartbeat>,
    /// Read, and not yet published.
    inbox: Vec<Payload>,
    /// To be written.
    outbox: Vec<Bytes>,
    farewell: Farewell,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Session<S> {
    /// A session of a client that has got its 101; `ahead` is what it sent right behind its
    /// handshake, and `span` tells its log lines from others'.
    pub async fn new(
        stream: S,
        ahead: Bytes,
        membership: Membership,
        config: Arc<Config>,
        span: Span,
    ) -> Self {
        info!(parent: &span, "client connected");
        let now = Instant::now();
        let (interval, timeout) = (config.ping_interval.get(), config.ping_timeout.get());
        let grace = config.write_timeout.get();
        let beats = !interval.is_zero();
        Self {
            socket: Socket::new(stream, ahead, &config).await,
            heartbeat: beats.then(|| Heartbeat::new(interval, timeout, grace, now)),
            membership,
            inbox: Vec::new(),
            outbox: Vec::new(),
            farewell: Farewell {
                span,
                since: now,
                received: 0,
                sent: 0,
                why: None,
            },
            config,
        }
    }

    /// Serves the client to its end.
    pub async fn run(mut self) {
        let Err(why) = self.serve().await;
        // Out of the room first: the close frame and its answer may take a while.
        drop(self.membership);
        let why = self.farewell.why.insert(why);
        self.socket.finish(why).await;
    }

    async fn serve(&mut self) -> Result<Infallible, Disconnect> {
        self.outbox.extend(self.membership.greeting());
        if self.config.mode == Mode::Echo {
            self.replay().await?;
        }
        self.write().await?;

        let alarm = sleep_until(
            self.heartbeat
                .as_ref()
                .map_or_else(Instant::now, Heartbeat::due),
        );
        tokio::pin!(alarm);
        loop {
            select! {
                read = poll_fn(|cx| self.socket.poll_read(cx, &mut self.inbox)) => {
                    read?;
                    self.publish().await?;
                    self.socket.end_turn().await;
                }
                sent = poll_fn(|cx| self.membership.subscription.poll_next(cx, &mut self.outbox)) => {
                    self.farewell.sent += sent?;
                    self.write().await?;
                }
                () = alarm.as_mut(), if self.heartbeat.is_some() => {
                    if let Some(due) = self.beat().await? {
                        alarm.as_mut().reset(due);
                    }
                }
            }
        }
    }

    /// Writes the history of an echo room before anything is read, so that answers come behind it.
    async fn replay(&mut self) -> Result<(), Disconnect> {
        loop {
            let sent = self.membership.subscription.replay(&mut self.outbox)?;
            if sent == 0 {
                return Ok(());
            }
            self.farewell.sent += sent;
            self.write().await?;
        }
    }

    /// Publishes what was read; in echo mode, that is the answer, too.
    async fn publish(&mut self) -> Result<(), Disconnect> {
        self.hear();
        self.farewell.received += self.inbox.len() as u64;
        if enabled!(Level::DEBUG) {
            self.log_inbox();
        }
        let published = self.membership.publish(&self.inbox);
        self.inbox.clear();
        self.inbox.shrink_to(KEPT_CAPACITY);
        // A sealed room takes nothing; what it holds is still to be written before the end.
        if let (Ok(batch), Mode::Echo) = (published, self.config.mode) {
            self.farewell.sent += batch.len() as u64;
            self.outbox.push(batch.frames_from(batch.seqs().start));
            self.write().await?;
        }
        Ok(())
    }

    /// Writes the outbox.
    async fn write(&mut self) -> Result<(), Disconnect> {
        let waited = self.socket.write(&mut self.outbox).await?;
        self.outbox.shrink_to(KEPT_CAPACITY);
        if waited && let Some(heartbeat) = &mut self.heartbeat {
            heartbeat.took(Instant::now());
        }
        Ok(())
    }

    /// Does what the heartbeat asks for; returns when it will ask next.
    async fn beat(&mut self) -> Result<Option<Instant>, Disconnect> {
        self.hear();
        let Some(heartbeat) = &self.heartbeat else {
            return Ok(None);
        };
        match heartbeat.check(Instant::now()) {
            Beat::Wait => {}
            Beat::Ping => self.ping().await?,
            Beat::GiveUp => self.listen_once_more().await?,
        }
        Ok(self.heartbeat.as_ref().map(Heartbeat::due))
    }

    async fn ping(&mut self) -> Result<(), Disconnect> {
        self.outbox
            .push(wire::ping(self.membership.subscription.last()));
        self.write().await?;
        if let Some(heartbeat) = &mut self.heartbeat {
            heartbeat.pinged(Instant::now());
        }
        Ok(())
    }

    /// Gives the client up, unless its answer arrived while we were busy and is still to be read.
    async fn listen_once_more(&mut self) -> Result<(), Disconnect> {
        let read = poll_fn(|cx| Poll::Ready(self.socket.poll_read(cx, &mut self.inbox))).await;
        if let Poll::Ready(read) = read {
            read?;
            return self.publish().await;
        }
        if self.hear() {
            Ok(())
        } else {
            Err(Disconnect::NoPong)
        }
    }

    /// Tells the heartbeat if anything came from the client, and returns whether it did.
    fn hear(&mut self) -> bool {
        let heard = self.socket.heard();
        if heard && let Some(heartbeat) = &mut self.heartbeat {
            heartbeat.heard();
        }
        heard
    }

    fn log_inbox(&self) {
        let span = &self.farewell.span;
        for payload in &self.inbox {
            debug!(parent: span, "Received from client: {}", Excerpt(payload));
            if self.config.mode == Mode::Broadcast {
                debug!(parent: span, "Broadcasting: {}", Excerpt(payload));
            }
        }
    }
}

/// A list that grew longer than this in a burst is cut back, so that idle clients stay small.
const KEPT_CAPACITY: usize = 16;

/// What the log says of a client when it is gone, whichever way it goes.
#[derive(Debug)]
struct Farewell {
    span: Span,
    since: Instant,
    received: u64,
    sent: u64,
    why: Option<Disconnect>,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        let Self {
            span,
            since,
            received,
            sent,
            why,
        } = self;
        let seconds = format_args!("{:.3}", since.elapsed().as_secs_f64());
        match why {
            Some(why) => info!(parent: &*span, %seconds, received, sent, "client left: {why}"),
            None if std::thread::panicking() => {
                error!(parent: &*span, %seconds, received, sent, "client dropped: the server failed");
            }
            None => {
                info!(parent: &*span, %seconds, received, sent, "client dropped: time to drain is over");
            }
        }
    }
}

/// The beginning of a message for the log, on one line whatever the client sent.
struct Excerpt<'a>(&'a Payload);

/// How many characters of a text the log shows.
const EXCERPT: usize = 100;

impl fmt::Display for Excerpt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0 {
            Payload::Text(text) => text.as_str(),
            Payload::Binary(bytes) => return write!(f, "<{} bytes>", bytes.len()),
        };
        match text.char_indices().nth(EXCERPT) {
            Some((end, _)) => write!(f, "{}… ({} bytes)", text[..end].escape_debug(), text.len()),
            None => write!(f, "{}", text.escape_debug()),
        }
    }
}
