//! The program around the core: configuration, discovery of servers, the operator's service, probes and metrics.

pub mod board;
pub mod config;
pub mod control;
pub mod fleet;
pub mod http;
pub mod program;
mod tls;
