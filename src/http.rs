//! HTTP on the same port: the requests of a connection, one after the other, and their answers.

mod client_module;
pub(crate) mod connection;
pub(crate) mod content_type;
mod cors;
mod embedded;
mod exchange;
pub(crate) mod head;
mod history;
mod idle;
mod page;
mod phase;
mod publish;
pub(crate) mod refusal;
mod refusal_log;
pub(crate) mod request;
mod response;
pub(crate) mod routes;
mod socket;
