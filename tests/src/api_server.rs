//! A Kubernetes API server of a test's own: real etcd and kube-apiserver on loopback, ended with the test.

use std::{
    ffi::OsStr,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

/// Something that stops a test before it has tested anything.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("{program} could not be run: is this a checkout with dev/, on a machine prepared by dev/setup?")]
    Run {
        program: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{program} failed: {message}")]
    Failed { program: String, message: String },
}

/// What a program answered.
#[derive(Debug, Clone)]
pub struct Answer {
    pub success: bool,
    pub stdout: String,
    pub stderr: String,
}

impl Answer {
    /// Standard output as JSON; null when it is none, so that an assertion shows what was missing.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_default()
    }
}

/// A running API server.
pub struct ApiServer {
    dir: PathBuf,
    kubeconfig: PathBuf,
    kubectl: PathBuf,
    helm: PathBuf,
}

impl ApiServer {
    /// Starts one; 3 to 7 seconds once its programs are built.
    pub fn start(name: &str) -> Result<Self, SetupError> {
        Self::start_with(name, &[])
    }

    /// Starts one with a controller manager, which ends namespaces, collects garbage and makes pods of StatefulSets and
    /// Jobs. There is no node, so pods stay Pending.
    pub fn start_with_controllers(name: &str) -> Result<Self, SetupError> {
        Self::start_with(name, &[("LIFEBOAT_CONTROLLERS", "1")])
    }

    fn start_with(name: &str, environment: &[(&str, &str)]) -> Result<Self, SetupError> {
        let dir = std::env::temp_dir().join(format!("lifeboat-tests-{}-{name}", std::process::id()));
        let owner = std::process::id().to_string();
        let mut up = Command::new(dev("cluster/apiserver-up"));
        up.arg(&dir).env("LIFEBOAT_OWNER_PID", owner).envs(environment.iter().copied());
        let kubeconfig = PathBuf::from(output_of(up)?.trim());
        Ok(Self {
            dir,
            kubeconfig,
            kubectl: go_build("kubernetes")?.join("kubectl"),
            helm: go_build("tools")?.join("helm"),
        })
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A folder for the test's files, gone with the server.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.dir.join(format!("test-{name}"))
    }

    /// Runs kubectl as the administrator.
    pub fn kubectl<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Answer, SetupError> {
        self.kubectl_with(arguments, "")
    }

    /// Runs kubectl as the administrator with something on standard input.
    pub fn kubectl_with<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
        input: &str,
    ) -> Result<Answer, SetupError> {
        let mut command = Command::new(&self.kubectl);
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(arguments);
        run(command, input)
    }

    /// Runs Helm as the administrator.
    pub fn helm<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Answer, SetupError> {
        let mut command = Command::new(&self.helm);
        command
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .args(arguments)
            .env("HELM_CACHE_HOME", self.dir.join("helm"));
        run(command, "")
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        // apiserver-up also watches this process, so nothing stays if this fails.
        let _ = Command::new(dev("cluster/apiserver-down")).arg(&self.dir).stderr(Stdio::null()).status();
    }
}

/// The top of the repository.
pub fn top() -> PathBuf {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::canonicalize(crate_dir.join("..")).unwrap_or_else(|_| crate_dir.join(".."))
}

pub(crate) fn dev(script: &str) -> PathBuf {
    top().join("dev").join(script)
}

fn go_build(module: &str) -> Result<PathBuf, SetupError> {
    let mut command = Command::new(dev("cluster/go-build"));
    command.arg(module);
    Ok(PathBuf::from(output_of(command)?.trim()))
}

pub(crate) fn output_of(command: Command) -> Result<String, SetupError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let answer = run(command, "")?;
    if answer.success {
        Ok(answer.stdout)
    } else {
        Err(SetupError::Failed { program, message: answer.stderr })
    }
}

fn run(mut command: Command, input: &str) -> Result<Answer, SetupError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |source| SetupError::Run { program: program.clone(), source };
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read its input may be gone already; its exit code says what matters.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Answer {
        success: output.status.success(),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    })
}
