//! The wire: gRPC over mutual TLS 1.3 to the appliance's management port and to one process server's data port.
//!
//! ```text
//!   dialler (Dial) ── Locate ─► management (443)      answers which process server, and its TLS name
//!        └────────── Replicate ─► data (9443)         one stream for each session
//!   renewal ──────── Renew ──► management             before the certificate expires
//!   download ──────── GET ────► management             the agent's program, for `upgrade`
//!   all of them ─► connect (TLS, HTTP/2) ─► pipes (TCP; in the simulation memory)
//! ```
//! Every dial, handshake and call has a time-out; a peer that dies silently is found by HTTP/2 pings.

pub mod connect;
pub mod dialler;
pub mod download;
pub mod management;
pub mod pipes;
pub mod renewal;
mod resolve;
pub mod tls;
