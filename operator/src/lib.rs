//! The Kubernetes operator.
//!
//! ```text
//! program ─► runtime (lease, gate, metrics, errors)
//!    └─────► controllers/<kind> ──► failover (pure engine)
//!                 │    │   └──────► targets (machines)
//!                 │    └──────────► pki (certificates)
//!                 └───────────────► control (streams to process servers and applier, enrolment)
//! check: the other program in this binary, for check Jobs
//! ```

pub mod check;
pub mod control;
pub mod controllers;
pub mod failover;
pub mod pki;
pub mod program;
pub mod runtime;
pub mod targets;
