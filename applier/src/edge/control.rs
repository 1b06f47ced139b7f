//! The operator's service: reports about all servers, as a stream.

use std::{pin::Pin, time::Duration};

use lifeboat_replication::{
    env::Env,
    ids::ServerId,
    wire::v1::{
        self,
        applier_control_server::{ApplierControl, ApplierControlServer},
    },
};
use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, transport::Server};

use super::{fleet::Board, tls::Incoming};

/// A report comes this often.
const REPORT_INTERVAL: Duration = Duration::from_secs(2);
const STREAMS: u32 = 8;
const PING: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
pub struct ControlPort {
    pub name: String,
    pub env: Env,
    pub board: Board,
}

type Reports = Pin<Box<dyn Stream<Item = Result<v1::ApplierReport, Status>> + Send>>;

impl ControlPort {
    /// Serves until `incoming` ends.
    pub(super) async fn serve(self, incoming: Incoming) -> Result<(), tonic::transport::Error> {
        Server::builder()
            .max_concurrent_streams(STREAMS)
            .http2_keepalive_interval(Some(PING))
            .add_service(ApplierControlServer::new(self))
            .serve_with_incoming(incoming)
            .await
    }
}

#[tonic::async_trait]
impl ApplierControl for ControlPort {
    type WatchStream = Reports;

    async fn watch(&self, request: Request<v1::WatchApplier>) -> Result<Response<Reports>, Status> {
        let asked: Result<Vec<ServerId>, _> = request.into_inner().server_ids.iter().map(|id| id.parse()).collect();
        self.board.ask_for(asked.map_err(|error| Status::invalid_argument(format!("{error}")))?);
        let (out, reports) = mpsc::channel(1);
        let port = self.clone();
        tokio::spawn(async move {
            while out.send(Ok(port.board.report(&port.name, &port.env))).await.is_ok() {
                tokio::select! {
                    biased;
                    () = out.closed() => return,
                    () = tokio::time::sleep(REPORT_INTERVAL) => {}
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(reports))))
    }
}
