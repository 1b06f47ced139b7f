//! A program that can be killed and started again, with its log in a file.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::programs::program;

pub struct Program {
    pub name: &'static str,
    arguments: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
}

impl Program {
    /// Starts it; `log` is the name of its log in `dir`.
    pub fn new(name: &'static str, dir: &Path, log: &str, arguments: Vec<String>) -> Self {
        let mut program = Self { name, arguments, log: dir.join(log), child: None };
        program.start();
        program
    }

    pub fn start(&mut self) {
        let path = program(self.name);
        assert!(path.exists(), "{} is not built: cargo build --workspace --bins", path.display());
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = Command::new(path);
        command.args(&self.arguments).stdin(Stdio::null());
        self.child = Some(command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
    }

    /// As `kill -9` does it: nothing can be put in order.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            assert_eq!(child.try_wait().unwrap(), None, "{} ended by itself:\n{}", self.name, self.tail());
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Asked to stop, as a kubelet does it, and waited for.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let asked = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
            assert!(asked.success());
            let ended = child.wait().unwrap();
            assert!(ended.success(), "{} {ended}:\n{}", self.name, self.tail());
        }
    }

    /// Gone, whatever it was doing or if it had ended before.
    pub fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            _ = child.kill();
            _ = child.wait();
        }
    }

    /// Of the running program; `None`: it does not run.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// As the kernel names it, for whoever has to find out why a test waited in vain.
    pub fn state(&self) -> String {
        let pid = self.pid().unwrap_or_default();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let state = status.lines().find(|line| line.starts_with("State:")).unwrap_or("State: gone");
        format!("({})", state.replace('\t', " "))
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.end();
    }
}
