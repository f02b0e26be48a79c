//! Hosts and origins are what they say, and none is local by accident.

use std::net::IpAddr;
use std::str::FromStr;

use hyper::header::{self, HeaderMap, HeaderValue};

use super::admission;
use crate::config::{Host, HostPattern, Origin, OriginPattern};

/// Checks the first line of the input as a host and the second as an origin, then both as a request has
/// them, and all as patterns.
pub fn origin(input: &[u8]) {
    let Ok(input) = str::from_utf8(input) else {
        return;
    };
    let (host, origin) = input.split_once('\n').unwrap_or((input, input));
    for text in [host, origin] {
        HostPattern::from_str(text).ok();
        OriginPattern::from_str(text).ok();
    }
    let host: Option<Host> = host.parse().ok();
    let origin: Option<Origin> = origin.parse().ok();
    host.as_ref().inspect(|it| check_host(it));
    origin.as_ref().inspect(|it| check_origin(it));
    if let (Some(host), Some(origin)) = (host, origin) {
        check_admission(&host, &origin);
    }
}

fn check_host(host: &Host) {
    assert_eq!(host.to_string().parse().as_ref(), Ok(host));
    assert_eq!(host.is_loopback(), is_of_this_machine(host.name()));
    // As a refusal says it.
    let pattern: HostPattern = host.name().parse().expect("a name is a pattern");
    assert!(pattern.matches(host));
}

fn check_origin(origin: &Origin) {
    assert_eq!(origin.to_string().parse().as_ref(), Ok(origin));
    let pattern: OriginPattern = origin.to_string().parse().expect("an origin is a pattern");
    assert!(pattern.matches(origin));
    if let Origin::Page { scheme, host } = origin {
        check_host(host);
        assert!(!origin.is_local() || is_of_this_machine(host.name()));
        assert_eq!(*scheme, scheme.to_lowercase());
    }
}

/// Without any option a page comes in from the server itself, and from this machine to this machine.
fn check_admission(host: &Host, origin: &Origin) {
    let Ok(value) = HeaderValue::from_str(&origin.to_string()) else {
        return;
    };
    let headers = HeaderMap::from_iter([(header::ORIGIN, value)]);
    for only_local in [false, true] {
        let is_in = admission(only_local).check(&headers, Some(host)).is_ok();
        let is_local = origin.is_local() && is_of_this_machine(host.name());
        let is_named = !only_local || is_of_this_machine(host.name());
        assert_eq!(is_in, is_named && (origin.is_at(host) || is_local));
    }
}

/// Whether a name or an address can be of no other machine.
fn is_of_this_machine(name: &str) -> bool {
    let address = name.trim_matches(['[', ']']).parse();
    match address.map(|it: IpAddr| it.to_canonical()) {
        Ok(IpAddr::V4(address)) => address.octets()[0] == 127,
        Ok(IpAddr::V6(address)) => address.segments() == [0, 0, 0, 0, 0, 0, 0, 1],
        Err(_) => name.split('.').next_back() == Some("localhost"),
    }
}
