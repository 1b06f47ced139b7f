//! [`Dial`] over the network: asks management for the process server, then opens the stream to it.
//!
//! One pump task for each connection moves what comes down into the session's channel. It ends with the connection:
//! when the session drops its ends, or when the stream breaks.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use async_trait::async_trait;
use lifeboat_replication::{
    errors::chain,
    wire::{
        CONNECTION_DEPTH, Connection, Dial, DialError, MAX_MESSAGE_BYTES, v1,
        v1::replication_client::ReplicationClient,
    },
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::{connect::Connector, management::Management, tls};
use crate::state::Identity;

#[derive(Debug, Clone)]
pub struct Dialler {
    /// The identity of the day: renewed certificates are used from the next dial on.
    identity: watch::Receiver<Identity>,
    connector: Connector,
    /// Dials begun since the last one that succeeded. Each begins with another management address: whoever waits gives a
    /// dial up after a while, and one that hangs must not keep the agent from the others for ever.
    turn: Arc<AtomicUsize>,
}

impl Dialler {
    /// Over the machine's network.
    pub fn new(identity: watch::Receiver<Identity>) -> Self {
        Self::over(identity, Connector::default())
    }

    pub fn over(identity: watch::Receiver<Identity>, connector: Connector) -> Self {
        Self { identity, connector, turn: Arc::default() }
    }
}

#[async_trait]
impl Dial for Dialler {
    async fn dial(&self) -> Result<Connection, DialError> {
        let mut identity = self.identity.borrow().clone();
        let known = identity.management.join(", ");
        let turn = self.turn.fetch_add(1, Relaxed);
        if let Some(first) = turn.checked_rem(identity.management.len()) {
            identity.management.rotate_left(first);
        }
        let fail = |address: &str, error: &(dyn std::error::Error + 'static)| DialError::Unreachable {
            address: address.to_owned(),
            message: chain(error),
        };
        let tls = tls::mutual(&identity).map_err(|error| fail(&known, &error))?;
        let management = Management {
            addresses: identity.management,
            tls: tls.clone(),
            pinned: None,
            connector: self.connector.clone(),
        };
        let located = management.locate().await.map_err(|error| {
            if error.is_passing() {
                return fail(&known, &error);
            }
            DialError::Refused { address: known.clone(), message: chain(&error) }
        })?;
        let mut last = DialError::Refused {
            address: known.clone(),
            message:
                "no process server is assigned to this server yet; look at its ProtectedServer's conditions"
                    .to_owned(),
        };
        for address in &located.data_addresses {
            match self.connector.connect(address, &located.tls_name, tls.clone(), None).await {
                Ok(channel) => {
                    self.turn.store(turn, Relaxed);
                    return Ok(open(channel, address.clone()));
                }
                Err(error) => last = fail(address, &error),
            }
        }
        Err(last)
    }
}

/// The stream to a process server, once there is a channel to it.
pub fn open(channel: Channel, address: String) -> Connection {
    let (up, sent) = mpsc::channel(CONNECTION_DEPTH);
    let (received, down) = mpsc::channel(CONNECTION_DEPTH);
    tokio::spawn(pump(channel, address, sent, received));
    Connection { up, down }
}

async fn pump(
    channel: Channel,
    address: String,
    sent: mpsc::Receiver<v1::Up>,
    received: mpsc::Sender<v1::Down>,
) {
    let mut client = ReplicationClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let forward = async {
        let mut stream = client.replicate(ReceiverStream::new(sent)).await?.into_inner();
        while let Some(message) = stream.message().await? {
            if received.send(message).await.is_err() {
                break;
            }
        }
        Ok::<_, tonic::Status>(())
    };
    tokio::select! { biased;
        () = received.closed() => {}
        ended = forward => if let Err(status) = ended {
            tracing::warn!(process_server = address, code = ?status.code(), message = status.message(), "stream broke");
        }
    }
}
