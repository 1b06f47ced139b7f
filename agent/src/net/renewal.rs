//! Renews the agent's certificate when two thirds of its life are over. The key stays the same: the appliance knows
//! the agent by it.

use std::time::Duration;

use lifeboat_replication::{
    env::{Env, Micros},
    errors::chain,
};
use tokio::{sync::watch, time::sleep};

use super::{
    connect::Connector,
    management::{Management, ManagementError},
    tls::{self, TlsError},
};
use crate::{
    core::backoff,
    enrol::{self, EnrolError},
    state::{Identity, StateDir, StateError},
};

/// The date may jump and machines sleep, so the certificate is looked at this often.
const LOOK_EVERY: Duration = Duration::from_secs(600);
const RETRY: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum RenewalError {
    #[error(
        "the certificate cannot be read: {reason}; enrol again with the command that `kubectl lifeboat enroll` prints"
    )]
    Certificate { reason: String },
    #[error("no renewal without TLS")]
    Tls(#[from] TlsError),
    #[error("the signing request could not be made")]
    Request(#[from] EnrolError),
    #[error("renewing failed")]
    Management(#[from] ManagementError),
    #[error("the renewed certificate cannot be kept")]
    State(#[from] StateError),
}

/// Runs for the life of the agent; sends each renewed identity to `identity`.
pub async fn run(state: StateDir, identity: watch::Sender<Identity>, env: Env) {
    loop {
        let current = identity.borrow().clone();
        let wait = match renew_if_due(&current, &state, env.wall.now()).await {
            Ok(Some(renewed)) => {
                tracing::info!("the certificate was renewed");
                identity.send_replace(renewed);
                LOOK_EVERY
            }
            Ok(None) => LOOK_EVERY,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "the certificate could not be renewed; trying again");
                RETRY
            }
        };
        sleep(backoff::jittered(wait, env.entropy.next_u64())).await;
    }
}

async fn renew_if_due(
    current: &Identity,
    state: &StateDir,
    now: Micros,
) -> Result<Option<Identity>, RenewalError> {
    if now < due(&current.certificate_pem)? {
        return Ok(None);
    }
    let request = enrol::signing_request(&current.key_pem, current.server.as_str())?;
    let tls = tls::mutual(current)?;
    let management = Management {
        addresses: current.management.clone(),
        tls,
        pinned: None,
        connector: Connector::default(),
    };
    let answer = management.renew(&request).await?;
    let renewed = Identity {
        certificate_pem: answer.certificate_pem,
        ca_pem: if answer.ca_pem.is_empty() { current.ca_pem.clone() } else { answer.ca_pem },
        management: if answer.management_addresses.is_empty() {
            current.management.clone()
        } else {
            answer.management_addresses
        },
        ..current.clone()
    };
    // Nothing unusable is kept.
    tls::mutual(&renewed)?;
    state.save(&renewed)?;
    Ok(Some(renewed))
}

/// When two thirds of the certificate's life are over.
fn due(certificate_pem: &str) -> Result<Micros, RenewalError> {
    let damaged = |reason: String| RenewalError::Certificate { reason };
    let (_, pem) = x509_parser::pem::parse_x509_pem(certificate_pem.as_bytes())
        .map_err(|error| damaged(error.to_string()))?;
    let certificate = pem.parse_x509().map_err(|error| damaged(error.to_string()))?;
    let validity = certificate.validity();
    let (from, until) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    Ok(Micros((from + (until - from) / 3 * 2).saturating_mul(1_000_000)))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    #[test]
    fn a_certificate_is_due_after_two_thirds_of_its_life() {
        let mut params = CertificateParams::new(vec!["server".to_owned()]).unwrap();
        params.not_before = date_time_ymd(2026, 1, 1);
        params.not_after = date_time_ymd(2026, 1, 31);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        let day = 86_400_000_000;
        let first = date_time_ymd(2026, 1, 1).unix_timestamp() * 1_000_000;
        assert_eq!(due(&certificate).unwrap(), Micros(first + 20 * day));
    }

    #[test]
    fn an_unreadable_certificate_names_the_remedy() {
        let error = due("nonsense").unwrap_err().to_string();
        assert!(error.contains("kubectl lifeboat enroll"), "{error}");
    }
}
