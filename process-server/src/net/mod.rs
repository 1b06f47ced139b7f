//! The process server's ports. TLS 1.3 only, but for the probes.
//!
//! ```text
//!   listener (TCP, handshake, limits) ─► data        agents' records                    client certificate of a server
//!        ▲ tls, reload                ├► management  enrol, locate, renew, installer    client certificate optional
//!        └ certificates on disk       └► control     the operator                       client certificate of the operator
//!   probes                               /metrics, /healthz, /readyz
//! ```

pub mod control;
pub mod data;
pub mod downloads;
pub mod listener;
pub mod management;
pub mod peer;
pub mod probes;
pub mod signing;
pub mod tls;
