//! The kinds of values that options take, and what is said of a value that is none of its kind.

use std::fmt;
use std::net::Ipv6Addr;
use std::num::{IntErrorKind, ParseIntError};
use std::str::FromStr;
use std::time::Duration;

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

/// A whole number.
pub(super) fn count(text: &str) -> Result<usize, String> {
    text.parse()
        .map_err(|error: ParseIntError| match error.kind() {
            IntErrorKind::PosOverflow => format!("write at most {}", usize::MAX),
            _ => "write a whole number such as 1000".to_string(),
        })
}

/// A TCP port.
pub(super) fn port(text: &str) -> Result<u16, String> {
    text.parse()
        .map_err(|_| format!("write a number from 0 to {}", u16::MAX))
}

/// A switch, as `--log-messages` is one.
pub(super) fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("write on or off".to_string()),
    }
}

/// A name or an address without a port; an IPv6 address without its brackets.
pub(super) fn host(text: &str) -> Result<String, String> {
    let within = text
        .strip_prefix('[')
        .and_then(|it| it.strip_suffix(']'))
        .filter(|it| is_ipv6(it));
    let bare = within.unwrap_or(text);
    if is_ipv6(bare) || !bare.is_empty() && !bare.contains([':', '/', '[', ']', ' ']) {
        return Ok(bare.to_string());
    }
    let (_, authority) = text.split_once("://").unwrap_or(("", text));
    let authority = authority.split('/').next().unwrap_or_default();
    if authority.len() < text.len()
        && let Ok(name) = host(authority)
    {
        return Err(format!("write --host {name}"));
    }
    if let Some((name, port)) = authority.rsplit_once(':')
        && let Ok(name) = host(name)
    {
        return Err(format!("write --host {name} --port {port}"));
    }
    Err("write a name or an address such as localhost or ::1".to_string())
}

/// Whether it is an IPv6 address, with or without a zone (`fe80::1%eth0`, RFC 4007).
fn is_ipv6(text: &str) -> bool {
    let (address, _zone) = text.split_once('%').unwrap_or((text, ""));
    address.parse::<Ipv6Addr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_host_has_no_port_and_no_brackets() {
        for (text, meant) in [
            ("localhost", "localhost"),
            ("127.0.0.1", "127.0.0.1"),
            ("::1", "::1"),
            ("[::1]", "::1"),
            ("fe80::1%eth0", "fe80::1%eth0"),
            ("[fe80::1%eth0]", "fe80::1%eth0"),
        ] {
            assert_eq!(host(text).as_deref(), Ok(meant), "{text}");
        }
        for (text, remedy) in [
            ("localhost:8765", "write --host localhost --port 8765"),
            ("[::1]:8765", "write --host ::1 --port 8765"),
            (
                "http://localhost:8765/",
                "write --host localhost --port 8765",
            ),
            ("ws://localhost", "write --host localhost"),
            ("localhost/lobby", "write --host localhost"),
            ("", "write a name or an address such as localhost or ::1"),
            (
                "[::1",
                "write a name or an address such as localhost or ::1",
            ),
            (
                "my host",
                "write a name or an address such as localhost or ::1",
            ),
            (
                ":8765",
                "write a name or an address such as localhost or ::1",
            ),
        ] {
            assert_eq!(host(text), Err(remedy.to_string()), "{text}");
        }
    }

    #[test]
    fn every_error_says_what_to_write() {
        for text in ["", "x", "-1", "1.5", "99999999999999999999999"] {
            for error in [count(text).unwrap_err(), port(text).unwrap_err()] {
                assert!(error.starts_with("write "), "{text}: {error}");
            }
        }
        assert_eq!(switch("yes"), Err("write on or off".to_string()));
    }
}
