//! TLS as the agent speaks it: version 1.3 only, the appliance's own CA only, the agent's certificate.

use std::sync::Arc;

use base64::Engine as _;
use rustls::{
    CipherSuite, ClientConfig, RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use crate::state::Identity;

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error(
        "the {what} is not usable: {reason}; enrol again with the command that `kubectl lifeboat enroll` prints"
    )]
    Material { what: &'static str, reason: String },
}

fn material(what: &'static str) -> impl Fn(&dyn std::fmt::Display) -> TlsError {
    move |reason| TlsError::Material { what, reason: reason.to_string() }
}

/// With the agent's certificate.
pub fn mutual(identity: &Identity) -> Result<Arc<ClientConfig>, TlsError> {
    let (certificate, key) = (material("certificate"), material("private key"));
    let chain = CertificateDer::pem_slice_iter(identity.certificate_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| certificate(&error))?;
    let private =
        PrivateKeyDer::from_pem_slice(identity.key_pem.reveal().as_bytes()).map_err(|error| key(&error))?;
    let config =
        builder(&identity.ca_pem)?.with_client_auth_cert(chain, private).map_err(|error| key(&error))?;
    Ok(finished(config))
}

/// Without one, for enrolment.
pub fn anonymous(ca_pem: &str) -> Result<Arc<ClientConfig>, TlsError> {
    Ok(finished(builder(ca_pem)?.with_no_client_auth()))
}

fn builder(
    ca_pem: &str,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, TlsError> {
    let ca = material("CA certificate");
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        let certificate = certificate.map_err(|error| ca(&error))?;
        roots.add(certificate).map_err(|error| ca(&error))?;
    }
    if roots.is_empty() {
        return Err(ca(&"it holds no certificate"));
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| ca(&error))?;
    Ok(builder.with_root_certificates(roots))
}

/// Where the processor has no AES instructions (emulated machines, old ones), ChaCha20 comes first: AES would cost
/// several times as much, and all data goes through it.
fn provider() -> CryptoProvider {
    let mut provider = rustls::crypto::ring::default_provider();
    if !std::is_x86_feature_detected!("aes") {
        provider
            .cipher_suites
            .sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_CHACHA20_POLY1305_SHA256);
    }
    provider
}

fn finished(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// `sha256//…` of a certificate's public key, as `curl --pinnedpubkey` writes it.
pub fn pin(certificate: &[u8]) -> Result<String, TlsError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|error| material("server's certificate")(&error))?;
    let digest = ring::digest::digest(&ring::digest::SHA256, parsed.public_key().raw);
    Ok(format!("sha256//{}", base64::engine::general_purpose::STANDARD.encode(digest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ca_file_without_a_certificate_is_refused_with_the_remedy() {
        let refused = anonymous("nothing").unwrap_err().to_string();
        assert!(refused.contains("kubectl lifeboat enroll"), "{refused}");
    }
}
