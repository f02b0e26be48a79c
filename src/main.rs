//! The command: arguments, logs, signals, exit code.

use std::fmt;
use std::future::Future;
use std::io::{self, Write};
use std::num::NonZero;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use futures_util::FutureExt;
use tokio::runtime::{self, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{Level, enabled, info, warn};
use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format;
use tracing_subscriber::fmt::time::FormatTime;
use wscast::config::{Config, LogFormat};
use wscast::server::Server;

fn main() -> ExitCode {
    let config = match Config::from_args(std::env::args_os()) {
        Ok(config) => config,
        Err(asked) if !asked.use_stderr() => asked.exit(),
        Err(error) => {
            eprintln!("{}", one_line(&error.to_string()));
            return ExitCode::from(2);
        }
    };
    let _flushed_at_exit = start_log(config.log_format);
    match runtime().and_then(|runtime| runtime.block_on(run(&config))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", one_line(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

/// A thread for each processor. With one alone there is nobody to share work with, and a runtime
/// that does not try to is the faster one.
fn runtime() -> anyhow::Result<Runtime> {
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    let mut builder = match processors {
        1 => runtime::Builder::new_current_thread(),
        _ => runtime::Builder::new_multi_thread(),
    };
    builder.enable_all().build().context("cannot start")
}

async fn run(config: &Config) -> anyhow::Result<()> {
    let mut stop = signals()?;
    raise_descriptor_limit(config);
    let server = tokio::select! {
        server = Server::bind(config.clone()) => server?,
        () = &mut stop => return Ok(()),
    };
    if let Some(address) = server.local_addrs()?.first() {
        let line = config.listening_line(address.port());
        // Whoever waits for this line gets it, whatever RUST_LOG says.
        if enabled!(Level::INFO) {
            info!("{line}");
        } else {
            eprintln!("{line}");
        }
    }
    // As a task, it accepts on the threads that serve what it accepts, and need not wake them for it.
    tokio::spawn(server.run(stop)).await?;
    info!("stopped");
    Ok(())
}

/// Ready at the first SIGTERM or SIGINT; the next one ends the process at once.
fn signals() -> io::Result<impl Future<Output = ()> + Unpin> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (first, heard) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let mut first = Some(first);
        loop {
            let number = tokio::select! {
                _ = terminate.recv() => SignalKind::terminate().as_raw_value(),
                _ = interrupt.recv() => SignalKind::interrupt().as_raw_value(),
            };
            match first.take() {
                Some(first) => drop(first.send(())),
                // As a shell reports a process that a signal ended.
                None => std::process::exit(128 + number),
            }
        }
    });
    Ok(heard.map(Result::unwrap_or_default))
}

/// Asks for the descriptors that `--max-connections` needs, and says so where there are fewer.
fn raise_descriptor_limit(config: &Config) {
    let needed = config.max_connections as u64 + DESCRIPTORS_OF_OUR_OWN;
    match rlimit::increase_nofile_limit(needed) {
        Ok(limit) if limit < needed => warn!(
            "the system allows {limit} open files, too few for --max-connections {}: raise it with \
             ulimit -n {needed}",
            config.max_connections
        ),
        Ok(_) => {}
        Err(error) => warn!("cannot tell how many open files are allowed: {error}"),
    }
}

/// Listeners, standard streams, the runtime's own, and connections that are being refused.
const DESCRIPTORS_OF_OUR_OWN: u64 = 512;

/// Starts to log on stderr, from a thread of its own: a reader that is slow or gone loses lines, and
/// holds up nobody. What is logged last is written when the guard is dropped.
fn start_log(format: LogFormat) -> WorkerGuard {
    let stderr = Unhurried(io::BufWriter::new(io::stderr()));
    let (stderr, guard) = tracing_appender::non_blocking(stderr);
    let filter = EnvFilter::builder()
        .with_default_directive(tracing::level_filters::LevelFilter::INFO.into())
        .from_env_lossy();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_timer(Utc)
        .with_writer(stderr);
    match format {
        LogFormat::Text => log.with_target(false).init(),
        LogFormat::Json => log.json().init(),
    }
    guard
}

/// The time in UTC (RFC 3339, microseconds), at a fraction of what the usual timer costs.
struct Utc;

impl FormatTime for Utc {
    fn format_time(&self, line: &mut format::Writer<'_>) -> fmt::Result {
        write!(
            line,
            "{}",
            humantime::format_rfc3339_micros(SystemTime::now())
        )
    }
}

/// A writer that rests once it has flushed. Lines that come meanwhile leave together: under load,
/// the log costs no system call and no change of threads a line.
struct Unhurried<W>(W);

/// How long a line of the log may be held back.
const LOG_REST: Duration = Duration::from_millis(10);

impl<W: Write> Write for Unhurried<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()?;
        std::thread::sleep(LOG_REST);
        Ok(())
    }
}

/// A text of several lines on one, without the reminder how the command is used.
fn one_line(text: &str) -> String {
    let lines = text.lines().map(str::trim);
    let told: Vec<&str> = lines
        .filter(|it| !it.is_empty() && !it.starts_with("Usage:"))
        .collect();
    told.join(" ")
}
