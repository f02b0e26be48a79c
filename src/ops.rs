//! The process as its operator and its operating system see it.

pub mod announcement;
pub mod descriptors;
pub mod log;
pub mod signals;
