//! What the appliance's programs should be told: who is served by whom, under which addresses, how.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt as _;
use lifeboat_crds::{
    ProtectedServer, ProtectedServerStatus, ReplicationAppliance, ReplicationPolicy, ReplicationPolicySpec,
    server::{DiskSelector, Replication},
};
use lifeboat_replication::wire::v1;

use super::{
    names::{self, CONTROL_PORT},
    validate::Validated,
};
use crate::{control::Endpoint, controllers::protected_server::shutdown, pki::tls_name};

/// Process servers that there have to be for now: those that are asked for, and those that go as soon as the last
/// server has moved away, so that they commit what they have. The highest ordinals go.
pub fn kept_replicas(wanted: i32, running: i32, appliance: &str, servers: &[ProtectedServer]) -> i32 {
    let prefix = format!("{}-", names::process_servers(appliance));
    let ordinal = |server: &ProtectedServer| -> Option<i32> {
        server.status.as_ref()?.process_server.as_ref()?.strip_prefix(&prefix)?.parse().ok()
    };
    // With none at all there is nobody to move to.
    if wanted == 0 {
        return 0;
    }
    let used = servers.iter().filter_map(ordinal).filter(|ordinal| *ordinal < running).max();
    used.map_or(wanted, |used| wanted.max(used + 1))
}

/// host:port at which agents reach one of the Services. With node ports these are the given addresses alone: the cluster's
/// own names lead nowhere from outside, and an agent that tries one loses a dial's time-out.
pub fn addresses(
    appliance: &ReplicationAppliance,
    validated: &Validated,
    service: &str,
    port: u16,
    services: &BTreeMap<String, Service>,
    domain: &str,
) -> Vec<String> {
    let join = |port: i32| {
        appliance.spec.exposure.addresses.iter().map(move |host| {
            if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
        })
    };
    if validated.node_ports {
        let spec = services.get(service).and_then(|service| service.spec.as_ref());
        let node_port = spec.and_then(|spec| spec.ports.as_ref()?.first()?.node_port);
        // None yet: nothing can be reached.
        return node_port.into_iter().flat_map(join).collect();
    }
    let namespace = appliance.namespace().unwrap_or_default();
    let inside = format!("{service}.{namespace}.svc.{domain}:{port}");
    join(i32::from(port)).chain([inside]).collect()
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

pub fn applier_endpoints(
    appliance: &ReplicationAppliance,
    validated: &Validated,
    domain: &str,
) -> Vec<Endpoint> {
    let name = appliance.name_any();
    (0..validated.appliers)
        .map(|index| endpoint(appliance, names::applier_pod(&name, index), &names::applier(&name), domain))
        .collect()
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
    groups: &BTreeMap<String, u32>,
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
                lost_epoch: lost_epoch(status),
                consistency_group: server.spec.consistency_group.clone().unwrap_or_default(),
                group_members: server
                    .spec
                    .consistency_group
                    .as_ref()
                    .and_then(|group| groups.get(group).copied())
                    .unwrap_or_default(),
            })
        })
        .collect();
    all.sort_by(|a, b| a.server_id.cmp(&b.server_id));
    all
}

/// The writer that was given up with the last move, as long as the server is where it was moved to.
fn lost_epoch(status: &ProtectedServerStatus) -> u32 {
    let last = status.last_move.as_ref().filter(|last| Some(&last.to) == status.process_server.as_ref());
    let epoch = last.and_then(|last| u32::try_from(last.lost_epoch?).ok());
    epoch.unwrap_or_default()
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
        shutdown: shutdown::order(server),
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
    fn agents_are_told_what_they_reach_by_the_exposure_and_nothing_else() {
        let mut berlin = appliance();
        berlin.spec.exposure = serde_json::from_value(
            serde_json::json!({"type": "NodePort", "addresses": ["10.240.0.1", "fd00::1"]}),
        )
        .unwrap();
        let service: Service = serde_json::from_value(serde_json::json!({"metadata": {"name": "berlin-management"}, "spec": {"ports": [{"port": 443, "nodePort": 30443}]}})).unwrap();
        let services = BTreeMap::from([("berlin-management".to_owned(), service)]);
        let found = management_addresses(&berlin, &validate(&berlin).unwrap(), &services, "cluster.local");
        assert_eq!(found, ["10.240.0.1:30443", "[fd00::1]:30443"]);
        let none =
            management_addresses(&berlin, &validate(&berlin).unwrap(), &BTreeMap::new(), "cluster.local");
        assert_eq!(none, Vec::<String>::new(), "no node port was given out yet");
        let data = data_addresses(&berlin, &validate(&berlin).unwrap(), &services, "cluster.local");
        assert!(data.iter().all(|server| server.data_addresses.is_empty()), "{data:?}");
        berlin.spec.exposure =
            serde_json::from_value(serde_json::json!({"type": "ClusterIP", "addresses": ["10.240.0.1"]}))
                .unwrap();
        let found = management_addresses(&berlin, &validate(&berlin).unwrap(), &services, "cluster.local");
        assert_eq!(found, ["10.240.0.1:443", "berlin-management.prod.svc.cluster.local:443"]);
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
            &BTreeMap::new(),
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
    fn a_member_of_a_group_is_told_how_many_there_are_on_every_appliance() {
        let mut member = server("db-1");
        member.spec.consistency_group = Some("erp".into());
        let groups = BTreeMap::from([("erp".to_owned(), 3)]);
        let policies = BTreeMap::new();
        let told = assignments(
            &[member, server("web")],
            &policies,
            &BTreeMap::new(),
            &groups,
            jiff::Timestamp::UNIX_EPOCH,
        );
        let of = |one: &v1::Assignment| (one.consistency_group.clone(), one.group_members);
        assert_eq!(told.iter().map(of).collect::<Vec<_>>(), [("erp".to_owned(), 3), (String::new(), 0)]);
    }

    fn placed(names: &[&str]) -> Vec<ProtectedServer> {
        let placed = |name: &&str| {
            let mut placed = server("db");
            placed.status.as_mut().unwrap().process_server = Some((*name).to_owned());
            placed
        };
        names.iter().map(placed).collect()
    }

    #[test]
    fn a_process_server_that_is_not_asked_for_any_more_stays_until_its_last_server_has_moved() {
        let servers = placed(&["berlin-process-server-0", "berlin-process-server-2"]);
        assert_eq!(kept_replicas(1, 3, "berlin", &servers), 3);
        assert_eq!(kept_replicas(1, 3, "berlin", &servers[..1]), 1);
        assert_eq!(kept_replicas(5, 3, "berlin", &servers), 5);
        // Not there any more, somebody else's, or nobody to move to.
        assert_eq!(kept_replicas(1, 2, "berlin", &servers), 1);
        assert_eq!(kept_replicas(1, 3, "paris", &servers), 1);
        assert_eq!(kept_replicas(0, 3, "berlin", &servers), 0);
    }

    #[test]
    fn a_writer_that_was_given_up_is_named_to_the_process_server_that_follows_it_alone() {
        let told = |to: &str| {
            let mut moved = placed(&["berlin-process-server-1"]);
            moved[0].status.as_mut().unwrap().last_move = Some(lifeboat_crds::server::Move {
                from: "berlin-process-server-0".to_owned(),
                to: to.to_owned(),
                time: jiff::Timestamp::UNIX_EPOCH,
                reason: String::new(),
                message: String::new(),
                lost_epoch: Some(7),
            });
            assignments(
                &moved,
                &BTreeMap::new(),
                &BTreeMap::new(),
                &BTreeMap::new(),
                jiff::Timestamp::UNIX_EPOCH,
            )[0]
            .lost_epoch
        };
        assert_eq!(told("berlin-process-server-1"), 7);
        assert_eq!(told("berlin-process-server-9"), 0);
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
