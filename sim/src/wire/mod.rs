//! The ways between the agent and process servers.
//!
//! ```text
//!   messages   the session ── ordered messages ── the ingest                     level 2 of the ladder: the fastest
//!   http2      agent's net ── HTTP/2 ── pipe ── data port ── the ingest          level 3, without TLS
//!   tls        as http2, over mutual TLS 1.3, after asking a management port     level 3, all of the product's own
//! ```
//! A pipe carries bytes in memory, and stalls, trickles, breaks at any byte or falls silent for ever.

mod certificates;
mod dial;
mod life;
mod messages;
mod pipe;
mod ports;

pub(crate) use self::{
    certificates::Certificates,
    dial::agents_dial,
    messages::SimDial,
    pipe::Doors,
    ports::{Host, Hosted, watch_ingest},
};

/// How agent and process servers talk in a schedule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wire {
    #[default]
    Messages,
    Http2,
    Tls,
}

impl Wire {
    pub const ALL: &[Self] = &[Self::Messages, Self::Http2, Self::Tls];

    pub fn name(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::Http2 => "http2",
            Self::Tls => "tls",
        }
    }
}

/// Of a process server's data port.
fn data_address(node: usize) -> String {
    format!("ps-{node}:9443")
}

fn management_address(node: usize) -> String {
    format!("ps-{node}:443")
}

/// The node of an address.
fn node_of(address: &str) -> Option<usize> {
    address.strip_prefix("ps-")?.split(':').next()?.parse().ok()
}
