//! What all pods have in common: they run under Pod Security `restricted`, without any right in Kubernetes, and find
//! the vault at the same paths.

use k8s_openapi::{
    api::core::v1::{
        Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EnvVar, EnvVarSource, HTTPGetAction,
        KeyToPath, ObjectFieldSelector, PodSecurityContext, Probe, ProjectedVolumeSource, SeccompProfile,
        SecretVolumeSource, SecurityContext, ServiceAccountTokenProjection, Volume, VolumeMount,
        VolumeProjection,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::ResourceExt as _;
use lifeboat_crds::ReplicationAppliance;
use lifeboat_replication::store::azure::TOKEN_AUDIENCE;

use crate::{
    controllers::appliance::{
        names::{self, METRICS_PORT},
        secrets::{self, DATA_KEYS},
        validate::Credential,
    },
    runtime::settings::Images,
};

pub const CONFIGURATION_DIR: &str = "/etc/lifeboat/config";
pub const TLS_DIR: &str = "/etc/lifeboat/tls";
pub const MANAGEMENT_TLS_DIR: &str = "/etc/lifeboat/management";
pub const AUTHENTICATION_DIR: &str = "/etc/lifeboat/vault-auth";
pub const KEYS_DIR: &str = "/etc/lifeboat/keys";
pub const SPOOL_DIR: &str = "/var/lib/lifeboat/spool";
/// The user of every image of ours.
pub const USER: i64 = 65532;

/// In [`AUTHENTICATION_DIR`]: the service account's token, for a workload identity.
pub const TOKEN_FILE: &str = "token";
const TOKEN_SECONDS: i64 = 3600;

/// Owner can read; the group too, since mounted Secrets belong to root and to the pod's group.
const SECRET_MODE: i32 = 0o440;

pub fn pod_security() -> PodSecurityContext {
    PodSecurityContext {
        run_as_non_root: Some(true),
        run_as_user: Some(USER),
        run_as_group: Some(USER),
        fs_group: Some(USER),
        // A large spool is not walked at every start.
        fs_group_change_policy: Some("OnRootMismatch".to_owned()),
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
        ..PodSecurityContext::default()
    }
}

pub fn container_security() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        read_only_root_filesystem: Some(true),
        ..SecurityContext::default()
    }
}

/// A container of one of our images.
pub fn container(name: &str, image: &str, images: &Images) -> Container {
    Container {
        name: name.to_owned(),
        image: Some(image.to_owned()),
        image_pull_policy: Some(images.pull_policy.clone()),
        security_context: Some(container_security()),
        // What a program says last is shown where people look first.
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        ..Container::default()
    }
}

/// Configuration, credentials and data keys of the vault.
pub fn vault_volumes(appliance: &ReplicationAppliance, credential: &Credential) -> Vec<Volume> {
    let authentication = match credential.secret() {
        Some(secret) => secret_volume("vault-auth", &secret.name, Some(&secret.key)),
        None => token_volume("vault-auth"),
    };
    let config = ConfigMapVolumeSource {
        name: names::configuration(&appliance.name_any()),
        ..ConfigMapVolumeSource::default()
    };
    vec![
        Volume { name: "config".to_owned(), config_map: Some(config), ..Volume::default() },
        authentication,
        secret_volume("keys", &secrets::data_keys_name(appliance), Some(DATA_KEYS)),
    ]
}

/// A token of the pod's service account that only Entra takes: it opens nothing in Kubernetes. The kubelet renews it.
fn token_volume(name: &str) -> Volume {
    let token = ServiceAccountTokenProjection {
        audience: Some(TOKEN_AUDIENCE.to_owned()),
        expiration_seconds: Some(TOKEN_SECONDS),
        path: TOKEN_FILE.to_owned(),
    };
    let source = VolumeProjection { service_account_token: Some(token), ..VolumeProjection::default() };
    let projected = ProjectedVolumeSource { sources: Some(vec![source]), default_mode: Some(SECRET_MODE) };
    Volume { name: name.to_owned(), projected: Some(projected), ..Volume::default() }
}

pub fn vault_mounts() -> Vec<VolumeMount> {
    vec![mount("config", CONFIGURATION_DIR), mount("vault-auth", AUTHENTICATION_DIR), mount("keys", KEYS_DIR)]
}

/// A variable with a field of the pod.
pub fn of_pod(name: &str, field_path: &str) -> EnvVar {
    let field_ref = ObjectFieldSelector { field_path: field_path.to_owned(), api_version: None };
    let source = EnvVarSource { field_ref: Some(field_ref), ..EnvVarSource::default() };
    EnvVar { name: name.to_owned(), value: None, value_from: Some(source) }
}

/// All keys of a Secret, or one.
pub fn secret_volume(name: &str, secret: &str, key: Option<&str>) -> Volume {
    let items = key.map(|key| vec![KeyToPath { key: key.to_owned(), path: key.to_owned(), mode: None }]);
    let source = SecretVolumeSource {
        secret_name: Some(secret.to_owned()),
        items,
        default_mode: Some(SECRET_MODE),
        optional: None,
    };
    Volume { name: name.to_owned(), secret: Some(source), ..Volume::default() }
}

pub fn mount(volume: &str, path: &str) -> VolumeMount {
    VolumeMount {
        name: volume.to_owned(),
        mount_path: path.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    }
}

pub fn writable_mount(volume: &str, path: &str) -> VolumeMount {
    VolumeMount { name: volume.to_owned(), mount_path: path.to_owned(), ..VolumeMount::default() }
}

pub fn port(name: &str, number: i32) -> ContainerPort {
    ContainerPort {
        name: Some(name.to_owned()),
        container_port: number,
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    }
}

pub fn http_probe(path: &str, period_seconds: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::Int(METRICS_PORT),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        failure_threshold: Some(failures),
        timeout_seconds: Some(5),
        ..Probe::default()
    }
}
