//! The Secret with a server's one-time token: made when there is none, never changed but by its use.
//!
//! Deleting it takes the enrolment back: the agent's key no longer counts, and a new token is made for another machine
//! or a new installation.

use std::collections::BTreeMap;

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::ResourceExt as _;
use lifeboat_crds::{
    ProtectedServer, ReplicationAppliance,
    names::{SERVER_LABEL, enrollment_secret},
};
use lifeboat_replication::env::Entropy;

use crate::{
    control::enrol::{EXPIRES_AT, TOKEN, TOKEN_LIFE, TOKEN_SHA256, new_token, token_sha256},
    controllers::shared::{labels, owned_by},
};

/// host:port of management, most wanted first, separated by spaces.
pub(super) const ADDRESSES: &str = "managementAddresses";
/// `sha256//<base64>`, for `curl --pinnedpubkey`.
pub(super) const PIN: &str = "managementPublicKey";
pub(super) const CA: &str = "ca.crt";

/// What the command on the machine needs beside the token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) addresses: Vec<String>,
    pub(super) pin: String,
    pub(super) ca_pem: String,
}

impl Endpoint {
    /// As far as the appliance has it in its status.
    pub(super) fn of(appliance: &ReplicationAppliance, ca_pem: Option<&str>) -> Option<Self> {
        let status = appliance.status.as_ref()?;
        let address = status.management_endpoint.as_ref()?.trim_start_matches("https://").to_owned();
        Some(Self {
            addresses: vec![address],
            pin: status.management_public_key.clone()?,
            ca_pem: ca_pem?.to_owned(),
        })
    }
}

pub(super) fn build(
    server: &ProtectedServer,
    server_id: &str,
    endpoint: &Endpoint,
    entropy: &dyn Entropy,
    now: jiff::Timestamp,
) -> Secret {
    let token = new_token(server_id, entropy);
    let life = jiff::SignedDuration::try_from(TOKEN_LIFE).unwrap_or_default();
    let expires = now.checked_add(life).unwrap_or(now);
    let content = [
        (TOKEN_SHA256, token_sha256(&token)),
        (TOKEN, token),
        (EXPIRES_AT, format!("{expires:.0}")),
        (ADDRESSES, endpoint.addresses.join(" ")),
        (PIN, endpoint.pin.clone()),
        (CA, endpoint.ca_pem.clone()),
    ];
    let data: BTreeMap<String, ByteString> =
        content.into_iter().map(|(key, value)| (key.to_owned(), ByteString(value.into_bytes()))).collect();
    let name = server.name_any();
    Secret {
        metadata: owned_by(server, &enrollment_secret(&name), labels([(SERVER_LABEL, &name)])),
        data: Some(data),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{control::enrol::Enrolment, controllers::protected_server::testing::server};

    #[test]
    fn a_token_expires_after_a_day_and_names_its_server() {
        let endpoint =
            Endpoint { addresses: vec!["dr:443".into()], pin: "sha256//x".into(), ca_pem: "pem".into() };
        let env = lifeboat_replication::env::Env::system();
        let secret = build(
            &server("db-1"),
            "an-id",
            &endpoint,
            &*env.entropy,
            "2026-03-01T00:00:00Z".parse().unwrap(),
        );
        assert_eq!(secret.metadata.name.as_deref(), Some("db-1-enrollment"));
        let enrolment = Enrolment::read(&secret);
        assert_eq!(enrolment.expires_at, Some("2026-03-02T00:00:00Z".parse().unwrap()));
        let token = String::from_utf8(secret.data.unwrap()[TOKEN].0.clone()).unwrap();
        assert!(token.starts_with("an-id.") && token.len() > 64, "{}", token.len());
    }
}
