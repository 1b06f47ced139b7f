//! The control port's TLS: version 1.3, and only clients with the operator's certificate. The files are read for each
//! connection (they are few), so that a renewed certificate or CA is used at once.

use std::{io, path::Path, sync::Arc, time::Duration};

use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// URI in the operator's certificate.
const OPERATOR_URI: &str = "lifeboat:operator";
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// Handshakes at a time: what somebody without a certificate can hold.
const HANDSHAKES: usize = 16;

pub(super) type Incoming = ReceiverStream<io::Result<TlsStream<TcpStream>>>;

/// Connections of the operator. The returned task accepts until the stream is dropped.
pub(super) fn accept(
    listener: TcpListener,
    dir: &Path,
) -> (Incoming, impl Future<Output = ()> + Send + use<>) {
    let (ready, incoming) = mpsc::channel(1);
    (ReceiverStream::new(incoming), run(listener, dir.to_owned(), ready))
}

async fn run(
    listener: TcpListener,
    dir: std::path::PathBuf,
    ready: mpsc::Sender<io::Result<TlsStream<TcpStream>>>,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    let mut running = JoinSet::new();
    loop {
        let Ok(slot) = Arc::clone(&handshakes).acquire_owned().await else { return };
        let accepted = tokio::select! {
            biased;
            () = ready.closed() => return,
            Some(_) = running.join_next(), if !running.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        let Ok((tcp, address)) = accepted else {
            tokio::time::sleep(Duration::from_millis(200)).await;
            continue;
        };
        let (dir, ready) = (dir.clone(), ready.clone());
        running.spawn(async move {
            let shaken = timeout(HANDSHAKE_LIMIT, shake(tcp, &dir))
                .await
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            drop(slot);
            match shaken {
                Ok(stream) => drop(ready.send(Ok(stream)).await),
                Err(error) => tracing::info!(%address, %error, "connection to the control port refused"),
            }
        });
    }
}

async fn shake(tcp: TcpStream, dir: &Path) -> io::Result<TlsStream<TcpStream>> {
    let stream = TlsAcceptor::from(Arc::new(settings(dir)?)).accept(tcp).await?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    if certificate.is_some_and(|certificate| is_operator(certificate)) {
        return Ok(stream);
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, "only the operator's certificate is taken here"))
}

fn is_operator(certificate: &[u8]) -> bool {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return false };
    let names = parsed.subject_alternative_name().ok().flatten();
    names.is_some_and(|names| names.value.general_names.contains(&GeneralName::URI(OPERATOR_URI)))
}

/// TLS settings from tls.crt, tls.key and ca.crt.
///
/// # Errors
/// When a file is missing or they do not fit together; the message says which.
pub(super) fn settings(dir: &Path) -> io::Result<ServerConfig> {
    let read = |name: &str| {
        let path = dir.join(name);
        std::fs::read(&path).map_err(|error| {
            io::Error::new(
                error.kind(),
                format!(
                    "{} cannot be read ({error}): the operator's Secret is mounted there",
                    path.display()
                ),
            )
        })
    };
    let unusable = |what: &str, error: &dyn std::fmt::Display| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "{what} in {} is not usable ({error}): delete its Secret, the operator makes it anew",
                dir.display()
            ),
        )
    };
    let chain = CertificateDer::pem_slice_iter(&read("tls.crt")?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| unusable("tls.crt", &error))?;
    let key =
        PrivateKeyDer::from_pem_slice(&read("tls.key")?).map_err(|error| unusable("tls.key", &error))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&read("ca.crt")?) {
        let certificate = certificate.map_err(|error| unusable("ca.crt", &error))?;
        roots.add(certificate).map_err(|error| unusable("ca.crt", &error))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|error| unusable("ca.crt", &error))?;
    let mut settings = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| unusable("TLS", &error))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|error| unusable("tls.crt or tls.key", &error))?;
    settings.alpn_protocols = vec![b"h2".to_vec()];
    settings.send_tls13_tickets = 0;
    Ok(settings)
}
