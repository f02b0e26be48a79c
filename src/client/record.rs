//! Counts a client's messages; logs its connect and disconnect.

use tokio::time::Instant;
use tracing::{Span, error, info};

use crate::disconnect::Disconnect;

/// The record of one connection; dropping it logs the disconnect, so that no path out of a client's task
/// can miss it.
#[derive(Debug)]
pub(crate) struct ConnectionRecord {
    /// The span of the client's log lines.
    pub(crate) span: Span,
    since: Instant,
    /// Messages received from the client.
    pub(crate) received: u64,
    /// Messages given to the socket, written or not.
    pub(crate) sent: u64,
    /// Why the client disconnected; none where its task was dropped or failed.
    pub(crate) why: Option<Disconnect>,
}

impl ConnectionRecord {
    /// Logs the connect.
    pub(crate) fn new(span: Span) -> Self {
        info!(parent: &span, "client connected");
        Self {
            span,
            since: Instant::now(),
            received: 0,
            sent: 0,
            why: None,
        }
    }
}

impl Drop for ConnectionRecord {
    fn drop(&mut self) {
        let Self {
            span,
            since,
            received,
            sent,
            why,
        } = self;
        let seconds = since.elapsed().as_millis() as f64 / 1000.0;
        match why {
            Some(why) => {
                let code = why.close_code();
                info!(parent: &*span, code, seconds, received, sent, "client left: {why}");
            }
            None if std::thread::panicking() => {
                error!(parent: &*span, seconds, received, sent, "client dropped: the server failed");
            }
            None => {
                info!(parent: &*span, seconds, received, sent, "client dropped: time to drain is over");
            }
        }
    }
}
