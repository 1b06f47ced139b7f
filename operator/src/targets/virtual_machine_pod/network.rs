//! Who reaches a test machine: pods of the same run, on its declared ports. It itself reaches only what its disk
//! server needs (the vault and DNS); the guest reaches nothing, which QEMU enforces.

use k8s_openapi::{
    api::networking::v1::{
        NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
        NetworkPolicyPort, NetworkPolicySpec,
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use kube::ResourceExt as _;
use lifeboat_crds::{
    FailoverRun,
    names::{RUN_LABEL, RUN_UID_LABEL, SERVER_LABEL},
    run::ResolvedServer,
};

use crate::controllers::shared::{labels, owned_by};

pub(super) fn build(run: &FailoverRun, name: &str, server: &ResolvedServer) -> NetworkPolicy {
    let uid = run.uid().unwrap_or_default();
    let of_run =
        LabelSelector { match_labels: Some(labels([(RUN_UID_LABEL, &uid)])), match_expressions: None };
    let port = |port: u16| NetworkPolicyPort {
        port: Some(IntOrString::Int(i32::from(port))),
        protocol: Some("TCP".to_owned()),
        end_port: None,
    };
    let ports: Vec<NetworkPolicyPort> =
        server.target.virtual_machine_pod.ports.iter().map(|declared| port(declared.port)).collect();
    // Without ports nobody is let in; a rule without ports would let the run's pods in on all of them.
    let ingress = if ports.is_empty() {
        Vec::new()
    } else {
        let peer = NetworkPolicyPeer { pod_selector: Some(of_run), ..NetworkPolicyPeer::default() };
        vec![NetworkPolicyIngressRule { from: Some(vec![peer]), ports: Some(ports) }]
    };
    NetworkPolicy {
        metadata: owned_by(
            run,
            name,
            labels([
                (RUN_LABEL, &run.name_any()),
                (RUN_UID_LABEL, &uid),
                (SERVER_LABEL, server.name.as_str()),
            ]),
        ),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(LabelSelector {
                match_labels: Some(labels([(RUN_UID_LABEL, &uid), (super::MACHINE_LABEL, name)])),
                match_expressions: None,
            }),
            policy_types: Some(vec!["Ingress".to_owned(), "Egress".to_owned()]),
            ingress: Some(ingress),
            // The disk server's way to the vault, whose address only a name may give.
            egress: Some(vec![NetworkPolicyEgressRule::default()]),
        }),
    }
}
