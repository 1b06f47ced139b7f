//! Services: one for each process server's data port, one for management, and headless ones that give pods names.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::ResourceExt as _;
use lifeboat_crds::{ReplicationAppliance, appliance::Exposure};

use super::{applier, process_servers};
use crate::controllers::{
    appliance::{
        names::{self, CONTROL_PORT, DATA_PORT, MANAGEMENT_PORT},
        validate::Validated,
    },
    shared::owned_by,
};

pub(super) fn build(appliance: &ReplicationAppliance, validated: &Validated) -> Vec<Service> {
    let name = appliance.name_any();
    let Exposure { kind: _, data_port, management_port, node_ports, addresses: _ } = &appliance.spec.exposure;
    let pods = process_servers::selector(&name);
    let mut services = Vec::new();
    if validated.apply {
        services.push(headless(appliance, &names::applier(&name), applier::selector(&name)));
    }
    if !validated.ingest {
        return services;
    }
    services.extend([
        headless(appliance, &names::process_server_pods(&name), pods.clone()),
        exposed(
            appliance,
            validated,
            &names::management(&name),
            pods.clone(),
            port(
                "management",
                *management_port,
                MANAGEMENT_PORT,
                node_ports.as_ref().map(|ports| i32::from(ports.management)),
            ),
        ),
    ]);
    for index in 0..validated.replicas {
        let pod = names::process_server(&name, index);
        let mut selector = pods.clone();
        selector.insert("statefulset.kubernetes.io/pod-name".to_owned(), pod.clone());
        let node_port = node_ports.as_ref().map(|ports| i32::from(ports.data_base) + index);
        services.push(exposed(
            appliance,
            validated,
            &pod,
            selector,
            port("data", *data_port, DATA_PORT, node_port),
        ));
    }
    services
}

fn port(name: &str, number: u16, target: i32, node_port: Option<i32>) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        port: i32::from(number),
        target_port: Some(IntOrString::Int(target)),
        node_port,
        protocol: Some("TCP".to_owned()),
        ..ServicePort::default()
    }
}

fn exposed(
    appliance: &ReplicationAppliance,
    validated: &Validated,
    name: &str,
    selector: BTreeMap<String, String>,
    port: ServicePort,
) -> Service {
    let kind = if validated.node_ports { "NodePort" } else { "ClusterIP" };
    Service {
        metadata: owned_by(appliance, name, selector_labels(&selector)),
        spec: Some(ServiceSpec {
            type_: Some(kind.to_owned()),
            selector: Some(selector),
            ports: Some(vec![port]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// The operator reaches a pod before it is ready: what it needs to become so may come from here.
fn headless(appliance: &ReplicationAppliance, name: &str, selector: BTreeMap<String, String>) -> Service {
    Service {
        metadata: owned_by(appliance, name, selector_labels(&selector)),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".to_owned()),
            publish_not_ready_addresses: Some(true),
            selector: Some(selector),
            ports: Some(vec![port("control", 9444, CONTROL_PORT, None)]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

fn selector_labels(selector: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    selector
        .iter()
        .filter(|(key, _)| !key.starts_with("statefulset."))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}
