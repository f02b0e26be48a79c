//! An event stream: Server-Sent Events to one client, from the response head to the end (WHATWG HTML,
//! section 9.2).

use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::Arc;

use bytes::Bytes;
use smallvec::smallvec;
use tokio::select;
use tokio::time::{Instant, timeout};
use tracing::Span;

use crate::admission::Grant;
use crate::client::Settings;
use crate::client::alarm::Alarm;
use crate::client::record::ConnectionRecord;
use crate::disconnect::Disconnect;
use crate::format::{Encoding, Event, Outbox};
use crate::hub::Membership;
use crate::transport::Transport;
use crate::transport::write::{linger, write};

/// One event stream; a single task writes to its socket.
#[derive(Debug)]
pub(crate) struct EventStream<S> {
    settings: Arc<Settings>,
    stream: S,
    membership: Membership,
    grant: Arc<Grant>,
    /// Chunks to write next.
    outbox: Outbox,
    record: ConnectionRecord,
}

/// A comment line: keeps proxies from closing a quiet stream, and shows whether the client is there.
const COMMENT: Bytes = Bytes::from_static(b":\n\n");

/// Sent on shutdown: `EventSource` reconnects after one second.
const RECONNECT: Bytes = Bytes::from_static(b"retry: 1000\n\n");

impl<S: Transport> EventStream<S> {
    /// An event stream that begins with the response `head`.
    pub(crate) fn new(
        stream: S,
        head: Bytes,
        membership: Membership,
        grant: impl Into<Arc<Grant>>,
        settings: Arc<Settings>,
        span: Span,
    ) -> Self {
        Self {
            settings,
            stream,
            membership,
            grant: grant.into(),
            outbox: smallvec![head],
            record: ConnectionRecord::new(span),
        }
    }

    /// Runs until the client disconnects or is closed.
    pub(crate) async fn run(&mut self) {
        let Err(why) = self.serve().await;
        self.membership.subscription.leave();
        let why = self.record.why.insert(why);
        match why {
            Disconnect::ShuttingDown => self.outbox = smallvec![RECONNECT],
            Disconnect::Policy(_) => {}
            _ => return,
        }
        if self.write().await.is_ok() {
            let limit = self.settings.times.close_timeout.get();
            timeout(limit, linger(&mut self.stream)).await.ok();
        }
    }

    async fn serve(&mut self) -> Result<Infallible, Disconnect> {
        self.outbox.extend(self.membership.greeting());
        let missed = self.membership.start.missed;
        if missed != Some(0) {
            let gap = Encoding::EventStream.event(&Event::Gap { missed });
            self.outbox.extend(gap);
        }
        self.write().await?;

        let interval = self.settings.times.ping_interval;
        let next_comment = || (!interval.is_zero()).then(|| Instant::now() + interval.get());
        let mut comment_due = next_comment();
        let mut alarm = Alarm::default();
        let mut half_closed = false;
        loop {
            let due = comment_due.into_iter().chain(self.grant.until).min();
            select! {
                sent = poll_fn(|cx| self.membership.subscription.poll_next(cx, &mut self.outbox)) => {
                    self.record.sent += sent?;
                    self.write().await?;
                }
                () = poll_fn(|cx| alarm.poll(due, cx)) => {
                    self.grant.check_expiry()?;
                    self.outbox.push(COMMENT);
                    self.write().await?;
                    comment_due = next_comment();
                }
                // What the client sends is never read: it has nothing to say. If it has closed, it
                // answers the comment with a reset; if it has only half-closed, it reads on.
                () = poll_fn(|cx| self.stream.poll_read_closed(cx)), if !half_closed => {
                    half_closed = true;
                    self.outbox.push(COMMENT);
                    self.write().await?;
                }
                error = self.stream.broken(), if half_closed => {
                    return Err(Disconnect::from_io(error));
                }
            }
        }
    }

    /// Writes the outbox.
    async fn write(&mut self) -> Result<(), Disconnect> {
        let patience = self.settings.times.write_timeout.get();
        write(&mut self.stream, &mut self.outbox, patience).await?;
        self.outbox.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, duplex};

    use super::*;
    use crate::config::{Config, Time};
    use crate::hub::Hub;
    use crate::room::Follow;
    use crate::store::Store;

    #[tokio::test(start_paused = true)]
    async fn an_event_stream_ends_when_its_permission_expires() {
        for (interval, expected) in [(0, "head"), (10, "head:\n\n:\n\n")] {
            let interval = Duration::from_secs(interval);
            let config = Config::with(|config| {
                config.service.welcome = Some(String::new());
                config.times.ping_interval = Time::from(interval);
            });
            let hub = Hub::new(&config, Store::memory());
            let follow = Follow {
                encoding: Encoding::EventStream,
                ..Follow::default()
            };
            let membership = hub.join("/", follow).await.unwrap();
            let start = Instant::now();
            let grant = Grant {
                until: Some(start + Duration::from_secs(25)),
                ..Grant::ALL
            };
            let (mut client, stream) = duplex(1 << 10);
            let (head, settings) = (Bytes::from("head"), Arc::new(Settings::from(&config)));
            let span = Span::none();
            let mut events = EventStream::new(stream, head, membership, grant, settings, span);
            let events = tokio::spawn(async move { events.run().await });
            let mut text = String::new();
            let read = client.read_to_string(&mut text);
            timeout(Duration::from_secs(1000), read)
                .await
                .unwrap()
                .unwrap();
            assert_eq!(text, expected);
            assert_eq!(start.elapsed(), Duration::from_secs(25));
            drop(client);
            events.await.unwrap();
        }
    }
}
