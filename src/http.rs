//! HTTP on the same port: one exchange a connection.

pub(crate) mod content;
pub(crate) mod cors;
pub(crate) mod exchange;
pub(crate) mod head;
pub(crate) mod history;
pub(crate) mod page;
pub(crate) mod progress;
pub(crate) mod publish;
pub(crate) mod refusal;
pub(crate) mod refusal_log;
pub(crate) mod request;
pub(crate) mod response;
pub(crate) mod routes;
