//! The command: arguments, runtime, exit code.

use std::num::NonZero;
use std::process::ExitCode;

use anyhow::Context as _;
use tokio::runtime::{self, Runtime};
use tracing::{info, warn};
use wscast::config::{Config, Invocation};
use wscast::ops::log::Log;
use wscast::ops::signals::Signals;
use wscast::ops::{announcement, descriptors};
use wscast::server::Server;

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
    log.subscribe(invocation.config.logs.format);
    for warning in &invocation.warnings {
        warn!("{warning}");
    }
    let serve = |signals| {
        runtime(invocation.config.service.threads)?.block_on(run(&invocation.config, signals, &log))
    };
    match signals.context("cannot handle signals").and_then(serve) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let message = invocation.name_variables(&format!("{error:#}"));
            log.print_error(&format!("error: {message}"));
            ExitCode::FAILURE
        }
    }
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

async fn run(config: &Config, signals: Signals, log: &Log) -> anyhow::Result<()> {
    let mut stop = signals.stop()?;
    descriptors::raise_limit(config.limits.max_connections);
    let server = tokio::select! {
        server = Server::bind(config.clone()) => server?,
        () = &mut stop => return Ok(()),
    };
    announcement::announce(config, &server.local_addrs()?, log);
    // As a task, it accepts on the threads that serve what it accepts, and need not wake them for it.
    tokio::spawn(server.run(stop)).await?;
    info!("stopped");
    Ok(())
}
