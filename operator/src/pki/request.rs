//! An agent's signing request: only its public key is used, after the request has proven to hold the private one.

use rcgen::{CertificateSigningRequestParams, PublicKey, PublicKeyData as _};

#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error(
        "the signing request cannot be read or is not signed with its own key: install the agent of this appliance's version"
    )]
    Invalid(#[source] rcgen::Error),
}

/// A request that proves possession of its key.
pub struct AgentRequest {
    params: CertificateSigningRequestParams,
}

impl AgentRequest {
    /// Parses PEM and verifies the request's own signature.
    pub fn parse(pem: &str) -> Result<Self, RequestError> {
        Ok(Self { params: CertificateSigningRequestParams::from_pem(pem).map_err(RequestError::Invalid)? })
    }

    pub(super) fn public_key(&self) -> &PublicKey {
        &self.params.public_key
    }

    /// SHA-256 of the public key: how a process server knows the agent again.
    pub fn public_key_sha256(&self) -> [u8; 32] {
        let digest =
            ring::digest::digest(&ring::digest::SHA256, &self.params.public_key.subject_public_key_info());
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        bytes
    }
}
