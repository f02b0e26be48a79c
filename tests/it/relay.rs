//! A network between client and server, which can be slow, break, and swallow what it is given.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A relay to one server; it ends when dropped.
pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    network: Arc<Network>,
    task: JoinHandle<()>,
}

struct Network {
    server: SocketAddr,
    /// Bytes a second in each direction of a connection.
    rate: Option<usize>,
    accepted: AtomicUsize,
    /// Whether it swallows all that is sent, over new connections as well.
    swallows: AtomicBool,
    links: Mutex<Vec<Arc<Link>>>,
}

/// One connection.
#[derive(Default)]
struct Link {
    torn: CancellationToken,
    swallows: AtomicBool,
}

impl Relay {
    pub(crate) async fn to(server: SocketAddr, rate: Option<usize>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let network = Arc::new(Network {
            server,
            rate,
            accepted: AtomicUsize::new(0),
            swallows: AtomicBool::new(false),
            links: Mutex::default(),
        });
        let relay = network.clone();
        let task = tokio::spawn(async move {
            loop {
                let (near, _) = listener.accept().await.unwrap();
                relay.accepted.fetch_add(1, Ordering::Relaxed);
                let link = Arc::new(Link::default());
                relay.links.lock().unwrap().push(link.clone());
                tokio::spawn(relay.clone().carry(near, link));
            }
        });
        Self {
            address,
            network,
            task,
        }
    }

    /// How many connections have come so far.
    pub(crate) fn accepted(&self) -> usize {
        self.network.accepted.load(Ordering::Relaxed)
    }

    /// Breaks all connections; what they carry in their last moment is lost.
    pub(crate) async fn tear(&self) {
        let links = std::mem::take(&mut *self.network.links.lock().unwrap());
        for link in &links {
            link.swallows.store(true, Ordering::Relaxed);
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
        for link in links {
            link.torn.cancel();
        }
    }

    /// Leaves all connections half-open: what they carry is swallowed from now on, new ones work.
    pub(crate) fn half_open(&self) {
        for link in self.network.links.lock().unwrap().drain(..) {
            link.swallows.store(true, Ordering::Relaxed);
        }
    }

    /// Swallows everything from now on.
    pub(crate) fn swallow(&self) {
        self.network.swallows.store(true, Ordering::Relaxed);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
        for link in self.network.links.lock().unwrap().drain(..) {
            link.torn.cancel();
        }
    }
}

impl Network {
    async fn carry(self: Arc<Self>, near: TcpStream, link: Arc<Link>) {
        let Ok(far) = TcpStream::connect(self.server).await else {
            return;
        };
        near.set_nodelay(true).unwrap();
        far.set_nodelay(true).unwrap();
        let (near_read, near_write) = near.into_split();
        let (far_read, far_write) = far.into_split();
        let both = async {
            tokio::join!(
                self.pass(near_read, far_write, &link),
                self.pass(far_read, near_write, &link),
            )
        };
        tokio::select! {
            _ = both => {}
            () = link.torn.cancelled() => {}
        }
    }

    /// Passes on what comes, until the end of it.
    async fn pass(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, link: &Link) {
        let mut chunk = vec![0; self.rate.map_or(1 << 16, |rate| rate / 50)];
        loop {
            let read = from.read(&mut chunk).await.unwrap_or(0);
            let is_lost = [&self.swallows, &link.swallows].map(|it| it.load(Ordering::Relaxed));
            match read {
                // An end is lost as well.
                0 if is_lost.contains(&true) => return std::future::pending().await,
                0 => break,
                _ if is_lost.contains(&true) => continue,
                _ => {}
            }
            if to.write_all(&chunk[..read]).await.is_err() {
                break;
            }
            if let Some(rate) = self.rate {
                tokio::time::sleep(Duration::from_secs_f64(read as f64 / rate as f64)).await;
            }
        }
        to.shutdown().await.ok();
    }
}
