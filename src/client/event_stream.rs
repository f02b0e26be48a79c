//! A follower: one stream of Server-Sent Events, from its head to its end (WHATWG HTML, section 9.2).

use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::OptionFuture;
use smallvec::smallvec;
use tokio::io::AsyncReadExt;
use tokio::select;
use tokio::time::{Instant, Interval, interval_at, timeout};
use tracing::Span;

use crate::client::record::ConnectionRecord;
use crate::config::{Config, Time};
use crate::disconnect::Disconnect;
use crate::format::{self, Chunk, Event, Format, Outbox};
use crate::hub::Membership;
use crate::transport::Transport;
use crate::transport::write::{linger, write};

/// One client that listens: the one task that writes to it.
#[derive(Debug)]
pub struct EventStream<S> {
    config: Arc<Config>,
    stream: S,
    membership: Membership,
    /// To be written.
    outbox: Outbox,
    farewell: ConnectionRecord,
}

/// What keeps proxies from taking a quiet stream for a dead one.
const HEARTBEAT: Bytes = Bytes::from_static(b":\n\n");

/// The last words to those whom the server leaves: come back in a second.
const COME_BACK: Bytes = Bytes::from_static(b"retry: 1000\n\n");

impl<S: Transport> EventStream<S> {
    /// A follower whose request is answered with `head`.
    pub fn new(
        stream: S,
        head: Bytes,
        membership: Membership,
        config: Arc<Config>,
        span: Span,
    ) -> Self {
        Self {
            config,
            stream,
            membership,
            outbox: smallvec![head.into()],
            farewell: ConnectionRecord::new(span),
        }
    }

    /// Serves the client to its end.
    pub async fn run(&mut self) {
        let Err(why) = self.serve().await;
        self.membership.subscription.leave();
        let why = self.farewell.why.insert(why);
        if matches!(why, Disconnect::ShuttingDown) {
            self.outbox = smallvec![COME_BACK.into()];
            if self.write().await.is_ok() {
                let limit = self.config.times.close_timeout.get();
                timeout(limit, linger(&mut self.stream)).await.ok();
            }
        }
    }

    async fn serve(&mut self) -> Result<Infallible, Disconnect> {
        let greeting = self.membership.greeting();
        self.outbox.extend(greeting.map(Chunk::from));
        let missed = self.membership.start.missed;
        if missed != Some(0) {
            let gap = format::render_event(&Event::Gap { missed }, Format::EventStream);
            self.outbox.push(gap.into());
        }
        self.write().await?;

        let pause = self.config.times.ping_interval;
        let pause = (!pause.is_zero()).then_some(pause).map(Time::get);
        let mut beats = pause.map(|pause| interval_at(Instant::now() + pause, pause));
        let (mut unheard, mut listens) = ([0; 64], true);
        loop {
            select! {
                sent = poll_fn(|cx| self.membership.subscription.poll_next(cx, &mut self.outbox)) => {
                    self.farewell.sent += sent?;
                    self.write().await?;
                }
                Some(_) = OptionFuture::from(beats.as_mut().map(Interval::tick)) => {
                    self.outbox.push(HEARTBEAT.into());
                    self.write().await?;
                }
                // Nothing more is to come from the client but its end. Who sends something else is not
                // read any more, and found to be gone when it is written to.
                read = self.stream.read(&mut unheard), if listens => match read {
                    Ok(0) => return Err(Disconnect::Gone),
                    Ok(_) => listens = false,
                    Err(error) => return Err(Disconnect::from_io(error)),
                }
            }
        }
    }

    /// Writes the outbox.
    async fn write(&mut self) -> Result<(), Disconnect> {
        let patience = self.config.times.write_timeout.get();
        write(&mut self.stream, &mut self.outbox, patience).await?;
        self.outbox.clear();
        Ok(())
    }
}
