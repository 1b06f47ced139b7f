//! Enrolment, dialling and renewal against a real TLS listener on loopback with the generated services.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed helper is a failed test"
)]

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use lifeboat_agent::{
    core::Machine,
    enrol::{self, EnrolError, Invitation},
    net::{
        connect::{ConnectError, Connector},
        dialler::Dialler,
        management::Management,
        pipes::Pipes,
        tls,
    },
    state::{Secret, StateDir},
};
use lifeboat_replication::{
    errors::chain,
    wire::{
        Dial as _, MAX_MESSAGE_BYTES, Pipe,
        v1::{
            self, Down, EnrolRequest, EnrolResponse, LocateRequest, LocateResponse, RenewRequest, Up,
            management_server::{self, ManagementServer},
            replication_server::{self, ReplicationServer},
        },
    },
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DnType, IsCa,
    KeyPair,
};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    server::WebPkiClientVerifier,
};
use tokio::{net::TcpListener, sync::watch};
use tokio_rustls::TlsAcceptor;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

const SERVER_ID: &str = "0b0e3c0e-5a5c-4f0e-9d2e-2f6f4f1c9a11";
const TOKEN: &str = "one-time";

/// An appliance: CA, one listener for management and data, and what it heard.
#[derive(Clone)]
struct Appliance {
    ca: Arc<CertifiedIssuer<'static, KeyPair>>,
    address: SocketAddr,
    pin: String,
    versions: Arc<Mutex<Vec<Option<rustls::ProtocolVersion>>>>,
    renewals: Arc<Mutex<u32>>,
}

impl Appliance {
    async fn start() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test appliance");
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let names = ["127.0.0.1", "ps-0.berlin.lifeboat"].map(str::to_owned);
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &ca).unwrap();
        let pin = tls::pin(certificate.der()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(ca.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()
            .unwrap();
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(vec![certificate.der().clone()], private)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let appliance = Self {
            ca: Arc::new(ca),
            address: listener.local_addr().unwrap(),
            pin,
            versions: Arc::default(),
            renewals: Arc::default(),
        };
        tokio::spawn(appliance.clone().serve(listener, TlsAcceptor::from(Arc::new(config))));
        appliance
    }

    async fn serve(self, listener: TcpListener, acceptor: TlsAcceptor) {
        let versions = self.versions.clone();
        let (accepted, incoming) = tokio::sync::mpsc::channel(4);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if let Ok(stream) = acceptor.accept(stream).await {
                    versions.lock().unwrap().push(stream.get_ref().1.protocol_version());
                    if accepted.send(Ok::<_, std::io::Error>(stream)).await.is_err() {
                        break;
                    }
                }
            }
        });
        tonic::transport::Server::builder()
            .add_service(ManagementServer::new(self.clone()))
            .add_service(ReplicationServer::new(self).max_decoding_message_size(MAX_MESSAGE_BYTES))
            .serve_with_incoming(ReceiverStream::new(incoming))
            .await
            .unwrap();
    }

    fn sign(&self, request: &str) -> EnrolResponse {
        let mut request = CertificateSigningRequestParams::from_pem(request).unwrap();
        request.params.distinguished_name = rcgen::DistinguishedName::new();
        request.params.distinguished_name.push(DnType::CommonName, SERVER_ID);
        EnrolResponse {
            server_id: SERVER_ID.to_owned(),
            certificate_pem: request.signed_by(&self.ca).unwrap().pem(),
            ca_pem: self.ca.pem(),
            management_addresses: vec![self.address.to_string()],
        }
    }

    fn invitation(&self, token: &str) -> Invitation {
        Invitation {
            management: vec![self.address.to_string()],
            ca_pem: self.ca.pem(),
            pinned: Some(self.pin.clone()),
            token: Secret::new(token.to_owned()),
        }
    }
}

fn require_certificate<T>(request: &Request<T>) -> Result<(), Status> {
    match request.peer_certs() {
        Some(certificates) if !certificates.is_empty() => Ok(()),
        _ => Err(Status::unauthenticated("a client certificate is needed")),
    }
}

#[tonic::async_trait]
impl management_server::Management for Appliance {
    async fn enrol(&self, request: Request<EnrolRequest>) -> Result<Response<EnrolResponse>, Status> {
        let request = request.into_inner();
        if request.token != TOKEN {
            return Err(Status::permission_denied("the token is wrong or was used; get a new one"));
        }
        Ok(Response::new(self.sign(&request.certificate_request_pem)))
    }

    async fn locate(&self, request: Request<LocateRequest>) -> Result<Response<LocateResponse>, Status> {
        require_certificate(&request)?;
        let data_addresses = vec!["127.0.0.1:1".to_owned(), self.address.to_string()];
        Ok(Response::new(LocateResponse { data_addresses, tls_name: "ps-0.berlin.lifeboat".to_owned() }))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<EnrolResponse>, Status> {
        require_certificate(&request)?;
        *self.renewals.lock().unwrap() += 1;
        Ok(Response::new(self.sign(&request.into_inner().certificate_request_pem)))
    }
}

#[tonic::async_trait]
impl replication_server::Replication for Appliance {
    type ReplicateStream = std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<Down, Status>> + Send>>;

    /// Answers each Hello with a refusal that repeats the server's id, each chunk with `Received`.
    async fn replicate(
        &self,
        request: Request<Streaming<Up>>,
    ) -> Result<Response<Self::ReplicateStream>, Status> {
        require_certificate(&request)?;
        let answers = request.into_inner().map(|message| {
            let message = match message?.message {
                Some(v1::up::Message::Hello(hello)) => {
                    v1::down::Message::Refused(v1::Refused { reason: hello.server_id, ..Default::default() })
                }
                Some(v1::up::Message::Chunk(chunk)) => {
                    v1::down::Message::Received(v1::Received { number: chunk.data.len() as u64 })
                }
                _ => return Err(Status::invalid_argument("unexpected")),
            };
            Ok(Down { message: Some(message) })
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

#[tokio::test]
async fn an_enrolled_agent_reaches_its_process_server_over_mutual_tls_1_3() {
    let appliance = Appliance::start().await;
    let folder = tempfile::tempdir().unwrap();
    let state = StateDir::new(folder.path().join("state"));
    let identity = enrol::enrol(&appliance.invitation(TOKEN), &Machine::default(), &state).await.unwrap();
    assert_eq!(identity.server.as_str(), SERVER_ID);
    assert_eq!(state.load().unwrap(), identity);

    let (_renewed, identity) = watch::channel(identity);
    let mut connection = Dialler::new(identity).dial().await.unwrap();
    let hello = v1::Hello { server_id: SERVER_ID.to_owned(), ..Default::default() };
    connection.up.send(Up { message: Some(v1::up::Message::Hello(hello)) }).await.unwrap();
    let answer = connection.down.recv().await.unwrap().message;
    assert!(matches!(answer, Some(v1::down::Message::Refused(refused)) if refused.reason == SERVER_ID));

    // A full chunk passes in one message.
    let chunk = v1::Chunk { data: vec![7; 4 << 20].into(), ..Default::default() };
    connection.up.send(Up { message: Some(v1::up::Message::Chunk(chunk)) }).await.unwrap();
    let answer = connection.down.recv().await.unwrap().message;
    assert!(matches!(answer, Some(v1::down::Message::Received(received)) if received.number == 4 << 20));

    let versions = appliance.versions.lock().unwrap().clone();
    assert!(
        versions.iter().all(|version| *version == Some(rustls::ProtocolVersion::TLSv1_3)),
        "{versions:?}"
    );
}

#[tokio::test]
async fn a_wrong_token_is_refused_in_the_appliances_words_and_nothing_is_kept() {
    let appliance = Appliance::start().await;
    let folder = tempfile::tempdir().unwrap();
    let state = StateDir::new(folder.path().join("state"));
    let refused =
        enrol::enrol(&appliance.invitation("wrong"), &Machine::default(), &state).await.unwrap_err();
    assert!(chain(&refused).contains("get a new one"), "{}", chain(&refused));
    assert!(!chain(&refused).contains("wrong\""));
    assert!(state.load().is_err());
}

#[tokio::test]
async fn another_key_than_the_pinned_one_does_not_get_the_token() {
    let appliance = Appliance::start().await;
    let folder = tempfile::tempdir().unwrap();
    let mut invitation = appliance.invitation(TOKEN);
    invitation.pinned = Some("sha256//AAAA".to_owned());
    let refused = enrol::enrol(&invitation, &Machine::default(), &StateDir::new(folder.path())).await;
    let refused = refused.unwrap_err();
    assert!(matches!(refused, EnrolError::Management(_)));
    assert!(chain(&refused).contains("sha256//AAAA"), "{}", chain(&refused));
}

#[tokio::test]
async fn a_certificate_is_renewed_with_the_same_key() {
    let appliance = Appliance::start().await;
    let folder = tempfile::tempdir().unwrap();
    let state = StateDir::new(folder.path());
    let identity = enrol::enrol(&appliance.invitation(TOKEN), &Machine::default(), &state).await.unwrap();
    let management = Management {
        addresses: identity.management.clone(),
        tls: tls::mutual(&identity).unwrap(),
        pinned: None,
        connector: Connector::default(),
    };
    let request = enrol::signing_request(&identity.key_pem, SERVER_ID).unwrap();
    let answer = management.renew(&request).await.unwrap();
    assert_eq!(*appliance.renewals.lock().unwrap(), 1);
    let renewed = lifeboat_agent::state::Identity { certificate_pem: answer.certificate_pem, ..identity };
    tls::mutual(&renewed).expect("the old key fits the new certificate");
}

#[tokio::test]
async fn an_appliance_that_does_not_answer_is_named_with_what_to_check() {
    let appliance = Appliance::start().await;
    let folder = tempfile::tempdir().unwrap();
    let mut invitation = appliance.invitation(TOKEN);
    invitation.management = vec!["127.0.0.1:1".to_owned()];
    let error =
        enrol::enrol(&invitation, &Machine::default(), &StateDir::new(folder.path())).await.unwrap_err();
    let text = chain(&error);
    assert!(text.contains("127.0.0.1:1") && text.contains("firewalls"), "{text}");
}

/// Nobody answers; which addresses were tried.
#[derive(Debug, Default)]
struct Silence(Mutex<Vec<String>>);

#[async_trait::async_trait]
impl Pipes for Silence {
    async fn open(&self, address: &str) -> Result<Box<dyn Pipe>, ConnectError> {
        self.0.lock().unwrap().push(address.to_owned());
        std::future::pending().await
    }
}

/// A node that is gone without a word takes all the time that a dial has.
#[tokio::test]
async fn a_management_address_that_hangs_does_not_keep_the_agent_from_the_next_one() {
    let appliance = Appliance::start().await;
    let folder = tempfile::tempdir().unwrap();
    let state = StateDir::new(folder.path().join("state"));
    let mut identity = enrol::enrol(&appliance.invitation(TOKEN), &Machine::default(), &state).await.unwrap();
    identity.management = ["a:443", "b:443", "c:443"].map(str::to_owned).to_vec();
    let (_renewed, identity) = watch::channel(identity);
    let pipes = Arc::new(Silence::default());
    let connector = Connector { pipes: pipes.clone(), planted: None };
    let dialler = Dialler::over(identity, connector);
    for _ in 0..4 {
        let given_up = tokio::time::timeout(std::time::Duration::from_millis(20), dialler.dial()).await;
        assert!(given_up.is_err());
    }
    assert_eq!(*pipes.0.lock().unwrap(), ["a:443", "b:443", "c:443", "a:443"]);
}
