//! Admission: which host names a request may be for, which web pages may send it, and what its client may do.

mod grant;

use std::sync::Arc;

use hyper::header::{self, HeaderMap, HeaderValue};

use crate::config::{Access, Host, HostPattern, Origin, OriginPattern};
use crate::excerpt::excerpt;

pub(crate) use grant::{Forbidden, Grant};

/// The rule for requests that a web page makes a browser send. It keeps out other sites' pages in
/// honest browsers; any other program can forge the headers.
#[derive(Debug)]
pub(crate) struct Admission {
    /// The names of the server beside those of this machine; `None` if any name is allowed.
    hosts: Option<Vec<HostPattern>>,
    /// Pages that are allowed beside the server's own. Without any, those of this machine are.
    origins: Vec<OriginPattern>,
    /// What every admitted client may do.
    grant: Arc<Grant>,
}

/// A request that is admitted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Admitted<'a> {
    /// Its `Origin`, if it has one.
    pub(crate) origin: Option<&'a HeaderValue>,
    /// What its client may do.
    pub(crate) grant: Arc<Grant>,
}

/// Why a request is refused, and the option that would allow it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// The server has no such name: a page may have pointed its own name at this address.
    #[error("host {name:?} is not allowed: --allow-host {name} would let it in")]
    Host {
        /// The name without the port.
        name: String,
    },
    /// The page is not allowed.
    #[error(
        "origin {origin:?} is not allowed for host {host:?}: --allow-origin {pattern} would let it in"
    )]
    Origin {
        /// As it was sent.
        origin: String,
        /// The host of the request.
        host: String,
        /// The parsed origin, written anew.
        pattern: String,
    },
    /// The page is of another site, which the browser does not name.
    #[error(
        "a page of another site is not allowed for host {host:?}: --allow-origin '*' would let it in"
    )]
    CrossSite {
        /// The host of the request.
        host: String,
    },
    /// There is more than one `Origin`.
    #[error("a request has one origin")]
    ManyOrigins,
}

impl Admission {
    /// The rule of `--allow-host` and `--allow-origin` for a server that listens on addresses of this
    /// machine alone, or not.
    pub(crate) fn new(access: &Access, host: &str, only_local: bool) -> Self {
        let mut hosts = access.allow_host.clone();
        let is_checked = only_local || !hosts.is_empty();
        hosts.extend(host.parse());
        Self {
            hosts: is_checked.then_some(hosts),
            origins: access.allow_origin.clone(),
            grant: Arc::new(Grant::ALL),
        }
    }

    /// Checks a request to `host`.
    ///
    /// # Errors
    /// [`Refused`].
    pub(crate) fn check<'a>(
        &self,
        headers: &'a HeaderMap,
        host: Option<&Host>,
    ) -> Result<Admitted<'a>, Refused> {
        let grant = self.grant.clone();
        let origin = self.check_origin(headers, host)?;
        Ok(Admitted { origin, grant })
    }

    /// Checks by host and origin; returns the origin, if there is one.
    fn check_origin<'a>(
        &self,
        headers: &'a HeaderMap,
        host: Option<&Host>,
    ) -> Result<Option<&'a HeaderValue>, Refused> {
        if let Some(host) = host
            && !self.allows_host(host)
        {
            let name = excerpt(host.name().as_bytes()).into_owned();
            return Err(Refused::Host { name });
        }
        let shown_host = || {
            let host = host.map(Host::to_string).unwrap_or_default();
            excerpt(host.as_bytes()).into_owned()
        };
        let mut origins = headers.get_all(header::ORIGIN).iter();
        let Some(origin) = origins.next() else {
            let is_refused = is_cross_site(headers) && !self.origins.contains(&OriginPattern::Any);
            return match is_refused {
                true => Err(Refused::CrossSite { host: shown_host() }),
                false => Ok(None),
            };
        };
        if origins.next().is_some() {
            return Err(Refused::ManyOrigins);
        }
        let parsed = origin.to_str().ok().and_then(|it| it.parse().ok());
        if parsed == Some(Origin::Null) && is_hidden(headers) && !self.lists_null() {
            return Err(Refused::CrossSite { host: shown_host() });
        }
        if self.allows_origin(parsed.as_ref(), host) {
            return Ok(Some(origin));
        }
        let pattern = parsed.map_or("'*'".into(), |it: Origin| it.to_string());
        Err(Refused::Origin {
            origin: excerpt(origin.as_bytes()).into_owned(),
            host: shown_host(),
            pattern: excerpt(pattern.as_bytes()).into_owned(),
        })
    }

    /// Whether pages without an origin are listed.
    fn lists_null(&self) -> bool {
        self.origins.iter().any(|it| it.matches(&Origin::Null))
    }

    /// The same rule with this grant for everyone.
    #[cfg(test)]
    pub(crate) fn granting(self, grant: Grant) -> Self {
        let grant = Arc::new(grant);
        Self { grant, ..self }
    }

    fn allows_host(&self, host: &Host) -> bool {
        let Some(hosts) = &self.hosts else {
            return true;
        };
        host.is_loopback() || hosts.iter().any(|it| it.matches(host))
    }

    /// Whether a page of this origin may send requests to `host`; `None` is an invalid origin.
    fn allows_origin(&self, origin: Option<&Origin>, host: Option<&Host>) -> bool {
        let Some(origin) = origin else {
            return self.origins.contains(&OriginPattern::Any);
        };
        let by_host = |host| {
            let is_local = || origin.is_local() && Host::is_loopback(host);
            origin.is_at(host) || (self.origins.is_empty() && is_local())
        };
        host.is_some_and(by_host) || self.origins.iter().any(|it| it.matches(origin))
    }
}

/// Whether the browser says `null` for the origin as the page does not want it told: so it says for a form,
/// or a request without CORS, of any page (Fetch, section 3.2). A page without an origin says it by CORS
/// and WebSockets as well.
fn is_hidden(headers: &HeaderMap) -> bool {
    let mode = headers.get("sec-fetch-mode").map(HeaderValue::as_bytes);
    matches!(mode, Some(b"navigate" | b"no-cors"))
        && headers
            .get("sec-fetch-site")
            .is_some_and(|it| it != "same-origin")
}

/// Whether a page of another site makes the browser send this request, other than to navigate to the
/// answer (Fetch Metadata, section 2). Not every request of a page has an `Origin`.
fn is_cross_site(headers: &HeaderMap) -> bool {
    let has = |name, value: &str| {
        let field = headers.get(name);
        field.is_some_and(|it| it.as_bytes().eq_ignore_ascii_case(value.as_bytes()))
    };
    has("sec-fetch-site", "cross-site") && !has("sec-fetch-mode", "navigate")
}

#[cfg(test)]
mod tests {
    use std::iter;

    use super::*;
    use crate::config::Invocation;

    fn admission(options: &str, only_local: bool) -> Admission {
        let words = options.split_whitespace();
        let invocation = Invocation::read(iter::once("wscast").chain(words), []).unwrap();
        let config = invocation.config;
        Admission::new(&config.access, &config.listening.host, only_local)
    }

    fn headers(origin: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if !origin.is_empty() {
            let origin = HeaderValue::from_bytes(origin.as_bytes()).unwrap();
            headers.insert(header::ORIGIN, origin);
        }
        headers
    }

    fn allows(admission: &Admission, origin: &str, host: &str) -> bool {
        let host = (!host.is_empty()).then(|| host.parse().unwrap());
        admission.check(&headers(origin), host.as_ref()).is_ok()
    }

    fn refusal(options: &str, only_local: bool, origin: &str, host: &Host) -> String {
        let headers = headers(origin);
        let checked = admission(options, only_local).check(&headers, Some(host));
        checked.unwrap_err().to_string()
    }

    #[test]
    fn on_loopback_names_of_this_machine_and_listed_hosts_are_allowed() {
        let names = [
            "localhost:8765",
            "app.localhost",
            "127.0.0.1:8765",
            "[::1]:8765",
            // Without a host, as HTTP/1.0 allows.
            "",
        ];
        let plain = admission("", true);
        let named = admission(
            "--host board.lan --allow-host a.test --allow-host *.b.test",
            true,
        );
        let any = admission("--allow-host *", true);
        for host in names {
            for it in [&plain, &named, &any] {
                assert!(allows(it, "", host), "{host}");
            }
        }
        for host in ["board.lan", "A.test:443", "x.b.test", "x.y.b.test:1"] {
            assert!(allows(&named, "", host), "{host}");
            assert!(!allows(&plain, "", host), "{host}");
            assert!(allows(&any, "", host), "{host}");
        }
        for host in [
            "b.test",
            "xb.test",
            "evil.com",
            "192.168.1.2",
            "a.test.evil.com",
        ] {
            assert!(!allows(&named, "", host), "{host}");
            assert!(!allows(&plain, "", host), "{host}");
            // A page of that name is not admitted because of its name.
            assert!(!allows(&plain, &format!("http://{host}"), host), "{host}");
            assert!(allows(&any, "", host), "{host}");
        }
        let by_address = admission("--host ::1", true);
        assert!(allows(&by_address, "", "[0::1]:8765"));
    }

    #[test]
    fn elsewhere_every_host_is_allowed_until_some_are_listed() {
        let plain = admission("--host 0.0.0.0", false);
        assert!(allows(&plain, "", "evil.com"));
        let named = admission("--host board.lan --allow-host a.test", false);
        for (host, expected) in [
            ("a.test", true),
            ("board.lan:8765", true),
            ("localhost", true),
            ("[::1]", true),
            ("evil.com", false),
            ("192.168.1.2", false),
        ] {
            assert_eq!(allows(&named, "", host), expected, "{host}");
        }
    }

    #[test]
    fn by_default_the_servers_own_page_is_admitted() {
        let admission = admission("", false);
        for (origin, host, allowed) in [
            ("", "example.com", true),
            ("http://example.com", "example.com", true),
            ("https://example.com", "example.com", true),
            ("https://example.com", "example.com:443", true),
            ("https://example.com:443", "example.com", true),
            ("http://example.com", "example.com:80", true),
            ("https://EXAMPLE.com:8443", "example.com:8443", true),
            ("http://[fd00::1]:8080", "[fd00:0::1]:8080", true),
            // As programs other than browsers write it.
            ("ws://example.com:8765", "example.com:8765", true),
            ("ws://example.com", "example.com", true),
            ("wss://example.com", "example.com", true),
            ("wss://example.com", "example.com:443", true),
            ("wss://example.com/", "example.com", true),
            ("ws://example.com:8765/lobby?x", "example.com:8765", true),
            ("http://example.com/", "example.com", true),
            ("wss://example.com", "example.com:80", false),
            ("ws://example.com", "example.com:443", false),
            ("http://example.com:8765", "example.com", false),
            ("http://example.com", "example.com:8765", false),
            ("http://evil.com", "example.com", false),
            ("http://evil.com/example.com", "example.com", false),
            ("http://example.com.evil.com", "example.com", false),
            ("http://evil-example.com", "example.com", false),
            ("http://sub.example.com", "example.com", false),
            ("http://example.com@evil.com", "example.com", false),
            ("http://evil.com@example.com", "example.com", false),
            ("chrome-extension://abcdef", "example.com", false),
            ("http://", "example.com", false),
            ("nonsense", "nonsense", false),
            ("http://example.com", "", false),
            // A page of this machine is of another origin if the server has a public name.
            ("http://localhost:3000", "example.com", false),
            ("http://127.0.0.1", "example.com", false),
            ("http://[::1]:8080", "example.com", false),
            ("null", "example.com", false),
            ("file://", "example.com", false),
            ("null", "", false),
        ] {
            assert_eq!(
                allows(&admission, origin, host),
                allowed,
                "{origin} at {host}"
            );
        }
    }

    #[test]
    fn a_loopback_host_admits_pages_of_this_machine() {
        for (origin, allowed) in [
            ("http://localhost:3000", true),
            ("https://app.localhost", true),
            ("http://127.0.0.1", true),
            ("ws://127.9.8.7:1", true),
            ("wss://[::1]:8080/", true),
            ("null", true),
            ("file://", true),
            ("http://evil.com", false),
            ("http://localhost.evil.com", false),
            ("http://notlocalhost", false),
            ("http://127.0.0.1.evil.com", false),
            ("http://10.0.0.1", false),
            ("capacitor://localhost", false),
            ("chrome-extension://abcdef", false),
        ] {
            for only_local in [true, false] {
                for host in ["localhost:8765", "127.0.0.1", "[::1]:1"] {
                    let admission = admission("", only_local);
                    assert_eq!(
                        allows(&admission, origin, host),
                        allowed,
                        "{origin} at {host}"
                    );
                }
            }
        }
    }

    #[test]
    fn listed_origins_replace_this_machine_and_join_the_servers_own_page() {
        let list = admission(
            "--allow-origin https://app.example.com,https://*.example.org:8443 \
             --allow-origin http://shop.test:80 --allow-origin capacitor://localhost \
             --allow-origin http://dev.test:*",
            true,
        );
        for (origin, allowed) in [
            ("", true),
            ("https://app.example.com", true),
            ("https://APP.example.com", true),
            ("https://app.example.com/", true),
            ("https://app.example.com:443", true),
            ("http://app.example.com", false),
            ("wss://app.example.com", false),
            ("https://app.example.com:444", false),
            ("https://a.example.org:8443", true),
            ("https://a.b.example.org:8443", true),
            ("https://example.org:8443", false),
            ("https://aexample.org:8443", false),
            ("https://a.example.org", false),
            ("http://shop.test", true),
            ("http://dev.test", true),
            ("http://dev.test:3000", true),
            ("https://dev.test:3000", false),
            ("capacitor://localhost", true),
            ("ionic://localhost", false),
            ("http://localhost", false),
            ("null", false),
            ("file://", false),
            // The page that the server itself serves.
            ("http://localhost:8765", true),
            ("ws://localhost:8765/", true),
        ] {
            assert_eq!(allows(&list, origin, "localhost:8765"), allowed, "{origin}");
        }
        for (listed, origin, allowed) in [
            ("null", "null", true),
            ("null", "file://", true),
            ("file://", "file://", true),
            ("file://", "file:///index.html", true),
            ("file://", "null", false),
            ("tauri://localhost", "tauri://localhost", true),
            (
                "chrome-extension://abcdef",
                "chrome-extension://abcdef",
                true,
            ),
            (
                "chrome-extension://abcdef",
                "chrome-extension://other",
                false,
            ),
            ("*", "null", true),
            ("*", "https://anything", true),
            ("*", "non sense", true),
        ] {
            let admission = admission(&format!("--allow-origin {listed}"), false);
            assert_eq!(
                allows(&admission, origin, "example.com"),
                allowed,
                "{listed}: {origin}"
            );
        }
    }

    #[test]
    fn a_null_origin_that_any_page_can_have_is_refused() {
        let host = "localhost".parse().unwrap();
        for (mode, allowed) in [
            ("", true),
            ("cors", true),
            ("websocket", true),
            ("no-cors", false),
            ("navigate", false),
        ] {
            let mut headers = headers("null");
            if !mode.is_empty() {
                headers.insert("sec-fetch-site", HeaderValue::from_static("cross-site"));
                headers.insert("sec-fetch-mode", HeaderValue::from_static(mode));
            }
            let check = |options| {
                let admission = admission(options, true);
                admission.check(&headers, Some(&host)).is_ok()
            };
            assert_eq!(check(""), allowed, "{mode}");
            assert!(check("--allow-origin null"), "{mode}");
            assert!(!check("--allow-origin http://localhost:3000"), "{mode}");
        }
    }

    #[test]
    fn a_cross_site_request_without_an_origin_counts_as_another_origin() {
        let ask = |options: &str, site: &'static str, mode: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("sec-fetch-site", HeaderValue::from_static(site));
            headers.insert("sec-fetch-mode", HeaderValue::from_static(mode));
            let host = "localhost:8765".parse().unwrap();
            admission(options, true)
                .check(&headers, Some(&host))
                .is_ok()
        };
        for (options, site, mode, allowed) in [
            ("", "cross-site", "no-cors", false),
            ("", "cross-site", "cors", false),
            ("", "cross-site", "navigate", true),
            ("", "same-origin", "cors", true),
            ("", "same-site", "no-cors", true),
            ("", "none", "navigate", true),
            (
                "--allow-origin https://a.test",
                "cross-site",
                "no-cors",
                false,
            ),
            ("--allow-origin *", "cross-site", "no-cors", true),
        ] {
            assert_eq!(ask(options, site, mode), allowed, "{options} {site} {mode}");
        }
    }

    #[test]
    fn two_origins_are_refused() {
        let mut headers = headers("http://localhost");
        headers.append(header::ORIGIN, HeaderValue::from_static("http://evil.com"));
        let host = "localhost".parse().unwrap();
        let refused = admission("", true).check(&headers, Some(&host));
        assert_eq!(refused, Err(Refused::ManyOrigins));
    }

    #[test]
    fn a_refusal_names_the_flag_that_helps_and_cannot_be_forged() {
        let host = "example.com".parse().unwrap();
        for (origin, flag) in [
            ("https://Other.com:443", "https://other.com"),
            ("http://other.com:8080/", "http://other.com:8080"),
            ("ws://other.com:1", "ws://other.com:1"),
            ("null", "null"),
            ("file://", "file://"),
            ("chrome-extension://abc", "chrome-extension://abc"),
            ("http://x;reboot", "'*'"),
            ("x would let it in\u{2028}INFO client connected", "'*'"),
        ] {
            let refused = refusal("", false, origin, &host);
            let (_, remedy) = refused.rsplit_once(": ").unwrap();
            assert_eq!(remedy, format!("--allow-origin {flag} would let it in"));
            assert!(!refused.contains(['\n', '\u{2028}']), "{refused}");
            let option = format!("--allow-origin {}", flag.trim_matches('\''));
            assert!(allows(&admission(&option, false), origin, "example.com"));
        }
        let refused = refusal("", true, "", &host);
        let expected =
            "host \"example.com\" is not allowed: --allow-host example.com would let it in";
        assert_eq!(refused, expected);
    }

    #[test]
    fn a_refusal_is_short_however_long_the_input_is() {
        let long = "ä\u{202e}".repeat(4000);
        let page = format!("http://{}", "y".repeat(15_000));
        let host = "x".repeat(15_000).parse().unwrap();
        for origin in [&long, &page] {
            for only_local in [true, false] {
                let refused = refusal("", only_local, origin, &host);
                assert!(refused.len() < 2000, "{refused}");
                assert!(refused.contains(" bytes)"), "{refused}");
            }
        }
    }
}
