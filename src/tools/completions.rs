//! Completion scripts for shells.

use std::io::{self, ErrorKind, Write};

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::config::Cli;

/// Writes the script to stdout. A reader that is gone has read what it wanted.
pub(super) fn write(shell: Shell) -> anyhow::Result<()> {
    match io::stdout().write_all(&script(shell)) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(error).context("cannot write the script to stdout")
        }
        _ => Ok(()),
    }
}

/// First into memory: the library panics where it cannot write.
fn script(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "wscast", &mut script);
    script
}
