//! What the operator is told at its start: by arguments or environment, set by the chart. Never a secret.

use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Clone, Args)]
pub struct Settings {
    /// Namespace of the operator itself: the lease stands here.
    #[arg(long, env = "LIFEBOAT_NAMESPACE", default_value = "lifeboat-system")]
    pub namespace: String,
    /// Name of this pod: holder of the lease.
    #[arg(long, env = "LIFEBOAT_POD_NAME", default_value = "lifeboat-operator")]
    pub pod_name: String,
    /// Name of the lease.
    #[arg(long, env = "LIFEBOAT_LEASE_NAME", default_value = "lifeboat-operator")]
    pub lease_name: String,
    /// What is logged, as tracing's filter directives.
    #[arg(long, env = "LIFEBOAT_LOG", default_value = "info")]
    pub log: String,
    /// Watch this namespace only; all of them when absent.
    #[arg(long, env = "LIFEBOAT_WATCH_NAMESPACE")]
    pub watch_namespace: Option<String>,
    /// Port of /metrics.
    #[arg(long, env = "LIFEBOAT_METRICS_PORT", default_value_t = 8080)]
    pub metrics_port: u16,
    /// Port of /healthz and /readyz.
    #[arg(long, env = "LIFEBOAT_PROBE_PORT", default_value_t = 8081)]
    pub probe_port: u16,
    /// Domain of the cluster's services.
    #[arg(long, env = "LIFEBOAT_CLUSTER_DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// The token of the operator's service account for Azure, where appliances authenticate by workload identity.
    #[arg(
        long,
        env = "LIFEBOAT_AZURE_TOKEN_FILE",
        default_value = "/var/run/secrets/lifeboat.dev/azure/token"
    )]
    pub azure_token_file: PathBuf,
    /// Hosts outside of Azure that may see tokens for Azure: of storage that speaks its protocol, and of authorities.
    #[arg(long, env = "LIFEBOAT_TRUSTED_HOSTS", value_delimiter = ',')]
    pub trusted_hosts: Vec<String>,
    #[command(flatten)]
    pub images: Images,
}

/// Images of what the operator starts.
#[derive(Debug, Clone, Args)]
pub struct Images {
    /// Our own image, for check Jobs.
    #[arg(
        long = "image-operator",
        env = "LIFEBOAT_IMAGE_OPERATOR",
        default_value = "localhost/lifeboat/operator:dev"
    )]
    pub operator: String,
    #[arg(
        long = "image-process-server",
        env = "LIFEBOAT_IMAGE_PROCESS_SERVER",
        default_value = "localhost/lifeboat/process-server:dev"
    )]
    pub process_server: String,
    #[arg(
        long = "image-applier",
        env = "LIFEBOAT_IMAGE_APPLIER",
        default_value = "localhost/lifeboat/applier:dev"
    )]
    pub applier: String,
    #[arg(
        long = "image-recovery",
        env = "LIFEBOAT_IMAGE_RECOVERY",
        default_value = "localhost/lifeboat/recovery:dev"
    )]
    pub recovery: String,
    #[arg(long = "image-qemu", env = "LIFEBOAT_IMAGE_QEMU", default_value = "localhost/lifeboat/qemu:dev")]
    pub qemu: String,
    #[arg(long, env = "LIFEBOAT_IMAGE_PULL_POLICY", default_value = "IfNotPresent")]
    pub pull_policy: String,
}
