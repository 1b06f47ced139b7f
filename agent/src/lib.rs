//! The mobility agent: tracks and replicates the disks of a server.
//!
//! ```text
//!   kernel (eBPF marks, O_DIRECT, FIFREEZE) ──edge──► core (rounds, records, acknowledgements) ──Dial──► net (TLS)
//!                                                                                                        ▲
//!                                   enrol (token → certificate) ──► state (/var/lib/lifeboat-agent) ─────┘
//! ```
//!
//! `upgrade` replaces the installed program by the one that the appliance serves.
//! `assess` measures over the same kernel edge, before there is anything to replicate to.
//! `core` decides and owns no thread, clock or socket; the simulation runs it as it is.

pub mod assess;
pub mod cli;
pub mod core;
pub mod digest;
pub mod edge;
pub mod enrol;
mod files;
pub mod hook_files;
pub mod install;
pub mod kernel;
pub mod machine;
pub mod memory;
pub mod net;
pub mod restart_files;
pub mod run;
pub mod state;
pub mod upgrade;
