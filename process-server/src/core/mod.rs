//! What the process server decides for one protected server, free of sockets, files and threads.
//!
//! ```text
//!            Accepted                 (one connection at a time; a newer Hello drops the older one)
//!               │ Up                                                   ▲ Down
//!   session ────┴► intake ──► sealing ──► upload ──► commit ── Durable ┤
//!   (Hello,       numbers,    compress,   cache      log       Received┘ (by sealing, once in the spool)
//!    Welcome)     checksums,  encrypt,    storage
//!                 admission   spool
//! ```
//! What all servers share is shared out by [`space`] (spool, memory) and [`fair`] (uploads, bandwidth, sealing), so that
//! one that wants all of it does not keep the others waiting.
//! The stages are joined by bounded channels and run inside one future, so dropping [`Ingest::run`] is a crash: what
//! was not committed is still held by the agent. Nothing is remembered outside of the vault but the spool, which
//! holds encrypted segments on their way and which records they make: what a restart finds there whole, and next in the
//! log, it brings to the log by the same stages ([`leftover`]) before an agent is served.

pub mod agent_program;
mod assembler;
pub mod assignment;
mod backoff;
pub mod bandwidth;
mod commit;
pub mod fair;
pub mod group;
pub mod hello;
mod ingest;
mod intake;
mod kept;
mod leftover;
mod offer;
pub mod sealing;
mod session;
pub mod space;
pub mod spool;
pub mod status;
pub mod switchboard;
mod upload;

pub use assignment::Assigned;
pub use ingest::{Ended, Ingest, Shared};
