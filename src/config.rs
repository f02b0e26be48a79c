//! Every option, wait, bound and address, with its unit and its default.

mod invocation;
mod units;

use std::fmt;
use std::str::FromStr;

use clap::{ArgAction, Command, CommandFactory, FromArgMatches, Parser, ValueEnum};

pub use invocation::Invocation;
pub use units::{Size, Time};

/// What the server is told at start: the command line, the environment and the defaults in one.
#[derive(Debug, Clone, PartialEq, Parser)]
#[command(
    name = "wscast",
    version,
    about = "A WebSocket echo and broadcast server"
)]
#[command(
    after_help = "Durations are seconds (10, 0.5) or carry a unit (500ms, 2m); sizes are \
                        bytes or carry one (64KiB, 1MiB).\nRUST_LOG sets what is logged (default \
                        info); logs go to stderr."
)]
pub struct Config {
    /// echo: a message goes back to its sender alone, and later clients see it in the history;
    /// broadcast: it goes to everybody in the room
    #[arg(long, env = "WSCAST_MODE", value_enum, hide_possible_values = true, default_value = "echo", help_heading = SERVICE)]
    pub mode: Mode,
    /// Name or address to listen on, every address it resolves to
    #[arg(long, env = "WSCAST_HOST", default_value = "localhost", value_parser = units::host, help_heading = SERVICE)]
    pub host: String,
    /// Port to listen on; 0 takes a free one
    #[arg(long, env = "WSCAST_PORT", default_value = "8765", value_parser = units::port, help_heading = SERVICE)]
    pub port: u16,
    /// First message to every client, '' for none [default: by mode]
    #[arg(long, env = "WSCAST_WELCOME", value_name = "TEXT", allow_hyphen_values = true, help_heading = SERVICE)]
    pub welcome: Option<String>,
    /// What stands before each text message, '' for nothing [default: by mode]
    #[arg(long, env = "WSCAST_PREFIX", value_name = "TEXT", allow_hyphen_values = true, help_heading = SERVICE)]
    pub prefix: Option<String>,

    /// Messages a room remembers, the oldest go first; 0 keeps none
    #[arg(long, env = "WSCAST_HISTORY_LIMIT", value_name = "COUNT", default_value = "1000", value_parser = units::count, help_heading = HISTORY)]
    pub history_limit: usize,
    /// Memory a room's history takes, up to 200 bytes a message besides its text; 0 keeps none
    #[arg(long, env = "WSCAST_HISTORY_BYTES", value_name = "SIZE", default_value = "16MiB", help_heading = HISTORY)]
    pub history_bytes: Size,
    /// Memory all histories together take
    #[arg(long, env = "WSCAST_HISTORY_TOTAL", value_name = "SIZE", default_value = "256MiB", help_heading = HISTORY)]
    pub history_total: Size,

    /// Time between two pings; 0 turns heartbeats off
    #[arg(long, env = "WSCAST_PING_INTERVAL", value_name = "TIME", default_value = "10", help_heading = TIMES)]
    pub ping_interval: Time,
    /// A client that sends nothing for so long after a ping is closed with 1011
    #[arg(long, env = "WSCAST_PING_TIMEOUT", value_name = "TIME", default_value = "5", help_heading = TIMES)]
    pub ping_timeout: Time,
    /// Time a client has for its whole HTTP request
    #[arg(long, env = "WSCAST_OPEN_TIMEOUT", value_name = "TIME", default_value = "10", help_heading = TIMES)]
    pub open_timeout: Time,
    /// A client that takes nothing of what waits for it for so long is closed with 1013
    #[arg(long, env = "WSCAST_WRITE_TIMEOUT", value_name = "TIME", default_value = "10", help_heading = TIMES)]
    pub write_timeout: Time,
    /// Time a client has to answer a close frame
    #[arg(long, env = "WSCAST_CLOSE_TIMEOUT", value_name = "TIME", default_value = "2", help_heading = TIMES)]
    pub close_timeout: Time,
    /// Time all clients together have to go when the server is told to stop
    #[arg(long, env = "WSCAST_DRAIN_TIMEOUT", value_name = "TIME", default_value = "3", help_heading = TIMES)]
    pub drain_timeout: Time,

    /// Largest message a client may send
    #[arg(long, env = "WSCAST_MAX_MESSAGE_SIZE", value_name = "SIZE", default_value = "1MiB", help_heading = LIMITS)]
    pub max_message_size: Size,
    /// Connections at a time; more are answered 503
    #[arg(long, env = "WSCAST_MAX_CONNECTIONS", value_name = "COUNT", default_value = "10000", value_parser = units::count, help_heading = LIMITS)]
    pub max_connections: usize,
    /// Rooms at a time; the one without clients for longest is forgotten first
    #[arg(long, env = "WSCAST_MAX_ROOMS", value_name = "COUNT", default_value = "1000", value_parser = units::count, help_heading = LIMITS)]
    pub max_rooms: usize,
    /// Live messages that wait for a client; beyond, it is served from the history
    #[arg(long, env = "WSCAST_MAX_QUEUE", value_name = "COUNT", default_value = "1024", value_parser = units::count, help_heading = LIMITS)]
    pub max_queue: usize,
    /// The same in bytes
    #[arg(long, env = "WSCAST_MAX_QUEUE_BYTES", value_name = "SIZE", default_value = "4MiB", help_heading = LIMITS)]
    pub max_queue_bytes: Size,

    /// Bytes of all messages and bodies that have begun and are not complete; the one that grows
    /// least is cut
    #[arg(long, env = "WSCAST_MAX_INCOMING", value_name = "SIZE", default_value = "256MiB", help_heading = LIMITS)]
    pub max_incoming: Size,

    /// Web pages that may come in, in the place of the default rule where there is any
    #[arg(long, env = "WSCAST_ALLOW_ORIGIN", value_name = "ORIGIN", value_delimiter = ',', help_heading = LIMITS,
          help = "Web pages that may come in: https://example.com, https://*.example.com or '*', \
                  repeatable [default: of the same host or this machine]")]
    pub allow_origin: Vec<OriginPattern>,

    /// How log lines look: text or json
    #[arg(long, env = "WSCAST_LOG_FORMAT", value_enum, hide_possible_values = true, value_name = "FORMAT", default_value = "text", help_heading = LOGS)]
    pub log_format: LogFormat,
    /// Log each message as it comes and as it is broadcast: on or off
    #[arg(long, env = "WSCAST_LOG_MESSAGES", value_name = "SWITCH", num_args = 0..=1, default_value = "off",
          default_missing_value = "on", value_parser = units::switch, action = ArgAction::Set, help_heading = LOGS)]
    pub log_messages: bool,
}

const SERVICE: &str = "Service";
const HISTORY: &str = "History";
const TIMES: &str = "Times";
const LIMITS: &str = "Limits";
const LOGS: &str = "Logs";

/// What happens to a message that a client sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// It is answered to its sender alone
    Echo,
    /// It is sent to every client of the room, the sender included
    Broadcast,
}

impl Mode {
    /// As the command line writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Broadcast => "broadcast",
        }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One line of text an event
    Text,
    /// One JSON object an event
    Json,
}

impl Config {
    /// The command line of this server, which reads no variable.
    fn command_without_environment() -> Command {
        Self::command().mut_args(|arg| {
            // Or "-1" would be taken for an option, and the error would not name the right one.
            let negative = arg.get_action().takes_values();
            arg.env(None::<&str>).allow_negative_numbers(negative)
        })
    }

    /// Checks what one value alone cannot tell.
    ///
    /// # Errors
    /// One sentence that begins with the name of the option and has the remedy.
    pub fn validate(&self) -> Result<(), String> {
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
        if self.max_connections > MAX_CONNECTIONS {
            return Err(format!(
                "--max-connections must be at most {MAX_CONNECTIONS}"
            ));
        }
        Ok(())
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

    /// The line that says where the server listens, for the port it really has.
    pub fn listening_line(&self, port: u16) -> String {
        let server = match self.mode {
            Mode::Echo => "WebSocket",
            Mode::Broadcast => "Broadcast",
        };
        let host = self.host_in_urls();
        format!("{server} server is listening on ws://{host}:{port}")
    }

    /// What `--host` says, as a URL has it (RFC 3986, section 3.2.2; RFC 6874, section 2).
    pub fn host_in_urls(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]", self.host.replace('%', "%25")),
            false => self.host.clone(),
        }
    }
}

/// Space for a message is set aside when its first bytes arrive, so this much must always be there.
const MAX_MESSAGE_SIZE: usize = 256 << 20;

/// As many as the semaphore that counts them can hold.
const MAX_CONNECTIONS: usize = usize::MAX >> 3;

impl Default for Config {
    /// The empty command line, whatever the environment says.
    fn default() -> Self {
        let matches = Self::command_without_environment().get_matches_from(["wscast"]);
        Self::from_arg_matches(&matches).expect("every option has a default that parses")
    }
}

/// Where a web page comes from, as the `Origin` header says it (RFC 6454, section 6.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    scheme: String,
    /// In lower case; an IPv6 address in brackets.
    host: String,
    port: u16,
}

impl FromStr for Origin {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (scheme, authority) = text.split_once("://").ok_or(())?;
        let scheme = scheme.to_ascii_lowercase();
        let default = match scheme.as_str() {
            "http" => 80,
            "https" => 443,
            _ => return Err(()),
        };
        let (host, port) = split_port(authority).ok_or(())?;
        Ok(Self {
            scheme,
            host,
            port: port.unwrap_or(default),
        })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.host)?;
        match (self.scheme.as_str(), self.port) {
            ("http", 80) | ("https", 443) => Ok(()),
            (_, port) => write!(f, ":{port}"),
        }
    }
}

impl Origin {
    /// Whether it is this machine, whichever the port.
    pub fn is_loopback(&self) -> bool {
        let address = self.host.trim_start_matches('[').trim_end_matches(']');
        self.host == "localhost"
            || self.host.ends_with(".localhost")
            || address
                .parse::<std::net::IpAddr>()
                .is_ok_and(|it| it.is_loopback())
    }

    /// Whether a request with this `Host` went to where the page came from. The scheme is left out of
    /// it, as it may be another one before a proxy.
    pub fn is_at(&self, host: &str) -> bool {
        let default = if self.scheme == "https" { 443 } else { 80 };
        split_port(host)
            .is_some_and(|(host, port)| host == self.host && port.unwrap_or(default) == self.port)
    }
}

/// Host, in lower case, and port of what stands behind the scheme.
fn split_port(authority: &str) -> Option<(String, Option<u16>)> {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port.parse().ok()?)),
        _ => (authority, None),
    };
    let is_name = |it: char| it.is_ascii_alphanumeric() || "-._*[]:".contains(it);
    let named = !host.is_empty() && host.chars().all(is_name);
    named.then(|| (host.to_ascii_lowercase(), port))
}

/// Origins that may come in, as `--allow-origin` writes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OriginPattern {
    /// `*`
    Any,
    /// `null`: a page without an origin, as one that was opened from a file.
    Null,
    /// `https://example.com`, or with a `*.` before its host all hosts below it.
    Of(Origin),
}

impl OriginPattern {
    /// Whether an `Origin` header with this value is meant.
    pub fn matches(&self, origin: &str) -> bool {
        let pattern = match self {
            Self::Any => return true,
            Self::Null => return origin == "null",
            Self::Of(pattern) => pattern,
        };
        let Ok(origin) = origin.parse::<Origin>() else {
            return false;
        };
        let host_matches = match pattern.host.strip_prefix('*') {
            // With the dot that stands behind the star.
            Some(suffix) => origin.host.ends_with(suffix) && origin.host.len() > suffix.len(),
            None => origin.host == pattern.host,
        };
        host_matches && origin.scheme == pattern.scheme && origin.port == pattern.port
    }
}

impl FromStr for OriginPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unclear =
            || "write https://example.com, https://*.example.com, null or '*'".to_string();
        match text {
            "*" => Ok(Self::Any),
            "null" => Ok(Self::Null),
            text => {
                let origin: Origin = text.parse().map_err(|()| unclear())?;
                let name = origin.host.strip_prefix("*.").unwrap_or(&origin.host);
                match name.contains('*') || name.is_empty() {
                    true => Err(unclear()),
                    false => Ok(Self::Of(origin)),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn parse(line: &str) -> Result<Config, clap::Error> {
        let arguments = std::iter::once("wscast").chain(line.split_whitespace());
        Invocation::read(arguments, std::iter::empty()).map(|it| it.config)
    }

    #[test]
    fn the_defaults_are_those_of_the_contract() {
        let config = Config::default();
        assert_eq!(config, parse("").unwrap());
        assert_eq!(config.validate(), Ok(()));
        let secs = |secs| Time::from(Duration::from_secs(secs));
        let expected = Config {
            mode: Mode::Echo,
            host: "localhost".into(),
            port: 8765,
            welcome: None,
            prefix: None,
            history_limit: 1000,
            history_bytes: Size::from(16 << 20),
            history_total: Size::from(256 << 20),
            ping_interval: secs(10),
            ping_timeout: secs(5),
            open_timeout: secs(10),
            write_timeout: secs(10),
            close_timeout: secs(2),
            drain_timeout: secs(3),
            max_message_size: Size::from(1 << 20),
            max_connections: 10_000,
            max_rooms: 1000,
            max_queue: 1024,
            max_queue_bytes: Size::from(4 << 20),
            max_incoming: Size::from(256 << 20),
            allow_origin: Vec::new(),
            log_format: LogFormat::Text,
            log_messages: false,
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn the_texts_go_by_mode_unless_they_are_given() {
        let echo = parse("--mode echo").unwrap();
        assert_eq!(echo.welcome(), "Welcome to the WebSocket server!");
        assert_eq!(echo.prefix(), "Server echo: ");
        let broadcast = parse("--mode broadcast").unwrap();
        assert_eq!(
            broadcast.welcome(),
            "Welcome! You\u{2019}re now in the broadcast room."
        );
        assert_eq!(broadcast.prefix(), "Broadcast: ");
        let own = parse("--welcome= --prefix=>").unwrap();
        assert_eq!((own.welcome(), own.prefix()), ("", ">"));
    }

    #[test]
    fn a_bad_value_is_refused_with_the_name_of_its_option() {
        for (line, option) in [
            ("--mode chat", "--mode"),
            ("--port 70000", "--port"),
            ("--ping-interval soon", "--ping-interval"),
            ("--ping-timeout 0", "--ping-timeout"),
            ("--allow-origin example.com", "--allow-origin"),
            ("--allow-origin https://*", "--allow-origin"),
            ("--allow-origin https://a.*.com", "--allow-origin"),
            ("--allow-origin https://example.com/", "--allow-origin"),
            ("--write-timeout 0", "--write-timeout"),
            ("--max-message-size 0", "--max-message-size"),
            ("--max-connections 0", "--max-connections"),
            ("--max-queue 0", "--max-queue"),
            ("--max-queue -1", "--max-queue"),
            ("--max-message-size 1TiB", "--max-message-size"),
            ("--max-incoming 100KiB", "--max-message-size"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.to_string().contains(option), "{line}: {error}");
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn the_listening_line_is_a_url() {
        let mut config = Config {
            host: "::1".into(),
            ..Config::default()
        };
        assert_eq!(
            config.listening_line(80),
            "WebSocket server is listening on ws://[::1]:80"
        );
        config.host = "localhost".into();
        config.mode = Mode::Broadcast;
        let line = config.listening_line(8765);
        assert_eq!(line, "Broadcast server is listening on ws://localhost:8765");
    }
}
