//! The clients of a room: WebSocket sessions and event streams, one task each.

pub(crate) mod alarm;
pub(crate) mod budget;
pub(crate) mod event_stream;
pub(crate) mod heartbeat;
pub(crate) mod message_log;
mod publishing;
pub(crate) mod record;
pub(crate) mod session;
pub(crate) mod turn;
pub(crate) mod unfinished;
mod unplaced;
pub(crate) mod websocket;

use crate::config::{Config, Times};

/// The options that concern clients.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Heartbeats and timeouts.
    pub(crate) times: Times,
    /// Bytes of the largest message.
    pub(crate) max_message_size: usize,
    /// Whether messages are logged.
    pub(crate) log_messages: bool,
}

impl From<&Config> for Settings {
    fn from(config: &Config) -> Self {
        Self {
            times: config.times.clone(),
            max_message_size: config.limits.max_message_size.bytes(),
            log_messages: config.logs.messages,
        }
    }
}
