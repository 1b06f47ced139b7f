//! The data port: a stream of records for each agent, handed to its server's ingest.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use lifeboat_replication::{
    planted::Planted,
    wire::{
        Accepted, MAX_MESSAGE_BYTES,
        v1::{
            self,
            replication_server::{Replication, ReplicationServer},
        },
    },
};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_stream::{StreamExt as _, adapters::Map, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};

use super::{
    listener::{Incoming, Limits},
    peer::{Identity, Peer},
};
use crate::{directory::Directory, servers::Members};

/// An agent has one connection, and a second one while it reconnects.
pub const LIMITS: Limits = Limits { connections: 2048, per_peer: 4 };
/// Headers of a request: agents send a few hundred bytes.
const HEADER_BYTES: u32 = 8 << 10;
/// Streams of one connection.
const STREAMS: u32 = 2;
/// Streams of one server over all its connections.
const STREAMS_PER_SERVER: usize = 4;
/// Bytes on their way that HTTP/2 allows before the stream is read: at 2 MiB a line of 20 ms carries 100 MB/s.
const WINDOW_BYTES: u32 = 2 << 20;
/// Agents send in frames of this size: with HTTP/2's usual 16 KiB each would be a system call of its own.
const FRAME_BYTES: u32 = 256 << 10;
/// Messages between the stream and the ingest: the window holds more already.
const UP: usize = 1;
/// `Durable`, `Received` and answers that the agent has not taken yet: small ones.
const DOWN: usize = 64;
/// Dead connections are noticed after ping and time-out.
const PING: Duration = Duration::from_secs(10);
const PING_LIMIT: Duration = Duration::from_secs(20);
/// The ingest looks at a connection at once, unless it is ending.
const HAND_OVER_LIMIT: Duration = Duration::from_secs(5);
const SOON: Duration = Duration::from_secs(3);

/// Messages down, as the stream of a response.
type DownStream = Map<ReceiverStream<v1::Down>, fn(v1::Down) -> Result<v1::Down, Status>>;

pub struct DataPort {
    /// This process server.
    pub name: String,
    pub directory: watch::Receiver<Option<Arc<Directory>>>,
    pub members: watch::Receiver<Arc<Members>>,
    pub planted: Option<Planted>,
    streams: Arc<Mutex<BTreeMap<String, usize>>>,
}

impl DataPort {
    pub fn new(
        name: String,
        directory: watch::Receiver<Option<Arc<Directory>>>,
        members: watch::Receiver<Arc<Members>>,
    ) -> Self {
        Self { name, directory, members, planted: None, streams: Arc::default() }
    }

    /// Serves until `incoming` ends.
    pub async fn serve(self, incoming: Incoming) -> Result<(), tonic::transport::Error> {
        server().add_service(self.service()).serve_with_incoming(incoming).await
    }

    /// For connections that say who is at their other end ([`Peer`]).
    pub fn service(self) -> ReplicationServer<Self> {
        ReplicationServer::new(self).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }
}

/// HTTP/2 as this port speaks it.
pub fn server() -> Server {
    Server::builder()
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .http2_max_header_list_size(HEADER_BYTES)
        .http2_keepalive_interval(Some(PING))
        .http2_keepalive_timeout(Some(PING_LIMIT))
}

#[tonic::async_trait]
impl Replication for DataPort {
    type ReplicateStream = DownStream;

    async fn replicate(
        &self,
        request: Request<Streaming<v1::Up>>,
    ) -> Result<Response<Self::ReplicateStream>, Status> {
        let identity = request.extensions().get::<Peer>().and_then(|peer| peer.identity.clone());
        let Some(directory) = self.directory.borrow().clone() else {
            return Ok(refused("this process server has not heard from the operator yet", SOON));
        };
        let assignment = directory
            .authorize(identity.as_ref())
            .map_err(|not_allowed| Status::permission_denied(not_allowed.to_string()))?;
        let id = assignment.server_id.clone();
        if assignment.process_server != self.name {
            return Ok(redirect(&directory, assignment));
        }
        let member = {
            let members = self.members.borrow();
            match self.planted {
                Some(Planted::StreamsMixed) => members.values().next().cloned(),
                _ => members.get(&id).cloned(),
            }
        };
        let Some(member) = member else {
            return Ok(refused("the vault is not open yet", SOON));
        };
        let counted = CountedStream::new(&self.streams, &id, self.planted).ok_or_else(|| {
            Status::resource_exhausted("this server has too many streams open: close the others")
        })?;
        let (up, from_agent) = mpsc::channel(UP);
        let (down, to_agent) = mpsc::channel(DOWN);
        let accepted = Accepted { up: from_agent, down, server_id: id };
        if !matches!(timeout(HAND_OVER_LIMIT, member.connections.send(accepted)).await, Ok(Ok(()))) {
            return Ok(refused("the server is being handed over", SOON));
        }
        let pump = Pump { directory: self.directory.clone(), identity, up, _counted: counted };
        tokio::spawn(pump.run(request.into_inner()));
        Ok(messages(to_agent))
    }
}

/// Carries messages from the stream to the ingest, as long as the certificate is right.
struct Pump {
    directory: watch::Receiver<Option<Arc<Directory>>>,
    identity: Option<Arc<Identity>>,
    up: mpsc::Sender<v1::Up>,
    _counted: CountedStream,
}

impl Pump {
    async fn run(mut self, mut stream: Streaming<v1::Up>) {
        loop {
            let message = tokio::select! {
                biased;
                () = self.up.closed() => return,
                changed = self.directory.changed() => match changed {
                    Ok(()) if self.still_allowed() => continue,
                    _ => return,
                },
                message = stream.message() => message,
            };
            match message {
                Ok(Some(message)) => {
                    if self.up.send(message).await.is_err() {
                        return;
                    }
                }
                Ok(None) => return,
                Err(status) => {
                    tracing::debug!(%status, "agent's stream broke");
                    return;
                }
            }
        }
    }

    fn still_allowed(&mut self) -> bool {
        let directory = self.directory.borrow_and_update();
        directory.as_ref().is_some_and(|directory| directory.authorize(self.identity.as_ref()).is_ok())
    }
}

fn messages(down: mpsc::Receiver<v1::Down>) -> Response<DownStream> {
    Response::new(ReceiverStream::new(down).map(Ok as fn(_) -> _))
}

fn only(message: v1::down::Message) -> Response<DownStream> {
    let (sender, receiver) = mpsc::channel(1);
    // There is room for one.
    let _ = sender.try_send(v1::Down { message: Some(message) });
    messages(receiver)
}

fn refused(reason: &str, retry_after: Duration) -> Response<DownStream> {
    only(v1::down::Message::Refused(v1::Refused {
        reason: reason.to_owned(),
        remedy: "nothing is lost: what has changed stays marked and is sent later".to_owned(),
        retry_after_micros: u64::try_from(retry_after.as_micros()).unwrap_or(u64::MAX),
    }))
}

fn redirect(directory: &Directory, assignment: &v1::Assignment) -> Response<DownStream> {
    match directory.addresses(&assignment.process_server).first() {
        Some(address) => only(v1::down::Message::Redirect(v1::Redirect { address: address.clone() })),
        None => refused("the server is not assigned to a process server yet", SOON),
    }
}

/// Counts a server's streams.
struct CountedStream {
    streams: Arc<Mutex<BTreeMap<String, usize>>>,
    id: String,
    planted: Option<Planted>,
}

impl CountedStream {
    fn new(
        streams: &Arc<Mutex<BTreeMap<String, usize>>>,
        id: &str,
        planted: Option<Planted>,
    ) -> Option<Self> {
        let mut counts = streams.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(id.to_owned()).or_insert(0);
        if *count >= STREAMS_PER_SERVER {
            return None;
        }
        *count += 1;
        Some(Self { streams: Arc::clone(streams), id: id.to_owned(), planted })
    }
}

impl Drop for CountedStream {
    fn drop(&mut self) {
        if self.planted == Some(Planted::StreamsCountedForEver) {
            return;
        }
        let mut counts = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.id);
            }
        }
    }
}
