//! The management port: enrolment, renewal, and which process server has a server; the installer beside it.

use std::{sync::Arc, time::Duration};

use lifeboat_replication::wire::v1::{
    self,
    management_server::{Management, ManagementServer},
};
use tokio::sync::watch;
use tonic::{Request, Response, Status, service::Routes, transport::Server};

use super::{
    listener::{Incoming, Limits},
    peer::Peer,
    signing::{SignDesk, SigningError},
    tls::Tls,
};
use crate::directory::Directory;

/// Calls are short, and several machines may stand behind one address.
pub const LIMITS: Limits = Limits { connections: 512, per_peer: 32 };
const STREAMS: u32 = 8;
/// Nobody has reason to stay.
const LONGEST_CONNECTION: Duration = Duration::from_secs(600);
/// A certificate request in PEM has about 1 KiB.
const MESSAGE_BYTES: usize = 32 << 10;
const REQUEST_PEM_BYTES: usize = 16 << 10;
/// Of a name, a version, a token.
const TEXT_BYTES: usize = 512;
/// Ends the logical names of process servers: `<pod>.<appliance>.lifeboat`.
const NAME_ENDING: &str = ".lifeboat";

pub struct ManagementPort {
    /// This process server.
    pub name: String,
    pub directory: watch::Receiver<Option<Arc<Directory>>>,
    pub desk: Arc<SignDesk>,
    /// Of the data port: its certificate says how process servers of this appliance are called.
    pub data_tls: watch::Receiver<Tls>,
}

impl ManagementPort {
    /// Serves until `incoming` ends; `downloads` are routes beside the gRPC ones.
    pub async fn serve(
        self,
        incoming: Incoming,
        downloads: axum::Router,
    ) -> Result<(), tonic::transport::Error> {
        server().add_routes(self.routes(downloads)).serve_with_incoming(incoming).await
    }

    pub fn routes(self, downloads: axum::Router) -> Routes {
        let service = ManagementServer::new(self).max_decoding_message_size(MESSAGE_BYTES);
        Routes::from(Routes::new(service).into_axum_router().merge(downloads))
    }

    fn directory(&self) -> Result<Arc<Directory>, Status> {
        let directory = self.directory.borrow().clone();
        directory.ok_or_else(|| {
            Status::unavailable("this process server has not heard from the operator yet; try again")
        })
    }

    async fn sign(&self, request: v1::SignRequest) -> Result<Response<v1::EnrolResponse>, Status> {
        let answer = self.desk.sign(request).await.map_err(|error| match error {
            SigningError::NoOperator | SigningError::NoAnswer => Status::unavailable(error.to_string()),
            SigningError::Busy => Status::resource_exhausted(error.to_string()),
        })?;
        if !answer.refused.is_empty() {
            return Err(Status::permission_denied(answer.refused));
        }
        let management_addresses =
            self.directory.borrow().as_ref().map(|directory| directory.management_addresses.clone());
        Ok(Response::new(v1::EnrolResponse {
            server_id: answer.server_id,
            certificate_pem: answer.certificate_pem,
            ca_pem: answer.ca_pem,
            management_addresses: management_addresses.unwrap_or_default(),
        }))
    }

    /// Name by which agents verify a process server: as in the own certificate, with the other's pod name.
    fn tls_name(&self, process_server: &str) -> Option<String> {
        let own = format!("{}.", self.name);
        let tls = self.data_tls.borrow();
        let mut domains = tls.names.iter().filter(|name| name.ends_with(NAME_ENDING));
        let domain = domains.find_map(|name| name.strip_prefix(&own))?;
        Some(format!("{process_server}.{domain}"))
    }
}

/// HTTP as this port speaks it.
pub fn server() -> Server {
    Server::builder()
        .accept_http1(true)
        .max_concurrent_streams(STREAMS)
        .max_connection_age(LONGEST_CONNECTION)
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
}

#[tonic::async_trait]
impl Management for ManagementPort {
    async fn enrol(&self, request: Request<v1::EnrolRequest>) -> Result<Response<v1::EnrolResponse>, Status> {
        let v1::EnrolRequest {
            token,
            certificate_request_pem,
            hostname,
            machine_id,
            os,
            kernel,
            agent_version,
        } = request.into_inner();
        let texts = [&token, &hostname, &machine_id, &os, &kernel, &agent_version];
        if token.is_empty() || texts.iter().any(|text| text.len() > TEXT_BYTES) {
            return Err(Status::invalid_argument(
                "the token is missing or a field is too long: update the agent",
            ));
        }
        check_request(&certificate_request_pem)?;
        self.sign(v1::SignRequest {
            id: 0,
            token,
            server_id: String::new(),
            certificate_request_pem,
            hostname,
            machine_id,
            os,
            kernel,
            agent_version,
        })
        .await
    }

    async fn locate(
        &self,
        request: Request<v1::LocateRequest>,
    ) -> Result<Response<v1::LocateResponse>, Status> {
        let directory = self.directory()?;
        let assignment = authorize(&directory, request.extensions())?;
        let data_addresses = directory.addresses(&assignment.process_server).to_vec();
        if data_addresses.is_empty() {
            return Err(Status::failed_precondition(
                "no process server has this server yet; try again in a moment",
            ));
        }
        let tls_name = self.tls_name(&assignment.process_server).ok_or_else(|| {
            tracing::error!(names = ?self.data_tls.borrow().names, "own certificate lacks <pod>.<appliance>.lifeboat");
            Status::internal("the process server's certificate lacks its name: delete its Secret, the operator makes it anew")
        })?;
        Ok(Response::new(v1::LocateResponse { data_addresses, tls_name }))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::EnrolResponse>, Status> {
        let directory = self.directory()?;
        let server_id = authorize(&directory, request.extensions())?.server_id.clone();
        let certificate_request_pem = request.into_inner().certificate_request_pem;
        check_request(&certificate_request_pem)?;
        self.sign(v1::SignRequest { server_id, certificate_request_pem, ..Default::default() }).await
    }
}

fn authorize<'a>(
    directory: &'a Directory,
    extensions: &tonic::Extensions,
) -> Result<&'a v1::Assignment, Status> {
    let identity = extensions.get::<Peer>().and_then(|peer| peer.identity.as_ref());
    directory.authorize(identity).map_err(|not_allowed| match not_allowed {
        crate::directory::NotAllowed::NoCertificate => Status::unauthenticated(not_allowed.to_string()),
        _ => Status::permission_denied(not_allowed.to_string()),
    })
}

fn check_request(pem: &str) -> Result<(), Status> {
    if pem.is_empty() || pem.len() > REQUEST_PEM_BYTES {
        return Err(Status::invalid_argument(
            "the certificate request is missing or too long: update the agent",
        ));
    }
    Ok(())
}
