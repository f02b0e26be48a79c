//! The process as its operator and its operating system see it.

pub(crate) mod announcement;
pub(crate) mod descriptors;
mod log;
mod signals;

pub use log::Log;
pub use signals::Signals;
