//! A pipe for bytes: what a connection's TLS and HTTP/2 stand on. In production a TCP connection, in the simulation
//! memory that stalls, trickles, breaks or falls silent.

use tokio::io::{AsyncRead, AsyncWrite};

/// Both directions of a connection, in order, until it breaks.
pub trait Pipe: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Pipe for T {}
