//! HTTP on the same port: the requests of a connection, one after the other, and their answers.

pub(crate) mod connection;
mod content_type;
mod cors;
mod exchange;
mod head;
mod history;
mod idle;
mod page;
mod phase;
mod publish;
mod refusal;
mod refusal_log;
mod request;
mod response;
pub(crate) mod routes;
mod socket;
