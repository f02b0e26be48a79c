//! Integration tests: real servers on free ports, real clients.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod admission;
mod browser;
mod chromium;
mod cli;
mod contract;
mod drain;
mod harness;
mod http;
mod ids;
mod layers;
mod load;
mod malice;
mod plain_http;
mod process;
mod requests;
mod rooms;
