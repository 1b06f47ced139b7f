//! What the appliance's programs should be told: who is served by whom, under which addresses, how.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt as _;
use lifeboat_crds::{
    ProtectedServer, ReplicationAppliance, ReplicationPolicy, ReplicationPolicySpec,
    server::{DiskSelector, Replication},
};
use lifeboat_replication::wire::v1;

use super::{
    names::{self, CONTROL_PORT},
    validate::Validated,
};
use crate::{control::Endpoint, pki::tls_name};

/// host:port at which agents reach one of the Services.
pub fn addresses(
    appliance: &ReplicationAppliance,
    validated: &Validated,
    service: &str,
    port: u16,
    services: &BTreeMap<String, Service>,
    domain: &str,
) -> Vec<String> {
    let namespace = appliance.namespace().unwrap_or_default();
    let inside = format!("{service}.{namespace}.svc.{domain}:{port}");
    let given = &appliance.spec.exposure.addresses;
    let join = |port: i32| {
        given.iter().map(move |host| {
            if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
        })
    };
    if !validated.node_ports {
        return join(i32::from(port)).chain([inside]).collect();
    }
    let node_port =
        services.get(service).and_then(|service| service.spec.as_ref()?.ports.as_ref()?.first()?.node_port);
    node_port
        .map(|port| join(port).collect::<Vec<_>>())
        .unwrap_or_default()
        .into_iter()
        .chain([inside])
        .collect()
}

pub fn management_addresses(
    appliance: &ReplicationAppliance,
    validated: &Validated,
    services: &BTreeMap<String, Service>,
    domain: &str,
) -> Vec<String> {
    let service = names::management(&appliance.name_any());
    addresses(appliance, validated, &service, appliance.spec.exposure.management_port, services, domain)
}

pub fn data_addresses(
    appliance: &ReplicationAppliance,
    validated: &Validated,
    services: &BTreeMap<String, Service>,
    domain: &str,
) -> Vec<v1::ProcessServerAddress> {
    let port = appliance.spec.exposure.data_port;
    (0..validated.replicas)
        .map(|index| {
            let name = names::process_server(&appliance.name_any(), index);
            let data_addresses = addresses(appliance, validated, &name, port, services, domain);
            v1::ProcessServerAddress { name, data_addresses }
        })
        .collect()
}

/// Control ports of the process servers.
pub fn process_server_endpoints(
    appliance: &ReplicationAppliance,
    validated: &Validated,
    domain: &str,
) -> Vec<Endpoint> {
    let service = names::process_server_pods(&appliance.name_any());
    (0..validated.replicas)
        .map(|index| {
            endpoint(appliance, names::process_server(&appliance.name_any(), index), &service, domain)
        })
        .collect()
}

pub fn applier_endpoint(appliance: &ReplicationAppliance, domain: &str) -> Endpoint {
    let name = appliance.name_any();
    endpoint(appliance, names::applier_pod(&name), &names::applier(&name), domain)
}

fn endpoint(appliance: &ReplicationAppliance, pod: String, service: &str, domain: &str) -> Endpoint {
    let namespace = appliance.namespace().unwrap_or_default();
    let address = format!("{pod}.{service}.{namespace}.svc.{domain}:{CONTROL_PORT}");
    Endpoint { address, tls_name: tls_name(&pod, &appliance.name_any()), name: pod }
}

/// Everyone who may send, and how. A server without an id or a place is not served yet; one that is being deleted no more.
pub fn assignments(
    servers: &[ProtectedServer],
    policies: &BTreeMap<String, ReplicationPolicy>,
    keys: &BTreeMap<String, Vec<u8>>,
    now: jiff::Timestamp,
) -> Vec<v1::Assignment> {
    let mut all: Vec<v1::Assignment> = servers
        .iter()
        .filter(|server| server.metadata.deletion_timestamp.is_none())
        .filter_map(|server| {
            let status = server.status.as_ref()?;
            let (server_id, process_server) = (status.id.clone()?, status.process_server.clone()?);
            // A policy that was deleted does not stop replication; the server's condition says that it is missing.
            let policy = policies
                .get(&server.spec.policy_ref.name)
                .map(|policy| policy.spec.clone())
                .unwrap_or_default();
            Some(v1::Assignment {
                server_id,
                display_name: format!("{}/{}", server.namespace().unwrap_or_default(), server.name_any()),
                process_server,
                settings: Some(settings(server, &policy, now)),
                compression_level: policy.compression.level,
                public_key_sha256: keys.get(&server.name_any()).cloned().unwrap_or_default(),
                points: Vec::new(),
                lost_epoch: 0,
            })
        })
        .collect();
    all.sort_by(|a, b| a.server_id.cmp(&b.server_id));
    all
}

fn settings(server: &ProtectedServer, policy: &ReplicationPolicySpec, now: jiff::Timestamp) -> v1::Settings {
    let ReplicationPolicySpec {
        round_interval,
        rpo_threshold,
        recovery_points: _,
        journal_retention: _,
        compression: _,
        max_freezes_per_hour,
        freeze_timeout,
        app_consistent,
        resynchronization,
    } = policy;
    let micros =
        |duration: &lifeboat_crds::Duration| u64::try_from(duration.get().as_micros()).unwrap_or(u64::MAX);
    v1::Settings {
        round_interval_micros: micros(round_interval),
        paused: server.spec.replication == Replication::Paused,
        max_freezes_per_hour: *max_freezes_per_hour,
        freeze_timeout_micros: micros(freeze_timeout),
        rpo_threshold_micros: micros(rpo_threshold),
        app_consistent_interval_micros: app_consistent.as_ref().map_or(0, |app| micros(&app.interval)),
        app_freeze_timeout_micros: app_consistent.as_ref().map_or(0, |app| micros(&app.freeze_timeout)),
        hook_timeout_micros: app_consistent.as_ref().map_or(0, |app| micros(&app.hook_timeout)),
        resynchronize: server.spec.resynchronize.clone().unwrap_or_default(),
        // A time zone that does not exist is a condition of the policy; until it is mended nothing begins by itself.
        resynchronization_waits: !resynchronization.allows(now).unwrap_or(false),
        exclude: server.spec.disks.iter().flat_map(|disks| &disks.exclude).map(selector).collect(),
    }
}

fn selector(selector: &DiskSelector) -> v1::DiskSelector {
    let DiskSelector { serial, path, wwn } = selector.clone();
    v1::DiskSelector {
        serial: serial.unwrap_or_default(),
        path: path.unwrap_or_default(),
        wwn: wwn.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::{
        appliance::testing::appliance, appliance::validate::validate, protected_server::testing::server,
    };

    #[test]
    fn agents_are_told_node_ports_on_the_given_addresses() {
        let mut berlin = appliance();
        berlin.spec.exposure = serde_json::from_value(
            serde_json::json!({"type": "NodePort", "addresses": ["10.240.0.1", "fd00::1"]}),
        )
        .unwrap();
        let service: Service = serde_json::from_value(serde_json::json!({"metadata": {"name": "berlin-management"}, "spec": {"ports": [{"port": 443, "nodePort": 30443}]}})).unwrap();
        let services = BTreeMap::from([("berlin-management".to_owned(), service)]);
        let found = management_addresses(&berlin, &validate(&berlin).unwrap(), &services, "cluster.local");
        assert_eq!(
            found,
            ["10.240.0.1:30443", "[fd00::1]:30443", "berlin-management.prod.svc.cluster.local:443"]
        );
    }

    #[test]
    fn a_paused_server_is_told_so_and_a_deleted_one_is_not_served() {
        let (mut paused, mut deleted) = (server("db-1"), server("db-2"));
        paused.spec.replication = Replication::Paused;
        deleted.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
        let all = assignments(
            &[paused, deleted, server("db-3")],
            &BTreeMap::new(),
            &BTreeMap::from([("db-1".to_owned(), vec![7])]),
            jiff::Timestamp::UNIX_EPOCH,
        );
        let told: Vec<(&str, bool, usize)> = all
            .iter()
            .map(|one| {
                (
                    one.display_name.as_str(),
                    one.settings.as_ref().unwrap().paused,
                    one.public_key_sha256.len(),
                )
            })
            .collect();
        assert_eq!(told, [("prod/db-1", true, 1), ("prod/db-3", false, 0)]);
    }

    #[test]
    fn a_resynchronization_waits_outside_of_the_policys_window_and_is_asked_for_by_value() {
        let mut asked = server("db-1");
        asked.spec.resynchronize = Some("2".to_owned());
        let mut policy = ReplicationPolicySpec::default();
        let told = |policy: &ReplicationPolicySpec, hour: i64| {
            let now = jiff::Timestamp::from_second(hour * 3600).unwrap();
            let settings = settings(&asked, policy, now);
            (settings.resynchronize, settings.resynchronization_waits)
        };
        assert_eq!(told(&policy, 12), ("2".to_owned(), false));
        let window = serde_json::json!({"from": "18:00", "to": "06:00"});
        policy.resynchronization.window = Some(serde_json::from_value(window).unwrap());
        assert_eq!(told(&policy, 12), ("2".to_owned(), true));
        assert_eq!(told(&policy, 3), ("2".to_owned(), false));
    }
}
