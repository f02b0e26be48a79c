//! HTTP on the same port: one exchange a connection.

pub mod content;
pub mod cors;
pub mod exchange;
pub mod head;
pub mod history;
pub mod page;
pub mod publish;
pub mod refusal;
pub mod refusal_log;
pub mod request;
pub mod response;
pub mod routes;
