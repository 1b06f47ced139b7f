//! Opens one HTTP/2 connection over TLS. Each call is one attempt, with a time-out on every step.

use std::{io, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};

use super::{resolve::resolve, tls};

const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
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
        "TLS with {address} failed; if the certificate is refused, enrol again with the command that `kubectl lifeboat enroll` prints"
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
fn split(address: &str) -> Result<(&str, u16), ConnectError> {
    let parts = address.rsplit_once(':').and_then(|(host, port)| {
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let port = port.parse().ok().filter(|port| *port > 0)?;
        (!host.is_empty()).then_some((host, port))
    });
    parts.ok_or_else(|| ConnectError::Address { address: address.to_owned() })
}

/// A channel over one connection to `address`, whose certificate must be for `name` (and have the key `pinned`).
/// When the connection breaks, calls on the channel fail.
pub async fn connect(
    address: &str,
    name: &str,
    tls: Arc<ClientConfig>,
    pinned: Option<&str>,
) -> Result<Channel, ConnectError> {
    let stream = handshake(address, name, tls).await?;
    if let Some(expected) = pinned {
        check_pin(address, &stream, expected)?;
    }
    // The first connection is the one made above; there is no second.
    let mut stream = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_: tonic::transport::Uri| {
        let stream = stream.take().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected));
        async move { stream }
    });
    // The scheme is for tonic only: TLS is made above.
    Endpoint::from_static("http://lifeboat")
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await
        .map_err(|source| ConnectError::Http { address: address.to_owned(), source })
}

async fn handshake(
    address: &str,
    name: &str,
    tls: Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>, ConnectError> {
    let (host, port) = split(address)?;
    let address = || address.to_owned();
    let late = |step, limit| ConnectError::TimeOut { address: address(), step, limit };
    let resolved = timeout(RESOLVE_TIMEOUT, resolve(host, port))
        .await
        .map_err(|_| late("resolving its name", RESOLVE_TIMEOUT))?
        .map_err(|source| ConnectError::Resolve { address: address(), source })?;
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    let mut connected = None;
    for candidate in resolved {
        match timeout(DIAL_TIMEOUT, TcpStream::connect(candidate)).await {
            Ok(Ok(stream)) => {
                connected = Some(stream);
                break;
            }
            Ok(Err(error)) => last = error,
            Err(_) => last = io::Error::from(io::ErrorKind::TimedOut),
        }
    }
    let Some(stream) = connected else {
        return Err(ConnectError::Unreachable { address: address(), source: last });
    };
    // Records are large and heartbeats small: neither gains from waiting.
    stream.set_nodelay(true).map_err(|source| ConnectError::Unreachable { address: address(), source })?;
    let name = ServerName::try_from(name.to_owned())
        .map_err(|error| ConnectError::Handshake { address: address(), source: io::Error::other(error) })?;
    let mut stream = timeout(HANDSHAKE_TIMEOUT, TlsConnector::from(tls).connect(name, stream))
        .await
        .map_err(|_| late("shaking hands", HANDSHAKE_TIMEOUT))?
        .map_err(|source| ConnectError::Handshake { address: address(), source })?;
    stream.get_mut().1.set_buffer_limit(Some(ENCRYPTED_BYTES));
    Ok(stream)
}

fn check_pin(address: &str, stream: &TlsStream<TcpStream>, expected: &str) -> Result<(), ConnectError> {
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
