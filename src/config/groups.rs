//! The groups of options, one for each part of the server.

use clap::{ArgAction, Args};
use tokio::sync::Semaphore;

use super::{HostPattern, LogFormat, Mode, OriginPattern, Size, Time, units};

/// What the server does with messages, and how it ends.
#[derive(Debug, Clone, PartialEq, Args)]
#[command(next_help_heading = "Service")]
pub struct Service {
    /// echo: a message goes back to its sender alone, and later clients see it in the history;
    /// broadcast: it goes to every client of the room
    #[arg(
        long,
        env = "WSCAST_MODE",
        value_enum,
        hide_possible_values = true,
        default_value = "echo"
    )]
    pub mode: Mode,
    /// First message to every client, '' for none [default: by mode]
    #[arg(
        long,
        env = "WSCAST_WELCOME",
        value_name = "TEXT",
        allow_hyphen_values = true
    )]
    pub welcome: Option<String>,
    /// What stands before each text message, '' for nothing [default: by mode]
    #[arg(
        long,
        env = "WSCAST_PREFIX",
        value_name = "TEXT",
        allow_hyphen_values = true
    )]
    pub prefix: Option<String>,
    /// Threads that serve; 1 is a runtime that shares no work [default: one a processor]
    #[arg(long, env = "WSCAST_THREADS", value_name = "COUNT", value_parser = units::count)]
    pub threads: Option<usize>,
    /// Time all clients together have to go when the server stops
    #[arg(
        long,
        env = "WSCAST_DRAIN_TIMEOUT",
        value_name = "TIME",
        default_value = "3"
    )]
    pub drain_timeout: Time,
}

/// Where it listens.
#[derive(Debug, Clone, PartialEq, Args)]
#[command(next_help_heading = "Listening")]
pub struct Listening {
    /// Name or address to listen on, every address it resolves to
    #[arg(long, env = "WSCAST_HOST", default_value = "localhost", value_parser = units::host)]
    pub host: String,
    /// Port to listen on; 0 takes a free one
    #[arg(long, env = "WSCAST_PORT", default_value = "8765", value_parser = units::port)]
    pub port: u16,
}

/// What rooms remember.
#[derive(Debug, Clone, PartialEq, Args)]
#[command(next_help_heading = "History")]
pub struct History {
    /// Messages a room remembers, the oldest go first; 0 keeps none
    #[arg(long = "history-limit", env = "WSCAST_HISTORY_LIMIT", value_name = "COUNT", default_value = "1000", value_parser = units::count)]
    pub limit: usize,
    /// Memory a room's history takes, up to 310 bytes a message besides its text, name and key; 0 keeps none
    #[arg(
        long = "history-bytes",
        env = "WSCAST_HISTORY_BYTES",
        value_name = "SIZE",
        default_value = "16MiB"
    )]
    pub bytes: Size,
    /// Memory all histories together take
    #[arg(
        long = "history-total",
        env = "WSCAST_HISTORY_TOTAL",
        value_name = "SIZE",
        default_value = "256MiB"
    )]
    pub total: Size,
}

/// How long peers may take.
#[derive(Debug, Clone, PartialEq, Args)]
#[command(next_help_heading = "Times")]
pub struct Times {
    /// Time between two pings; 0 turns heartbeats off
    #[arg(
        long,
        env = "WSCAST_PING_INTERVAL",
        value_name = "TIME",
        default_value = "10"
    )]
    pub ping_interval: Time,
    /// A client that sends nothing for so long after a ping is closed with 1011
    #[arg(
        long,
        env = "WSCAST_PING_TIMEOUT",
        value_name = "TIME",
        default_value = "5"
    )]
    pub ping_timeout: Time,
    /// Time a client has for the head of an HTTP request, for each standstill of its body, and idle
    #[arg(
        long,
        env = "WSCAST_OPEN_TIMEOUT",
        value_name = "TIME",
        default_value = "10"
    )]
    pub open_timeout: Time,
    /// A client that takes nothing of what waits for it for so long is closed with 1013
    #[arg(
        long,
        env = "WSCAST_WRITE_TIMEOUT",
        value_name = "TIME",
        default_value = "10"
    )]
    pub write_timeout: Time,
    /// Time a client has to answer a close frame
    #[arg(
        long,
        env = "WSCAST_CLOSE_TIMEOUT",
        value_name = "TIME",
        default_value = "2"
    )]
    pub close_timeout: Time,
}

/// How much peers may take.
#[derive(Debug, Clone, PartialEq, Args)]
#[command(next_help_heading = "Limits")]
pub struct Limits {
    /// Largest message a client may send
    #[arg(
        long,
        env = "WSCAST_MAX_MESSAGE_SIZE",
        value_name = "SIZE",
        default_value = "1MiB"
    )]
    pub max_message_size: Size,
    /// Connections at a time; for more, one idle between requests gives way, or the answer is 503
    #[arg(long, env = "WSCAST_MAX_CONNECTIONS", value_name = "COUNT", default_value = "10000", value_parser = units::count)]
    pub max_connections: usize,
    /// Rooms at a time; the one without clients for longest is forgotten first
    #[arg(long, env = "WSCAST_MAX_ROOMS", value_name = "COUNT", default_value = "1000", value_parser = units::count)]
    pub max_rooms: usize,
    /// Live messages that wait for a client; beyond, it is served from the history
    #[arg(long, env = "WSCAST_MAX_QUEUE", value_name = "COUNT", default_value = "1024", value_parser = units::count)]
    pub max_queue: usize,
    /// The same in bytes
    #[arg(
        long,
        env = "WSCAST_MAX_QUEUE_BYTES",
        value_name = "SIZE",
        default_value = "4MiB"
    )]
    pub max_queue_bytes: Size,
    /// Bytes of all messages and bodies that have begun and are not complete; the one that grows
    /// least is cut
    #[arg(
        long,
        env = "WSCAST_MAX_INCOMING",
        value_name = "SIZE",
        default_value = "256MiB"
    )]
    pub max_incoming: Size,
}

/// Which hosts and web pages are let in.
#[derive(Debug, Clone, PartialEq, Args)]
#[command(next_help_heading = "Access")]
pub struct Access {
    /// Host names to answer to, besides those of this machine and `--host`
    #[arg(
        long,
        env = "WSCAST_ALLOW_HOST",
        value_name = "HOST",
        help = "Host names to answer to, besides those of this machine and --host: example.com, \
                  *.example.com or '*', repeatable [default: on loopback none, elsewhere any]"
    )]
    pub allow_host: Vec<HostPattern>,
    /// Web pages that may come in besides the server's own, in the place of those of this machine
    #[arg(
        long,
        env = "WSCAST_ALLOW_ORIGIN",
        value_name = "ORIGIN",
        value_delimiter = ',',
        help = "Web pages that may come in, besides the server's own: https://example.com, \
                  https://*.example.com, http://localhost:*, null, file:// or '*', repeatable \
                  [default: those of this machine, on this machine]"
    )]
    pub allow_origin: Vec<OriginPattern>,
}

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Args)]
#[command(next_help_heading = "Logs")]
pub struct Logs {
    /// How log lines look: text or json
    #[arg(
        long = "log-format",
        env = "WSCAST_LOG_FORMAT",
        value_enum,
        hide_possible_values = true,
        value_name = "FORMAT",
        default_value = "text"
    )]
    pub format: LogFormat,
    /// Log each message as it comes and as it is broadcast: on or off
    #[arg(long = "log-messages", env = "WSCAST_LOG_MESSAGES", value_name = "SWITCH", num_args = 0..=1, default_value = "off",
          default_missing_value = "on", value_parser = units::switch, action = ArgAction::Set)]
    pub messages: bool,
}

impl Service {
    pub(super) fn validate(&self) -> Result<(), String> {
        match self.threads {
            Some(0) => Err("--threads must be at least 1".to_string()),
            _ => Ok(()),
        }
    }

    /// The first message to every client; empty for none.
    pub fn welcome(&self) -> &str {
        self.welcome.as_deref().unwrap_or(match self.mode {
            Mode::Echo => "Welcome to the WebSocket server!",
            Mode::Broadcast => "Welcome! You’re now in the broadcast room.",
        })
    }

    /// What stands before each text message; empty for nothing.
    pub fn prefix(&self) -> &str {
        self.prefix.as_deref().unwrap_or(match self.mode {
            Mode::Echo => "Server echo: ",
            Mode::Broadcast => "Broadcast: ",
        })
    }
}

impl Times {
    pub(super) fn validate(&self) -> Result<(), String> {
        for (option, time) in [
            ("--ping-timeout", self.ping_timeout),
            ("--open-timeout", self.open_timeout),
            ("--write-timeout", self.write_timeout),
        ] {
            if time.is_zero() {
                return Err(format!(
                    "{option} must be longer than 0: give it a time such as 5"
                ));
            }
        }
        Ok(())
    }
}

impl Limits {
    pub(super) fn validate(&self) -> Result<(), String> {
        for (option, count) in [
            ("--max-message-size", self.max_message_size.bytes()),
            ("--max-connections", self.max_connections),
            ("--max-rooms", self.max_rooms),
            ("--max-queue", self.max_queue),
        ] {
            if count == 0 {
                return Err(format!("{option} must be at least 1"));
            }
        }
        if self.max_message_size.bytes() > MAX_MESSAGE_SIZE {
            return Err("--max-message-size must be at most 256MiB".to_string());
        }
        if self.max_incoming.bytes() < self.max_message_size.bytes() {
            return Err("--max-incoming must be at least --max-message-size".to_string());
        }
        if self.max_connections > Semaphore::MAX_PERMITS {
            return Err(format!(
                "--max-connections must be at most {}",
                Semaphore::MAX_PERMITS
            ));
        }
        Ok(())
    }
}

/// Space for a message is set aside when its first bytes arrive, so this much must always be there.
const MAX_MESSAGE_SIZE: usize = 256 << 20;
