//! The process server's side of a wire of bytes: its own ports, over pipes in memory, before its servers' ingests.
//!
//! ```text
//!   pipe ─► (TLS) ─► data port ─► tap (what is sent is seen by the oracle) ─► ingest, run by `Servers`
//!   pipe ─►  TLS  ─► management port (Locate)
//! ```

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io,
    net::Ipv4Addr,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use futures::{
    FutureExt as _,
    future::{pending, select_all},
};
use http::{HeaderValue, header};
use lifeboat_process_server::{
    core::{Assigned, Shared, status::Status},
    directory::Directory,
    net::{
        data::{self, DataPort},
        listener,
        management::{self, ManagementPort},
        peer::Peer,
        signing::SignDesk,
    },
    servers::{Members, Servers},
};
use lifeboat_replication::{
    ids::ServerId,
    planted::Planted,
    wire::{Accepted, v1},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf},
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::transport::server::Connected;
use tower::util::MapResponseLayer;

use super::{Certificates, Wire, data_address, life::Alive, management_address, pipe::Caller};
use crate::net::{Line, Net, lock};

type Answer = http::Response<tonic::body::Body>;

/// A server that process servers may have.
#[derive(Debug)]
pub(crate) struct Hosted {
    pub(crate) id: ServerId,
    pub(crate) line: Line,
    pub(crate) certificates: Arc<Certificates>,
    pub(crate) assigned: watch::Receiver<Option<Assigned>>,
}

/// A process server behind its ports.
pub(crate) struct Host {
    pub(crate) net: Arc<Net>,
    pub(crate) node: usize,
    pub(crate) process_servers: usize,
    pub(crate) wire: Wire,
    /// In the order of their numbers.
    pub(crate) servers: Vec<Hosted>,
    pub(crate) planted: Option<Planted>,
}

impl Host {
    pub(crate) async fn run(self, shared: Shared) {
        let mut assigned: Vec<_> = self.servers.iter().map(|server| server.assigned.clone()).collect();
        // Dropped with this future: all pipes break.
        let alive = Alive::default();
        let (directory, directories) = watch::channel(Some(self.directory(&mut assigned)));
        let (members, member_lists) = watch::channel(Arc::new(Members::new()));
        let (tapped, tapped_lists) = watch::channel(Arc::new(Members::new()));
        let servers = Servers::new(shared, directories.clone(), members).run(pending());
        let lines = self.servers.iter().map(|server| (server.id.to_string(), server.line.clone())).collect();
        let tapping = tap(lines, member_lists, tapped);
        let mut port = DataPort::new(name(self.node), directories.clone(), tapped_lists);
        port.planted = self.planted;
        let serving = self.serve(port, directories, &alive);
        let told = async {
            loop {
                let changes = assigned.iter_mut().map(|assigned| assigned.changed().boxed());
                if select_all(changes).await.0.is_err() {
                    return;
                }
                directory.send_replace(Some(self.directory(&mut assigned)));
            }
        };
        tokio::select! { biased;
            () = told => {}
            () = servers => {}
            () = tapping => {}
            () = serving => {}
        }
    }

    async fn serve(
        &self,
        port: DataPort,
        directories: watch::Receiver<Option<Arc<Directory>>>,
        alive: &Alive,
    ) {
        let doors = &self.net.doors;
        let data = doors.open(data_address(self.node), alive);
        let dated = MapResponseLayer::new(dated as fn(Answer) -> Answer);
        let server = data::server().layer(dated.clone()).add_service(port.service());
        if self.wire != Wire::Tls {
            let peers: Vec<_> = self.servers.iter().map(|server| server.certificates.peer.clone()).collect();
            let plain = ReceiverStream::new(data.0).map(move |Caller { pipe, server }| {
                let peer = Peer { address: Ipv4Addr::LOCALHOST.into(), identity: peers.get(server).cloned() };
                Ok::<_, Infallible>(PlainConnection { pipe, peer })
            });
            let _ = server.serve_with_incoming(plain).await;
            return;
        }
        // The process servers' own settings are the same beside each agent's. Their senders are gone: they do not change.
        let Some(Hosted { certificates, .. }) = self.servers.first() else { return };
        let settings = |tls| watch::channel(tls).1;
        let data_tls = settings(certificates.data.clone());
        let (incoming, accepting) = listener::accept(data, data_tls.clone(), data::LIMITS, self.planted);
        let desk = Arc::new(SignDesk::default());
        let port = ManagementPort { name: name(self.node), directory: directories, desk, data_tls };
        let door = doors.open(management_address(self.node), alive);
        let tls = settings(certificates.management.clone());
        let (asking, accepting_too) = listener::accept(door, tls, management::LIMITS, self.planted);
        let management = management::server().layer(dated).add_routes(port.routes(axum::Router::new()));
        let _ = tokio::join!(
            accepting,
            accepting_too,
            server.serve_with_incoming(incoming),
            management.serve_with_incoming(asking)
        );
    }

    /// What this process server has heard from the operator.
    fn directory(&self, assigned: &mut [watch::Receiver<Option<Assigned>>]) -> Arc<Directory> {
        let servers = self.servers.iter().zip(assigned);
        let process_servers = (0..self.process_servers).map(|node| v1::ProcessServerAddress {
            name: name(node),
            data_addresses: vec![data_address(node)],
        });
        let configuration = v1::Configuration {
            servers: servers
                .map(|(server, assigned)| self.assignment(server, assigned.borrow_and_update().clone()))
                .collect(),
            process_servers: process_servers.collect(),
            ..Default::default()
        };
        Arc::new(configuration.into())
    }

    fn assignment(&self, server: &Hosted, assigned: Option<Assigned>) -> v1::Assignment {
        let has_it = if assigned.is_some() { self.node } else { server.line.assigned() };
        let mut assignment = v1::Assignment {
            server_id: server.id.to_string(),
            process_server: name(has_it),
            public_key_sha256: server.certificates.peer.public_key_sha256.clone(),
            ..Default::default()
        };
        if let Some(Assigned { display_name, settings, compression_level, points, lost }) = assigned {
            assignment.display_name = display_name;
            assignment.settings = Some(settings);
            assignment.compression_level = compression_level;
            assignment.points = points;
            assignment.lost_epoch = lost.map_or(0, |epoch| epoch.0);
        }
        assignment
    }
}

fn name(node: usize) -> String {
    format!("ps-{node}")
}

/// hyper writes the machine's date into every answer, and HPACK makes it longer or shorter by the second.
fn dated(mut answer: Answer) -> Answer {
    answer.headers_mut().insert(header::DATE, HeaderValue::from_static("Mon, 01 Jun 2026 00:00:00 GMT"));
    answer
}

/// How many streams each server has at a port: by its number.
type Open = Arc<Mutex<BTreeMap<usize, u64>>>;

/// Lists the members anew, with channels between that show what they send to the oracle.
async fn tap(
    lines: BTreeMap<String, Line>,
    mut members: watch::Receiver<Arc<Members>>,
    tapped: watch::Sender<Arc<Members>>,
) {
    let mut taps = JoinSet::new();
    let mut known = Members::new();
    let mut listed = Members::new();
    let open = Open::default();
    loop {
        let now = members.borrow_and_update().clone();
        listed.retain(|id, _| now.contains_key(id));
        for (id, member) in &*now {
            let same = |known: &lifeboat_process_server::servers::Member| {
                known.connections.same_channel(&member.connections)
            };
            if listed.contains_key(id) && known.get(id).is_some_and(same) {
                continue;
            }
            let Some(line) = lines.get(id) else { continue };
            let (connections, accepted) = mpsc::channel(1);
            taps.spawn(tap_connections(line.clone(), open.clone(), accepted, member.connections.clone()));
            taps.spawn(watch_ingest(line.net.clone(), member.status.clone()));
            let mut between = member.clone();
            between.connections = connections;
            listed.insert(id.clone(), between);
        }
        known.clone_from(&now);
        tapped.send_replace(Arc::new(listed.clone()));
        if members.changed().await.is_err() {
            return;
        }
    }
}

async fn tap_connections(
    net: Line,
    open: Open,
    mut accepted: mpsc::Receiver<Accepted>,
    ingest: mpsc::Sender<Accepted>,
) {
    let mut flows = JoinSet::new();
    while let Some(Accepted { up, down, server_id }) = accepted.recv().await {
        let side_by_side = {
            let mut open = lock(&open);
            *open.entry(net.server).or_default() += 1;
            open.values().filter(|streams| **streams > 0).count() > 1
        };
        net.count(|reached| {
            reached.streams += 1;
            reached.streams_side_by_side += u64::from(side_by_side);
        });
        let (tapped, sent) = mpsc::channel(1);
        let (flow, server, open) = (tap_down(net.clone(), sent, down), net.server, open.clone());
        flows.spawn(async move {
            flow.await;
            if let Some(streams) = lock(&open).get_mut(&server) {
                *streams = streams.saturating_sub(1);
            }
        });
        if ingest.send(Accepted { up, down: tapped, server_id }).await.is_err() {
            return;
        }
    }
}

async fn tap_down(net: Line, mut sent: mpsc::Receiver<v1::Down>, to_agent: mpsc::Sender<v1::Down>) {
    loop {
        let message = tokio::select! { biased;
            () = to_agent.closed() => return,
            message = sent.recv() => message,
        };
        let Some(message) = message else { return };
        net.saw(&message);
        if to_agent.send(message).await.is_err() {
            return;
        }
    }
}

/// What a process server reports is counted; ends with it.
pub(crate) async fn watch_ingest(net: Arc<Net>, mut status: watch::Receiver<Status>) {
    while status.changed().await.is_ok() {
        let error = status.borrow_and_update().report.error.clone();
        let says = |text: &str| u64::from(error.contains(text));
        net.count(|reached| {
            reached.kept_out_by_closed += says("is closed by failover run");
            reached.kept_out_by_lease += says("another process server holds the log");
            reached.fenced_writers += says("another writer has taken over");
        });
    }
}

/// A pipe without TLS, whose peer is given.
struct PlainConnection {
    pipe: DuplexStream,
    peer: Peer,
}

impl Connected for PlainConnection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for PlainConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_read(context, buffer)
    }
}

impl AsyncWrite for PlainConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.pipe).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(context)
    }
}
