//! What the process does about signals.

use std::fs::{self, File};
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use futures_util::FutureExt;
use signal_hook::consts::signal::{SIGHUP, SIGUSR1, SIGUSR2, SIGXFSZ};
use signal_hook::flag;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::info;

/// The state at start that decides what a signal means.
#[derive(Debug)]
pub struct Signals {
    /// SIGHUP was ignored at start, as under `nohup`, and stays ignored.
    ignores_hangup: bool,
    had_terminal: bool,
}

impl Signals {
    /// Handles the signals that mean nothing to the server and would end it; to be called first in a
    /// process.
    ///
    /// # Errors
    /// An error of the operating system.
    pub fn register() -> io::Result<Self> {
        // With a handler for SIGXFSZ, a write beyond a file limit fails instead.
        for number in [SIGUSR1, SIGUSR2, SIGXFSZ] {
            flag::register(number, Arc::new(AtomicBool::new(false)))?;
        }
        Ok(Self {
            ignores_hangup: ignores(SIGHUP),
            had_terminal: File::open(TERMINAL).is_ok(),
        })
    }

    /// Ready when the server is to stop: at the first SIGTERM or SIGINT, or a SIGHUP whose terminal
    /// is gone. Another SIGTERM or SIGINT ends the process at once.
    ///
    /// # Errors
    /// An error of the operating system.
    pub fn stop(self) -> io::Result<impl Future<Output = ()> + Unpin> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = match self.ignores_hangup {
            true => None,
            false => Some(signal(SignalKind::hangup())?),
        };
        let (first, stopped) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let mut first = Some(first);
            loop {
                let number = tokio::select! {
                    _ = terminate.recv() => Some(SignalKind::terminate().as_raw_value()),
                    _ = interrupt.recv() => Some(SignalKind::interrupt().as_raw_value()),
                    () = received(&mut hangup) => None,
                };
                if number.is_none() && !self.has_lost_terminal() {
                    info!("SIGHUP: there is nothing to reload");
                    continue;
                }
                match (first.take(), number) {
                    (Some(first), _) => drop(first.send(())),
                    // As a shell reports a process that a signal ended.
                    (None, Some(number)) => std::process::exit(128 + number),
                    // A terminal that is closed may send several.
                    (None, None) => {}
                }
            }
        });
        Ok(stopped.map(Result::unwrap_or_default))
    }

    /// Whether the terminal that the process was started from is gone.
    fn has_lost_terminal(&self) -> bool {
        self.had_terminal
            && File::open(TERMINAL).is_err_and(|error| error.raw_os_error() == Some(ENXIO))
    }
}

/// The controlling terminal of a process (tty(4)).
const TERMINAL: &str = "/dev/tty";

/// No such device: a process without a terminal opens [`TERMINAL`]. The number is the same on every
/// Unix.
const ENXIO: i32 = 6;

/// Ready at the next such signal; never without `signal`.
async fn received(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// Whether a signal is ignored (proc(5)); false where the system has no such file.
fn ignores(number: i32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|it| it.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|it| u64::from_str_radix(it.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (number - 1) & 1 == 1)
}
