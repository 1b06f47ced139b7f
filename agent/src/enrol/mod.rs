//! Enrolment: exchanges a one-time token for a certificate of this server. The key is made here and stays here.
//!
//! Repeating is safe while the token is: nothing is stored before the certificate has come. A token that was used
//! (or an answer that was lost) needs a new one.

use lifeboat_replication::{ids::InvalidServerId, wire::v1::EnrolRequest};
use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};

use crate::{
    core::Machine,
    net::{
        connect::Connector,
        management::{Management, ManagementError},
        tls::{self, TlsError},
    },
    state::{Identity, Secret, StateDir, StateError},
};

#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    #[error(
        "the agent's key cannot be made or read: {reason}; enrol again with the command that `kubectl lifeboat enroll` prints"
    )]
    Key { reason: String },
    #[error("the appliance's CA is not usable")]
    Tls(#[from] TlsError),
    #[error("enrolment failed")]
    Management(#[from] ManagementError),
    #[error("the appliance answered with {0}; agent and appliance may be at most one minor version apart")]
    ServerId(#[from] InvalidServerId),
    #[error("the certificate cannot be kept")]
    State(#[from] StateError),
}

/// What the command on the machine is given.
#[derive(Debug, Clone)]
pub struct Invitation {
    pub management: Vec<String>,
    pub ca_pem: String,
    /// `sha256//…` of the management key.
    pub pinned: Option<String>,
    pub token: Secret,
}

/// A PKCS#10 request in PEM for the key; the appliance decides what the certificate says.
pub fn signing_request(key_pem: &Secret, name: &str) -> Result<String, EnrolError> {
    let key =
        KeyPair::from_pem(key_pem.reveal()).map_err(|error| EnrolError::Key { reason: error.to_string() })?;
    request(&key, name)
}

fn request(key: &KeyPair, name: &str) -> Result<String, EnrolError> {
    let wrong = |error: rcgen::Error| EnrolError::Key { reason: error.to_string() };
    let mut params = CertificateParams::new(Vec::new()).map_err(wrong)?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.serialize_request(key).and_then(|request| request.pem()).map_err(wrong)
}

/// Enrols this machine and stores who it is.
pub async fn enrol(
    invitation: &Invitation,
    machine: &Machine,
    state: &StateDir,
) -> Result<Identity, EnrolError> {
    // Before the token is spent.
    state.create()?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
        .map_err(|error| EnrolError::Key { reason: error.to_string() })?;
    let Machine { hostname, os, kernel, machine_id, agent_version, program_sha256: _ } = machine.clone();
    let call = EnrolRequest {
        token: invitation.token.reveal().to_owned(),
        certificate_request_pem: request(&key, &hostname)?,
        hostname,
        machine_id,
        os,
        kernel,
        agent_version,
    };
    let management = Management {
        addresses: invitation.management.clone(),
        tls: tls::anonymous(&invitation.ca_pem)?,
        pinned: invitation.pinned.clone(),
        connector: Connector::default(),
    };
    let answer = management.enrol(&call).await?;
    let identity = Identity {
        server: answer.server_id.parse()?,
        key_pem: Secret::new(key.serialize_pem()),
        certificate_pem: answer.certificate_pem,
        ca_pem: if answer.ca_pem.is_empty() { invitation.ca_pem.clone() } else { answer.ca_pem },
        management: match answer.management_addresses.is_empty() {
            true => invitation.management.clone(),
            false => answer.management_addresses,
        },
    };
    tls::mutual(&identity)?;
    state.save(&identity)?;
    Ok(identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_is_signed_by_the_key_and_renewals_use_the_same_one() {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let pem = Secret::new(key.serialize_pem());
        let request = signing_request(&pem, "db-1").unwrap();
        let parsed = rcgen::CertificateSigningRequestParams::from_pem(&request).unwrap();
        assert_eq!(
            rcgen::PublicKeyData::der_bytes(&parsed.public_key),
            rcgen::PublicKeyData::der_bytes(&key)
        );
    }
}
