//! RDMA verbs: one safe API, two providers.
pub mod connect;
pub mod device;
mod error;
pub mod soft;
pub mod verbs;

pub use connect::Endpoint;
pub use error::Error;
