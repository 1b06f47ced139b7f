//! TLS settings from files that may change at any time (Kubernetes swaps mounted Secrets under a running pod).

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use tokio::{fs, sync::watch, time::sleep};

use lifeboat_replication::errors::chain;

/// A renewed certificate is used this long after it is on disk, at the latest.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{path} cannot be read: the operator writes it into a Secret mounted there")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} holds no valid PEM: delete its Secret, the operator makes it anew")]
    Pem { path: PathBuf },
    #[error("certificate, key and CA do not fit together: delete the Secret, the operator makes it anew")]
    Unusable(#[source] rustls::Error),
    #[error(
        "the CA's certificates cannot be used to verify clients: delete the CA's Secret's ca.crt and let the operator write it"
    )]
    Verifier(#[source] rustls::server::VerifierBuilderError),
}

/// Whether a client must show a certificate. One that is shown is always verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCertificate {
    Required,
    Optional,
}

/// Where a port's TLS settings come from.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// tls.crt and tls.key.
    pub own: PathBuf,
    /// The CA that signs agents and the operator; several certificates while it is renewed.
    pub ca: PathBuf,
    pub clients: ClientCertificate,
    /// Protocols offered (ALPN), most wanted first.
    pub protocols: &'static [&'static [u8]],
}

/// What is in them, in PEM.
#[derive(PartialEq, Eq)]
pub struct Content {
    pub certificate: Vec<u8>,
    pub key: Vec<u8>,
    pub ca: Vec<u8>,
}

/// Settings and what others want to know of them.
#[derive(Debug, Clone)]
pub struct Tls {
    pub server: Arc<ServerConfig>,
    /// DNS names of the own certificate.
    pub names: Vec<String>,
}

impl TlsFiles {
    /// Reads them and goes on to look at them: [`Reloader::run`] puts every change into the channel.
    pub async fn load(self) -> Result<(watch::Receiver<Tls>, Reloader), TlsError> {
        let content = self.read().await?;
        let tls = self.build(&content)?;
        let (changed, receiver) = watch::channel(tls);
        Ok((receiver, Reloader { files: self, content, changed }))
    }

    async fn read(&self) -> Result<Content, TlsError> {
        Ok(Content {
            certificate: read(&self.own.join("tls.crt")).await?,
            key: read(&self.own.join("tls.key")).await?,
            ca: read(&self.ca).await?,
        })
    }

    /// Settings from what the files hold.
    pub fn build(&self, content: &Content) -> Result<Tls, TlsError> {
        let chain = certificates(&content.certificate, &self.own.join("tls.crt"))?;
        let key = PrivateKeyDer::from_pem_slice(&content.key)
            .map_err(|_| TlsError::Pem { path: self.own.join("tls.key") })?;
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&content.ca, &self.ca)? {
            roots.add(certificate).map_err(TlsError::Unusable)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let verifier = match self.clients {
            ClientCertificate::Required => verifier,
            ClientCertificate::Optional => verifier.allow_unauthenticated(),
        };
        let names = chain.first().map(|own| super::peer::dns_names(own)).unwrap_or_default();
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(TlsError::Unusable)?
            .with_client_cert_verifier(verifier.build().map_err(TlsError::Verifier)?)
            .with_single_cert(chain, key)
            .map_err(TlsError::Unusable)?;
        server.alpn_protocols = self.protocols.iter().map(|protocol| protocol.to_vec()).collect();
        // No resumption: every connection proves its certificate anew.
        server.send_tls13_tickets = 0;
        Ok(Tls { server: Arc::new(server), names })
    }
}

/// Looks at the files again and again.
pub struct Reloader {
    files: TlsFiles,
    content: Content,
    changed: watch::Sender<Tls>,
}

impl Reloader {
    pub async fn run(mut self) {
        loop {
            sleep(LOOK_INTERVAL).await;
            self.look().await;
        }
    }

    /// Files that do not fit together are left alone: they are looked at again, the old settings stay.
    async fn look(&mut self) {
        let content = match self.files.read().await {
            Ok(content) if content == self.content => return,
            Ok(content) => content,
            Err(error) => return tracing::warn!(error = %chain(&error), "certificate not reloaded"),
        };
        match self.files.build(&content) {
            Ok(tls) => {
                tracing::info!(directory = %self.files.own.display(), "certificate reloaded");
                self.content = content;
                self.changed.send_replace(tls);
            }
            Err(error) => tracing::warn!(error = %chain(&error), "certificate not reloaded"),
        }
    }
}

async fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).await.map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

fn certificates(pem: &[u8], path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match parsed {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(TlsError::Pem { path: path.to_owned() }),
    }
}
