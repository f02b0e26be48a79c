//! The options of the store: where it is, what it keeps, and how safely.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::{Size, Time, units};

/// What is kept across restarts, and how.
#[derive(Debug, Clone, PartialEq, Args)]
#[command(next_help_heading = "Store")]
pub struct Storage {
    /// SQLite file that keeps every room across restarts; without it, memory is all there is
    #[arg(long, env = "WSCAST_DATABASE", value_name = "FILE")]
    pub database: Option<PathBuf>,
    /// When a message is safe from a power cut: always (before it is delivered), everysec (a second
    /// later) or off [default: everysec]
    #[arg(
        long = "store-sync",
        env = "WSCAST_STORE_SYNC",
        value_enum,
        hide_possible_values = true,
        value_name = "WHEN"
    )]
    pub sync: Option<StoreSync>,
    /// When the store fails: continue (from memory) or refuse (messages) [default: continue; with
    /// --store-sync always: refuse]
    #[arg(
        long = "on-store-error",
        env = "WSCAST_ON_STORE_ERROR",
        value_enum,
        hide_possible_values = true,
        value_name = "WHAT"
    )]
    pub on_error: Option<OnStoreError>,
    /// Messages of a room that are kept, the oldest go first [default: 100000]
    #[arg(long, env = "WSCAST_RETAIN_MESSAGES", value_name = "COUNT", value_parser = units::count)]
    pub retain_messages: Option<usize>,
    /// The same in bytes, 64 a message besides its text, name and key [default: 256MiB]
    #[arg(long, env = "WSCAST_RETAIN_BYTES", value_name = "SIZE")]
    pub retain_bytes: Option<Size>,
    /// How long messages are kept [default: as long as the other bounds allow]
    #[arg(long, env = "WSCAST_RETAIN_AGE", value_name = "TIME")]
    pub retain_age: Option<Time>,
    /// Bytes of all rooms that are kept, the oldest messages go first [default: 8GiB]
    #[arg(long, env = "WSCAST_RETAIN_TOTAL", value_name = "SIZE")]
    pub retain_total: Option<Size>,
    /// Rooms that are kept, the one silent for longest goes first [default: 1000000]
    #[arg(long, env = "WSCAST_RETAIN_ROOMS", value_name = "COUNT", value_parser = units::count)]
    pub retain_rooms: Option<usize>,
}

/// When messages are safe from a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StoreSync {
    /// Before they are delivered and acknowledged.
    Always,
    /// About a second after they are delivered.
    Everysec,
    /// When the operating system writes them.
    Off,
}

/// What happens to messages while the store fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnStoreError {
    /// They are delivered from memory.
    Continue,
    /// They are refused.
    Refuse,
}

/// What a store keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Messages of a room.
    pub messages: u64,
    /// Bytes of a room.
    pub bytes: u64,
    /// How old messages become.
    pub age: Option<Duration>,
    /// Bytes of all rooms.
    pub total: u64,
    /// Rooms.
    pub rooms: u64,
}

impl Storage {
    pub(super) fn validate(&self) -> Result<(), String> {
        let needs_store = [
            ("--store-sync", self.sync.is_some()),
            ("--on-store-error", self.on_error.is_some()),
            ("--retain-messages", self.retain_messages.is_some()),
            ("--retain-bytes", self.retain_bytes.is_some()),
            ("--retain-age", self.retain_age.is_some()),
            ("--retain-total", self.retain_total.is_some()),
            ("--retain-rooms", self.retain_rooms.is_some()),
        ];
        if self.database.is_none()
            && let Some((option, _)) = needs_store.iter().find(|(_, is_given)| *is_given)
        {
            return Err(format!(
                "{option} is for a store: name its file with --database FILE"
            ));
        }
        for (option, is_zero) in [
            ("--retain-messages", self.retain_messages == Some(0)),
            (
                "--retain-bytes",
                self.retain_bytes.is_some_and(|it| it.bytes() == 0),
            ),
            (
                "--retain-total",
                self.retain_total.is_some_and(|it| it.bytes() == 0),
            ),
            ("--retain-rooms", self.retain_rooms == Some(0)),
        ] {
            if is_zero {
                return Err(format!("{option} must be at least 1"));
            }
        }
        if self.retain_age.is_some_and(Time::is_zero) {
            return Err("--retain-age must be longer than 0: leave it out for no bound".into());
        }
        if self.sync() == StoreSync::Always && self.on_error == Some(OnStoreError::Continue) {
            return Err(
                "--on-store-error continue would deliver what --store-sync always has to write \
                 first: leave one of them out"
                    .into(),
            );
        }
        Ok(())
    }

    /// When messages are safe from a power cut.
    pub fn sync(&self) -> StoreSync {
        self.sync.unwrap_or(StoreSync::Everysec)
    }

    /// What happens while the store fails.
    pub fn on_error(&self) -> OnStoreError {
        self.on_error.unwrap_or(match self.sync() {
            StoreSync::Always => OnStoreError::Refuse,
            StoreSync::Everysec | StoreSync::Off => OnStoreError::Continue,
        })
    }

    /// What is kept.
    pub fn retention(&self) -> Retention {
        let bytes = |size: Option<Size>, default| size.map_or(default, |it| it.bytes() as u64);
        let count = |count: Option<usize>, default| count.map_or(default, |it| it as u64);
        Retention {
            messages: count(self.retain_messages, 100_000),
            bytes: bytes(self.retain_bytes, 256 << 20),
            age: self.retain_age.map(Time::get),
            total: bytes(self.retain_total, 8 << 30),
            rooms: count(self.retain_rooms, 1_000_000),
        }
    }
}
