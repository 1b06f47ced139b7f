//! Accepts TLS connections under limits, so that no peer can use up what others need: handshakes end in time, each
//! peer (by certificate, else by address) has a few connections, and a port has so many in all.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use lifeboat_replication::{planted::Planted, wire::Pipe};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpListener,
    sync::{Semaphore, mpsc, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::{
    peer::{Identity, Peer},
    tls::Tls,
};

/// Long enough for a bad line, short enough that waiting ones are not held up by silent ones.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// Handshakes at a time: what peers without a certificate can hold, some 30 KiB each.
const HANDSHAKES: usize = 256;
/// Those of one address: one that opens connections and says nothing must not keep others out. Agents behind one address
/// that come at the same time and find no place come again by themselves.
const HANDSHAKES_PER_ADDRESS: usize = 32;
/// After accept failed (no descriptors left): others may free some.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections of the port.
    pub connections: usize,
    /// Connections of one peer.
    pub per_peer: usize,
}

/// What a handshake has made.
pub type Incoming = ReceiverStream<Result<TlsConnection, Infallible>>;

/// Where connections come from: TCP, in the simulation memory. A wait that is dropped loses none.
#[async_trait]
pub trait Accept: Send + 'static {
    async fn accept(&mut self) -> io::Result<(Box<dyn Pipe>, IpAddr)>;
}

#[async_trait]
impl Accept for TcpListener {
    async fn accept(&mut self) -> io::Result<(Box<dyn Pipe>, IpAddr)> {
        let (stream, address) = TcpListener::accept(self).await?;
        let _ = stream.set_nodelay(true);
        Ok((Box::new(stream), address.ip()))
    }
}

/// The accepting side runs until `Incoming` is dropped.
pub fn accept(
    listener: impl Accept,
    tls: watch::Receiver<Tls>,
    limits: Limits,
    planted: Option<Planted>,
) -> (Incoming, impl Future<Output = ()> + Send + 'static) {
    let (ready, incoming) = mpsc::channel(1);
    (ReceiverStream::new(incoming), run(listener, tls, limits, ready, planted))
}

async fn run(
    mut listener: impl Accept,
    tls: watch::Receiver<Tls>,
    limits: Limits,
    ready: mpsc::Sender<Result<TlsConnection, Infallible>>,
    planted: Option<Planted>,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    let tally = Arc::new(Tally { limits, counts: Mutex::default() });
    let shaking = Limits { connections: HANDSHAKES, per_peer: HANDSHAKES_PER_ADDRESS };
    let shaking = Arc::new(Tally { limits: shaking, counts: Mutex::default() });
    let mut running = JoinSet::new();
    loop {
        let Ok(slot) = Arc::clone(&handshakes).acquire_owned().await else { return };
        let accepted = tokio::select! {
            biased;
            () = ready.closed() => return,
            Some(_) = running.join_next(), if !running.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        let (pipe, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "connection not accepted");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(of_address) = shaking.count(address.to_string()) else {
            tracing::warn!(%address, "too many handshakes of one address: closed");
            continue;
        };
        let acceptor = TlsAcceptor::from(Arc::clone(&tls.borrow().server));
        if planted == Some(Planted::HandshakesOneByOne) {
            if let Ok(stream) = acceptor.accept(pipe).await
                && let Some(connection) = counted(stream, address, &tally)
            {
                let _ = ready.send(Ok(connection)).await;
            }
            continue;
        }
        let (ready, tally) = (ready.clone(), Arc::clone(&tally));
        running.spawn(async move {
            let connection = shake(acceptor, pipe, address, &tally).await;
            drop((slot, of_address));
            if let Some(connection) = connection {
                let _ = ready.send(Ok(connection)).await;
            }
        });
    }
}

async fn shake(
    acceptor: TlsAcceptor,
    pipe: Box<dyn Pipe>,
    address: IpAddr,
    tally: &Arc<Tally>,
) -> Option<TlsConnection> {
    let stream = match timeout(HANDSHAKE_LIMIT, acceptor.accept(pipe)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::info!(%address, %error, "TLS handshake refused");
            return None;
        }
        Err(_) => {
            tracing::info!(%address, "TLS handshake took too long");
            return None;
        }
    };
    counted(stream, address, tally)
}

fn counted(stream: TlsStream<Box<dyn Pipe>>, address: IpAddr, tally: &Arc<Tally>) -> Option<TlsConnection> {
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let peer = Peer { address, identity: certificate.map(|certificate| Arc::new(Identity::of(certificate))) };
    let Some(counted) = tally.count(peer.tally_key()) else {
        tracing::warn!(%address, peer = peer.tally_key(), "too many connections: closed");
        return None;
    };
    Some(TlsConnection { stream, peer, _counted: counted })
}

/// Counts connections by peer.
#[derive(Debug)]
struct Tally {
    limits: Limits,
    counts: Mutex<BTreeMap<String, usize>>,
}

impl Tally {
    fn count(self: &Arc<Self>, key: String) -> Option<Counted> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = counts.values().sum();
        let of_peer = counts.get(&key).copied().unwrap_or(0);
        if all >= self.limits.connections || of_peer >= self.limits.per_peer {
            return None;
        }
        counts.insert(key.clone(), of_peer + 1);
        Some(Counted { tally: Arc::clone(self), key })
    }
}

/// Counted as long as it lives.
#[derive(Debug)]
struct Counted {
    tally: Arc<Tally>,
    key: String,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.tally.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

/// A connection whose handshake is done.
pub struct TlsConnection {
    stream: TlsStream<Box<dyn Pipe>>,
    peer: Peer,
    _counted: Counted,
}

impl Connected for TlsConnection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for TlsConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for TlsConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_has_a_few_connections_and_the_port_so_many_in_all() {
        let tally =
            Arc::new(Tally { limits: Limits { connections: 3, per_peer: 2 }, counts: Mutex::default() });
        let first = tally.count("a".into()).unwrap();
        let _second = tally.count("a".into()).unwrap();
        assert!(tally.count("a".into()).is_none());
        let _other = tally.count("b".into()).unwrap();
        assert!(tally.count("c".into()).is_none());
        drop(first);
        assert!(tally.count("c".into()).is_some());
    }
}
