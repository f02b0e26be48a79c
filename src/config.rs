//! Every option, wait, bound and address, with its unit and its default.

mod groups;
mod invocation;
mod origin;
mod storage;
mod units;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

pub use groups::{Access, History, Limits, Listening, Logs, Service, Times};
pub use invocation::Invocation;
pub use origin::{Host, HostPattern, Origin, OriginPattern};
pub use storage::{OnStoreError, Retention, Storage, StoreSync};
pub use units::{Size, Time};

/// The command line: without a command it serves.
#[derive(Debug, Clone, PartialEq, Parser)]
#[command(
    name = "wscast",
    version,
    about = "A WebSocket echo and broadcast server",
    disable_help_subcommand = true,
    after_help = "Durations are seconds (10, 0.5) or carry a unit (500ms, 2m); sizes are \
                        bytes or carry one (64KiB, 1MiB).\nRUST_LOG sets what is logged (default \
                        info); logs go to stderr."
)]
pub struct Cli {
    /// What to do instead of serving.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to serve.
    #[command(flatten)]
    pub serve: Config,
}

/// What the binary does beside serving.
#[derive(Debug, Clone, PartialEq, Subcommand)]
pub enum Command {
    /// Write a completion script for a shell to stdout
    Completions {
        /// The shell that reads it
        shell: clap_complete::Shell,
    },
}

/// All options of the server: the command line, the environment and the defaults in one.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct Config {
    /// What the server does with messages, and how it ends.
    #[command(flatten)]
    pub service: Service,
    /// Where it listens.
    #[command(flatten)]
    pub listening: Listening,
    /// What rooms remember.
    #[command(flatten)]
    pub history: History,
    /// What is kept across restarts, and how.
    #[command(flatten)]
    pub storage: Storage,
    /// How long peers may take.
    #[command(flatten)]
    pub times: Times,
    /// How much peers may take.
    #[command(flatten)]
    pub limits: Limits,
    /// Which hosts and web pages are let in.
    #[command(flatten)]
    pub access: Access,
    /// What is logged, and how.
    #[command(flatten)]
    pub logs: Logs,
}

/// What happens to a message that a client sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// It is answered to its sender alone
    Echo,
    /// It is sent to every client of the room, the sender included
    Broadcast,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One line of text an event
    Text,
    /// One JSON object an event
    Json,
}

impl Cli {
    /// The command line as clap describes it, which reads no variable.
    fn command_without_environment() -> clap::Command {
        Self::command().mut_args(|arg| {
            // Or "-1" would be taken for an option, and the error would not name the right one.
            let negative = arg.get_action().takes_values();
            arg.env(None::<&str>).allow_negative_numbers(negative)
        })
    }
}

impl Config {
    /// The defaults with these changes.
    pub fn with(change: impl FnOnce(&mut Self)) -> Self {
        let mut config = Self::default();
        change(&mut config);
        config
    }

    /// Checks what one value alone cannot tell, group by group.
    ///
    /// # Errors
    /// One sentence that begins with the name of the option and has the remedy.
    pub fn validate(&self) -> Result<(), String> {
        self.service.validate()?;
        self.storage.validate()?;
        self.times.validate()?;
        self.limits.validate()
    }

    /// The line that says where the server listens, for the port it really has.
    pub fn listening_line(&self, port: u16) -> String {
        let server = match self.service.mode {
            Mode::Echo => "WebSocket",
            Mode::Broadcast => "Broadcast",
        };
        let host = self.host_in_urls();
        format!("{server} server is listening on ws://{host}:{port}")
    }

    /// What `--host` says, as a URL has it (RFC 3986, section 3.2.2; RFC 6874, section 2).
    pub fn host_in_urls(&self) -> String {
        match self.listening.host.contains(':') {
            true => format!("[{}]", self.listening.host.replace('%', "%25")),
            false => self.listening.host.clone(),
        }
    }
}

impl Default for Config {
    /// The empty command line, whatever the environment says.
    fn default() -> Self {
        let matches = Cli::command_without_environment().get_matches_from(["wscast"]);
        Self::from_arg_matches(&matches).expect("every option has a default that parses")
    }
}
