//! The agent's side of a wire of bytes: its own net code over pipes in memory.

use std::sync::Arc;

use async_trait::async_trait;
use lifeboat_agent::net::{
    connect::{ConnectError, Connector},
    dialler::{self, Dialler},
};
use lifeboat_replication::{
    errors::chain,
    planted::Planted,
    wire::{Connection, Dial, DialError},
};
use tokio::sync::watch;

use super::{Certificates, Wire, data_address, life::Alive, pipe::SimPipes};
use crate::net::Line;

/// The dialler of one run of the agent: its pipes break when that ends.
pub(crate) fn agents_dial(
    net: Line,
    wire: Wire,
    certificates: &Certificates,
    buffer_bytes: usize,
    planted: Option<Planted>,
) -> Arc<dyn Dial> {
    let pipes = SimPipes { net: net.clone(), alive: Alive::default(), buffer_bytes };
    let connector = Connector { pipes: Arc::new(pipes), planted };
    match wire {
        Wire::Tls => {
            let (_, identity) = watch::channel(certificates.agent.clone());
            Arc::new(Dialler::over(identity, connector))
        }
        Wire::Messages | Wire::Http2 => Arc::new(PlainDial { net, connector }),
    }
}

/// Without TLS, to whichever process server the operator has assigned the server to: what [`Dialler`] does with the
/// channel that it has.
#[derive(Debug)]
struct PlainDial {
    net: Line,
    connector: Connector,
}

#[async_trait]
impl Dial for PlainDial {
    async fn dial(&self) -> Result<Connection, DialError> {
        let address = data_address(self.net.assigned());
        let fail =
            |error: ConnectError| DialError::Unreachable { address: address.clone(), message: chain(&error) };
        let pipe = self.connector.pipes.open(&address).await.map_err(fail)?;
        let channel = self.connector.channel(pipe, &address).await.map_err(fail)?;
        Ok(dialler::open(channel, address))
    }
}
