//! The lines at start: where the page is, which machines reach it, what a restart loses.

use std::net::{IpAddr, SocketAddr};

use if_addrs::{Interface, get_if_addrs};

use tracing::{Level, enabled, info};

use super::Log;
use crate::config::Config;

/// How many addresses of this machine are named.
const MAX_ADDRESSES: usize = 8;

/// Logs that a server is `bound` to these addresses, and how it is reached.
pub(crate) fn announce(config: &Config, bound: &[SocketAddr], log: &Log) {
    if let Some(address) = bound.first() {
        let line = config.listening_line(address.port());
        // Programs wait for this line, whatever RUST_LOG says.
        match enabled!(Level::INFO) {
            true => info!("{line}"),
            false => log.print(&line),
        }
    }
    for line in lines(config, bound) {
        info!("{line}");
    }
}

/// The lines behind the listening line.
fn lines(config: &Config, bound: &[SocketAddr]) -> Vec<String> {
    lines_with(config, bound, own_addresses)
}

fn lines_with(
    config: &Config,
    bound: &[SocketAddr],
    own: impl FnOnce() -> Vec<IpAddr>,
) -> Vec<String> {
    let Some(port) = bound.first().map(SocketAddr::port) else {
        return Vec::new();
    };
    let mut lines = Vec::new();
    if bound.iter().any(|it| it.ip().is_unspecified()) {
        lines.push(format!("open http://localhost:{port}/ in a browser"));
        let takes_ipv6 = bound.iter().any(SocketAddr::is_ipv6);
        let urls: Vec<String> = own()
            .into_iter()
            .filter(|it| it.is_ipv4() || takes_ipv6)
            .take(MAX_ADDRESSES)
            .map(|ip| format!("http://{}/", SocketAddr::new(ip, port)))
            .collect();
        // An address may not be among the hosts that are listed.
        if !urls.is_empty() && config.access.allow_host.is_empty() {
            lines.push(format!("from other machines: {}", urls.join(" ")));
        }
    } else {
        let host = config.host_in_urls();
        lines.push(format!("open http://{host}:{port}/ in a browser"));
        if bound.iter().all(|it| it.ip().to_canonical().is_loopback()) {
            let behind_a_proxy = match config.access.allow_host.is_empty() {
                true => ", behind a proxy add --allow-host NAME",
                false => "",
            };
            lines.push(format!(
                "reachable from this machine alone: --host 0.0.0.0 lets other machines in{behind_a_proxy}"
            ));
        }
    }
    lines.push(match &config.storage.database {
        Some(path) => format!("rooms are kept in {}", path.display()),
        None => match config.history.limit.min(config.history.bytes.bytes()) {
            0 => "nothing is remembered: there is no history".to_string(),
            _ => "the history is kept in memory: a restart loses it (--database FILE keeps it)"
                .to_string(),
        },
    });
    lines
}

/// The addresses under which other machines may find this one, IPv4 first.
fn own_addresses() -> Vec<IpAddr> {
    let interfaces = get_if_addrs().unwrap_or_default();
    let mut addresses: Vec<IpAddr> = interfaces
        .iter()
        .filter(|it| !it.is_loopback() && !it.is_link_local())
        .map(Interface::ip)
        .collect();
    addresses.sort();
    addresses.dedup();
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    const REMEMBERED: &str =
        "the history is kept in memory: a restart loses it (--database FILE keeps it)";

    fn lines_for(host: &str, bound: &[&str], own: &[&str]) -> Vec<String> {
        let config = Config::with(|config| {
            config.listening.host = host.into();
        });
        let bound: Vec<SocketAddr> = bound.iter().map(|it| it.parse().unwrap()).collect();
        lines_with(&config, &bound, || {
            own.iter().map(|it| it.parse().unwrap()).collect()
        })
    }

    #[test]
    fn on_loopback_the_page_is_announced_for_this_machine_only() {
        let lines = lines_for(
            "localhost",
            &["127.0.0.1:8765", "[::1]:8765"],
            &["192.0.2.7"],
        );
        assert_eq!(lines[0], "open http://localhost:8765/ in a browser");
        assert!(
            lines[1].contains("from this machine alone") && lines[1].contains("--allow-host NAME")
        );
        assert_eq!(lines[2..], [REMEMBERED]);
    }

    #[test]
    fn an_unspecified_address_is_announced_as_reachable_ones() {
        let own = ["192.0.2.7", "2001:db8::7"];
        let lines = lines_for("0.0.0.0", &["0.0.0.0:80"], &own);
        assert_eq!(lines[0], "open http://localhost:80/ in a browser");
        assert_eq!(lines[1], "from other machines: http://192.0.2.7:80/");
        let lines = lines_for("::", &["[::]:80"], &own);
        assert_eq!(
            lines[1],
            "from other machines: http://192.0.2.7:80/ http://[2001:db8::7]:80/"
        );
        let lines = lines_for("::", &["[::]:80"], &["192.0.2.7"; 100]);
        assert_eq!(lines[1].matches("http://").count(), MAX_ADDRESSES);
        assert_eq!(lines_for("::", &["[::]:80"], &[])[1..], [REMEMBERED]);
    }

    #[test]
    fn an_address_of_this_machine_is_named_as_it_was_given() {
        let lines = lines_for("2001:db8::7", &["[2001:db8::7]:80"], &[]);
        assert_eq!(
            lines,
            ["open http://[2001:db8::7]:80/ in a browser", REMEMBERED]
        );
    }

    #[test]
    fn own_addresses_are_neither_loopback_nor_unspecified() {
        for address in own_addresses() {
            assert!(
                !address.is_loopback() && !address.is_unspecified(),
                "{address}"
            );
        }
    }

    #[test]
    fn without_a_history_the_announcement_says_that_nothing_is_remembered() {
        let config = Config::with(|config| {
            config.history.limit = 0;
        });
        let lines = lines(&config, &["127.0.0.1:80".parse().unwrap()]);
        assert!(lines[2].contains("nothing is remembered"), "{lines:?}");
    }
}
