//! Takes replication data in, compresses, encrypts, uploads and commits it.
//!
//! ```text
//!   agents ──► net::data ───────► servers (one Ingest for each that is assigned here)
//!                  ▲                    │  core: intake ► sealing ► upload ► commit ──► vault
//!                  │ directory          ▼ statuses
//!                  ├────► groups    (one coordinator: points of consistency groups, through the sessions)
//!   operator ─► net::control ◄──── report, figures ──► net::probes
//!   machines ─► net::management (enrolment passed on to the operator; downloads)
//! ```
//! `core` decides and knows no sockets, files or threads: the simulation runs it. `edge` gives it the machine,
//! `program` puts everything together.

pub mod config;
pub mod core;
pub mod directory;
pub mod edge;
pub mod figures;
pub mod groups;
pub mod net;
pub mod program;
pub mod report;
pub mod servers;
