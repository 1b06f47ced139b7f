//! Makes one HTTP/2 connection over TLS on a byte pipe. Each call is one attempt, with a time-out on every step.

use std::{io, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use lifeboat_replication::{planted::Planted, wire::Pipe};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::time::timeout;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};

use super::{
    pipes::{Pipes, Tcp},
    tls,
};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Encrypted and not yet sent: a whole frame goes out with one system call.
const ENCRYPTED_BYTES: usize = 272 << 10;
/// A peer that does not answer a ping for [`PING_TIMEOUT`] is gone; pings go also while nothing is sent.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("{address} is not host:port; see spec.exposure.addresses of the ReplicationAppliance")]
    Address { address: String },
    #[error(
        "{address} has no address in DNS; check /etc/hosts and /etc/resolv.conf of this machine, and spec.exposure.addresses"
    )]
    Resolve { address: String, source: io::Error },
    #[error("{address} did not answer within {limit:?} while {step}; check routes and firewalls")]
    TimeOut { address: String, step: &'static str, limit: Duration },
    #[error("{address} cannot be reached; check routes, firewalls and that the appliance runs")]
    Unreachable { address: String, source: io::Error },
    #[error(
        "TLS with {address} failed; is the clock of this machine right? If the certificate is refused, enrol again with the command that `kubectl lifeboat enroll` prints"
    )]
    Handshake { address: String, source: io::Error },
    #[error(
        "{address} has the key {found} instead of {expected}: something stands between, or the command is old; get a new one with `kubectl lifeboat enroll`"
    )]
    Pin { address: String, expected: String, found: String },
    #[error("HTTP/2 with {address} failed")]
    Http { address: String, source: tonic::transport::Error },
}

/// The host of `host:port`.
pub fn host(address: &str) -> Result<&str, ConnectError> {
    split(address).map(|(host, _)| host)
}

/// Host and port; IPv6 addresses stand in brackets.
pub(super) fn split(address: &str) -> Result<(&str, u16), ConnectError> {
    let parts = address.rsplit_once(':').and_then(|(host, port)| {
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let port = port.parse().ok().filter(|port| *port > 0)?;
        (!host.is_empty()).then_some((host, port))
    });
    parts.ok_or_else(|| ConnectError::Address { address: address.to_owned() })
}

/// How connections are made.
#[derive(Debug, Clone)]
pub struct Connector {
    pub pipes: Arc<dyn Pipes>,
    pub planted: Option<Planted>,
}

/// Over the machine's network.
impl Default for Connector {
    fn default() -> Self {
        Self { pipes: Arc::new(Tcp), planted: None }
    }
}

impl Connector {
    /// A channel over one connection to `address`, whose certificate must be for `name` (and have the key `pinned`).
    /// When the connection breaks, calls on the channel fail.
    pub async fn connect(
        &self,
        address: &str,
        name: &str,
        tls: Arc<ClientConfig>,
        pinned: Option<&str>,
    ) -> Result<Channel, ConnectError> {
        let pipe = self.pipes.open(address).await?;
        let stream = self.handshake(pipe, address, name, tls).await?;
        if let Some(expected) = pinned {
            check_pin(address, &stream, expected)?;
        }
        self.channel(stream, address).await
    }

    async fn handshake(
        &self,
        pipe: Box<dyn Pipe>,
        address: &str,
        name: &str,
        tls: Arc<ClientConfig>,
    ) -> Result<TlsStream<Box<dyn Pipe>>, ConnectError> {
        let failed = |source| ConnectError::Handshake { address: address.to_owned(), source };
        let name = ServerName::try_from(name.to_owned()).map_err(|error| failed(io::Error::other(error)))?;
        let shaking = TlsConnector::from(tls).connect(name, pipe);
        let shaken = match self.planted {
            Some(Planted::DialWithoutTimeOut) => Ok(shaking.await),
            _ => timeout(HANDSHAKE_TIMEOUT, shaking).await,
        };
        let late = |_| ConnectError::TimeOut {
            address: address.to_owned(),
            step: "shaking hands",
            limit: HANDSHAKE_TIMEOUT,
        };
        let mut stream = shaken.map_err(late)?.map_err(failed)?;
        stream.get_mut().1.set_buffer_limit(Some(ENCRYPTED_BYTES));
        Ok(stream)
    }

    /// HTTP/2 on a pipe that is encrypted already.
    pub async fn channel(&self, pipe: impl Pipe, address: &str) -> Result<Channel, ConnectError> {
        // The first connection is the one made above; there is no second.
        let mut pipe = Some(TokioIo::new(pipe));
        let connector = tower::service_fn(move |_: tonic::transport::Uri| {
            let pipe = pipe.take().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected));
            async move { pipe }
        });
        // The scheme is for tonic only: TLS is made above.
        let mut endpoint = Endpoint::from_static("http://lifeboat");
        if self.planted != Some(Planted::SilenceIsPatience) {
            endpoint = endpoint
                .http2_keep_alive_interval(PING_EVERY)
                .keep_alive_timeout(PING_TIMEOUT)
                .keep_alive_while_idle(true);
        }
        endpoint
            .connect_with_connector(connector)
            .await
            .map_err(|source| ConnectError::Http { address: address.to_owned(), source })
    }
}

fn check_pin(address: &str, stream: &TlsStream<Box<dyn Pipe>>, expected: &str) -> Result<(), ConnectError> {
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let found =
        certificate.map_or_else(|| Ok("no certificate".to_owned()), |certificate| tls::pin(certificate));
    let found = found.unwrap_or_else(|error| error.to_string());
    if found == expected {
        return Ok(());
    }
    Err(ConnectError::Pin { address: address.to_owned(), expected: expected.to_owned(), found })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port() {
        assert_eq!(host("dr.contoso.local:443").unwrap(), "dr.contoso.local");
        assert_eq!(host("[fd00::1]:8443").unwrap(), "fd00::1");
        for wrong in ["dr.contoso.local", ":443", "host:", "host:0", "host:99999"] {
            let refused = host(wrong).unwrap_err().to_string();
            assert!(refused.contains("host:port"), "{refused}");
        }
    }
}
