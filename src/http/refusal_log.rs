//! What the log says of requests that are not granted: each kind at a bounded pace.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use parking_lot::Mutex;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::http::refusal::Refusal;

/// Refusals with one status that are logged in one [`SPELL`]; of those behind them only the count is.
const LOGGED: u64 = 5;

/// How long refusals are counted together.
const SPELL: Duration = Duration::from_secs(1);

/// Logs refusals: a flood of them costs a few lines a second.
#[derive(Debug, Default)]
pub struct RefusalLog {
    /// How many there were in the spell that has begun. There are no more kinds than statuses.
    spells: Mutex<HashMap<StatusCode, u64>>,
}

impl RefusalLog {
    /// Logs that a request of `peer` is refused; or, after many with its status, counts it for a line
    /// that comes within a second. `request` is what is known of it, in the words of the peer.
    pub fn note(self: &Arc<Self>, refusal: &Refusal, peer: SocketAddr, request: Option<&str>) {
        let status = refusal.status();
        let count = {
            let mut spells = self.spells.lock();
            let count = spells.entry(status).or_default();
            *count += 1;
            *count
        };
        if count <= LOGGED {
            let (code, reason) = (status.as_u16(), refusal.reason());
            match is_for_the_operator(status) {
                true => warn!(%peer, status = code, request, "refused: {reason}"),
                false => info!(%peer, status = code, request, "refused: {reason}"),
            }
        }
        if count == 1 {
            let log = self.clone();
            tokio::spawn(async move {
                sleep(SPELL).await;
                let count = log.spells.lock().remove(&status);
                tell_rest(status, count.unwrap_or_default());
            });
        }
    }
}

impl Drop for RefusalLog {
    fn drop(&mut self) {
        for (status, count) in self.spells.get_mut().drain() {
            tell_rest(status, count);
        }
    }
}

/// Says how many of `count` refusals have no line of their own.
fn tell_rest(status: StatusCode, count: u64) {
    let more = count.saturating_sub(LOGGED);
    let code = status.as_u16();
    match more {
        0 => {}
        _ if is_for_the_operator(status) => {
            warn!(status = code, "refused: … and {more} more like it")
        }
        _ => info!(status = code, "refused: … and {more} more like it"),
    }
}

/// Whether an option or a larger machine may be what is missing; else it is the peer's fault.
fn is_for_the_operator(status: StatusCode) -> bool {
    status == StatusCode::FORBIDDEN || status == StatusCode::SERVICE_UNAVAILABLE
}
