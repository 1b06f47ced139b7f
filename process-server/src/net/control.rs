//! The control port: the operator attaches, sends configurations, hears reports and signs certificates.

use std::{sync::Arc, time::Duration};

use lifeboat_replication::wire::v1::{
    self,
    process_server_control_server::{ProcessServerControl, ProcessServerControlServer},
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_stream::{StreamExt as _, adapters::Map, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};

use super::{
    listener::{Incoming, Limits},
    peer::Peer,
    signing::SignDesk,
};
use crate::{
    directory::Directory,
    edge::persisted::PersistedConfiguration,
    report::{Reporter, Sources},
};

/// One operator, another one while it is replaced, and some that broke.
pub const LIMITS: Limits = Limits { connections: 64, per_peer: 8 };
const STREAMS: u32 = 4;
/// Assignments of thousands of servers, at a few hundred bytes each.
const MESSAGE_BYTES: usize = 16 << 20;
/// Reports come at least this often, and at once when something turned.
const REPORT_INTERVAL: Duration = Duration::from_secs(2);
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// Reports and signing requests that the operator has not taken yet.
const WAITING: usize = 64;
const PING: Duration = Duration::from_secs(10);

type Messages = Map<
    ReceiverStream<v1::FromProcessServer>,
    fn(v1::FromProcessServer) -> Result<v1::FromProcessServer, Status>,
>;

pub struct ControlPort {
    pub desk: Arc<SignDesk>,
    pub sources: Sources,
    pub directory: Arc<watch::Sender<Option<Arc<Directory>>>>,
    pub persisted: PersistedConfiguration,
}

impl ControlPort {
    /// Serves until `incoming` ends.
    pub async fn serve(self, incoming: Incoming) -> Result<(), tonic::transport::Error> {
        let service = ProcessServerControlServer::new(self).max_decoding_message_size(MESSAGE_BYTES);
        Server::builder()
            .max_concurrent_streams(STREAMS)
            .http2_keepalive_interval(Some(PING))
            .add_service(service)
            .serve_with_incoming(incoming)
            .await
    }
}

#[tonic::async_trait]
impl ProcessServerControl for ControlPort {
    type AttachStream = Messages;

    async fn attach(
        &self,
        request: Request<Streaming<v1::FromOperator>>,
    ) -> Result<Response<Messages>, Status> {
        let peer = request.extensions().get::<Peer>();
        if !peer.and_then(|peer| peer.identity.as_ref()).is_some_and(|identity| identity.is_operator()) {
            return Err(Status::permission_denied("only the operator's certificate is taken here"));
        }
        tracing::info!("operator attached");
        let (out, messages) = mpsc::channel(WAITING);
        self.desk.attach(out.clone());
        let orders = Orders {
            desk: Arc::clone(&self.desk),
            directory: Arc::clone(&self.directory),
            persisted: self.persisted.clone(),
            attached: out.clone(),
        };
        tokio::spawn(orders.run(request.into_inner()));
        tokio::spawn(report(self.sources.clone(), out));
        Ok(Response::new(ReceiverStream::new(messages).map(Ok as fn(_) -> _)))
    }
}

/// What the operator sends.
struct Orders {
    desk: Arc<SignDesk>,
    directory: Arc<watch::Sender<Option<Arc<Directory>>>>,
    persisted: PersistedConfiguration,
    attached: mpsc::Sender<v1::FromProcessServer>,
}

impl Orders {
    async fn run(self, mut orders: Streaming<v1::FromOperator>) {
        loop {
            let order = tokio::select! {
                biased;
                () = self.attached.closed() => break,
                order = orders.message() => order,
            };
            let Ok(Some(order)) = order else { break };
            match order.message {
                Some(v1::from_operator::Message::Configuration(configuration)) => {
                    self.configure(configuration).await
                }
                Some(v1::from_operator::Message::SignAnswer(answer)) => self.desk.answer(answer),
                None => {}
            }
        }
        tracing::info!("operator detached: replication goes on with its last configuration");
    }

    async fn configure(&self, configuration: v1::Configuration) {
        if let Err(error) = self.persisted.save(&configuration).await {
            tracing::error!(%error, "configuration not kept: after a restart this process server waits for the operator");
        }
        tracing::info!(
            generation = configuration.generation,
            servers = configuration.servers.len(),
            "configured"
        );
        self.directory.send_replace(Some(Arc::new(configuration.into())));
    }
}

/// Sends reports until the operator is gone.
async fn report(sources: Sources, out: mpsc::Sender<v1::FromProcessServer>) {
    let mut reporter = Reporter::new(sources.clone());
    let mut look = interval(LOOK_INTERVAL);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told: Option<(Instant, crate::report::Turn)> = None;
    loop {
        tokio::select! {
            biased;
            () = out.closed() => return,
            _ = look.tick() => {}
        }
        let turn = sources.turn();
        if told.as_ref().is_some_and(|(at, before)| at.elapsed() < REPORT_INTERVAL && *before == turn) {
            continue;
        }
        let message = v1::from_process_server::Message::Report(reporter.report());
        if out.send(v1::FromProcessServer { message: Some(message) }).await.is_err() {
            return;
        }
        told = Some((Instant::now(), turn));
    }
}
