//! The real binary as a process.

use std::net::SocketAddr;
use std::process::{Output, Stdio};

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};
use tokio::time::timeout;

use crate::harness::{Answer, PATIENCE, RawClient};

/// The binary with these arguments and an empty environment.
pub(crate) fn wscast(arguments: &str) -> Command {
    started_by("", arguments)
}

/// The same, bound to one processor.
pub(crate) fn wscast_on_one_processor(arguments: &str) -> Command {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let (_, allowed) = status.split_once("Cpus_allowed_list:").unwrap();
    let mut first = allowed.trim_start().split(|it: char| !it.is_ascii_digit());
    started_by(
        &format!("taskset --cpu-list {}", first.next().unwrap()),
        arguments,
    )
}

/// The binary, started by `starter` if there is one.
pub(crate) fn started_by(starter: &str, arguments: &str) -> Command {
    let words = starter.split_whitespace();
    let mut words = words.chain([env!("CARGO_BIN_EXE_wscast")]);
    let mut command = Command::new(words.next().unwrap());
    command
        .args(words)
        .args(arguments.split_whitespace())
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// The output of a command that ends by itself.
pub(crate) async fn output(mut command: Command) -> Output {
    timeout(PATIENCE, command.output())
        .await
        .expect("it does not end")
        .unwrap()
}

/// The running binary.
pub(crate) struct Process {
    pub(crate) child: Child,
    pub(crate) log: Lines<BufReader<ChildStderr>>,
    pub(crate) address: SocketAddr,
    /// The log line that says where it listens.
    pub(crate) listening_line: String,
}

impl Process {
    /// Starts the binary on a free port; returns once it listens.
    pub(crate) async fn start(arguments: &str) -> Self {
        Self::spawn(wscast(&format!("--host 127.0.0.1 --port 0 {arguments}"))).await
    }

    pub(crate) async fn spawn(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let mut log = lines_of(&mut child);
        let line = next_line(&mut log, " server is listening on ws://").await;
        let (_, address) = line.split_once("ws://").unwrap();
        let address = address.split('"').next().unwrap();
        let port = address.rsplit_once(':').unwrap().1;
        let address = format!("127.0.0.1:{port}").parse().unwrap();
        Self {
            child,
            log,
            address,
            listening_line: line,
        }
    }

    /// Sends a request on a new connection, as [`RawClient::request`] does.
    pub(crate) async fn request(&self, line: &str, fields: &str, body: impl AsRef<[u8]>) -> Answer {
        let mut client = RawClient::connect(self.address).await;
        client.request(line, fields, body).await
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id().unwrap()
    }

    pub(crate) async fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .arg(name)
            .arg(self.id().to_string())
            .status()
            .await;
        assert!(sent.unwrap().success());
    }

    pub(crate) async fn exit_code(&mut self) -> Option<i32> {
        timeout(PATIENCE, self.child.wait())
            .await
            .expect("it does not end")
            .unwrap()
            .code()
    }

    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.id()))
            .unwrap()
            .count()
    }

    /// Resident memory in bytes.
    pub(crate) fn memory(&self) -> usize {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.id())).unwrap();
        statm
            .split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<usize>()
            .unwrap()
            * 4096
    }
}

/// The lines of a process's log.
pub(crate) fn lines_of(child: &mut Child) -> Lines<BufReader<ChildStderr>> {
    BufReader::new(child.stderr.take().unwrap()).lines()
}

/// The next log line that contains `text`.
pub(crate) async fn next_line(log: &mut Lines<BufReader<ChildStderr>>, text: &str) -> String {
    loop {
        let line = timeout(PATIENCE, log.next_line())
            .await
            .expect("no such line")
            .unwrap();
        let line = line.unwrap_or_else(|| panic!("the log ended without {text:?}"));
        if line.contains(text) {
            return line;
        }
    }
}
