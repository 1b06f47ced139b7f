//! Reads everything that a pass over an appliance needs.

use std::collections::BTreeMap;

use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{Pod, Secret, Service},
};
use kube::{Api, ResourceExt as _, api::ListParams};
use lifeboat_crds::{ProtectedServer, ReplicationAppliance, ReplicationPolicy, names::APPLIANCE_LABEL};

use super::{
    names, secrets,
    validate::{Credential, Validated},
};
use crate::runtime::{Context, Failure};

#[derive(Debug, Clone, Default)]
pub(super) struct Fetched {
    pub(super) ca: Option<Secret>,
    pub(super) tls: Option<Secret>,
    pub(super) management: Option<Secret>,
    pub(super) data_keys: Option<Secret>,
    /// The Secrets that the spec names.
    pub(super) credential: Option<Secret>,
    pub(super) applier_credential: Option<Secret>,
    pub(super) services: BTreeMap<String, Service>,
    pub(super) process_servers: Option<StatefulSet>,
    pub(super) applier: Option<StatefulSet>,
    pub(super) pods: Vec<Pod>,
    /// Those that name this appliance.
    pub(super) servers: Vec<ProtectedServer>,
    pub(super) policies: BTreeMap<String, ReplicationPolicy>,
    /// How many servers of the namespace name each consistency group, whatever their appliance.
    pub(super) groups: BTreeMap<String, u32>,
}

pub(super) async fn fetch(
    appliance: &ReplicationAppliance,
    validated: &Validated,
    context: &Context,
) -> Result<Fetched, Failure> {
    let (name, namespace) = (appliance.name_any(), appliance.namespace().unwrap_or_default());
    let secrets: Api<Secret> = context.api(&namespace);
    let sets: Api<StatefulSet> = context.api(&namespace);
    let ours = ListParams::default().labels(&format!("{APPLIANCE_LABEL}={name}"));
    let services = context.api::<Service>(&namespace).list(&ours).await?;
    let policies = context.api::<ReplicationPolicy>(&namespace).list(&ListParams::default()).await?;
    let all = context.api::<ProtectedServer>(&namespace).list(&ListParams::default()).await?.items;
    let credential = named(&secrets, &validated.credential).await?;
    Ok(Fetched {
        ca: secrets.get_opt(&secrets::ca_name(&name)).await?,
        tls: secrets.get_opt(&secrets::tls_name_of(&name)).await?,
        management: secrets.get_opt(&secrets::management_name(&name)).await?,
        data_keys: secrets.get_opt(&secrets::data_keys_name(appliance)).await?,
        applier_credential: match validated.applier_credential == validated.credential {
            true => credential.clone(),
            false => named(&secrets, &validated.applier_credential).await?,
        },
        credential,
        services: services.items.into_iter().map(|service| (service.name_any(), service)).collect(),
        process_servers: sets.get_opt(&names::process_servers(&name)).await?,
        applier: sets.get_opt(&names::applier(&name)).await?,
        pods: context.api::<Pod>(&namespace).list(&ours).await?.items,
        groups: groups(&all),
        servers: all.into_iter().filter(|server| server.spec.appliance_ref.name == name).collect(),
        policies: policies.items.into_iter().map(|policy| (policy.name_any(), policy)).collect(),
    })
}

async fn named(secrets: &Api<Secret>, credential: &Credential) -> Result<Option<Secret>, Failure> {
    match credential.secret() {
        Some(reference) => Ok(secrets.get_opt(&reference.name).await?),
        None => Ok(None),
    }
}

/// Servers that are being deleted are in no group any more.
fn groups(servers: &[ProtectedServer]) -> BTreeMap<String, u32> {
    let mut groups = BTreeMap::new();
    for server in servers.iter().filter(|server| server.metadata.deletion_timestamp.is_none()) {
        if let Some(group) = &server.spec.consistency_group {
            *groups.entry(group.clone()).or_default() += 1;
        }
    }
    groups
}

pub(super) async fn servers_of(
    appliance: &ReplicationAppliance,
    context: &Context,
) -> Result<Vec<ProtectedServer>, Failure> {
    let all = context
        .api::<ProtectedServer>(&appliance.namespace().unwrap_or_default())
        .list(&ListParams::default())
        .await?;
    let name = appliance.name_any();
    Ok(all.items.into_iter().filter(|server| server.spec.appliance_ref.name == name).collect())
}
