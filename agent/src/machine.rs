//! What this machine calls itself, read from /proc and /etc; and which program this is.

use std::{fs, path::Path};

use crate::{core::Machine, digest::Digest};

/// With the digest of the program that runs: it is read once, at the start (20 MB: 15 to 100 ms).
pub fn describe_running(root: &Path) -> Machine {
    let digest = Digest::of_this_program();
    if let Err(error) = &digest {
        tracing::warn!(%error, "this program cannot be read: the appliance is not told which one it is");
    }
    let program_sha256 = digest.map(|digest| digest.bytes().to_vec()).unwrap_or_default();
    Machine { program_sha256, ..describe(root) }
}

/// Reads below `root` (`/` but in tests). What is missing is empty.
pub fn describe(root: &Path) -> Machine {
    let line = |path: &str| {
        fs::read_to_string(root.join(path)).map(|text| text.trim().to_owned()).unwrap_or_default()
    };
    Machine {
        hostname: line("proc/sys/kernel/hostname"),
        os: pretty_name(&line("etc/os-release")),
        kernel: line("proc/sys/kernel/osrelease"),
        machine_id: line("etc/machine-id"),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        program_sha256: Vec::new(),
    }
}

fn pretty_name(os_release: &str) -> String {
    let line = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    line.unwrap_or_default().trim_matches(['"', '\'']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_name_people_know_and_does_without_what_is_missing() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        let release = "NAME=\"Debian GNU/Linux\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n";
        fs::write(root.path().join("etc/os-release"), release).unwrap();
        let machine = describe(root.path());
        assert_eq!(machine.os, "Debian GNU/Linux 12 (bookworm)");
        assert_eq!((machine.machine_id.as_str(), machine.program_sha256.len()), ("", 0));
        let program = Digest::of_file(&std::env::current_exe().unwrap()).unwrap();
        assert_eq!(describe_running(root.path()).program_sha256, program.bytes());
    }
}
