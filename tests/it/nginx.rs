//! A real nginx in front of a server, configured as the README says.

use std::net::{SocketAddr, TcpListener};
use std::process::Stdio;

use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::harness::eventually_async;

/// A running nginx; it ends when dropped.
pub(crate) struct Nginx {
    pub(crate) address: SocketAddr,
    _process: Child,
    _folder: tempfile::TempDir,
}

/// The README's configuration, listening at `address`, in front of the server at `server`, with `more`
/// for its location.
fn configuration(address: SocketAddr, server: SocketAddr, more: &str) -> String {
    let readme = include_str!("../../README.md");
    let (_, rest) = readme.split_once("```nginx\n").unwrap();
    let (block, _) = rest.split_once("```").unwrap();
    let replace = |text: &str, old: &str, new: &str| {
        assert_eq!(text.matches(old).count(), 1, "{old}");
        text.replace(old, new)
    };
    let block = replace(block, "listen 80 ", &format!("listen {address} "));
    let block = replace(&block, "127.0.0.1:8765", &server.to_string());
    replace(&block, "location / {", &format!("location / {{ {more}"))
}

impl Nginx {
    /// An nginx in front of the server at `server`; none where nginx is not installed, which
    /// `WSCAST_TEST_ALL` does not allow.
    pub(crate) async fn in_front_of(server: SocketAddr) -> Option<Self> {
        Self::configured(server, "").await
    }

    /// The same, with `more` in its configuration of a location.
    pub(crate) async fn configured(server: SocketAddr, more: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display().to_string();
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let block = configuration(address, server, more);
        let config = format!(
            "daemon off; master_process off; pid {path}/pid; error_log {path}/error.log; worker_processes 1;\n\
             events {{ }}\n\
             http {{\n access_log off;\n client_body_temp_path {path}/body;\n\
             proxy_temp_path {path}/proxy;\n fastcgi_temp_path {path}/fastcgi;\n\
             uwsgi_temp_path {path}/uwsgi;\n scgi_temp_path {path}/scgi;\n\
             {block}\n}}\n"
        );
        std::fs::write(folder.path().join("nginx.conf"), config).unwrap();
        let spawned = Command::new("nginx")
            .args(["-e", "stderr", "-c", &format!("{path}/nginx.conf")])
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        let process = match spawned {
            Ok(process) => process,
            Err(error) => {
                assert!(
                    std::env::var_os("WSCAST_TEST_ALL").is_none(),
                    "nginx does not start: {error}"
                );
                eprintln!("left out: nginx does not start: {error}");
                return None;
            }
        };
        eventually_async("nginx listens", async || {
            TcpStream::connect(address).await.is_ok()
        })
        .await;
        Some(Self {
            address,
            _process: process,
            _folder: folder,
        })
    }
}
