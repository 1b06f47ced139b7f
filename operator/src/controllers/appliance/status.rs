//! The appliance's status, from what was applied and heard.

use k8s_openapi::api::{apps::v1::StatefulSet, core::v1::Pod};
use kube::ResourceExt as _;
use lifeboat_crds::{
    ReplicationAppliance, ReplicationApplianceStatus, Time,
    appliance::{ApplierStatus, Component, DataKeyStatus, Health, ProcessServerStatus},
    conditions::{self, ConditionType, Observation, Reason, met, unknown, unmet},
};
use lifeboat_replication::wire::v1;

use super::{names, validate::Validated};
use crate::{
    controllers::vaults::Seen,
    runtime::{Category, Failure},
};

/// The reference system's thresholds: warning and critical.
const SPOOL_USED_PERCENT: (u64, u64) = (70, 75);
const BACKLOG_SECONDS: (u64, u64) = (30 * 60, 45 * 60);

/// What a pass has found, as far as it came.
#[derive(Debug, Default)]
pub struct Findings {
    /// The pass has come as far as the cluster's objects: what it has found of them is what there is.
    pub looked: bool,
    pub certificates: Option<Result<(), String>>,
    pub vault: Option<Result<Seen, (Reason, String, Category)>>,
    pub process_servers: Vec<ProcessServer>,
    /// Those that go when their servers have moved to others, with the number of these.
    pub leaving: Vec<(String, u32)>,
    pub process_server_set: Option<StatefulSet>,
    pub applier_set: Option<StatefulSet>,
    pub pods: Vec<Pod>,
    pub appliers: Vec<Applier>,
    pub servers: u32,
    pub data_key: Option<DataKeyStatus>,
    /// The Secret with the data keys was changed: there is more to do at once.
    pub rotating: bool,
    pub management_pin: Option<String>,
    pub management_endpoint: Option<String>,
    pub selector: Option<String>,
    /// Why the pass did not come to its end.
    pub failure: Option<(Category, Reason, String)>,
}

/// A process server as the pass has seen it.
#[derive(Debug, Clone)]
pub struct ProcessServer {
    pub name: String,
    pub address: Option<String>,
    pub servers: u32,
    pub report: Option<v1::Report>,
    pub trouble: Option<String>,
}

/// An applier as the pass has seen it.
#[derive(Debug, Clone)]
pub struct Applier {
    pub name: String,
    pub report: Option<v1::ApplierReport>,
    pub trouble: Option<String>,
}

pub fn status(
    appliance: &ReplicationAppliance,
    validated: Option<&Validated>,
    findings: &Findings,
    now: Time,
) -> ReplicationApplianceStatus {
    let before = appliance.status.clone().unwrap_or_default();
    if !findings.looked {
        return not_looked_at(appliance, findings, before, now);
    }
    let replicas = validated.map(|validated| validated.replicas).unwrap_or_default();
    let ready = ready_replicas(findings.process_server_set.as_ref());
    let components = components(&before, findings, now);
    let observed = observations(findings, validated);
    let vault_id = findings
        .vault
        .as_ref()
        .and_then(|vault| vault.as_ref().ok())
        .map(|vault| vault.description.vault_id.clone());
    ReplicationApplianceStatus {
        observed_generation: if findings.failure.is_none() {
            appliance.metadata.generation
        } else {
            before.observed_generation
        },
        conditions: conditions::merge(&before.conditions, observed, appliance.metadata.generation, now),
        health: components.iter().map(|component| component.health).max(),
        process_servers: findings
            .process_servers
            .iter()
            .map(|server| process_server(server, findings))
            .collect(),
        appliers: findings.appliers.iter().map(|one| applier(one, findings)).collect(),
        process_servers_ready: Some(format!("{ready}/{replicas}")),
        vault_id: vault_id.or(before.vault_id),
        data_key: findings.data_key.clone().or(before.data_key),
        protected_servers: Some(findings.servers),
        management_public_key: findings.management_pin.clone().or(before.management_public_key),
        management_endpoint: findings.management_endpoint.clone().or(before.management_endpoint),
        replicas: Some(
            findings
                .process_server_set
                .as_ref()
                .and_then(|set| set.status.as_ref())
                .map(|status| status.replicas)
                .unwrap_or(0),
        ),
        selector: findings.selector.clone().or(before.selector),
        components,
    }
}

/// A spec that cannot be used, or an API server that does not answer: what runs goes on, and what was known of it is the
/// best that can be said.
fn not_looked_at(
    appliance: &ReplicationAppliance,
    findings: &Findings,
    before: ReplicationApplianceStatus,
    now: Time,
) -> ReplicationApplianceStatus {
    let mut observed = Vec::new();
    for kind in [
        ConditionType::CertificatesReady,
        ConditionType::VaultReachable,
        ConditionType::RecoveryKeyReady,
        ConditionType::ProcessServersReady,
        ConditionType::AppliersReady,
    ] {
        observed.push(unknown(kind, Reason::NotYetKnown, "not looked at in this pass: see Ready"));
    }
    let failure = findings.failure.clone();
    let (category, reason, message) =
        failure.unwrap_or((Category::Transient, Reason::Progressing, "not looked at yet".to_owned()));
    observed.extend(not_ready(category, reason, &message));
    ReplicationApplianceStatus {
        conditions: conditions::merge(&before.conditions, observed, appliance.metadata.generation, now),
        selector: findings.selector.clone().or(before.selector),
        ..before
    }
}

/// A pass that did not come to its end.
fn not_ready(category: Category, reason: Reason, message: &str) -> [Observation; 2] {
    let kind =
        if category == Category::Stalled { ConditionType::Stalled } else { ConditionType::Reconciling };
    [unmet(ConditionType::Ready, reason, message), met(kind, reason, message)]
}

fn ready_replicas(set: Option<&StatefulSet>) -> i32 {
    set.and_then(|set| set.status.as_ref()?.ready_replicas).unwrap_or(0)
}

fn observations(findings: &Findings, validated: Option<&Validated>) -> Vec<Observation> {
    use ConditionType as Type;
    let (replicas, appliers) =
        validated.map(|validated| (validated.replicas, validated.appliers)).unwrap_or_default();
    let elsewhere = |kind, role: &str| {
        met(kind, Reason::AsExpected, format!("spec.roles leaves {role} to another cluster on this vault"))
    };
    let process_servers = match validated {
        Some(Validated { ingest: false, .. }) => elsewhere(Type::ProcessServersReady, "Ingest"),
        _ => process_servers_ready(findings, replicas),
    };
    let applying = match validated {
        Some(Validated { apply: false, .. }) => elsewhere(Type::AppliersReady, "Apply"),
        _ => pods_ready(Type::AppliersReady, "applier", findings.applier_set.as_ref(), appliers, findings),
    };
    let mut all = vec![
        match &findings.certificates {
            None => unknown(Type::CertificatesReady, Reason::NotYetKnown, "not looked at in this pass"),
            Some(Ok(())) => met(Type::CertificatesReady, Reason::AsExpected, "CA and certificates are valid"),
            Some(Err(why)) => unmet(Type::CertificatesReady, Reason::CertificateError, why.clone()),
        },
        vault_reachable(findings),
        recovery_key_ready(findings),
        process_servers,
        applying,
    ];
    let missing = all.iter().find(|observation| !observation.is_met()).cloned();
    match (&findings.failure, missing) {
        (Some((category, reason, message)), _) => all.extend(not_ready(*category, *reason, message)),
        (None, Some(missing)) => {
            all.push(unmet(
                Type::Ready,
                missing.reason(),
                format!("{}: {}", missing.kind(), missing.message()),
            ));
            all.push(met(Type::Reconciling, missing.reason(), missing.message()));
        }
        (None, None) => all.push(met(Type::Ready, Reason::AsExpected, "the appliance serves")),
    }
    all
}

fn vault_reachable(findings: &Findings) -> Observation {
    match &findings.vault {
        None => unknown(ConditionType::VaultReachable, Reason::NotYetKnown, "not looked at in this pass"),
        Some(Ok(_)) => met(
            ConditionType::VaultReachable,
            Reason::AsExpected,
            "the vault answers and its key is the right one",
        ),
        Some(Err((Reason::NoRecoveryKey | Reason::InvalidRecipient, _, _))) => unknown(
            ConditionType::VaultReachable,
            Reason::NotYetKnown,
            "no vault is made before there is a recovery key",
        ),
        Some(Err((reason, why, _))) => unmet(ConditionType::VaultReachable, *reason, why.clone()),
    }
}

fn recovery_key_ready(findings: &Findings) -> Observation {
    match &findings.vault {
        None => unknown(ConditionType::RecoveryKeyReady, Reason::NotYetKnown, "not looked at in this pass"),
        Some(Ok(vault)) => {
            let message = format!(
                "the key bundle in the vault is encrypted to {} recovery key(s)",
                vault.description.recipients.len()
            );
            met(ConditionType::RecoveryKeyReady, Reason::AsExpected, message)
        }
        Some(Err((reason @ (Reason::NoRecoveryKey | Reason::InvalidRecipient), why, _))) => {
            unmet(ConditionType::RecoveryKeyReady, *reason, why.clone())
        }
        Some(Err((reason, _, _))) => unknown(
            ConditionType::RecoveryKeyReady,
            *reason,
            "who can open the key bundle cannot be said while the vault does not answer",
        ),
    }
}

fn process_servers_ready(findings: &Findings, replicas: i32) -> Observation {
    let kind = ConditionType::ProcessServersReady;
    let set = findings.process_server_set.as_ref();
    let ready = pods_ready(kind, "process server", set, replicas, findings);
    if findings.leaving.is_empty() || !ready.is_met() {
        return ready;
    }
    let leaving: Vec<String> =
        findings.leaving.iter().map(|(name, servers)| format!("{name} ({servers} servers)")).collect();
    let message = format!(
        "{}; to go when their servers have moved to the others: {}",
        ready.message(),
        leaving.join(", ")
    );
    met(kind, Reason::AsExpected, message)
}

fn pods_ready(
    kind: ConditionType,
    component: &str,
    set: Option<&StatefulSet>,
    wanted: i32,
    findings: &Findings,
) -> Observation {
    let ready = ready_replicas(set);
    if set.is_some() && ready >= wanted {
        return met(kind, Reason::AsExpected, format!("{ready} of {wanted} {component}s ready"));
    }
    let label = component.replace(' ', "-");
    let ours =
        findings.pods.iter().filter(|pod| pod.labels().get("app.kubernetes.io/component") == Some(&label));
    let troubles: Vec<String> = ours.filter_map(pod_trouble).collect();
    if troubles.is_empty() {
        let names: Vec<String> = findings
            .pods
            .iter()
            .filter(|pod| pod.labels().get("app.kubernetes.io/component") == Some(&label))
            .map(|pod| pod.name_any())
            .filter(|name| !is_ready(name, findings))
            .collect();
        let remedy = match (waits_for_vault(findings), names.is_empty()) {
            (true, _) => "they wait for the vault".to_owned(),
            (false, true) => "wait, or see the pods' events".to_owned(),
            (false, false) => format!("wait, or see `kubectl describe pod {}`", names.join(" ")),
        };
        let message = format!("{ready} of {wanted} {component}s ready: {remedy}");
        return unmet(kind, Reason::PodsNotReady, message);
    }
    unmet(
        kind,
        Reason::PodsFailing,
        format!("{ready} of {wanted} {component}s ready; {}", troubles.join("; ")),
    )
}

/// Pods are not ready before they have the vault, and while they are without it.
fn waits_for_vault(findings: &Findings) -> bool {
    let process_servers = findings.process_servers.iter().filter_map(|one| one.report.as_ref());
    let appliers = findings.appliers.iter().filter_map(|one| one.report.as_ref());
    matches!(findings.vault, Some(Err(_)))
        || process_servers.map(|report| &report.vault_error).any(|error| !error.is_empty())
        || appliers.map(|report| &report.vault_error).any(|error| !error.is_empty())
}

/// In the kubelet's or the scheduler's words why a pod does not start.
pub(crate) fn pod_trouble(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let name = pod.name_any();
    let unscheduled = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    if let Some(condition) = unscheduled {
        return Some(format!(
            "pod {name} is not scheduled: {}",
            condition.message.clone().unwrap_or_default()
        ));
    }
    let containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    for container in containers {
        let state = container.state.as_ref();
        let ended = state
            .and_then(|state| state.terminated.as_ref())
            .or(container.last_state.as_ref().and_then(|state| state.terminated.as_ref()));
        let said = ended.filter(|ended| ended.exit_code != 0).and_then(|ended| ended.message.clone());
        if let Some(waiting) = state.and_then(|state| state.waiting.as_ref())
            && let Some(reason) = waiting
                .reason
                .as_deref()
                .filter(|reason| !matches!(*reason, "ContainerCreating" | "PodInitializing"))
        {
            let words = said.or_else(|| waiting.message.clone()).unwrap_or_default();
            return Some(format!("pod {name}, container {}: {reason}: {}", container.name, words.trim()));
        }
    }
    None
}

fn components(before: &ReplicationApplianceStatus, findings: &Findings, now: Time) -> Vec<Component> {
    let mut all = vec![vault_component(findings)];
    all.extend(findings.appliers.iter().map(applier_component));
    all.extend(findings.process_servers.iter().map(|server| {
        let (health, reason, message) = health_of(server);
        (server.name.clone(), health, reason, message)
    }));
    all.into_iter()
        .map(|(name, health, reason, message)| {
            let same = before.components.iter().find(|known| known.name == name && known.health == health);
            Component {
                name,
                health,
                reason: reason.to_owned(),
                message,
                since: same.map_or(now, |known| known.since),
            }
        })
        .collect()
}

type Judged = (String, Health, &'static str, String);

fn vault_component(findings: &Findings) -> Judged {
    let name = "vault".to_owned();
    match &findings.vault {
        None => (name, Health::Unknown, Reason::NotYetKnown.as_str(), String::new()),
        Some(Ok(Seen { unguarded: Some(why), .. })) => {
            (name, Health::Warning, "DeletionNotGuarded", why.clone())
        }
        Some(Ok(_)) => (name, Health::Healthy, Reason::AsExpected.as_str(), String::new()),
        Some(Err((reason, why, _))) => (name, Health::Critical, reason.as_str(), why.clone()),
    }
}

fn applier_component(applier: &Applier) -> Judged {
    let name = applier.name.clone();
    match (&applier.report, &applier.trouble) {
        (Some(report), _) if !report.vault_error.is_empty() => {
            (name, Health::Critical, Reason::VaultUnreachable.as_str(), report.vault_error.clone())
        }
        (Some(report), _) => match report.servers.iter().find(|server| !server.error.is_empty()) {
            Some(server) => (
                name,
                Health::Warning,
                "ServerNotApplied",
                format!("server {}: {}", server.server_id, server.error),
            ),
            None => (name, Health::Healthy, Reason::AsExpected.as_str(), String::new()),
        },
        (None, Some(trouble)) => (name, Health::Warning, Reason::PodsNotReady.as_str(), trouble.clone()),
        (None, None) => (name, Health::Unknown, Reason::NotYetKnown.as_str(), String::new()),
    }
}

fn health_of(server: &ProcessServer) -> (Health, &'static str, String) {
    let Some(report) = &server.report else {
        return match &server.trouble {
            Some(trouble) => (Health::Critical, Reason::PodsNotReady.as_str(), trouble.clone()),
            None => (Health::Unknown, Reason::NotYetKnown.as_str(), String::new()),
        };
    };
    let used =
        (report.spool_used_bytes.saturating_mul(100)).checked_div(report.spool_size_bytes).unwrap_or(0);
    let limited = || match report.upload_limit_bytes_per_second {
        0 => String::new(),
        limit => format!("; spec.bandwidth limits it to {limit} bytes/s now"),
    };
    let spool = || {
        format!(
            "the spool is {used} % full: the uplink or the vault is too slow for what is written, or the spool too small{}",
            limited()
        )
    };
    let backlog = || {
        format!(
            "the oldest record has waited {} s for its upload: check the uplink and the vault{}",
            report.upload_backlog_seconds,
            limited()
        )
    };
    if !report.vault_error.is_empty() {
        (Health::Critical, Reason::VaultUnreachable.as_str(), report.vault_error.clone())
    } else if used >= SPOOL_USED_PERCENT.1 {
        (Health::Critical, Reason::SpoolFull.as_str(), spool())
    } else if report.upload_backlog_seconds >= BACKLOG_SECONDS.1 {
        (Health::Critical, "UploadBacklog", backlog())
    } else if used >= SPOOL_USED_PERCENT.0 {
        (Health::Warning, Reason::SpoolFull.as_str(), spool())
    } else if report.upload_backlog_seconds >= BACKLOG_SECONDS.0 {
        (Health::Warning, "UploadBacklog", backlog())
    } else {
        (Health::Healthy, Reason::AsExpected.as_str(), String::new())
    }
}

fn is_ready(pod: &str, findings: &Findings) -> bool {
    let pod = findings.pods.iter().find(|known| known.name_any() == pod);
    let conditions = pod.and_then(|pod| pod.status.as_ref()).and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| {
        all.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    })
}

fn applier(applier: &Applier, findings: &Findings) -> ApplierStatus {
    let servers = applier.report.as_ref().map(|report| report.servers.len());
    ApplierStatus {
        name: applier.name.clone(),
        ready: is_ready(&applier.name, findings),
        health: applier_component(applier).1,
        servers: servers.map(|servers| u32::try_from(servers).unwrap_or(u32::MAX)),
    }
}

fn process_server(server: &ProcessServer, findings: &Findings) -> ProcessServerStatus {
    ProcessServerStatus {
        name: server.name.clone(),
        ready: is_ready(&server.name, findings),
        health: health_of(server).0,
        address: server.address.clone(),
        servers: server.servers,
        // Rounded, so that a status is not written for every byte; the metrics are exact.
        spool_used_bytes: server.report.as_ref().map(|report| rounded(report.spool_used_bytes)),
        upload_backlog_seconds: server.report.as_ref().map(|report| report.upload_backlog_seconds / 10 * 10),
        ingest_bytes_per_second: server.report.as_ref().map(|report| rounded(report.ingest_bytes_per_second)),
        upload_limit_bytes_per_second: server
            .report
            .as_ref()
            .map(|report| report.upload_limit_bytes_per_second)
            .filter(|limit| *limit > 0),
    }
}

/// To whole 16 MiB.
fn rounded(bytes: u64) -> u64 {
    bytes >> 24 << 24
}

impl From<&Failure> for (Category, Reason, String) {
    fn from(failure: &Failure) -> Self {
        (failure.category, failure.reason, failure.message.clone())
    }
}

/// Label selector of the process servers, for the scale subresource.
pub fn selector_text(appliance: &str) -> String {
    let pairs = super::build::process_server_selector(appliance);
    pairs.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// Names of the process servers that there should be.
pub fn process_server_names(appliance: &str, replicas: i32) -> Vec<String> {
    (0..replicas).map(|index| names::process_server(appliance, index)).collect()
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
