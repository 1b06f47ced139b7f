//! Signs agents' requests: with a one-time token (enrolment), or for a server that proves who it is (renewal).
//!
//! The token `<server id>.<secret>` stands in Secret `<server>-enrollment` until it is used. Being used is written, with
//! the hash of the agent's public key and the Secret's `resourceVersion`, **before** the certificate is handed out. So
//! two agents cannot use one token, and an agent whose answer was lost may ask again with the same key.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use lifeboat_crds::{ProtectedServer, Reason, names};
use lifeboat_replication::{env::Entropy, errors::chain, wire::v1};
use serde_json::json;

use super::ApplianceKey;
use crate::{
    controllers::appliance::secrets,
    pki::{AgentRequest, Authority, PkiError, RequestError},
    runtime::Context,
};

/// How long a token may be used.
pub const TOKEN_LIFE: std::time::Duration = std::time::Duration::from_hours(24);
const TOKEN_BYTES: usize = 32;

pub const TOKEN: &str = "token";
pub const EXPIRES_AT: &str = "expiresAt";
pub const TOKEN_SHA256: &str = "tokenSha256";
pub const USED_AT: &str = "usedAt";
pub const PUBLIC_KEY: &str = "publicKeySha256";

#[derive(Debug, thiserror::Error)]
pub enum RefusedError {
    #[error("this token is not known: use the one that `kubectl lifeboat enroll` prints for this server")]
    Unknown,
    #[error("this token is wrong: use the one that `kubectl lifeboat enroll {server}` prints")]
    Wrong { server: String },
    #[error(
        "this token was used at {at} by another machine or installation: delete Secret {server}-enrollment to replace that machine, then run `kubectl lifeboat enroll {server}` again"
    )]
    Used { server: String, at: String },
    #[error(
        "this token expired at {at}: run `kubectl lifeboat enroll {server}` again, which prints a new one"
    )]
    Expired { server: String, at: String },
    #[error(
        "server {id} is not known here: its ProtectedServer was deleted; create it again and enrol the machine"
    )]
    NoServer { id: String },
    #[error(
        "the request for server {server} is made with another key than the enrolled one: enrol the machine again with `kubectl lifeboat enroll {server}` after deleting Secret {server}-enrollment"
    )]
    OtherKey { server: String },
    #[error("the request holds no usable key")]
    Request(#[from] RequestError),
    #[error("the certificate could not be signed")]
    Pki(#[from] PkiError),
    #[error("Kubernetes could not be asked; try again in a moment")]
    Api(#[from] kube::Error),
    #[error("the appliance's CA is not ready; try again in a moment")]
    NoAuthority,
}

/// A new token for a server.
pub fn new_token(server_id: &str, entropy: &dyn Entropy) -> String {
    let mut secret = [0; TOKEN_BYTES];
    entropy.fill(&mut secret);
    format!("{server_id}.{}", hex::encode(secret))
}

pub fn token_sha256(token: &str) -> String {
    hex::encode(ring::digest::digest(&ring::digest::SHA256, token.as_bytes()))
}

/// What a Secret of enrolment says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Enrolment {
    /// Of the token that is or was valid.
    pub token_sha256: String,
    pub expires_at: Option<jiff::Timestamp>,
    pub used_at: Option<jiff::Timestamp>,
    /// Of the agent that has used it.
    pub public_key_sha256: Vec<u8>,
}

impl Enrolment {
    pub fn read(secret: &Secret) -> Self {
        let text = |key: &str| {
            secret
                .data
                .as_ref()
                .and_then(|data| data.get(key))
                .and_then(|value| String::from_utf8(value.0.clone()).ok())
        };
        let time = |key: &str| text(key).and_then(|text| text.parse().ok());
        Self {
            token_sha256: text(TOKEN_SHA256).unwrap_or_default(),
            expires_at: time(EXPIRES_AT),
            used_at: time(USED_AT),
            public_key_sha256: text(PUBLIC_KEY).and_then(|text| hex::decode(text).ok()).unwrap_or_default(),
        }
    }

    /// Whether a token may be exchanged for a certificate over `key`.
    fn judge(&self, server: &str, token: &str, key: &[u8], now: jiff::Timestamp) -> Result<(), RefusedError> {
        let server = server.to_owned();
        // Hashes are compared, so the time it takes says nothing of the token.
        if self.token_sha256 != token_sha256(token) {
            return Err(RefusedError::Wrong { server });
        }
        match (self.used_at, self.expires_at) {
            (Some(_), _) if self.public_key_sha256 == key => Ok(()),
            (Some(at), _) => Err(RefusedError::Used { server, at: at.to_string() }),
            (None, Some(at)) if now >= at => Err(RefusedError::Expired { server, at: at.to_string() }),
            (None, Some(_)) => Ok(()),
            (None, None) => Err(RefusedError::Wrong { server }),
        }
    }
}

/// Answers signing requests.
#[derive(Clone)]
pub struct Registrar {
    context: Context,
}

impl Registrar {
    pub fn new(context: Context) -> Self {
        Self { context }
    }

    pub(super) async fn sign(&self, appliance: &ApplianceKey, request: v1::SignRequest) -> v1::SignAnswer {
        let id = request.id;
        match self.try_sign(appliance, &request).await {
            Ok(answer) => {
                self.context.metrics.enrolments.inc();
                v1::SignAnswer { id, ..answer }
            }
            Err(refused) => {
                self.context.metrics.enrolments_refused.inc();
                let refused = chain(&refused);
                tracing::warn!(
                    appliance = appliance.name,
                    hostname = request.hostname,
                    refused,
                    "signing request refused"
                );
                v1::SignAnswer { id, refused, ..v1::SignAnswer::default() }
            }
        }
    }

    async fn try_sign(
        &self,
        appliance: &ApplianceKey,
        request: &v1::SignRequest,
    ) -> Result<v1::SignAnswer, RefusedError> {
        let agent = AgentRequest::parse(&request.certificate_request_pem)?;
        let server_id = match request.token.split_once('.') {
            Some((id, _)) => id.to_owned(),
            None if request.token.is_empty() => request.server_id.clone(),
            None => return Err(RefusedError::Unknown),
        };
        let Some(server) = self.find(appliance, &server_id).await? else {
            return Err(if request.token.is_empty() {
                RefusedError::NoServer { id: server_id }
            } else {
                RefusedError::Unknown
            });
        };
        let accepted = if request.token.is_empty() {
            self.renew(appliance, &server, &agent).await
        } else {
            self.enrol(appliance, &server, request, &agent).await
        };
        if let Err(refused) = &accepted {
            self.context
                .events
                .warning(&server, Reason::WaitingForEnrollment, "RefuseEnrolment", &chain(refused))
                .await;
        }
        accepted?;
        let authority = self.authority(appliance).await?;
        let certificate_pem = authority.agent(&server_id, &agent, self.context.now())?;
        Ok(v1::SignAnswer {
            id: 0,
            server_id,
            certificate_pem,
            ca_pem: authority.certificate_pem.clone(),
            refused: String::new(),
        })
    }

    async fn find(
        &self,
        appliance: &ApplianceKey,
        server_id: &str,
    ) -> Result<Option<ProtectedServer>, RefusedError> {
        let servers = self
            .context
            .api::<ProtectedServer>(&appliance.namespace)
            .list(&kube::api::ListParams::default())
            .await?;
        Ok(servers.items.into_iter().find(|server| {
            server.spec.appliance_ref.name == appliance.name
                && server.metadata.deletion_timestamp.is_none()
                && server.status.as_ref().and_then(|status| status.id.as_deref()) == Some(server_id)
        }))
    }

    async fn enrol(
        &self,
        appliance: &ApplianceKey,
        server: &ProtectedServer,
        request: &v1::SignRequest,
        agent: &AgentRequest,
    ) -> Result<(), RefusedError> {
        let name = server.metadata.name.clone().unwrap_or_default();
        let api: Api<Secret> = self.context.api(&appliance.namespace);
        let Some(secret) = api.get_opt(&names::enrollment_secret(&name)).await? else {
            return Err(RefusedError::Unknown);
        };
        let enrolment = Enrolment::read(&secret);
        let key = agent.public_key_sha256();
        enrolment.judge(&name, &request.token, &key, self.context.now())?;
        if enrolment.used_at.is_none() {
            let patch = Patch::Merge(used(&secret, &key, self.context.now()));
            api.patch(&names::enrollment_secret(&name), &PatchParams::default(), &patch).await?;
            self.context.fleet.set_enrolled(appliance, &name, &server_id(server), &key);
            let note = format!(
                "{} has enrolled (agent {}, {})",
                request.hostname, request.agent_version, request.os
            );
            self.context.events.normal(server, Reason::AsExpected, "Enrol", &note).await;
        }
        Ok(())
    }

    /// The process server has verified the client certificate; here it counts that its key is the enrolled one.
    async fn renew(
        &self,
        appliance: &ApplianceKey,
        server: &ProtectedServer,
        agent: &AgentRequest,
    ) -> Result<(), RefusedError> {
        let name = server.metadata.name.clone().unwrap_or_default();
        let api: Api<Secret> = self.context.api(&appliance.namespace);
        let secret = api.get_opt(&names::enrollment_secret(&name)).await?;
        let enrolled = secret.as_ref().map(Enrolment::read).unwrap_or_default();
        if enrolled.public_key_sha256 == agent.public_key_sha256() {
            Ok(())
        } else {
            Err(RefusedError::OtherKey { server: name })
        }
    }

    async fn authority(&self, appliance: &ApplianceKey) -> Result<Authority, RefusedError> {
        let api: Api<Secret> = self.context.api(&appliance.namespace);
        let secret =
            api.get_opt(&secrets::ca_name(&appliance.name)).await?.ok_or(RefusedError::NoAuthority)?;
        let text = |key: &str| {
            secret
                .data
                .as_ref()
                .and_then(|data| data.get(key))
                .and_then(|value| std::str::from_utf8(&value.0).ok())
        };
        match (text(secrets::CA_CERTIFICATE), text(secrets::CA_KEY)) {
            (Some(certificate), Some(key)) => Ok(Authority::open(certificate, key)?),
            _ => Err(RefusedError::NoAuthority),
        }
    }
}

fn server_id(server: &ProtectedServer) -> String {
    server.status.as_ref().and_then(|status| status.id.clone()).unwrap_or_default()
}

/// The token itself goes when it is used; its hash stays, to tell "used" from "wrong". The resourceVersion is that of
/// what was judged: a second user of the token gets a conflict.
fn used(secret: &Secret, key: &[u8], now: jiff::Timestamp) -> serde_json::Value {
    let encoded = |text: String| STANDARD.encode(text);
    json!({
        "metadata": {"resourceVersion": secret.metadata.resource_version},
        "data": {TOKEN: null, USED_AT: encoded(format!("{now:.0}")), PUBLIC_KEY: encoded(hex::encode(key))},
    })
}

/// SHA-256 of a CA's PEM in base64, shown beside the token.
pub fn pem_sha256(pem: &str) -> String {
    STANDARD.encode(ring::digest::digest(&ring::digest::SHA256, pem.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> jiff::Timestamp {
        text.parse().unwrap()
    }

    fn enrolment(token: &str) -> Enrolment {
        Enrolment {
            token_sha256: token_sha256(token),
            expires_at: Some(at("2026-03-02T00:00:00Z")),
            ..Enrolment::default()
        }
    }

    fn refusal(enrolment: &Enrolment, token: &str, key: &[u8], now: &str) -> String {
        enrolment
            .judge("db-1", token, key, at(now))
            .err()
            .map(|refused| refused.to_string())
            .unwrap_or_default()
    }

    #[test]
    fn a_token_works_once_in_its_time() {
        let fresh = enrolment("id.secret");
        assert_eq!(refusal(&fresh, "id.secret", b"key", "2026-03-01T23:59:59Z"), "");
        assert!(
            refusal(&fresh, "id.secret", b"key", "2026-03-02T00:00:00Z").contains("expired at 2026-03-02")
        );
        assert!(
            refusal(&fresh, "id.other", b"key", "2026-03-01T00:00:00Z")
                .contains("is wrong: use the one that `kubectl lifeboat enroll db-1`")
        );
    }

    #[test]
    fn a_used_token_is_refused_to_others_and_repeated_to_the_same_agent() {
        let used = Enrolment {
            used_at: Some(at("2026-03-01T12:00:00Z")),
            public_key_sha256: b"key".to_vec(),
            ..enrolment("id.secret")
        };
        assert_eq!(refusal(&used, "id.secret", b"key", "2026-04-01T00:00:00Z"), "");
        assert!(
            refusal(&used, "id.secret", b"thief", "2026-03-01T13:00:00Z")
                .contains("was used at 2026-03-01T12:00:00Z")
        );
    }

    #[test]
    fn using_a_token_removes_it_and_fails_when_the_secret_has_changed_meanwhile() {
        let mut secret = Secret::default();
        secret.metadata.resource_version = Some("7".into());
        let patch = used(&secret, b"key", at("2026-03-01T00:00:00Z"));
        assert_eq!(patch["metadata"]["resourceVersion"], "7");
        assert!(patch["data"].as_object().is_some_and(|data| data[TOKEN].is_null()), "{patch}");
        assert_eq!(patch["data"][PUBLIC_KEY], STANDARD.encode(hex::encode(b"key")));
    }
}
