//! The ports on loopback with real TLS: who gets in, who does not, and what is said to them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::{future::poll_fn, net::SocketAddr, sync::Arc, time::Duration};

use lifeboat_process_server::{
    core::{agent_program::Served, space::Space, status::Status},
    directory::Directory,
    edge::persisted::PersistedConfiguration,
    net::{
        control::{self, ControlPort},
        data::{self, DataPort},
        downloads::Downloads,
        listener::{self, Incoming, Limits},
        management::{self, ManagementPort},
        signing::SignDesk,
        tls::{ClientCertificate, Tls, TlsFiles},
    },
    report::Sources,
    servers::{Member, Members},
};
use lifeboat_replication::{
    env::Env,
    wire::{
        Accepted, MAX_MESSAGE_BYTES,
        v1::{
            self, management_client::ManagementClient,
            process_server_control_client::ProcessServerControlClient, replication_client::ReplicationClient,
        },
    },
};
use support::pki::{Ca, Leaf};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code,
    codegen::{Body as _, Service as _, http},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

const SERVER: &str = "11111111-1111-4111-8111-111111111111";
const OTHER: &str = "22222222-2222-4222-8222-222222222222";
const SERVED_AGENT: [u8; 32] = [5; 32];

fn agent_uri(id: &str) -> String {
    format!("lifeboat:server:{id}")
}

/// A process server's ports with a CA, two enrolled servers (the second one elsewhere), and no vault.
struct Ports {
    ca: Ca,
    agent: Leaf,
    other: Leaf,
    dir: tempfile::TempDir,
    directory: Arc<watch::Sender<Option<Arc<Directory>>>>,
    members: watch::Sender<Arc<Members>>,
    accepted: mpsc::Receiver<Accepted>,
    desk: Arc<SignDesk>,
    status: watch::Sender<Status>,
}

impl Ports {
    fn new() -> Self {
        let ca = Ca::new();
        let dir = tempfile::tempdir().unwrap();
        ca.listener().write(dir.path(), &ca);
        let (agent, other) = (ca.client(&agent_uri(SERVER)), ca.client(&agent_uri(OTHER)));
        let (status, statuses) = watch::channel(Status::default());
        let (connections, accepted) = mpsc::channel(2);
        let members = Members::from([(SERVER.to_owned(), Member { connections, status: statuses })]);
        let configuration = configuration(&agent, &other);
        Self {
            ca,
            agent,
            other,
            dir,
            directory: Arc::new(watch::Sender::new(Some(Arc::new(configuration.into())))),
            members: watch::Sender::new(Arc::new(members)),
            accepted,
            desk: Arc::default(),
            status,
        }
    }

    async fn tls(&self, clients: ClientCertificate) -> watch::Receiver<Tls> {
        let files = TlsFiles {
            own: self.dir.path().to_owned(),
            ca: self.dir.path().join("ca.crt"),
            clients,
            protocols: &[b"h2", b"http/1.1"],
        };
        files.load().await.unwrap().0
    }

    async fn listen(&self, clients: ClientCertificate, limits: Limits) -> (SocketAddr, Incoming) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (incoming, accepting) = listener::accept(listener, self.tls(clients).await, limits, None);
        tokio::spawn(accepting);
        (address, incoming)
    }

    async fn data(&self) -> SocketAddr {
        let (address, incoming) = self.listen(ClientCertificate::Required, data::LIMITS).await;
        let port = DataPort::new("ps-0".into(), self.directory.subscribe(), self.members.subscribe());
        tokio::spawn(port.serve(incoming));
        address
    }

    async fn management(&self) -> SocketAddr {
        let (address, incoming) = self.listen(ClientCertificate::Optional, management::LIMITS).await;
        let port = ManagementPort {
            name: "ps-0".into(),
            directory: self.directory.subscribe(),
            desk: Arc::clone(&self.desk),
            data_tls: self.tls(ClientCertificate::Required).await,
        };
        let script = self.dir.path().join("install.sh");
        std::fs::write(&script, "#!/bin/sh\n").unwrap();
        let agent = self.dir.path().join("lifeboat-agent");
        let downloads = Downloads::load(&script, &agent).await;
        tokio::spawn(port.serve(incoming, downloads.routes()));
        address
    }

    async fn control(&self) -> SocketAddr {
        let (address, incoming) = self.listen(ClientCertificate::Required, control::LIMITS).await;
        let sources = Sources {
            name: "ps-0".into(),
            env: Env::system(),
            directory: self.directory.subscribe(),
            members: self.members.subscribe(),
            space: Space::spool(64 << 20),
            vault_closed: watch::channel("the vault is away".to_owned()).1,
            store_trouble: watch::channel(String::new()).1,
            groups: watch::channel(Vec::new()).1,
            served_agent: Served { sha256: Some(SERVED_AGENT), version: "0.1.0" },
        };
        let port = ControlPort {
            desk: Arc::clone(&self.desk),
            sources,
            directory: Arc::clone(&self.directory),
            persisted: PersistedConfiguration::new(self.dir.path()),
        };
        tokio::spawn(port.serve(incoming));
        address
    }

    async fn channel(
        &self,
        address: SocketAddr,
        client: Option<&Leaf>,
    ) -> Result<Channel, tonic::transport::Error> {
        let mut tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.ca.pem))
            .domain_name("ps-0.main.lifeboat");
        if let Some(leaf) = client {
            tls = tls.identity(Identity::from_pem(&leaf.certificate, &leaf.key));
        }
        let endpoint = Endpoint::from_shared(format!("https://{address}")).unwrap();
        endpoint.tls_config(tls).unwrap().timeout(Duration::from_secs(10)).connect().await
    }

    /// What an agent with this certificate gets: the first message down, or the refusal.
    async fn replicate(&self, address: SocketAddr, client: Option<&Leaf>) -> Result<Talk, tonic::Status> {
        let unavailable = |error: tonic::transport::Error| tonic::Status::unavailable(error.to_string());
        let channel = self.channel(address, client).await.map_err(unavailable)?;
        let (up, messages) = mpsc::channel(4);
        let hello = v1::Hello { server_id: SERVER.into(), ..Default::default() };
        up.send(v1::Up { message: Some(v1::up::Message::Hello(hello)) }).await.unwrap();
        let down =
            ReplicationClient::new(channel).replicate(ReceiverStream::new(messages)).await?.into_inner();
        Ok(Talk { up, down })
    }
}

struct Talk {
    up: mpsc::Sender<v1::Up>,
    down: tonic::Streaming<v1::Down>,
}

impl Talk {
    async fn next(&mut self) -> Option<v1::down::Message> {
        timeout(Duration::from_secs(10), self.down.message()).await.unwrap().ok().flatten()?.message
    }
}

fn configuration(agent: &Leaf, other: &Leaf) -> v1::Configuration {
    let assignment = |id: &str, process_server: &str, leaf: &Leaf| v1::Assignment {
        server_id: id.into(),
        display_name: format!("default/{process_server}"),
        process_server: process_server.into(),
        public_key_sha256: leaf.public_key_sha256.clone(),
        ..Default::default()
    };
    v1::Configuration {
        generation: 7,
        servers: vec![assignment(SERVER, "ps-0", agent), assignment(OTHER, "ps-1", other)],
        process_servers: vec![
            v1::ProcessServerAddress { name: "ps-0".into(), data_addresses: vec!["10.0.0.1:9443".into()] },
            v1::ProcessServerAddress { name: "ps-1".into(), data_addresses: vec!["10.0.0.2:9443".into()] },
        ],
        management_addresses: vec!["10.0.0.9:443".into()],
        upload_limit_bytes_per_second: 5 << 20,
    }
}

#[tokio::test]
async fn an_enrolled_agent_reaches_its_servers_ingest() {
    let mut ports = Ports::new();
    let address = ports.data().await;
    let mut talk = ports.replicate(address, Some(&ports.agent)).await.unwrap();
    let mut accepted = ports.accepted.recv().await.unwrap();
    assert_eq!(accepted.server_id, SERVER);
    assert!(matches!(accepted.up.recv().await.unwrap().message, Some(v1::up::Message::Hello(_))));
    let welcome = v1::down::Message::Welcome(v1::Welcome { last_number: 4, ..Default::default() });
    accepted.down.send(v1::Down { message: Some(welcome.clone()) }).await.unwrap();
    assert_eq!(talk.next().await, Some(welcome));
    // Either end going is seen at the other one.
    drop(accepted);
    assert_eq!(talk.next().await, None);
    drop(talk);
}

#[tokio::test]
async fn without_a_certificate_or_with_one_of_another_ca_the_handshake_fails() {
    let ports = Ports::new();
    let address = ports.data().await;
    let stranger = Ca::new().client(&agent_uri(SERVER));
    for client in [None, Some(&stranger)] {
        // TLS 1.3 tells the client after its own handshake, so the first call sees it at the latest.
        let refused = ports.replicate(address, client).await.err().expect("refused");
        assert!(!matches!(refused.code(), Code::Ok | Code::PermissionDenied), "{refused:?}");
    }
}

#[tokio::test]
async fn another_servers_certificate_is_sent_to_its_own_process_server() {
    let ports = Ports::new();
    let address = ports.data().await;
    let mut talk = ports.replicate(address, Some(&ports.other)).await.unwrap();
    let redirect = v1::down::Message::Redirect(v1::Redirect { address: "10.0.0.2:9443".into() });
    assert_eq!(talk.next().await, Some(redirect));
}

#[tokio::test]
async fn a_certificate_that_was_replaced_or_is_for_no_server_is_refused_with_the_remedy() {
    let ports = Ports::new();
    let address = ports.data().await;
    let replaced = ports.ca.client(&agent_uri(SERVER));
    let refused = ports.replicate(address, Some(&replaced)).await.err().unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("enrol this machine again"), "{refused:?}");
    let unknown = ports.ca.client(&agent_uri("33333333-3333-4333-8333-333333333333"));
    let refused = ports.replicate(address, Some(&unknown)).await.err().unwrap();
    assert!(refused.message().contains("not protected by this appliance"), "{refused:?}");
    let operator = ports.ca.client("lifeboat:operator");
    let refused = ports.replicate(address, Some(&operator)).await.err().unwrap();
    assert!(refused.message().contains("certificate of an enrolled server"), "{refused:?}");
}

#[tokio::test]
async fn a_later_enrolment_ends_the_connection_of_the_older_certificate() {
    let mut ports = Ports::new();
    let address = ports.data().await;
    let _talk = ports.replicate(address, Some(&ports.agent)).await.unwrap();
    let mut accepted = ports.accepted.recv().await.unwrap();
    assert!(accepted.up.recv().await.is_some());
    let again = ports.ca.client(&agent_uri(SERVER));
    ports.directory.send_replace(Some(Arc::new(configuration(&again, &ports.other).into())));
    assert!(timeout(Duration::from_secs(10), accepted.up.recv()).await.unwrap().is_none());
}

#[tokio::test]
async fn one_server_cannot_open_streams_without_end() {
    let mut ports = Ports::new();
    let address = ports.data().await;
    let mut held = Vec::new();
    for _ in 0..4 {
        let talk = ports.replicate(address, Some(&ports.agent)).await.unwrap();
        held.push((talk, ports.accepted.recv().await.unwrap()));
    }
    assert!(ports.replicate(address, Some(&ports.agent)).await.is_err());
}

/// From the client's side an address of its own, as far as the listener can see.
async fn silent(address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    socket.connect(address).await.unwrap()
}

/// Connections that never say anything: those that are too many are closed at once, and others still come in.
#[tokio::test]
async fn one_address_cannot_hold_all_handshakes() {
    let mut ports = Ports::new();
    let address = ports.data().await;
    let mut held = Vec::new();
    for _ in 0..300 {
        held.push(silent(address).await);
    }
    let talk = ports.replicate(address, Some(&ports.agent)).await.unwrap();
    ports.accepted.recv().await.unwrap();
    let mut byte = [0];
    let closed = timeout(Duration::from_secs(10), held[299].read(&mut byte)).await.unwrap();
    assert!(matches!(closed, Ok(0) | Err(_)), "the last one is not closed: {closed:?}");
    drop(talk);
}

/// A chunk that no buffer is made for, and headers without end: the connection or stream ends, the port lives.
#[tokio::test]
async fn a_message_or_headers_without_measure_end_their_stream_and_nothing_else() {
    let mut ports = Ports::new();
    let address = ports.data().await;
    let talk = ports.replicate(address, Some(&ports.agent)).await.unwrap();
    let mut accepted = ports.accepted.recv().await.unwrap();
    assert!(accepted.up.recv().await.is_some(), "the Hello");
    let huge = v1::Chunk { data: vec![1; MAX_MESSAGE_BYTES + 1].into(), ..Default::default() };
    talk.up.send(v1::Up { message: Some(v1::up::Message::Chunk(huge)) }).await.unwrap();
    assert!(timeout(Duration::from_secs(10), accepted.up.recv()).await.unwrap().is_none());
    drop((talk, accepted));

    let channel = ports.channel(address, Some(&ports.agent)).await.unwrap();
    let (_up, messages) = mpsc::channel(1);
    let mut request = tonic::Request::new(ReceiverStream::new(messages));
    request.metadata_mut().insert("x-padding", "x".repeat(64 << 10).parse().unwrap());
    assert!(ReplicationClient::new(channel).replicate(request).await.is_err());

    ports.replicate(address, Some(&ports.agent)).await.unwrap();
    ports.accepted.recv().await.unwrap();
}

#[tokio::test]
async fn tls_1_2_is_not_spoken() {
    let ports = Ports::new();
    let address = ports.data().await;
    let error = raw(&ports, address, &[&rustls::version::TLS12]).await.unwrap_err();
    assert!(error.to_string().to_lowercase().contains("protocol"), "{error}");
}

#[tokio::test]
async fn location_needs_the_certificate_and_names_the_process_server() {
    let ports = Ports::new();
    let address = ports.management().await;
    let mut nobody = ManagementClient::new(ports.channel(address, None).await.unwrap());
    let refused = nobody.locate(v1::LocateRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let mut other = ManagementClient::new(ports.channel(address, Some(&ports.other)).await.unwrap());
    let located = other.locate(v1::LocateRequest {}).await.unwrap().into_inner();
    assert_eq!(located.data_addresses, ["10.0.0.2:9443"]);
    assert_eq!(located.tls_name, "ps-1.main.lifeboat");
}

#[tokio::test]
async fn enrolment_needs_no_certificate_and_is_signed_by_the_operator() {
    let ports = Ports::new();
    let (management, control) = (ports.management().await, ports.control().await);
    let mut machine = ManagementClient::new(ports.channel(management, None).await.unwrap());
    let request = v1::EnrolRequest {
        token: "once".into(),
        certificate_request_pem: "request".into(),
        hostname: "web".into(),
        ..Default::default()
    };
    let refused = machine.enrol(request.clone()).await.unwrap_err();
    assert!(refused.message().contains("operator is not connected"), "{refused:?}");

    let operator = ports.ca.client("lifeboat:operator");
    let channel = ports.channel(control, Some(&operator)).await.unwrap();
    let (orders, messages) = mpsc::channel(4);
    let attached =
        ProcessServerControlClient::new(channel).attach(ReceiverStream::new(messages)).await.unwrap();
    let mut attached = attached.into_inner();
    let signing = tokio::spawn(async move {
        loop {
            let message = attached.message().await.unwrap().unwrap().message;
            let Some(v1::from_process_server::Message::SignRequest(request)) = message else { continue };
            let refused =
                if request.token == "once" { String::new() } else { "the token was used".to_owned() };
            let answer = v1::SignAnswer {
                id: request.id,
                server_id: SERVER.into(),
                certificate_pem: request.hostname,
                refused,
                ..Default::default()
            };
            let message = Some(v1::from_operator::Message::SignAnswer(answer));
            orders.send(v1::FromOperator { message }).await.unwrap();
        }
    });
    let enrolled = machine.enrol(request.clone()).await.unwrap().into_inner();
    assert_eq!((enrolled.server_id.as_str(), enrolled.certificate_pem.as_str()), (SERVER, "web"));
    assert_eq!(enrolled.management_addresses, ["10.0.0.9:443"]);
    let refused = machine.enrol(v1::EnrolRequest { token: "again".into(), ..request }).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::PermissionDenied, "the token was used"));
    signing.abort();
}

#[tokio::test]
async fn only_the_operator_attaches_and_its_configuration_is_kept() {
    let ports = Ports::new();
    let address = ports.control().await;
    let channel = ports.channel(address, Some(&ports.agent)).await.unwrap();
    let (_orders, messages) = mpsc::channel(1);
    let refused =
        ProcessServerControlClient::new(channel).attach(ReceiverStream::new(messages)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);

    let operator = ports.ca.client("lifeboat:operator");
    let channel = ports.channel(address, Some(&operator)).await.unwrap();
    let (orders, messages) = mpsc::channel(1);
    let attached =
        ProcessServerControlClient::new(channel).attach(ReceiverStream::new(messages)).await.unwrap();
    let mut attached = attached.into_inner();
    ports.status.send_modify(|status| {
        let agent_sha256 = vec![6; 32];
        status.report.heartbeat = Some(v1::Heartbeat { agent_sha256, ..Default::default() });
    });
    let sent = v1::Configuration { generation: 12, ..configuration(&ports.agent, &ports.other) };
    let message = Some(v1::from_operator::Message::Configuration(sent.clone()));
    orders.send(v1::FromOperator { message }).await.unwrap();
    loop {
        let message =
            timeout(Duration::from_secs(10), attached.message()).await.unwrap().unwrap().unwrap().message;
        let Some(v1::from_process_server::Message::Report(report)) = message else { continue };
        assert_eq!((report.name.as_str(), report.vault_error.as_str()), ("ps-0", "the vault is away"));
        assert_eq!(report.servers.len(), 1);
        assert_eq!(report.servers[0].agent_program(), v1::AgentProgram::Other);
        if report.configuration_generation == 12 {
            assert_eq!(report.upload_limit_bytes_per_second, 5 << 20);
            break;
        }
    }
    let kept = PersistedConfiguration::new(ports.dir.path()).load().await;
    assert_eq!(kept, Some(sent));
}

/// As `lifeboat-agent upgrade` asks; what it makes of the answers is tested with the agent.
#[tokio::test]
async fn the_agent_is_served_over_http_2_with_its_sha_256_and_not_again_to_whoever_has_it() {
    let ports = Ports::new();
    let content = vec![9; 300_000];
    std::fs::write(ports.dir.path().join("lifeboat-agent"), &content).unwrap();
    let address = ports.management().await;
    let mut channel = ports.channel(address, Some(&ports.agent)).await.unwrap();
    let tag = format!("\"{}\"", hex::encode(ring::digest::digest(&ring::digest::SHA256, &content)));
    for (known, status, length) in [("\"00\"", 200, content.len()), (&*tag, 304, 0)] {
        let request = http::Request::get("/lifeboat-agent").header("If-None-Match", known);
        let request = request.body(tonic::body::Body::empty()).unwrap();
        poll_fn(|context| channel.poll_ready(context)).await.unwrap();
        let answer = channel.call(request).await.unwrap();
        assert_eq!(answer.status(), status);
        assert_eq!(answer.headers()["ETag"], tag);
        let mut body = Box::pin(answer.into_body());
        let mut received = Vec::new();
        while let Some(frame) = poll_fn(|context| body.as_mut().poll_frame(context)).await {
            received.extend(frame.unwrap().into_data().unwrap());
        }
        assert_eq!(received, content[..length]);
    }
}

#[tokio::test]
async fn the_installer_is_served_with_its_tag_and_size_over_plain_https() {
    let ports = Ports::new();
    let address = ports.management().await;
    let mut stream = raw(&ports, address, &[&rustls::version::TLS13]).await.unwrap();
    let answer = get(&mut stream, "/install.sh", "").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("content-length: 10\r\n") && answer.ends_with("#!/bin/sh\n"), "{answer}");
    let tag = answer.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap().to_owned();
    let mut stream = raw(&ports, address, &[&rustls::version::TLS13]).await.unwrap();
    let answer = get(&mut stream, "/install.sh", &format!("If-None-Match: {tag}\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 304"), "{answer}");
    let mut stream = raw(&ports, address, &[&rustls::version::TLS13]).await.unwrap();
    let answer = get(&mut stream, "/lifeboat-agent", "").await;
    assert!(answer.starts_with("HTTP/1.1 404") && answer.contains("no such file"), "{answer}");
}

type Raw = tokio_rustls::client::TlsStream<TcpStream>;

/// A TLS client without a certificate.
async fn raw(
    ports: &Ports,
    address: SocketAddr,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> std::io::Result<Raw> {
    use rustls::pki_types::{CertificateDer, pem::PemObject as _};
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ports.ca.pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = TcpStream::connect(address).await?;
    let name = "ps-0.main.lifeboat".try_into().unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await
}

async fn get(stream: &mut Raw, path: &str, headers: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // Whoever closes without a TLS goodbye has still said everything before.
    let _ = timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8(answer).unwrap()
}

/// Kubernetes swaps mounted Secrets under a running pod.
#[tokio::test(start_paused = true)]
async fn a_renewed_certificate_is_used_without_a_restart_and_a_broken_one_is_not() {
    let ca = Ca::new();
    let dir = tempfile::tempdir().unwrap();
    ca.listener().write(dir.path(), &ca);
    let files = TlsFiles {
        own: dir.path().to_owned(),
        ca: dir.path().join("ca.crt"),
        clients: ClientCertificate::Required,
        protocols: &[b"h2"],
    };
    let (mut tls, reloader) = files.load().await.unwrap();
    tokio::spawn(reloader.run());
    std::fs::write(dir.path().join("tls.crt"), "half a file").unwrap();
    assert!(timeout(Duration::from_secs(60), tls.changed()).await.is_err());
    ca.listener().write(dir.path(), &ca);
    assert!(timeout(Duration::from_secs(60), tls.changed()).await.is_ok());
}
