//! What the binary does beside serving.

mod completions;

use crate::config::Command;

/// Runs a command to its end.
///
/// # Errors
/// One sentence with the remedy.
pub fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Completions { shell } => completions::write(*shell),
    }
}
