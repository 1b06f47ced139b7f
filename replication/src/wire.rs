//! Messages and services of `proto/lifeboat/v1`, and the connection that carries them.
//!
//! Agent and process server see a connection as an ordered pair of bounded message channels that can break at
//! any message: in production over gRPC with mutual TLS, in the simulation in memory.

mod limited;
mod pipe;

use async_trait::async_trait;
use tokio::sync::mpsc;

pub use self::{limited::LimitedCodec, pipe::Pipe};
use crate::blocks::BLOCK_BYTES;

/// Generated from `proto/lifeboat/v1`.
#[allow(clippy::all, clippy::disallowed_types, unreachable_pub, missing_docs)]
pub mod v1 {
    tonic::include_proto!("lifeboat.v1");
}

/// Highest version of the data protocol that this build speaks.
pub const PROTOCOL_VERSION: u32 = 1;

/// Data bytes in a [`v1::Chunk`], at most: one uploaded segment is made of one or a few chunks.
pub const MAX_CHUNK_BYTES: usize = 4 << 20;
/// What a process server has of one server on its way into the vault, at most: some nine segments of up to 6 MiB. Its
/// spool is sized by that (docs/adr/0010).
pub const MAX_ON_THE_WAY_BYTES: u64 = 64 << 20;

/// Extents of a chunk, at most: one for each block of its data, and zero runs between and around them; 384 KiB in memory.
pub const MAX_CHUNK_EXTENTS: usize = 16 * MAX_CHUNK_BYTES / BLOCK_BYTES as usize;

/// Largest gRPC message on the data port: a full chunk and its extents.
pub const MAX_MESSAGE_BYTES: usize = MAX_CHUNK_BYTES + (1 << 20);

/// Messages on their way in one direction before the sender waits. With full chunks: 32 MiB.
pub const CONNECTION_DEPTH: usize = 8;

/// The agent's end of a connection. Either channel closing means that the connection is gone.
#[derive(Debug)]
pub struct Connection {
    pub up: mpsc::Sender<v1::Up>,
    pub down: mpsc::Receiver<v1::Down>,
}

/// The process server's end of a connection.
#[derive(Debug)]
pub struct Accepted {
    pub up: mpsc::Receiver<v1::Up>,
    pub down: mpsc::Sender<v1::Down>,
    /// Server id proven by the client certificate (in the simulation: given).
    pub server_id: String,
}

#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error(
        "process server {address} cannot be reached: {message}; check the network path and that the pod is running"
    )]
    Unreachable { address: String, message: String },
    #[error("process server {address} refused the connection: {message}")]
    Refused { address: String, message: String },
}

/// Opens a connection to the process server that has this server. Each call is one attempt with a time-out.
#[async_trait]
pub trait Dial: Send + Sync + 'static {
    async fn dial(&self) -> Result<Connection, DialError>;
}
