//! Takes the machine out of service: what runs on it is stopped in order, every file system becomes read-only, and in the
//! end it goes off at once, so that nothing is written after the last round.
//!
//! **What is stopped**: services, sockets, timers and sessions that run, all in one transaction of systemd, so in their own
//! order. What the agent needs stays: the system's own services, network, firewall, storage, remote shell and console.
//! **Swap** is taken out of use, if memory allows it.
//! **Read-only**: by the kernel's emergency remount (SysRq-u), which does not ask who has files open; looked at afterwards.
//! **Off**: `reboot(2)`, not the machine's shutdown, which would write again. The file systems are clean by then.
#![allow(
    clippy::disallowed_methods,
    reason = "at the edge, on a thread of its own that waits for programs; simulated as a whole"
)]

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::{self, sleep},
    time::{Duration, Instant},
};

use futures::future::{BoxFuture, FutureExt as _};

use super::{mounts, reboot::BOOT_ID, sys};
use crate::{
    edge::{Begun, Power, PowerError},
    files,
};

const FILE: &str = "shutdown";
/// What does not stop in this time is overtaken by the file systems' becoming read-only.
const STOP_LIMIT: Duration = Duration::from_secs(300);
/// It has to fit into memory.
const SWAP_LIMIT: Duration = Duration::from_secs(60);
/// The kernel does it in the background, after writing back what is dirty.
const READ_ONLY_LIMIT: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(200);

/// Beginnings of the names of units that stay.
const STAY: &[&str] = &[
    "lifeboat",
    "systemd-",
    "dbus",
    "polkit",
    "init.scope",
    "ssh",
    "getty@",
    "serial-getty@",
    "console-getty",
    "NetworkManager",
    "network",
    "ifup@",
    "dhcpcd",
    "dhclient",
    "wpa_supplicant",
    "wicked",
    "connman",
    "resolvconf",
    "nftables",
    "iptables",
    "netfilter",
    "firewalld",
    "ufw",
    "shorewall",
    "wg-quick@",
    "openvpn",
    "strongswan",
    "ipsec",
    "tailscaled",
    "multipathd",
    "iscsi",
    "open-iscsi",
    "lvm2",
    "dm-event",
    "mdmonitor",
    "mdadm",
    "zfs",
    "nvmf",
    "rpcbind",
    "qemu-guest-agent",
    "open-vm-tools",
    "vmtoolsd",
    "hv-",
    "walinuxagent",
    "waagent",
];
/// Units without a process of their own whose stop matters all the same: they shut down machines that run here.
const STOP_ANYWAY: &[&str] = &["libvirt-guests.service"];

/// This machine.
#[derive(Debug)]
pub struct KernelPower {
    state: PathBuf,
    /// Beginnings of the names of more units that stay.
    keeps: Vec<String>,
}

impl KernelPower {
    /// With the agent's state directory, and beginnings of the names of units that stay beside those that always do.
    pub fn new(state: &Path, keeps: Vec<String>) -> Self {
        Self { state: state.to_owned(), keeps }
    }
}

impl Power for KernelPower {
    fn begin(&self, id: &str) -> Result<Begun, PowerError> {
        let path = self.state.join(FILE);
        let failed = |source| PowerError::Note { path: path.clone(), source };
        let boot = fs::read_to_string(BOOT_ID).map_err(failed)?;
        let note = format!("{id}\n{}\n", boot.trim());
        match fs::read_to_string(&path) {
            Ok(known) if known == note => return Ok(Begun::Now),
            Ok(known) if known.lines().next() == Some(id) => return Ok(Begun::Earlier),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        files::replace(&path, note.as_bytes()).map_err(failed)?;
        Ok(Begun::Now)
    }

    fn quiet(&self) -> BoxFuture<'static, Result<(), PowerError>> {
        let (done, waited) = tokio::sync::oneshot::channel();
        // A thread of its own: it goes on while no session is there to wait for it.
        let keeps = self.keeps.clone();
        thread::spawn(move || {
            let _ = done.send(stop_services(&keeps).map(|()| swap_off()).and_then(|()| make_read_only()));
        });
        async move { waited.await.unwrap_or(Err(PowerError::Gone)) }.boxed()
    }

    fn off(&self) {
        let error = sys::power_off();
        tracing::error!(%error, "the machine does not go off: switch it off by hand; all it ever wrote is in the vault");
    }
}

fn stop_services(keeps: &[String]) -> Result<(), PowerError> {
    if !Path::new("/run/systemd/system").exists() {
        return Err(PowerError::NoSystemd);
    }
    let systemd = |source| PowerError::Systemctl { source };
    let listed = Command::new("systemctl")
        .args(["list-units", "--plain", "--no-legend", "--full", "--state=active"])
        .args(["--type=service,socket,timer,path,scope"])
        .stdin(Stdio::null())
        .output()
        .map_err(systemd)?;
    let units = to_stop(&String::from_utf8_lossy(&listed.stdout), keeps);
    tracing::info!(units = units.join(" "), "stopping");
    if units.is_empty() {
        return Ok(());
    }
    let mut stop = Command::new("systemctl");
    stop.args(["stop", "--no-ask-password", "--"]).args(&units);
    // What has not stopped by then goes on stopping.
    if !ends_within(&mut stop, STOP_LIMIT).map_err(systemd)? {
        tracing::warn!(
            "not all services have stopped in {STOP_LIMIT:?}: the file systems become read-only under them"
        );
    }
    Ok(())
}

/// False: it did not end in time, and was killed.
fn ends_within(command: &mut Command, limit: Duration) -> io::Result<bool> {
    let mut child = command.stdin(Stdio::null()).spawn()?;
    let begun = Instant::now();
    while begun.elapsed() < limit {
        if child.try_wait()?.is_some() {
            return Ok(true);
        }
        wait();
    }
    let _ = child.kill();
    let _ = child.wait();
    Ok(false)
}

/// From the lines `UNIT LOAD ACTIVE SUB …` of what is active.
fn to_stop(listed: &str, keeps: &[String]) -> Vec<String> {
    let goes = |line: &str| {
        let mut fields = line.split_whitespace();
        let (unit, state) = (fields.next()?, fields.nth(2)?);
        let lives = matches!(state, "running" | "listening" | "waiting" | "start" | "reload" | "abandoned");
        let mut kept =
            STAY.iter().copied().chain(keeps.iter().map(String::as_str)).filter(|name| !name.is_empty());
        let stays = kept.any(|name| unit.starts_with(name));
        ((lives && !stays) || STOP_ANYWAY.contains(&unit)).then(|| unit.to_owned())
    };
    listed.lines().filter_map(goes).collect()
}

/// Nothing depends on it: what is still swapped to is replicated, but it may never come to rest.
fn swap_off() {
    let ended = ends_within(Command::new("swapoff").arg("--all"), SWAP_LIMIT);
    if !matches!(ended, Ok(true)) {
        tracing::warn!(?ended, "swap stays in use");
    }
}

fn make_read_only() -> Result<(), PowerError> {
    let remount = |source| PowerError::Remount { source };
    let begun = Instant::now();
    let mut asked: Option<Instant> = None;
    loop {
        let writable = mounts::writable().map_err(remount)?;
        if writable.is_empty() {
            return Ok(());
        }
        if begun.elapsed() >= READ_ONLY_LIMIT {
            let mounts =
                writable.iter().map(|mount| mount.display().to_string()).collect::<Vec<_>>().join(", ");
            return Err(PowerError::StillWritable { mounts });
        }
        // Once more after a while: a file system that was just being written to may refuse.
        if asked.is_none_or(|asked| asked.elapsed() >= Duration::from_secs(10)) {
            sys::sync();
            fs::write("/proc/sysrq-trigger", "u").map_err(remount)?;
            // Those that the kernel's way leaves out (btrfs): the usual one, which fails while files are open.
            for mount in &writable {
                let _ = sys::remount_read_only(mount);
            }
            asked = Some(Instant::now());
        }
        wait();
    }
}

fn wait() {
    sleep(LOOK);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_is_stopped_but_what_the_agent_needs() {
        let listed = "\
cron.service                 loaded active running Regular background program processing daemon
dbus.service                 loaded active running D-Bus System Message Bus
dbus.socket                  loaded active running D-Bus System Message Bus Socket
docker.socket                loaded active listening Docker Socket for the API
init.scope                   loaded active running System and Service Manager
lifeboat-agent.service       loaded active running Lifeboat mobility agent
lifeboat-thaw.service        loaded active running Lifeboat watchdog
networking.service           loaded active exited  Raise network interfaces
libvirt-guests.service       loaded active exited  libvirt guests suspend/resume service
postgresql.service           loaded active exited  PostgreSQL RDBMS
postgresql@15-main.service   loaded active running PostgreSQL Cluster 15-main
session-3.scope              loaded active running Session 3 of User root
ssh.service                  loaded active running OpenBSD Secure Shell server
systemd-journald.service     loaded active running Journal Service
apt-daily.timer              loaded active waiting Daily apt download activities
user@0.service               loaded active running User Manager for UID 0
tunnel-berlin.service        loaded active running A tunnel
";
        let stopped = to_stop(listed, &["tunnel".to_owned(), String::new()]);
        let wanted = [
            "cron.service",
            "docker.socket",
            "libvirt-guests.service",
            "postgresql@15-main.service",
            "session-3.scope",
            "apt-daily.timer",
            "user@0.service",
        ];
        assert_eq!(stopped, wanted);
    }

    #[test]
    fn an_order_of_an_earlier_run_of_the_machine_is_known() {
        let state = tempfile::tempdir().unwrap();
        let power = KernelPower::new(state.path(), Vec::new());
        assert_eq!(power.begin("1").unwrap(), Begun::Now);
        assert_eq!(power.begin("1").unwrap(), Begun::Now, "the agent was restarted");
        fs::write(state.path().join(FILE), "1\nanother-boot\n").unwrap();
        assert_eq!(power.begin("1").unwrap(), Begun::Earlier);
        assert_eq!(power.begin("2").unwrap(), Begun::Now);
    }
}
