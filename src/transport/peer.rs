//! The other end of a connection.

use std::fmt::{self, Display, Formatter};
use std::net::SocketAddr;

/// The other end of an accepted connection, as log lines name it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Peer {
    /// A TCP address.
    Tcp(SocketAddr),
}

impl Display for Peer {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
        }
    }
}
