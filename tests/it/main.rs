//! Integration tests: real servers on free ports, real clients.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod admission;
mod browser;
mod chromium;
mod chronicle;
mod cli;
mod client_module;
mod contract;
mod crash;
mod database;
mod database_file;
mod drain;
mod event_streams;
mod full_disk;
mod harness;
mod history;
mod http;
mod http_clients;
mod idempotency;
mod ids;
mod incoming;
mod keep_alive;
mod layers;
mod load;
mod malice;
mod nginx;
mod papers;
mod plain_http;
mod power_cut;
mod process;
mod proxy;
mod publishing;
mod readme;
mod receipts;
mod recording;
mod relay;
mod requests;
mod room_names;
mod rooms;
mod slow;
mod start;
mod tools;
mod voice;
