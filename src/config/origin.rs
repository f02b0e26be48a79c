//! Hosts and origins as requests name them, and the patterns of `--allow-host` and `--allow-origin`.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use hyper::http::uri::{Authority, Scheme, Uri};

/// The host that a request is for, as its `Host` says it (RFC 9112, section 3.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// In lower case, without a dot at its end; an IPv6 address in brackets.
    name: String,
    port: Option<u16>,
}

impl FromStr for Host {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let authority: Authority = text.parse().map_err(drop)?;
        let name = authority.host();
        // What has a user in front of its name is refused here.
        let port = match text.strip_prefix(name).ok_or(())? {
            "" | ":" => None,
            port => Some(parse_port(port.strip_prefix(':').ok_or(())?).ok_or(())?),
        };
        let name = normalise(name).ok_or(())?;
        Ok(Self { name, port })
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl Host {
    /// The name without the port.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is a name or an address that only this machine has for itself.
    pub fn is_loopback(&self) -> bool {
        let address = self.name.trim_start_matches('[').trim_end_matches(']');
        self.name == "localhost"
            || self.name.ends_with(".localhost")
            || address
                .parse::<IpAddr>()
                .is_ok_and(|it| it.to_canonical().is_loopback())
    }
}

/// One spelling of a name; none where it has other characters than names have. A log line may show
/// it to be copied into a shell.
fn normalise(name: &str) -> Option<String> {
    if let Some(address) = name.strip_prefix('[').and_then(|it| it.strip_suffix(']')) {
        return Some(format!("[{}]", address.parse::<Ipv6Addr>().ok()?));
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_named = |it: u8| it.is_ascii_alphanumeric() || b"-_".contains(&it);
    let is_label = |it: &str| !it.is_empty() && it.bytes().all(is_named);
    name.split('.')
        .all(is_label)
        .then(|| name.to_ascii_lowercase())
}

/// `u16::from_str` takes a sign, too.
fn parse_port(digits: &str) -> Option<u16> {
    let port = digits.parse().ok()?;
    digits.bytes().all(|it| it.is_ascii_digit()).then_some(port)
}

/// Where a request comes from, as its `Origin` says it (RFC 6454, section 6.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// `null`: a page that was opened as a file, or one in a sandbox.
    Null,
    /// `file://`: what older browsers and some devices say.
    File,
    /// All others; those that programs send may have a path, which is passed over.
    Page {
        /// In lower case.
        scheme: String,
        /// With the port that it names, unless that is the scheme's own.
        host: Host,
    },
}

impl FromStr for Origin {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if text == "null" {
            return Ok(Self::Null);
        }
        // No URI of HTTP, as it names no host.
        if text == "file://" || text.starts_with("file:///") {
            return Ok(Self::File);
        }
        let uri: Uri = text.parse().map_err(drop)?;
        let scheme = normalise_scheme(uri.scheme_str().ok_or(())?).ok_or(())?;
        let mut host: Host = uri.authority().ok_or(())?.as_str().parse()?;
        host.port = host.port.filter(|port| *port != default_port(&scheme));
        Ok(Self::Page { scheme, host })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::File => f.write_str("file://"),
            Self::Page { scheme, host } => write!(f, "{scheme}://{host}"),
        }
    }
}

impl Origin {
    /// Whether it is the server that a request with this `Host` is for. The scheme is left out of it,
    /// as a proxy may end TLS in front of the server.
    pub fn is_at(&self, host: &Host) -> bool {
        let Self::Page { scheme, host: own } = self else {
            return false;
        };
        let port = |it: &Host| it.port.unwrap_or(default_port(scheme));
        own.name == host.name && port(own) == port(host)
    }

    /// Whether it is a page or a program of this machine, as far as it can be known: a sandboxed frame
    /// of any page is `null`, too.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Null | Self::File => true,
            Self::Page { scheme, host } => {
                ["http", "https", "ws", "wss"].contains(&&**scheme) && host.is_loopback()
            }
        }
    }
}

/// One spelling of a scheme; none where it is none (RFC 3986, section 3.1).
fn normalise_scheme(scheme: &str) -> Option<String> {
    let scheme: Scheme = scheme.parse().ok()?;
    Some(scheme.as_str().to_ascii_lowercase()).filter(|it| !it.is_empty())
}

fn default_port(scheme: &str) -> u16 {
    match scheme {
        "https" | "wss" => 443,
        _ => 80,
    }
}

/// Hosts that may be asked for, as `--allow-host` writes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostPattern {
    /// `*`
    Any,
    /// `*.example.com`: all hosts below it. The name begins with the dot.
    Below(String),
    /// `example.com`
    Name(String),
}

impl HostPattern {
    /// Whether `host` is meant, whatever its port.
    pub fn matches(&self, host: &Host) -> bool {
        match self {
            Self::Any => true,
            Self::Below(suffix) => host.name.ends_with(suffix) && host.name.len() > suffix.len(),
            Self::Name(name) => host.name == *name,
        }
    }

    /// All but `*`, with the port where one is given.
    fn parse(text: &str) -> Option<(Self, Option<u16>)> {
        let (below, name) = match text.strip_prefix("*.") {
            Some(name) => (true, name),
            None => (false, text),
        };
        let Host { name, port } = name.parse().ok()?;
        let pattern = match below {
            true => Self::Below(format!(".{name}")),
            false => Self::Name(name),
        };
        Some((pattern, port))
    }
}

impl FromStr for HostPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(Self::Any);
        }
        // As `--host` takes it.
        if let Ok(address) = text.parse::<Ipv6Addr>() {
            return Ok(Self::Name(format!("[{address}]")));
        }
        match Self::parse(text) {
            Some((pattern, None)) => Ok(pattern),
            _ => Err("write example.com, *.example.com or '*', without scheme and port".into()),
        }
    }
}

/// Origins that may come in, as `--allow-origin` writes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OriginPattern {
    /// `*`
    Any,
    /// `null`; with it `file://`, which says less than it.
    Null,
    /// `file://`
    File,
    /// `https://example.com`, `https://*.example.com`, `http://localhost:*`
    Page {
        /// In lower case.
        scheme: String,
        /// Which hosts are meant.
        host: HostPattern,
        /// None for any.
        port: Option<u16>,
    },
}

impl OriginPattern {
    /// Whether `origin` is meant.
    pub fn matches(&self, origin: &Origin) -> bool {
        match (self, origin) {
            (Self::Any, _)
            | (Self::Null, Origin::Null | Origin::File)
            | (Self::File, Origin::File) => true,
            (
                Self::Page { scheme, host, port },
                Origin::Page {
                    scheme: of,
                    host: at,
                },
            ) => {
                let at_port = at.port.unwrap_or(default_port(of));
                scheme == of && host.matches(at) && port.is_none_or(|it| it == at_port)
            }
            _ => false,
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let (text, any_port) = match text.strip_suffix(":*") {
            Some(text) => (text, true),
            None => (text, false),
        };
        let (scheme, authority) = text.split_once("://")?;
        let scheme = normalise_scheme(scheme)?;
        let (host, port) = HostPattern::parse(authority)?;
        let port = match (any_port, port) {
            (true, None) => None,
            (true, Some(_)) => return None,
            (false, port) => Some(port.unwrap_or(default_port(&scheme))),
        };
        Some(Self::Page { scheme, host, port })
    }
}

impl FromStr for OriginPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "*" => Ok(Self::Any),
            "null" => Ok(Self::Null),
            "file://" => Ok(Self::File),
            text => Self::parse(text).ok_or_else(|| {
                "write https://example.com, https://*.example.com, http://localhost:*, null, \
                 file:// or '*'"
                    .into()
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_or_an_address_with_or_without_a_port() {
        for (text, expected) in [
            ("example.com", "example.com"),
            ("EXAMPLE.com.:8080", "example.com:8080"),
            ("example.com:", "example.com"),
            ("my_host", "my_host"),
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("[0:0:0:0:0:0:0:1]:8765", "[::1]:8765"),
        ] {
            assert_eq!(text.parse::<Host>().unwrap().to_string(), expected);
        }
        for text in [
            "",
            ":80",
            "a b",
            "user@example.com",
            "example.com@evil.com",
            "example.com/",
            "example.com:+80",
            "example.com:70000",
            "example.com:http",
            "a:1:2",
            "::1",
            "[::1",
            "[nonsense]",
            // Without the dot at its end it would be another name each time that it is read.
            "example.com..",
            "localhost..",
            ".localhost",
            ".",
            "..",
            "x;reboot",
            "$(reboot)",
            "bücher.example",
        ] {
            assert_eq!(text.parse::<Host>(), Err(()), "{text}");
        }
    }

    #[test]
    fn an_origin_is_a_scheme_and_a_host() {
        for (text, expected) in [
            ("null", "null"),
            ("file://", "file://"),
            ("file:///home/page.html", "file://"),
            ("HTTP://EXAMPLE.com", "http://example.com"),
            ("https://example.com:443", "https://example.com"),
            ("wss://example.com:80", "wss://example.com:80"),
            ("http://[::1]:3000", "http://[::1]:3000"),
            ("Capacitor://localhost", "capacitor://localhost"),
            ("chrome-extension://abcdef", "chrome-extension://abcdef"),
            ("http://localhost:1/path?query", "http://localhost:1"),
        ] {
            assert_eq!(text.parse::<Origin>().unwrap().to_string(), expected);
        }
        for text in [
            "",
            "/",
            "*",
            "nonsense",
            "example.com",
            "://example.com",
            "http://",
            "http:///path",
            "http://a b",
            "http://user@example.com",
            "http://example.com:http",
            "a b://example.com",
        ] {
            assert_eq!(text.parse::<Origin>(), Err(()), "{text}");
        }
    }

    #[test]
    fn loopback_names_are_those_of_this_machine() {
        for (name, expected) in [
            ("localhost", true),
            ("LOCALHOST.:80", true),
            ("app.localhost", true),
            ("127.0.0.1", true),
            ("127.9.8.7:1", true),
            ("[::1]:8765", true),
            ("[::ffff:127.0.0.1]", true),
            ("localhost.evil.com", false),
            ("notlocalhost", false),
            ("127.0.0.1.evil.com", false),
            ("10.0.0.1", false),
            ("0.0.0.0", false),
            ("[::]", false),
        ] {
            assert_eq!(
                name.parse::<Host>().unwrap().is_loopback(),
                expected,
                "{name}"
            );
        }
    }

    #[test]
    fn an_invalid_pattern_is_refused() {
        for text in [
            "https://example.com",
            "https://*.example.com:8443",
            "capacitor://localhost",
            "chrome-extension://abcdef",
            "http://localhost:*",
            "http://[::1]:*",
            "null",
            "file://",
            "*",
        ] {
            assert!(text.parse::<OriginPattern>().is_ok(), "{text}");
        }
        for text in [
            "",
            "example.com",
            "https://",
            "https://*",
            "https://*.",
            "https://a.*.com",
            "https://example.com/",
            "http://localhost:80:*",
            "://example.com",
            "file:///home",
        ] {
            assert!(text.parse::<OriginPattern>().is_err(), "{text}");
        }
        for text in [
            "example.com",
            "*.example.com",
            "::1",
            "[::1]",
            "10.0.0.1",
            "*",
        ] {
            assert!(text.parse::<HostPattern>().is_ok(), "{text}");
        }
        for text in [
            "",
            "https://example.com",
            "example.com:80",
            "a.*.com",
            "*com",
            "[::1]:80",
        ] {
            assert!(text.parse::<HostPattern>().is_err(), "{text}");
        }
    }
}
