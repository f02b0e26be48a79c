//! The server: binding, accepting, draining.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use anyhow::anyhow;
use futures_util::FutureExt;
use tokio::select;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::coop::unconstrained;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, info_span, warn};

use crate::admission::Admission;
use crate::client::Settings;
use crate::client::budget::Budget;
use crate::client::event_stream::EventStream;
use crate::client::session::Session;
use crate::config::Config;
use crate::excerpt::excerpt;
use crate::http::connection::{Http, Protocol, Upgraded};
use crate::http::routes::Routes;
use crate::hub::Hub;
use crate::ops::{Log, Signals, announcement, descriptors};
use crate::store::Store;
use crate::transport::listener::{Listener, LocalAddress, listen};
use crate::transport::{Peer, Stream};

/// Connections that exist at a time without a place, to be refused or to ask for the health of the
/// server; beyond, the oldest gives way.
const WITHOUT_PLACE: usize = 256;

/// How long a connection waits for the place of one that is idle between requests.
const EVICTION_MAX: Duration = Duration::from_secs(1);

/// How long accepting rests when the machine has run out of descriptors or memory.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// Binds, logs where it listens, and serves until a signal ends it.
///
/// # Errors
/// One line that names the option and the remedy.
pub async fn run(config: &Config, signals: Signals, log: &Log) -> anyhow::Result<()> {
    let mut stop = signals.stop()?;
    descriptors::raise_limit(config.limits.max_connections);
    let server = select! {
        biased;
        server = Server::bind(config.clone()) => server?,
        () = &mut stop => return Ok(()),
    };
    announcement::announce(config, &server.local_addrs()?, log);
    // As a task, it accepts on the threads that serve what it accepts, and need not wake them for it.
    tokio::spawn(server.run(stop)).await?;
    info!("stopped");
    Ok(())
}

/// A server that listens.
#[derive(Debug)]
pub struct Server {
    listeners: Vec<Listener>,
    places: Arc<Semaphore>,
    /// The connections without a place, the oldest first; each gives way when its sender is gone.
    without_place: VecDeque<oneshot::Sender<Infallible>>,
    settings: Arc<Settings>,
    max_connections: usize,
    drain_timeout: Duration,
    hub: Arc<Hub>,
    budget: Arc<Budget>,
    http: Http,
    draining: CancellationToken,
}

impl Server {
    /// Binds every address that `--host` resolves to, all with the same port.
    ///
    /// # Errors
    /// One line that names the option and the remedy.
    pub async fn bind(config: Config) -> anyhow::Result<Self> {
        Self::bind_with(config, Store::open).await
    }

    /// The same, with logs in the store that `open` opens.
    async fn bind_with(
        config: Config,
        open: impl FnOnce(&Config) -> anyhow::Result<Store>,
    ) -> anyhow::Result<Self> {
        config.validate().map_err(|message| anyhow!(message))?;
        let listening = &config.listening;
        let listeners = listen(&listening.host, listening.port, &config.times).await?;
        let only_local = listeners.iter().all(Listener::is_local);
        // Not before it is certain that the server begins: an open store notes whether it ends well.
        let hub = Hub::new(&config, open(&config)?);
        let draining = CancellationToken::new();
        let admission = Admission::new(&config.access, &config.listening.host, only_local);
        let budget = Arc::new(Budget::new(
            config.limits.max_incoming.bytes(),
            config.times.write_timeout.get(),
        ));
        let settings = Arc::new(Settings::from(&config));
        let routes = Routes::new(
            settings.clone(),
            hub.clone(),
            budget.clone(),
            admission,
            draining.clone(),
        );
        Ok(Self {
            listeners,
            places: Arc::new(Semaphore::new(config.limits.max_connections)),
            without_place: VecDeque::new(),
            http: Http::new(Arc::new(routes), config.times.clone(), draining.clone()),
            hub,
            budget,
            settings,
            max_connections: config.limits.max_connections,
            drain_timeout: config.service.drain_timeout.get(),
            draining,
        })
    }

    /// The TCP addresses it listens on.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn local_addrs(&self) -> io::Result<Vec<SocketAddr>> {
        let addresses = self.listeners.iter().map(Listener::local_address);
        let addresses = addresses.collect::<io::Result<Vec<_>>>()?;
        Ok(addresses.iter().filter_map(LocalAddress::tcp).collect())
    }

    /// What can be asked of a server from outside while it runs.
    pub fn monitor(&self) -> Monitor {
        Monitor {
            places: self.places.clone(),
            max_connections: self.max_connections,
            hub: self.hub.clone(),
            budget: self.budget.clone(),
        }
    }

    /// Serves until `stop` is ready, then drains: no new connection, half-done handshakes are
    /// answered 503, every client gets what its room holds for it, then 1001. Whoever is not gone
    /// within `--drain-timeout` is dropped.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        let mut connections = JoinSet::new();
        let mut stop = pin!(stop);
        let mut rest = Instant::now();
        loop {
            select! {
                () = &mut stop => break,
                Some(ended) = connections.join_next() => note_panic(ended),
                () = sleep_until(rest), if rest > Instant::now() => {}
                accepted = self.accept(), if rest <= Instant::now() => match accepted {
                    Ok((stream, peer)) => self.admit(stream, peer, &mut connections),
                    Err(error) if is_about_one_peer(&error) => {}
                    Err(error) => {
                        warn!("cannot accept connections for now: {error}");
                        rest = Instant::now() + ACCEPT_REST;
                    }
                },
            }
        }
        self.drain(connections).await;
    }

    /// The next connection, from any of the addresses.
    async fn accept(&mut self) -> io::Result<(Stream, Peer)> {
        // Another address comes first each time, so that none starves the others.
        self.listeners.rotate_left(1);
        poll_fn(|cx| {
            self.listeners
                .iter()
                .map(|listener| listener.poll_accept(cx))
                .find(Poll::is_ready)
                .unwrap_or(Poll::Pending)
        })
        .await
    }

    /// Starts to serve a connection, as a task of `connections`.
    fn admit(&mut self, stream: Stream, peer: Peer, connections: &mut JoinSet<()>) {
        let http = self.http.clone();
        let (settings, budget) = (self.settings.clone(), self.budget.clone());
        if let Ok(place) = self.places.clone().try_acquire_owned() {
            connections.spawn(serve(stream, peer, place, http, settings, budget));
        } else if self.http.evict_idle() {
            // The place of a connection that is idle between requests is free in a moment.
            let place = timeout(EVICTION_MAX, self.places.clone().acquire_owned());
            let no_place = self.no_place();
            connections.spawn(async move {
                if let Ok(Ok(place)) = place.await {
                    serve(stream, peer, place, http, settings, budget).await;
                } else {
                    http.serve(stream, peer, Some(no_place)).await;
                }
            });
        } else {
            let no_place = self.no_place();
            connections.spawn(async move {
                http.serve(stream, peer, Some(no_place)).await;
            });
        }
    }

    /// Ends when one more connection without a place has to give way to the next.
    fn no_place(&mut self) -> oneshot::Receiver<Infallible> {
        let waiting = &mut self.without_place;
        if waiting.len() >= WITHOUT_PLACE {
            waiting.retain(|it| !it.is_closed());
        }
        if waiting.len() >= WITHOUT_PLACE {
            waiting.pop_front();
        }
        let (sender, gives_way) = oneshot::channel();
        waiting.push_back(sender);
        gives_way
    }

    async fn drain(mut self, mut connections: JoinSet<()>) {
        self.draining.cancel();
        // Connections accepted by the kernel before the end are answered 503.
        while let Some(Ok((stream, peer))) = unconstrained(self.accept()).now_or_never() {
            self.admit(stream, peer, &mut connections);
        }
        self.listeners.clear();
        self.hub.seal();
        info!(connections = connections.len(), "shutting down");
        let all_gone = async {
            while let Some(ended) = connections.join_next().await {
                note_panic(ended);
            }
        };
        if timeout(self.drain_timeout, all_gone).await.is_err() {
            warn!(
                connections = connections.len(),
                "dropped: --drain-timeout is over"
            );
            connections.shutdown().await;
        }
        self.hub.close_store().await;
    }
}

/// How much a server holds right now.
#[derive(Debug, Clone)]
pub struct Monitor {
    places: Arc<Semaphore>,
    max_connections: usize,
    hub: Arc<Hub>,
    budget: Arc<Budget>,
}

impl Monitor {
    /// Connections that have a place, whether they are clients already or not.
    pub fn connections(&self) -> usize {
        self.max_connections - self.places.available_permits()
    }

    /// Bytes of messages and bodies that have begun and are not complete.
    pub fn incoming(&self) -> usize {
        self.budget.bytes()
    }

    /// Rooms that have clients or a history.
    pub fn rooms(&self) -> usize {
        self.hub.rooms()
    }
}

/// One connection that has a `place`, from its first byte to its last.
///
/// Its future is what a client costs through its life. The exchange has a box of its own, and what
/// the exchange leaves behind is a session and nothing else.
fn serve(
    stream: Stream,
    peer: Peer,
    place: OwnedSemaphorePermit,
    http: Http,
    settings: Arc<Settings>,
    budget: Arc<Budget>,
) -> impl Future<Output = ()> {
    let exchange = Box::pin(async move {
        let upgraded = http.serve(stream, peer, None).await?;
        Some(Client::new(upgraded, peer, settings, budget))
    });
    async move {
        let Some(mut client) = exchange.await else {
            return;
        };
        match &mut client {
            Client::WebSocket(session) => session.run().await,
            Client::EventStream(stream) => Box::pin(stream.run()).await,
        }
        // Its place is free when all else that it had is given back.
        drop(client);
        drop(place);
    }
}

/// A client that follows a room.
#[expect(
    clippy::large_enum_variant,
    reason = "a box would cost every message a memory access that nothing has prepared"
)]
enum Client {
    WebSocket(Session<Stream>),
    EventStream(Box<EventStream<Stream>>),
}

impl Client {
    fn new(
        upgraded: Upgraded<Stream>,
        peer: Peer,
        settings: Arc<Settings>,
        budget: Arc<Budget>,
    ) -> Self {
        let Upgraded {
            stream,
            membership,
            grant,
            protocol,
        } = upgraded;
        let room = membership.room_guard.name();
        let span = info_span!("client", %peer, room = &*excerpt(room.as_bytes()));
        match protocol {
            Protocol::EventStream { head } => {
                let events = EventStream::new(stream, head, membership, grant, settings, span);
                Self::EventStream(Box::new(events))
            }
            Protocol::WebSocket { ahead } => Self::WebSocket(Session::new(
                stream, ahead, membership, grant, settings, budget, span,
            )),
        }
    }
}

/// Says where a task of ours failed; its connection is closed, and all it held is given back.
fn note_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        error!("a connection ended by a fault of this server: {error}");
    }
}

/// Whether an error of `accept` concerns one connection alone, and not the machine.
fn is_about_one_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted
    )
}

#[cfg(test)]
mod store_tests;
