//! Connections in memory: ordered messages that can stall or break at any one, in either direction.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use lifeboat_replication::wire::{
    Accepted, CONNECTION_DEPTH, Connection, Dial, DialError,
    v1::{self, up},
};
use tokio::{sync::mpsc, time::sleep};

use crate::net::{Hop, Line, Net, Nodes};

/// Dials whichever process server the operator has assigned the server to.
#[derive(Debug, Clone)]
pub(crate) struct SimDial {
    pub(crate) net: Line,
    pub(crate) server: String,
}

#[async_trait]
impl Dial for SimDial {
    async fn dial(&self) -> Result<Connection, DialError> {
        sleep(Duration::from_millis(5)).await;
        let to = self.net.assigned();
        let unreachable =
            || DialError::Unreachable { address: format!("ps-{to}"), message: "cut".to_owned() };
        let listener = self
            .net
            .listener(to)
            .filter(|_| !self.net.up_cuts.has(to) && !self.net.down_cuts.has(to))
            .ok_or_else(unreachable)?;
        let (agent_up, mut from_agent) = mpsc::channel::<v1::Up>(CONNECTION_DEPTH);
        let (to_server, server_up) = mpsc::channel(CONNECTION_DEPTH);
        let (server_down, mut from_server) = mpsc::channel::<v1::Down>(CONNECTION_DEPTH);
        let (to_agent, agent_down) = mpsc::channel(CONNECTION_DEPTH);
        let accepted = Accepted { up: server_up, down: server_down, server_id: self.server.clone() };
        listener.send(accepted).await.map_err(|_| unreachable())?;
        let broken = Arc::new(AtomicBool::new(false));
        let (net, gone) = (self.net.clone(), broken.clone());
        tokio::spawn(async move {
            while let Some(message) = from_agent.recv().await {
                if matches!(message.message, Some(up::Message::End(_))) {
                    net.saw_end();
                }
                if hop(&net, &net.up_cuts, to, &gone).await || to_server.send(message).await.is_err() {
                    break;
                }
            }
            gone.store(true, Ordering::Relaxed);
        });
        let net = self.net.clone();
        tokio::spawn(async move {
            while let Some(message) = from_server.recv().await {
                net.saw(&message);
                if hop(&net, &net.down_cuts, to, &broken).await || to_agent.send(message).await.is_err() {
                    break;
                }
            }
            broken.store(true, Ordering::Relaxed);
        });
        Ok(Connection { up: agent_up, down: agent_down })
    }
}

/// One message on its way; true: the connection is gone.
async fn hop(net: &Net, cuts: &Nodes, to: usize, broken: &AtomicBool) -> bool {
    let Hop { delay_ms, breaks } = net.hop();
    sleep(Duration::from_millis(delay_ms)).await;
    let mut waited = 0;
    while cuts.has(to) && !broken.load(Ordering::Relaxed) {
        sleep(Duration::from_millis(500)).await;
        waited += 1;
        // Keep-alive notices a cut after a while.
        if waited > 40 {
            return true;
        }
    }
    breaks || broken.load(Ordering::Relaxed)
}
