//! Opens byte pipes to the appliance: TCP connections in production. Each call is one attempt, with a time-out on every
//! step; TLS and HTTP/2 are made on the pipe by [`super::connect`].

use std::{fmt, io, time::Duration};

use async_trait::async_trait;
use lifeboat_replication::wire::Pipe;
use tokio::{net::TcpStream, time::timeout};

use super::{
    connect::{ConnectError, split},
    resolve::resolve,
};

const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Where pipes come from.
#[async_trait]
pub trait Pipes: fmt::Debug + Send + Sync + 'static {
    /// `address` is host:port.
    async fn open(&self, address: &str) -> Result<Box<dyn Pipe>, ConnectError>;
}

/// TCP over the machine's network; names are resolved anew for each pipe.
#[derive(Debug, Clone, Copy)]
pub struct Tcp;

#[async_trait]
impl Pipes for Tcp {
    async fn open(&self, address: &str) -> Result<Box<dyn Pipe>, ConnectError> {
        let owned = || address.to_owned();
        let (host, port) = split(address)?;
        let resolved = timeout(RESOLVE_TIMEOUT, resolve(host, port))
            .await
            .map_err(|_| ConnectError::TimeOut {
                address: owned(),
                step: "resolving its name",
                limit: RESOLVE_TIMEOUT,
            })?
            .map_err(|source| ConnectError::Resolve { address: owned(), source })?;
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for candidate in resolved {
            match timeout(DIAL_TIMEOUT, TcpStream::connect(candidate)).await {
                Ok(Ok(stream)) => {
                    // Records are large and heartbeats small: neither gains from waiting.
                    let set = stream.set_nodelay(true);
                    set.map_err(|source| ConnectError::Unreachable { address: owned(), source })?;
                    return Ok(Box::new(stream));
                }
                Ok(Err(error)) => last = error,
                Err(_) => last = io::Error::from(io::ErrorKind::TimedOut),
            }
        }
        Err(ConnectError::Unreachable { address: owned(), source: last })
    }
}
