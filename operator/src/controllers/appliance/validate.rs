//! The spec as types that cannot be wrong, or what is wrong with it.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use lifeboat_crds::{
    Reason, ReplicationAppliance,
    appliance::{AzureAuthentication, AzureCredential, ExposureType, Role, WorkloadIdentity},
    refs::SecretKeyRef,
};

use super::bandwidth::{self, Limit};
use crate::runtime::Failure;

/// The part of the volume that file system and its reserve take.
const VOLUME_OVERHEAD_PERCENT: u64 = 10;

#[derive(Debug, Clone, PartialEq)]
pub struct Validated {
    /// Process servers.
    pub replicas: i32,
    pub appliers: i32,
    /// Agents send here, and the vault is made here.
    pub ingest: bool,
    /// Appliers run here.
    pub apply: bool,
    pub spool_bytes: u64,
    /// Of everybody but the appliers.
    pub credential: Credential,
    /// The same, when the spec does not give them one of their own.
    pub applier_credential: Credential,
    pub node_ports: bool,
    pub bandwidth: Vec<Limit>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    WorkloadIdentity(WorkloadIdentity),
    Sas(SecretKeyRef),
    AccountKey(SecretKeyRef),
}

impl Credential {
    /// The Secret that holds it; a workload identity has none.
    pub fn secret(&self) -> Option<&SecretKeyRef> {
        match self {
            Self::WorkloadIdentity(_) => None,
            Self::Sas(reference) | Self::AccountKey(reference) => Some(reference),
        }
    }

    /// The service account whose token a pod shows; `None`: it needs none.
    pub fn service_account(&self) -> Option<String> {
        match self {
            Self::WorkloadIdentity(identity) => {
                Some(identity.service_account_name.clone().unwrap_or_else(|| "default".to_owned()))
            }
            Self::Sas(_) | Self::AccountKey(_) => None,
        }
    }

    fn of(authentication: &AzureAuthentication, field: &str) -> Result<Self, Failure> {
        Ok(match authentication.credential() {
            Some(AzureCredential::WorkloadIdentity(identity)) => Self::WorkloadIdentity(identity.clone()),
            Some(AzureCredential::Sas(reference)) => Self::Sas(reference.clone()),
            Some(AzureCredential::AccountKey(reference)) => Self::AccountKey(reference.clone()),
            None => {
                let message = format!(
                    "spec.vault.azure.{field}: choose exactly one of workloadIdentity, sasSecretRef and accountKeySecretRef"
                );
                return Err(Failure::stalled(Reason::InvalidSpec, message));
            }
        })
    }
}

pub fn validate(appliance: &ReplicationAppliance) -> Result<Validated, Failure> {
    let spec = &appliance.spec;
    let azure = &spec.vault.azure;
    let credential = Credential::of(&azure.authentication, "authentication")?;
    let applier_credential = match &azure.applier_authentication {
        Some(own) => Credential::of(own, "applierAuthentication")?,
        None => credential.clone(),
    };
    let size = &spec.process_servers.spool.size;
    let bytes = quantity_bytes(size).ok_or_else(|| {
        Failure::stalled(
            Reason::InvalidSpec,
            format!("spec.processServers.spool.size is {}: write it like 10Gi", size.0),
        )
    })?;
    let replicas = spec.process_server_replicas();
    Ok(Validated {
        replicas,
        appliers: spec.applier_replicas(),
        ingest: spec.has_role(Role::Ingest),
        apply: spec.has_role(Role::Apply),
        spool_bytes: bytes / 100 * (100 - VOLUME_OVERHEAD_PERCENT),
        credential,
        applier_credential,
        node_ports: spec.exposure.kind == ExposureType::NodePort,
        // Where nothing is taken in, there is nothing to limit.
        bandwidth: if spec.has_role(Role::Ingest) {
            bandwidth::validate(&spec.bandwidth, replicas)?
        } else {
            Vec::new()
        },
    })
}

/// Bytes of a Kubernetes quantity; `None` when it is none, or not whole and positive.
pub fn quantity_bytes(quantity: &Quantity) -> Option<u64> {
    const UNITS: [(&str, u64); 10] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("Pi", 1 << 50),
        ("k", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
        ("P", 1_000_000_000_000_000),
    ];
    let text = quantity.0.trim();
    let (number, factor) = UNITS
        .iter()
        .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)))
        .unwrap_or((text, 1));
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor);
    }
    let bytes = number.parse::<f64>().ok()? * factor as f64;
    // Sizes of volumes and memory are far below 2^53, where a double is exact.
    (bytes.is_finite() && (0.0..9e15).contains(&bytes)).then_some(bytes as u64)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::controllers::appliance::testing::appliance;

    #[rstest]
    #[case("50Gi", Some(50 << 30))]
    #[case("1.5Gi", Some(3 << 29))]
    #[case("500M", Some(500_000_000))]
    #[case("1024", Some(1024))]
    #[case("lots", None)]
    #[case("-1Gi", None)]
    fn quantities_are_read_as_kubernetes_writes_them(#[case] text: &str, #[case] bytes: Option<u64>) {
        assert_eq!(quantity_bytes(&Quantity(text.to_owned())), bytes);
    }

    #[test]
    fn the_spool_leaves_room_for_the_file_system() {
        let validated = validate(&appliance()).unwrap();
        assert!(validated.spool_bytes < 1 << 30, "{}", validated.spool_bytes);
    }
}
