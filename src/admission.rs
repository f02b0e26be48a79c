//! Who may come in: which web pages, by their origin.

use hyper::header::{self, HeaderMap, HeaderValue};

use crate::config::{Origin, OriginPattern};

/// The rule for requests that a web page makes a browser send. Who is not a browser sends no
/// `Origin`, and is let in.
#[derive(Debug)]
pub struct Admission {
    /// Replaces the default rule, where there is any.
    allowed: Vec<OriginPattern>,
    /// Whether the server listens on addresses of this machine alone.
    only_local: bool,
}

/// The origin of a page that may not come in, the host that it asked for, and what would let it in.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("origin {origin:?} is not allowed for host {host:?}: {remedy}")]
pub struct Refused {
    origin: String,
    host: String,
    remedy: String,
}

impl Admission {
    /// The rule of `--allow-origin`, or the default one where that is not given.
    pub fn new(allowed: Vec<OriginPattern>, only_local: bool) -> Self {
        Self {
            allowed,
            only_local,
        }
    }

    /// Lets a request to `host` in, or not; returns the origin it comes from, if it says any.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn check<'a>(
        &self,
        headers: &'a HeaderMap,
        host: &str,
    ) -> Result<Option<&'a HeaderValue>, Refused> {
        let mut origins = headers.get_all(header::ORIGIN).iter();
        let Some(origin) = origins.next() else {
            return Ok(None);
        };
        let text = origin.to_str().unwrap_or_default();
        let is_one = origins.next().is_none();
        if is_one && self.allows(text, host) {
            return Ok(Some(origin));
        }
        Err(Refused {
            origin: String::from_utf8_lossy(origin.as_bytes()).into_owned(),
            host: host.to_owned(),
            remedy: match is_one {
                true => format!("--allow-origin {} would let it in", pattern_for(text)),
                false => "a request has one origin".into(),
            },
        })
    }

    fn allows(&self, origin: &str, host: &str) -> bool {
        // Chromium calls a page that was opened from a file so when it opens a WebSocket.
        let origin = if origin == "file://" { "null" } else { origin };
        if !self.allowed.is_empty() {
            return self.allowed.iter().any(|it| it.matches(origin));
        }
        if origin == "null" {
            return self.only_local;
        }
        let Ok(origin) = origin.parse::<Origin>() else {
            return false;
        };
        origin.is_loopback() || origin.is_at(host)
    }
}

/// What `--allow-origin` has to say for this origin. It is written anew, and not what a peer says.
fn pattern_for(origin: &str) -> String {
    match origin.parse::<Origin>() {
        Ok(origin) => origin.to_string(),
        Err(()) if origin == "null" || origin == "file://" => "null".into(),
        Err(()) => "'*'".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(allowed: &[&str], only_local: bool, origin: &'static str, host: &'static str) -> bool {
        let allowed = allowed.iter().map(|it| it.parse().unwrap()).collect();
        let mut headers = HeaderMap::new();
        if !origin.is_empty() {
            headers.insert(header::ORIGIN, HeaderValue::from_static(origin));
        }
        Admission::new(allowed, only_local)
            .check(&headers, host)
            .is_ok()
    }

    #[test]
    fn by_default_the_same_host_and_this_machine_may_come_in() {
        for (origin, host, allowed) in [
            ("", "example.com", true),
            ("http://example.com", "example.com", true),
            ("https://example.com", "example.com", true),
            ("https://example.com", "example.com:443", true),
            ("http://example.com", "example.com:80", true),
            ("https://EXAMPLE.com:8443", "example.com:8443", true),
            ("http://example.com:8765", "example.com", false),
            ("http://example.com", "example.com:8765", false),
            ("http://evil.com", "example.com", false),
            ("http://example.com.evil.com", "example.com", false),
            ("http://evil-example.com", "example.com", false),
            ("http://sub.example.com", "example.com", false),
            ("http://example.com/", "example.com", false),
            ("http://example.com@evil.com", "example.com", false),
            ("http://localhost:3000", "example.com", true),
            ("https://app.localhost", "example.com", true),
            ("http://127.0.0.1", "example.com", true),
            ("http://127.9.8.7:1", "example.com", true),
            ("http://[::1]:8080", "example.com", true),
            ("http://[fd00::1]:8080", "[fd00::1]:8080", true),
            ("http://localhost.evil.com", "example.com", false),
            ("http://notlocalhost", "example.com", false),
            ("http://127.0.0.1.evil.com", "example.com", false),
            ("http://10.0.0.1", "example.com", false),
            ("chrome-extension://abcdef", "example.com", false),
            ("http://", "", false),
            ("nonsense", "nonsense", false),
            ("null", "example.com", false),
            ("file://", "example.com", false),
        ] {
            assert_eq!(
                check(&[], false, origin, host),
                allowed,
                "{origin} at {host}"
            );
        }
        // A page from a file, where only this machine can ask.
        assert!(check(&[], true, "null", "localhost:8765"));
        assert!(check(&[], true, "file://", "localhost:8765"));
        assert!(!check(&[], true, "http://evil.com", "localhost:8765"));
    }

    #[test]
    fn a_list_replaces_the_default() {
        let list = [
            "https://app.example.com",
            "https://*.example.org:8443",
            "http://shop.test:80",
        ];
        for (origin, allowed) in [
            ("", true),
            ("https://app.example.com", true),
            ("https://APP.example.com", true),
            ("http://app.example.com", false),
            ("https://app.example.com:444", false),
            ("https://a.example.org:8443", true),
            ("https://a.b.example.org:8443", true),
            ("https://example.org:8443", false),
            ("https://aexample.org:8443", false),
            ("https://a.example.org", false),
            ("http://shop.test", true),
            ("http://localhost", false),
            ("https://host", false),
            ("null", false),
        ] {
            assert_eq!(check(&list, true, origin, "host"), allowed, "{origin}");
        }
        assert!(check(&["null"], false, "null", "host"));
        for origin in ["null", "https://anything", "chrome-extension://abcdef"] {
            assert!(check(&["*"], false, origin, "host"));
        }
    }

    #[test]
    fn two_origins_are_none() {
        let mut headers = HeaderMap::new();
        headers.append(header::ORIGIN, HeaderValue::from_static("http://localhost"));
        headers.append(header::ORIGIN, HeaderValue::from_static("http://evil.com"));
        let refused = Admission::new(Vec::new(), true)
            .check(&headers, "localhost")
            .unwrap_err();
        assert_eq!(
            refused.to_string(),
            "origin \"http://localhost\" is not allowed for host \"localhost\": a request has one origin"
        );
    }

    #[test]
    fn a_refusal_names_the_flag_that_helps_and_cannot_be_forged() {
        for (origin, flag) in [
            ("https://Example.com:443", "https://example.com"),
            ("http://example.com:8080", "http://example.com:8080"),
            ("null", "null"),
            ("file://", "null"),
            ("chrome-extension://abc", "'*'"),
            ("x would let it in\u{2028}INFO client connected", "'*'"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(
                header::ORIGIN,
                HeaderValue::from_bytes(origin.as_bytes()).unwrap(),
            );
            let refused = Admission::new(Vec::new(), false)
                .check(&headers, "host\n")
                .unwrap_err();
            let (_, remedy) = refused
                .to_string()
                .rsplit_once(": ")
                .map(|(a, b)| (a.to_owned(), b.to_owned()))
                .unwrap();
            assert_eq!(remedy, format!("--allow-origin {flag} would let it in"));
            assert!(
                !refused.to_string().contains(['\n', '\u{2028}']),
                "{refused}"
            );
            let pattern: OriginPattern = flag.trim_matches('\'').parse().unwrap();
            let allowed = Admission::new(vec![pattern], false);
            assert!(allowed.check(&headers, "host").is_ok());
        }
    }
}
