//! Every option, wait, bound and address, with its unit and its default.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, ValueEnum};

pub use origin::{Host, HostPattern, List, Origin, OriginPattern};

mod origin;

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
    /// echo: a message goes back to its sender; broadcast: to everybody in the room
    #[arg(long, env = "WSCAST_MODE", value_enum, hide_possible_values = true, default_value = "echo", help_heading = SERVICE)]
    pub mode: Mode,
    /// Name or address to listen on, every address it resolves to
    #[arg(long, env = "WSCAST_HOST", default_value = "localhost", help_heading = SERVICE)]
    pub host: String,
    /// Port to listen on; 0 takes a free one
    #[arg(long, env = "WSCAST_PORT", default_value = "8765", help_heading = SERVICE)]
    pub port: u16,
    /// First message to every client, '' for none [default: by mode]
    #[arg(long, env = "WSCAST_WELCOME", value_name = "TEXT", help_heading = SERVICE)]
    pub welcome: Option<String>,
    /// What stands before each text message, '' for nothing [default: by mode]
    #[arg(long, env = "WSCAST_PREFIX", value_name = "TEXT", help_heading = SERVICE)]
    pub prefix: Option<String>,

    /// Messages a room remembers, the oldest go first; 0 keeps none
    #[arg(long, env = "WSCAST_HISTORY_LIMIT", value_name = "COUNT", default_value = "1000", help_heading = HISTORY)]
    pub history_limit: usize,
    /// Payload bytes a room remembers; 0 keeps none
    #[arg(long, env = "WSCAST_HISTORY_BYTES", value_name = "SIZE", default_value = "16MiB", help_heading = HISTORY)]
    pub history_bytes: Size,
    /// Payload bytes all rooms together remember
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
    #[arg(long, env = "WSCAST_MAX_CONNECTIONS", value_name = "COUNT", default_value = "10000", help_heading = LIMITS)]
    pub max_connections: usize,
    /// Rooms at a time; the one without clients for longest is forgotten first
    #[arg(long, env = "WSCAST_MAX_ROOMS", value_name = "COUNT", default_value = "1000", help_heading = LIMITS)]
    pub max_rooms: usize,
    /// Live messages that wait for a client; beyond, it is served from the history
    #[arg(long, env = "WSCAST_MAX_QUEUE", value_name = "COUNT", default_value = "1024", help_heading = LIMITS)]
    pub max_queue: usize,
    /// The same in bytes
    #[arg(long, env = "WSCAST_MAX_QUEUE_BYTES", value_name = "SIZE", default_value = "4MiB", help_heading = LIMITS)]
    pub max_queue_bytes: Size,

    /// Host names to answer to, besides those of this machine and `--host`
    #[arg(long, env = "WSCAST_ALLOW_HOST", value_name = "HOST", help_heading = ACCESS,
          help = "Host names to answer to, besides those of this machine and --host: example.com, \
                  *.example.com or '*', repeatable [default: on loopback none, elsewhere any]")]
    pub allow_host: Vec<List<HostPattern>>,
    /// Web pages that may come in besides the server's own, in the place of those of this machine
    #[arg(long, env = "WSCAST_ALLOW_ORIGIN", value_name = "ORIGIN", help_heading = ACCESS,
          help = "Web pages that may come in, besides the server's own: https://example.com, \
                  https://*.example.com, http://localhost:*, null, file:// or '*', repeatable \
                  [default: those of this machine, on this machine]")]
    pub allow_origin: Vec<List<OriginPattern>>,

    /// How log lines look: text or json
    #[arg(long, env = "WSCAST_LOG_FORMAT", value_enum, hide_possible_values = true, value_name = "FORMAT", default_value = "text", help_heading = LOGS)]
    pub log_format: LogFormat,
}

const SERVICE: &str = "Service";
const HISTORY: &str = "History";
const TIMES: &str = "Times";
const LIMITS: &str = "Limits";
const ACCESS: &str = "Access";
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
    /// Reads the command line and the environment of this process.
    ///
    /// # Errors
    /// One line that names the option and the remedy; or the text that `--help` or `--version` asked
    /// for ([`clap::Error::use_stderr`] is false then).
    pub fn from_args<I, T>(args: I) -> Result<Self, clap::Error>
    where
        I: IntoIterator<Item = T>,
        T: Into<std::ffi::OsString> + Clone,
    {
        // Or "-1" would be taken for an option, and the error would not name the right one.
        let command = Self::command().mut_args(|arg| match arg.get_action().takes_values() {
            true => arg.allow_negative_numbers(true),
            false => arg,
        });
        let config = Self::from_arg_matches(&command.try_get_matches_from(args)?)?;
        config
            .validate()
            .map_err(|message| Self::command().error(ErrorKind::ValueValidation, message))?;
        Ok(config)
    }

    /// Checks what one value alone cannot tell.
    ///
    /// # Errors
    /// One sentence that names the option and the remedy.
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
        let host = match self.host.parse::<std::net::Ipv6Addr>() {
            Ok(address) => format!("[{address}]"),
            Err(_) => self.host.clone(),
        };
        format!("{server} server is listening on ws://{host}:{port}")
    }
}

/// Space for a message is set aside when its first bytes arrive, so this much must always be there.
const MAX_MESSAGE_SIZE: usize = 256 << 20;

/// As many as the semaphore that counts them can hold.
const MAX_CONNECTIONS: usize = usize::MAX >> 3;

impl Default for Config {
    /// The empty command line, whatever the environment says.
    fn default() -> Self {
        let command = Self::command().mut_args(|arg| arg.env(None::<&str>));
        Self::from_arg_matches(&command.get_matches_from(["wscast"]))
            .expect("every option has a default that parses")
    }
}

/// A duration as the command line writes it: seconds (`10`, `0.5`) or with a unit (`500ms`, `2m`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time(Duration);

/// Longer waits are typing errors, and would overflow the clock.
const MAX_TIME: Duration = Duration::from_secs(365 * 24 * 60 * 60);

impl Time {
    /// The duration.
    pub fn get(self) -> Duration {
        self.0
    }

    /// Whether it is no time at all.
    pub fn is_zero(self) -> bool {
        self.0.is_zero()
    }
}

impl From<Duration> for Time {
    fn from(duration: Duration) -> Self {
        Self(duration)
    }
}

impl FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unclear = || "write seconds (10, 0.5) or a unit (500ms, 2m)".to_string();
        let duration = match text.parse::<f64>() {
            Ok(secs) => Duration::try_from_secs_f64(secs).map_err(|_| unclear())?,
            Err(_) => humantime::parse_duration(text).map_err(|_| unclear())?,
        };
        if duration > MAX_TIME {
            return Err("write at most a year (365d)".to_string());
        }
        Ok(Self(duration))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

/// A number of bytes as the command line writes it: plain (`65536`) or with a unit (`64KiB`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(usize);

impl Size {
    /// The number of bytes.
    pub fn bytes(self) -> usize {
        self.0
    }
}

impl From<usize> for Size {
    fn from(bytes: usize) -> Self {
        Self(bytes)
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size: bytesize::ByteSize = text
            .parse()
            .map_err(|_| "write bytes (65536) or a unit (64KiB, 1MiB)".to_string())?;
        usize::try_from(size.as_u64())
            .ok()
            .filter(|bytes| *bytes <= isize::MAX as usize)
            .map(Self)
            .ok_or_else(|| "write fewer bytes than this machine can address".to_string())
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Config, clap::Error> {
        Config::from_args(std::iter::once("wscast").chain(line.split_whitespace()))
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
            allow_host: Vec::new(),
            allow_origin: Vec::new(),
            log_format: LogFormat::Text,
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
    fn durations_are_seconds_or_carry_a_unit() {
        for (text, millis) in [
            ("10", 10_000),
            ("0.5", 500),
            ("500ms", 500),
            ("2m", 120_000),
            ("0", 0),
        ] {
            assert_eq!(
                text.parse(),
                Ok(Time(Duration::from_millis(millis))),
                "{text}"
            );
        }
        for text in [
            "",
            "-1",
            "NaN",
            "inf",
            "1e300",
            "soon",
            "10 parsecs",
            "400d",
        ] {
            assert!(text.parse::<Time>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_bytes_or_carry_a_unit() {
        for (text, bytes) in [
            ("0", 0),
            ("65536", 65536),
            ("64KiB", 65536),
            ("1MiB", 1 << 20),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "-1", "many", "1XB", "99999999999999999999"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
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
            ("--allow-host https://example.com", "--allow-host"),
            ("--allow-host example.com:443", "--allow-host"),
            ("--write-timeout 0", "--write-timeout"),
            ("--max-message-size 0", "--max-message-size"),
            ("--max-connections 0", "--max-connections"),
            ("--max-queue 0", "--max-queue"),
            ("--max-queue -1", "--max-queue"),
            ("--max-message-size 1TiB", "--max-message-size"),
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
