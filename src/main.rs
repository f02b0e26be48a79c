//! The command: arguments, runtime, subcommand, exit code.

use std::io;
use std::num::NonZero;
use std::process::ExitCode;

use anyhow::Context as _;
use tokio::runtime::{self, Runtime};
use tracing::warn;
use wscast::config::Invocation;
use wscast::ops::{Log, Signals};
use wscast::{server, tools};

fn main() -> ExitCode {
    let signals = Signals::register();
    // Without it there is nothing to say why.
    let Ok(log) = Log::start() else {
        return ExitCode::FAILURE;
    };
    let invocation = match Invocation::read(std::env::args_os(), std::env::vars_os()) {
        Ok(invocation) => invocation,
        Err(asked) if !asked.use_stderr() => {
            // A reader that is gone has read what it wanted.
            drop(asked.print());
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            log.print_error(&error.to_string());
            return ExitCode::from(2);
        }
    };
    let done = match &invocation.command {
        Some(command) => tools::run(command),
        None => serve(&invocation, signals, &log),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let message = invocation.name_variables(&format!("{error:#}"));
            log.print_error(&format!("error: {message}"));
            ExitCode::FAILURE
        }
    }
}

fn serve(invocation: &Invocation, signals: io::Result<Signals>, log: &Log) -> anyhow::Result<()> {
    let config = &invocation.config;
    log.subscribe(config.logs.format);
    for warning in &invocation.warnings {
        warn!("{warning}");
    }
    let signals = signals.context("cannot handle signals")?;
    runtime(config.service.threads)?.block_on(server::run(config, signals, log))
}

/// So many threads, or one for each processor. With one alone there is no thread to share work with,
/// and a runtime that does not try to is the faster one.
fn runtime(threads: Option<usize>) -> anyhow::Result<Runtime> {
    let processors = || std::thread::available_parallelism().map_or(1, NonZero::get);
    let mut builder = match threads.unwrap_or_else(processors) {
        1 => runtime::Builder::new_current_thread(),
        threads => {
            let mut builder = runtime::Builder::new_multi_thread();
            builder.worker_threads(threads);
            builder
        }
    };
    builder.enable_all().build().context("cannot start")
}
