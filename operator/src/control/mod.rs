//! The operator's streams: one to each process server, one to each applier, all opened from here with the operator's
//! own certificate. What they report is kept in memory: live figures are never read from Kubernetes, and nothing is
//! lost with them, since the next report has everything again.
//!
//! ```text
//! appliance controller ──Desired──► Fleet ──Configuration──► process server
//! protected server     ◄─Figures──   │    ◄──Report, SignRequest──┘
//!                                    └────► enrol (signs agents' requests)
//! ```

mod applier;
pub mod enrol;
mod fleet;
mod process_server;

pub use fleet::{ApplianceKey, Applied, Asked, Desired, Endpoint, Figures, Fleet, Identity};
