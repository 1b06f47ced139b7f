//! The operator's program, run outside of the cluster with the service account and the rights that the chart gives.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};

use crate::{
    api_server::{ApiServer, SetupError},
    programs::{free_ports, program},
};

const ACCOUNT: &str = "lifeboat";
const NAMESPACE: &str = "lifeboat-system";

/// A running operator.
pub struct Operator {
    child: Child,
    log: PathBuf,
}

impl Operator {
    /// Starts it with a token of the chart's service account. The chart must be installed.
    pub fn start(server: &ApiServer) -> Result<Self, SetupError> {
        Self::start_with(server, &[])
    }

    /// With more in its environment.
    pub fn start_with(server: &ApiServer, environment: &[(&str, String)]) -> Result<Self, SetupError> {
        Self::start_named(server, "operator", environment)
    }

    /// One of several: `name` is its pod's.
    pub fn start_named(
        server: &ApiServer,
        name: &str,
        environment: &[(&str, String)],
    ) -> Result<Self, SetupError> {
        let program = program("lifeboat-operator");
        let failed = |source| SetupError::Run { program: program.display().to_string(), source };
        let scratch = server.scratch(name);
        fs::create_dir_all(&scratch).map_err(failed)?;
        let kubeconfig = scratch.join("kubeconfig");
        fs::write(&kubeconfig, account_kubeconfig(server)?.to_string()).map_err(failed)?;
        let log = scratch.join("log");
        let output = File::create(&log).map_err(failed)?;
        let [metrics, probes] = free_ports::<2>().map_err(failed)?;
        let child = Command::new(&program)
            .env("KUBECONFIG", &kubeconfig)
            .env("LIFEBOAT_NAMESPACE", NAMESPACE)
            .env("LIFEBOAT_LEASE_NAME", ACCOUNT)
            .env("LIFEBOAT_POD_NAME", name)
            .env("LIFEBOAT_METRICS_PORT", metrics.to_string())
            .env("LIFEBOAT_PROBE_PORT", probes.to_string())
            .env("LIFEBOAT_LOG", "info")
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(output.try_clone().map_err(failed)?)
            .stderr(output)
            .spawn()
            .map_err(failed)?;
        Ok(Self { child, log })
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Stops it where it is, as a node that is starved does, until [`Operator::thaw`].
    pub fn freeze(&self) {
        self.signal("STOP");
    }

    pub fn thaw(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "kill -s {name} failed");
    }

    /// Whether it still runs.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The administrator's kubeconfig, with the token of the operator's account instead of a certificate.
fn account_kubeconfig(server: &ApiServer) -> Result<Value, SetupError> {
    let token = server.kubectl(["-n", NAMESPACE, "create", "token", ACCOUNT, "--duration=2h"])?;
    if !token.success {
        return Err(SetupError::Failed { program: "kubectl create token".to_owned(), message: token.stderr });
    }
    let mut config = server.kubectl(["config", "view", "--raw", "-o", "json"])?.json();
    let user = config["users"][0]["name"].clone();
    config["users"] = json!([{ "name": user, "user": { "token": token.stdout.trim() } }]);
    Ok(config)
}
