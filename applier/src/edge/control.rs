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

use super::{board::Board, tls::Incoming};

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
        let asked: Result<Vec<ServerId>, _> =
            request.into_inner().server_ids.iter().map(|id| id.parse()).collect();
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use lifeboat_replication::wire::v1::applier_control_client::ApplierControlClient;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
    use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

    use super::*;
    use crate::edge::tls;

    struct Ca {
        issuer: Issuer<'static, KeyPair>,
        pem: String,
    }

    fn ca() -> Ca {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Ca { issuer: Issuer::new(params, key), pem }
    }

    /// Certificate and key.
    fn signed(ca: &Ca, uri: Option<&str>) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["applier.test".to_owned()]).unwrap();
        params.subject_alt_names.extend(uri.map(|uri| SanType::URI(uri.try_into().unwrap())));
        (params.signed_by(&key, &ca.issuer).unwrap().pem(), key.serialize_pem())
    }

    fn write(dir: &Path, ca: &Ca) {
        let (certificate, key) = signed(ca, None);
        for (name, content) in [("tls.crt", &certificate), ("tls.key", &key), ("ca.crt", &ca.pem)] {
            std::fs::write(dir.join(name), content).unwrap();
        }
    }

    async fn watch(
        address: std::net::SocketAddr,
        server: &Ca,
        client: &Ca,
        uri: &str,
    ) -> Result<v1::ApplierReport, String> {
        let (certificate, key) = signed(client, Some(uri));
        let tls = ClientTlsConfig::new()
            .domain_name("applier.test")
            .ca_certificate(Certificate::from_pem(&server.pem))
            .identity(Identity::from_pem(certificate, key));
        let channel: Channel = Endpoint::from_shared(format!("https://{address}"))
            .and_then(|endpoint| endpoint.tls_config(tls))
            .map_err(|error| error.to_string())?
            .connect()
            .await
            .map_err(|error| format!("{error:?}"))?;
        let mut reports = ApplierControlClient::new(channel)
            .watch(v1::WatchApplier::default())
            .await
            .map_err(|error| error.to_string())?
            .into_inner();
        reports.message().await.map_err(|error| error.to_string())?.ok_or_else(|| "no report".to_owned())
    }

    #[tokio::test]
    async fn the_operator_gets_reports_and_nobody_else_does() {
        let (own, foreign) = (ca(), ca());
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &own);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let board = Board::default();
        board.set_vault_error("the vault is away".to_owned());
        let port = ControlPort { name: "a".to_owned(), env: Env::system(), board };
        let (incoming, accepting) = tls::accept(listener, dir.path());
        let accepting = tokio::spawn(accepting);
        let serving = tokio::spawn(port.serve(incoming));

        let report = watch(address, &own, &own, "lifeboat:operator").await.unwrap();
        assert_eq!((report.name.as_str(), report.vault_error.as_str()), ("a", "the vault is away"));
        for (client, uri) in [(&own, "lifeboat:server:x"), (&foreign, "lifeboat:operator")] {
            watch(address, &own, client, uri).await.unwrap_err();
        }
        // A new CA and certificate are used without a restart.
        write(dir.path(), &foreign);
        watch(address, &foreign, &foreign, "lifeboat:operator").await.unwrap();
        watch(address, &own, &own, "lifeboat:operator").await.unwrap_err();
        serving.abort();
        accepting.abort();
    }
}
