//! Where connections come from: today every address of a host.

use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll};
#[cfg(target_os = "linux")]
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use tokio::net::{TcpListener, TcpSocket, lookup_host};
use tracing::warn;

use super::peer::Peer;
use super::port_owner;
use super::stream::Stream;
use crate::config::Times;

/// What accepts connections.
#[derive(Debug)]
pub(crate) enum Listener {
    /// One address of TCP.
    Tcp(TcpListener),
}

/// Where a listener is.
#[derive(Debug, Clone)]
pub(crate) enum LocalAddress {
    /// An address of TCP.
    Tcp(SocketAddr),
}

impl Listener {
    /// Accepts a connection. Nothing is waited for that only its peer can send, such as a handshake of
    /// TLS: that belongs to the first read.
    ///
    /// # Errors
    /// Those of `accept(2)`: of this connection alone, or for want of descriptors or memory.
    pub(crate) fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Stream, Peer)>> {
        match self {
            Self::Tcp(listener) => listener
                .poll_accept(cx)
                .map_ok(|(stream, address)| (Stream::Tcp(stream.into()), Peer::Tcp(address))),
        }
    }

    /// Where it listens.
    ///
    /// # Errors
    /// What the operating system says.
    pub(crate) fn local_address(&self) -> io::Result<LocalAddress> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(LocalAddress::Tcp),
        }
    }

    /// Whether only this machine can connect; also where the address is not known, as the rules are
    /// stricter then.
    pub(crate) fn is_local(&self) -> bool {
        match self.local_address() {
            Ok(LocalAddress::Tcp(address)) => address.ip().to_canonical().is_loopback(),
            Err(_) => true,
        }
    }
}

impl LocalAddress {
    /// The address of TCP, if it is one.
    pub(crate) fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
        }
    }
}

/// Connections that may wait in the kernel to be accepted.
const BACKLOG: u32 = 4096;

/// Listens on every address of `host`; with port 0, on one port that is free on all of them. An
/// address that fails is only logged if another one works. `times` decide when the kernel gives a
/// peer up.
///
/// # Errors
/// One line that names the option and the remedy.
pub(crate) async fn listen(host: &str, port: u16, times: &Times) -> anyhow::Result<Vec<Listener>> {
    let listen_on = |address| listen_on(address, times);
    let addresses = resolve(host, port).await?;
    // A port that is free on one address may be taken on the next.
    let tries = if port == 0 { 16 } else { 1 };
    let mut outcome = listen_on_all(&addresses, listen_on);
    for _ in 1..tries {
        if outcome.is_ok() {
            break;
        }
        outcome = listen_on_all(&addresses, listen_on);
    }
    Ok(outcome?.into_iter().map(Listener::Tcp).collect())
}

/// The addresses of `host`, with the zones that link-local ones have.
async fn resolve(host: &str, port: u16) -> anyhow::Result<Vec<SocketAddr>> {
    let remedy = || format!("cannot resolve --host {host}: give a name or address of this machine");
    let mut addresses = Vec::new();
    for found in lookup_host((host, port)).await.with_context(remedy)? {
        if !addresses.contains(&found) {
            addresses.push(found);
        }
    }
    match addresses.is_empty() {
        true => Err(anyhow!(remedy())),
        false => Ok(addresses),
    }
}

fn listen_on_all(
    addresses: &[SocketAddr],
    listen_on: impl Fn(SocketAddr) -> io::Result<TcpListener>,
) -> anyhow::Result<Vec<TcpListener>> {
    let mut listeners: Vec<TcpListener> = Vec::new();
    let mut failures = Vec::new();
    for address in addresses {
        let mut address = *address;
        if let Some(first) = listeners.first() {
            address.set_port(first.local_addr()?.port());
        }
        match listen_on(address) {
            Ok(listener) => listeners.push(listener),
            // Clients that try this address first would reach another server.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                return Err(failure(address, &error));
            }
            // As "localhost" may name ::1 on a machine without IPv6.
            Err(error) => failures.push(failure(address, &error)),
        }
    }
    if listeners.is_empty() {
        return Err(failures
            .into_iter()
            .next()
            .context("there is no address to listen on")?);
    }
    for failure in failures {
        warn!("{failure}");
    }
    Ok(listeners)
}

fn failure(address: SocketAddr, error: &io::Error) -> anyhow::Error {
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse => {
            let owner = port_owner::of(address).map_or_else(String::new, |it| format!(" by {it}"));
            return anyhow!("cannot listen on {address}: {error}{owner}; choose another --port");
        }
        io::ErrorKind::PermissionDenied if address.port() < 1024 => {
            "choose a --port of 1024 or more, or another --host"
        }
        _ => "choose another --host",
    };
    anyhow!("cannot listen on {address}: {error}; {remedy}")
}

/// Unsent bytes that the kernel buffers for a client. Without this bound it buffers megabytes,
/// becomes writable again only once a third of them is sent, and hides how slow a client is.
#[cfg(target_os = "linux")]
const UNSENT_MAX: u32 = 64 * 1024;

fn listen_on(address: SocketAddr, times: &Times) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    // Accepted sockets inherit these options.
    socket.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    {
        socket2::SockRef::from(&socket).set_tcp_notsent_lowat(UNSENT_MAX)?;
        give_up_vanished_peers(&socket, times)?;
    }
    #[cfg(not(target_os = "linux"))]
    let _ = times;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// How much longer than `--write-timeout` the kernel waits for a peer that acknowledges nothing, or
/// lets nothing be sent: the server, which knows a reason, comes first.
#[cfg(target_os = "linux")]
const LONGER_THAN_OURS: Duration = Duration::from_secs(5);

/// The longest wait that the kernel takes.
#[cfg(target_os = "linux")]
const LONGEST: Duration = Duration::from_millis(i32::MAX as u64);

/// Has the kernel break connections whose peer vanished; without pings it asks idle ones itself.
#[cfg(target_os = "linux")]
fn give_up_vanished_peers(socket: &TcpSocket, times: &Times) -> io::Result<()> {
    let socket = socket2::SockRef::from(socket);
    let mut patience = (times.write_timeout.get() + LONGER_THAN_OURS).min(LONGEST);
    if times.ping_interval.is_zero() {
        let (idle, pause) = (Duration::from_secs(30), Duration::from_secs(10));
        let probes = socket2::TcpKeepalive::new()
            .with_time(idle)
            .with_interval(pause)
            .with_retries(2);
        socket.set_tcp_keepalive(&probes)?;
        // The kernel does not count probes where this time is set. It is over between the second
        // probe and the third, so that one lost packet does not break the connection.
        patience = patience.max(idle + pause + pause / 2);
    }
    socket.set_tcp_user_timeout(Some(patience))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Time};

    fn times() -> Times {
        Config::with(|_| {}).times
    }

    fn loopback() -> [SocketAddr; 2] {
        ["[::1]:0", "127.0.0.1:0"].map(|it| it.parse().unwrap())
    }

    #[tokio::test]
    async fn an_unavailable_or_forbidden_address_does_not_stop_the_others() {
        // EAFNOSUPPORT, EACCES, EPERM, EADDRNOTAVAIL as Linux numbers them.
        for number in [97, 13, 1, 99] {
            let refusing = |address: SocketAddr| match address.is_ipv6() {
                true => Err(io::Error::from_raw_os_error(number)),
                false => listen_on(address, &times()),
            };
            let listeners = listen_on_all(&loopback(), refusing).unwrap();
            assert_eq!(listeners.len(), 1);
            assert!(listeners[0].local_addr().unwrap().is_ipv4());
        }
    }

    #[tokio::test]
    async fn an_address_in_use_does_stop_the_others() {
        let refusing = |address: SocketAddr| match address.is_ipv6() {
            true => listen_on(address, &times()),
            false => Err(io::ErrorKind::AddrInUse.into()),
        };
        let v4_first: Vec<_> = loopback().into_iter().rev().collect();
        assert!(listen_on_all(&v4_first, refusing).is_err());
    }

    #[tokio::test]
    async fn without_any_address_the_first_error_is_reported_with_its_remedy() {
        let refuse = |_| Err(io::ErrorKind::PermissionDenied.into());
        let error = listen_on_all(&loopback(), refuse).unwrap_err().to_string();
        assert!(
            error.contains("[::1]") && error.contains("--port of 1024 or more"),
            "{error}"
        );
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_link_local_address_keeps_its_zone() {
        let [SocketAddr::V6(address)] = resolve("fe80::1%lo", 80).await.unwrap()[..] else {
            panic!("no IPv6 address")
        };
        assert_eq!((address.scope_id(), address.port()), (1, 80));
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn accepted_sockets_give_up_vanished_peers_soon_after_the_write_timeout() {
        let seconds = Duration::from_secs;
        for (ping_interval, write_timeout, patience) in [
            (10, 10, seconds(15)),
            (10, 365 * 86400, LONGEST),
            (0, 10, seconds(45)),
            (0, 60, seconds(65)),
        ] {
            let mut times = times();
            times.ping_interval = Time::from(seconds(ping_interval));
            times.write_timeout = Time::from(seconds(write_timeout));
            let [Listener::Tcp(listener)] = &listen("127.0.0.1", 0, &times).await.unwrap()[..]
            else {
                panic!("127.0.0.1 is one address")
            };
            let peer = tokio::net::TcpStream::connect(listener.local_addr().unwrap());
            let (accepted, _peer) = tokio::join!(listener.accept(), peer);
            let accepted = accepted.unwrap().0;
            let socket = socket2::SockRef::from(&accepted);
            assert_eq!(socket.tcp_user_timeout().unwrap(), Some(patience));
            assert_eq!(socket.keepalive().unwrap(), ping_interval == 0);
            if ping_interval == 0 {
                assert_eq!(socket.tcp_keepalive_time().unwrap(), seconds(30));
                assert_eq!(socket.tcp_keepalive_interval().unwrap(), seconds(10));
                assert_eq!(socket.tcp_keepalive_retries().unwrap(), 2);
            }
        }
    }
}
