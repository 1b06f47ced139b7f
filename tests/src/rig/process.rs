//! A program that a test needs beside those under test: a database, a client, a disk's server. It ends with the test,
//! however the test ends.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::Duration,
};

/// A command that becomes the program instead of starting it, so that what is ended is the program; the kernel kills
/// it when the thread that started it is gone. `user`: `None` is root.
pub fn command(user: Option<&str>, program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    if let Some(user) = user {
        command.args([format!("--reuid={user}"), format!("--regid={user}"), "--init-groups".to_owned()]);
    }
    command.args(["--pdeathsig=KILL", "--"]).arg(program);
    command.stdin(Stdio::null());
    command
}

/// Ended with a signal when it is dropped; killed if that does not help.
pub struct Process {
    pub child: Child,
    signal: &'static str,
}

impl Process {
    /// `signal` as the program `kill` names it, such as `-TERM`.
    pub fn start(mut command: Command, signal: &'static str) -> Self {
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}: run dev/setup"));
        Self { child, signal }
    }

    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// As `kill -9` does it.
    pub fn kill(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.runs() {
            _ = Command::new("kill").args([self.signal, &self.child.id().to_string()]).status();
        }
        for _ in 0..400 {
            if !self.runs() {
                return;
            }
            sleep(Duration::from_millis(25));
        }
        self.kill();
    }
}
