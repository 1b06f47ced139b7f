//! Byte pipes in memory between the agent and the ports of process servers.
//!
//! In: who opens one, and what the dice say to each piece of bytes. Out: two ends that the product's TLS and HTTP/2
//! stand on. A full buffer makes the writer wait, as TCP does; the death of a program breaks its pipes.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr},
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use lifeboat_agent::net::{connect::ConnectError, pipes::Pipes};
use lifeboat_process_server::net::listener::Accept;
use lifeboat_replication::wire::Pipe;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf, duplex, split},
    sync::mpsc,
    time::sleep,
};

use super::{
    life::{Alive, Life},
    node_of,
};
use crate::{
    faults::Class,
    net::{AGENT, Hop, Line as Way, Net, Nodes, lock},
};

/// A dial that nobody answers fails after this long, as the agent's own time-out for it.
const UNANSWERED: Duration = Duration::from_secs(5);
/// Bytes that travel together.
const PIECE_BYTES: usize = 16 << 10;
/// Pieces that a trickle makes of one.
const MOST_DROPS: u64 = 16;

/// Whoever comes to a port, and the number of the server whose agent it is: what only a certificate says, and a port without
/// TLS has to be told.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) pipe: DuplexStream,
    pub(crate) server: usize,
}

/// Ports that are open, by address.
#[derive(Debug, Default)]
pub(crate) struct Doors(Mutex<BTreeMap<String, (mpsc::Sender<Caller>, Life)>>);

impl Doors {
    /// Whoever comes to `address` from now on; `alive` is dropped with the program.
    pub(crate) fn open(&self, address: String, alive: &Alive) -> Door {
        let (sender, receiver) = mpsc::channel(4);
        lock(&self.0).insert(address, (sender, alive.life()));
        Door(receiver)
    }

    fn at(&self, address: &str) -> Option<(mpsc::Sender<Caller>, Life)> {
        lock(&self.0).get(address).filter(|(door, _)| !door.is_closed()).cloned()
    }
}

/// The process server's side of a port.
pub(crate) struct Door(pub(crate) mpsc::Receiver<Caller>);

#[async_trait]
impl Accept for Door {
    async fn accept(&mut self) -> io::Result<(Box<dyn Pipe>, IpAddr)> {
        match self.0.recv().await {
            Some(caller) => Ok((Box::new(caller.pipe), Ipv4Addr::LOCALHOST.into())),
            None => std::future::pending().await,
        }
    }
}

/// Opens pipes for the agent, as long as it lives.
#[derive(Debug)]
pub(super) struct SimPipes {
    pub(super) net: Way,
    pub(super) alive: Alive,
    /// Bytes on their way in one direction before the writer waits.
    pub(super) buffer_bytes: usize,
}

#[async_trait]
impl Pipes for SimPipes {
    async fn open(&self, address: &str) -> Result<Box<dyn Pipe>, ConnectError> {
        let fails = |kind: io::ErrorKind| ConnectError::Unreachable {
            address: address.to_owned(),
            source: kind.into(),
        };
        sleep(Duration::from_millis(5)).await;
        let node = node_of(address).ok_or_else(|| fails(io::ErrorKind::AddrNotAvailable))?;
        if self.net.up_cuts.has(node) || self.net.down_cuts.has(node) {
            sleep(UNANSWERED).await;
            return Err(fails(io::ErrorKind::TimedOut));
        }
        let (door, server_alive) =
            self.net.doors.at(address).ok_or_else(|| fails(io::ErrorKind::ConnectionRefused))?;
        let (agent, agents_far) = duplex(self.buffer_bytes);
        let (server, servers_far) = duplex(self.buffer_bytes);
        let caller = Caller { pipe: server, server: self.net.server };
        door.send(caller).await.map_err(|_| fails(io::ErrorKind::ConnectionRefused))?;
        self.net.count(|reached| reached.pipes += 1);
        self.net.mark("pipe", format_args!("{address}"));
        let line =
            Line { net: self.net.net.clone(), server: self.net.server, node, silent: AtomicBool::new(false) };
        tokio::spawn(line.carry(agents_far, servers_far, [self.alive.life(), server_alive]));
        Ok(Box::new(agent))
    }
}

/// A direction came to its end in the middle.
struct Broken;

/// What lies between the two ends of a pipe.
struct Line {
    net: Arc<Net>,
    server: usize,
    node: usize,
    silent: AtomicBool,
}

impl Line {
    async fn carry(self, agent: DuplexStream, server: DuplexStream, [one, other]: [Life; 2]) {
        let ((from_agent, to_agent), (from_server, to_server)) = (split(agent), split(server));
        let mut both = pin!(async {
            let up = self.flow(from_agent, to_server, &self.net.up_cuts);
            let down = self.flow(from_server, to_agent, &self.net.down_cuts);
            let _ = tokio::try_join!(biased; up, down);
        });
        let ended = tokio::select! { biased;
            () = one.over() => "a program died",
            () = other.over() => "a program died",
            () = &mut both => "it ended",
        };
        self.net.mark("pipe", format_args!("to {}: {ended}", self.node));
        if self.silent.load(Ordering::Relaxed) {
            // Who is left at the other end hears nothing of the death either.
            std::future::pending::<()>().await;
        }
    }

    /// One direction, until its writer closes it.
    async fn flow(
        &self,
        mut from: ReadHalf<DuplexStream>,
        mut to: WriteHalf<DuplexStream>,
        cuts: &Nodes,
    ) -> Result<(), Broken> {
        let dice = &self.net.dice;
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            let read = from.read(&mut buffer).await.map_err(|_| Broken)?;
            let Hop { delay_ms, breaks } = self.net.hop();
            sleep(Duration::from_millis(delay_ms)).await;
            // Agents after the first stand still alone: what comes waits at their end of the pipe.
            let agent_still = || self.server == 0 && self.net.stands_still(AGENT);
            while cuts.has(self.node) || self.net.stands_still(self.node) || agent_still() {
                sleep(Duration::from_millis(500)).await;
            }
            if dice.roll(Class::Silent) {
                self.net.mark("silent", format_args!("{}", self.node));
                self.silent.store(true, Ordering::Relaxed);
                std::future::pending::<()>().await;
            }
            if read == 0 {
                return to.shutdown().await.map_err(|_| Broken);
            }
            // In proportion: the same place in a piece that is a byte longer.
            let arrives = match breaks {
                true => (dice.below(Class::Broken, 1 << 16) as usize * read) >> 16,
                false => read,
            };
            let piece = buffer.get(..arrives).unwrap_or_default();
            let drops =
                if dice.roll(Class::Trickle) { 2 + dice.below(Class::Trickle, MOST_DROPS) } else { 1 };
            for drop in piece.chunks(piece.len().div_ceil(drops as usize).max(1)) {
                to.write_all(drop).await.map_err(|_| Broken)?;
                if drops > 1 {
                    sleep(Duration::from_millis(1 + dice.below(Class::Trickle, 400))).await;
                }
            }
            if breaks {
                self.net.count(|reached| reached.pipes_cut += 1);
                return Err(Broken);
            }
        }
    }
}
