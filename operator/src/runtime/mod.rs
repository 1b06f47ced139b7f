//! What every controller stands on: settings, logs, metrics, probes, leadership, events, errors.

pub mod context;
pub mod error;
pub mod events;
pub mod http;
pub mod leader;
pub mod metrics;
pub mod settings;

pub use context::Context;
pub use error::{Category, Failure};
