//! A whole Debian 12 in QEMU with its own kernel, systemd and initramfs, process server and applier as programs, Azurite.
//! Its agent is upgraded: one that cannot start and one that does not stay up leave the former one running, one that works
//! takes over with the marks as they are. An orderly restart with it needs no comparison and every block of the vault is the
//! disk's; a reset is followed by one, and says why. Uninstalled, nothing is left.
//!
//! Needs root, QEMU, and the server of dev/server/build (made if it is missing).

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper is a failed test")]
#![allow(clippy::disallowed_methods, reason = "real programs run in real time")]

use std::{fs, path::PathBuf, process::Command, time::Duration};

use lifeboat_replication::wire::v1;
use lifeboat_tests::{
    programs::program,
    rig::{DEBIAN_12, Guest, Site, SiteOptions},
};

/// Copying a gigabyte out of an emulated machine.
const COPY: Duration = Duration::from_secs(1500);
const ROUND: Duration = Duration::from_secs(300);
const PROGRAM: &str = "/usr/local/bin/lifeboat-agent";

/// Says that it is an agent, has its service started, and ends.
const DOES_NOT_STAY_UP: &str = "#!/bin/sh
case $1 in
  --version) echo lifeboat-agent 9.9.9 ;;
  install) systemctl restart lifeboat-agent ;;
  *) exit 7 ;;
esac
";

fn changed_bytes(records: &[v1::Data], after: u64) -> u64 {
    records.iter().filter(|record| record.number > after).map(|record| record.changed_bytes).sum()
}

#[test]
fn an_upgrade_keeps_the_marks_an_orderly_restart_needs_no_comparison_and_a_reset_does() {
    let options = SiteOptions { name: "debian-12", without_agent: 1, ..SiteOptions::default() };
    let mut site = Site::new(&options, Vec::new());
    let guest = Guest::boot(&site, DEBIAN_12);
    let copied = changed_bytes(&guest.settled(&site, "the first copy", COPY), 0);
    upgrade(&guest, &mut site);
    let records = guest.settled(&site, "a round of the new agent", ROUND);
    let log = guest.agent_log();
    assert_eq!(log.matches("tracking starts with new marks").count(), 1, "at the first start alone: {log}");

    // With what the new agent has put into the initramfs and at the shutdown.
    guest.shell(
        "head -c 3000000 /dev/urandom >/root/before; sync; head -c 5000000 /dev/urandom >/root/at-the-end",
    );
    let last = records.last().unwrap().number;
    guest.reboot();
    guest.shell("head -c 3000000 /dev/urandom >/root/after");
    let records = guest.settled(&site, "a round after the restart", ROUND);
    let log = guest.agent_log();
    assert!(log.contains("no comparison of what is unchanged"), "{log}");
    assert!(log.contains("\"to_copy_blocks\":0"), "{log}");
    let sent = changed_bytes(&records, last);
    println!("the first copy sent {copied} bytes, the restart {sent}");
    assert!(sent < copied / 4, "{sent} bytes sent after the restart, {copied} in the first copy");
    guest.assert_same(&site);
    guest.thawed();

    guest.reset();
    let log = guest.wait("the agent after the reset", ROUND, || {
        Some(guest.agent_log()).filter(|log| log.contains("UncleanShutdown"))
    });
    assert!(log.contains("UncleanShutdown: the server was restarted and had saved no changes"), "{log}");

    guest.settled(&site, "what differed after the reset", ROUND);
    guest.shell("lifeboat-agent uninstall");
    let left = guest.shell("find /usr/local/bin /var/lib -maxdepth 1 -name '*lifeboat-agent*'");
    assert_eq!(left, "", "nothing is left");
}

/// To another program that does the same, after some that do not work.
fn upgrade(guest: &Guest, site: &mut Site) {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| -> PathBuf {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        path
    };
    // Another program that does the same: without its debug information.
    let other = folder.path().join("other");
    let mut strip = Command::new("strip");
    strip.args(["--strip-debug", "-o"]).arg(&other).arg(program("lifeboat-agent"));
    assert!(strip.status().unwrap().success());

    let sum = || guest.shell(&format!("sha256sum <{PROGRAM}"));
    let first = sum();
    let pid = || guest.shell("systemctl show --property=MainPID --property=ActiveState lifeboat-agent");
    let running = pid();

    // Nothing is served; then the installed one; then what does not start here.
    let (done, said) = guest.attempt("lifeboat-agent upgrade");
    assert!(!done && said.contains("serves no agent (404"), "{said}");
    site.serve_agent(&program("lifeboat-agent"));
    let (done, said) = guest.attempt("lifeboat-agent upgrade");
    assert!(done && said.contains("already up to date"), "{said}");
    site.serve_agent(&file("torn", &fs::read(&other).unwrap()[..100_000]));
    let (done, said) = guest.attempt("lifeboat-agent upgrade");
    assert!(!done && said.contains("does not run on this machine"), "{said}");
    assert_eq!((sum(), pid()), (first.clone(), running), "neither the program nor its process was touched");

    site.serve_agent(&file("ends", DOES_NOT_STAY_UP.as_bytes()));
    let (done, said) = guest.attempt("lifeboat-agent upgrade");
    assert!(!done && said.contains("the former one is back and runs"), "{said}");
    assert_eq!(sum(), first);
    guest.settled(site, "a round of the agent that was put back", ROUND);

    site.serve_agent(&other);
    let (_, said) = guest.attempt("lifeboat-agent upgrade --check; echo code $?");
    assert!(said.contains("code 10"), "{said}");
    let (done, said) = guest.attempt("lifeboat-agent upgrade");
    assert!(done, "{said}\n{}", guest.agent_log());
    println!("{said}");
    assert!(sum() != first && guest.shell(&format!("sha256sum <{PROGRAM}.previous")) == first);
    let (done, said) = guest.attempt("lifeboat-agent upgrade --check");
    assert!(done && said.contains("already up to date"), "{said}");
}
