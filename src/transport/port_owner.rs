//! Which process listens on a port already.

use std::net::SocketAddr;

/// The process that listens on `address`, if the system shows it: `process 17 (nginx)`.
#[cfg(not(target_os = "linux"))]
pub(crate) fn of(_address: SocketAddr) -> Option<String> {
    None
}

/// The process that listens on `address`, if the system shows it: `process 17 (nginx)`.
#[cfg(target_os = "linux")]
pub(crate) fn of(address: SocketAddr) -> Option<String> {
    let socket = format!("socket:[{}]", linux::inode_of(address)?);
    linux::process_with(&socket)
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs;
    use std::net::{IpAddr, Ipv4Addr, SocketAddr};

    /// The inode of the socket that listens on `address`, or on all addresses (proc(5)).
    pub(super) fn inode_of(address: SocketAddr) -> Option<String> {
        ["/proc/net/tcp", "/proc/net/tcp6"]
            .iter()
            .find_map(|table| {
                let table = fs::read_to_string(table).ok()?;
                table
                    .lines()
                    .skip(1)
                    .find_map(|line| inode_in(line, address))
            })
    }

    /// The inode in a line of the table, if its socket listens on `address`.
    pub(super) fn inode_in(line: &str, address: SocketAddr) -> Option<String> {
        const LISTENS: &str = "0A";
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (ip, port) = fields.get(1)?.split_once(':')?;
        let (state, inode) = (fields.get(3)?, fields.get(9)?);
        let (ip, mine) = (parse_ip(ip)?.to_canonical(), address.ip().to_canonical());
        let overlaps = ip == mine || ip.is_unspecified() || mine.is_unspecified();
        let found =
            *state == LISTENS && u16::from_str_radix(port, 16).ok()? == address.port() && overlaps;
        found.then(|| inode.to_string())
    }

    /// An address as the tables write it: words of 32 bits in hex, their bytes in the machine's order.
    fn parse_ip(hex: &str) -> Option<IpAddr> {
        let word = |at: usize| {
            let word = u32::from_str_radix(hex.get(at * 8..at * 8 + 8)?, 16).ok()?;
            Some(word.to_ne_bytes())
        };
        if hex.len() == 8 {
            return Some(Ipv4Addr::from(word(0)?).into());
        }
        let mut bytes = [0; 16];
        for at in 0..4 {
            bytes[at * 4..at * 4 + 4].copy_from_slice(&word(at)?);
        }
        Some(bytes.into())
    }

    /// The process that has this file open, among those that this process may inspect.
    pub(super) fn process_with(file: &str) -> Option<String> {
        fs::read_dir("/proc").ok()?.flatten().find_map(|process| {
            let id: u32 = process.file_name().to_str()?.parse().ok()?;
            let mut files = fs::read_dir(process.path().join("fd")).ok()?.flatten();
            files.find(|it| {
                fs::read_link(it.path()).is_ok_and(|target| target.as_os_str() == file)
            })?;
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            Some(format!("process {id} ({})", name.trim_end().escape_debug()))
        })
    }
}

#[cfg(all(test, target_os = "linux", target_endian = "little"))]
mod tests {
    use super::*;

    #[test]
    fn the_tables_of_the_kernel_are_read() {
        let v4 = "   0: 0100007F:223D 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0";
        let found = |address: &str| linux::inode_in(v4, address.parse().unwrap());
        assert_eq!(found("127.0.0.1:8765").as_deref(), Some("4711"));
        assert_eq!(found("0.0.0.0:8765").as_deref(), Some("4711"));
        assert_eq!(found("127.0.0.1:8766"), None);
        assert_eq!(found("127.0.0.2:8765"), None);
        let v6 = "   0: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 4712 1 0";
        let address = "[::1]:80".parse().unwrap();
        assert_eq!(linux::inode_in(v6, address).as_deref(), Some("4712"));
        let established = v4.replace(" 0A ", " 01 ");
        assert_eq!(
            linux::inode_in(&established, "127.0.0.1:8765".parse().unwrap()),
            None
        );
    }

    #[test]
    fn a_listener_of_this_process_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let owner = of(listener.local_addr().unwrap()).unwrap();
        assert!(
            owner.starts_with(&format!("process {} (", std::process::id())),
            "{owner}"
        );
    }
}
