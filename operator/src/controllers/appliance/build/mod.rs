//! What an appliance consists of, made from its spec. Pure: no client.

mod applier;
mod configuration;
pub mod pod;
mod process_servers;
mod services;

use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{ConfigMap, Service},
};
use lifeboat_crds::ReplicationAppliance;

use super::validate::Validated;
use crate::runtime::settings::Images;
pub(crate) use process_servers::selector as process_server_selector;

/// On both StatefulSets: which credentials and keys their pods have started with.
pub(crate) const SECRETS_ANNOTATION: &str = "lifeboat.dev/secrets";

/// What the pods' content depends on beside the spec.
#[derive(Debug, Clone)]
pub struct Inputs<'a> {
    pub images: &'a Images,
    /// Changes when the credentials or the data keys do: pods start again with them.
    pub secrets_hash: &'a str,
}

/// Everything but Secrets, in the order in which it is applied.
#[derive(Debug, Clone)]
pub struct Built {
    pub configuration: ConfigMap,
    /// All that there should be.
    pub services: Vec<Service>,
    /// Without the role, with no replica: for a set that is there from before.
    pub process_servers: StatefulSet,
    pub applier: StatefulSet,
}

pub fn build(appliance: &ReplicationAppliance, validated: &Validated, inputs: &Inputs<'_>) -> Built {
    let configuration = configuration::build(appliance, validated);
    Built {
        process_servers: process_servers::build(appliance, validated, inputs, &configuration),
        applier: applier::build(appliance, validated, inputs, &configuration),
        services: services::build(appliance, validated),
        configuration,
    }
}

#[cfg(test)]
mod tests;
