//! `lifeboat-agent upgrade` on a whole Debian in QEMU with its own systemd and initramfs, against a process server as a program:
//! an agent that cannot start and one that does not stay up leave the former one running; one that works takes over with
//! the marks as they are; and an orderly restart with it still needs no comparison.
//!
//! Needs root, QEMU, and the server of dev/server/build (made if it is missing).

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper is a failed test")]
#![allow(clippy::disallowed_methods, reason = "real programs run in real time")]

use std::{fs, path::PathBuf, process::Command, time::Duration};

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

#[test]
fn an_upgrade_keeps_the_marks_and_an_agent_that_does_not_work_is_replaced_by_the_former_one() {
    let options = SiteOptions { name: "upgrade", without_agent: 1, ..SiteOptions::default() };
    let mut site = Site::new(&options, Vec::new());
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

    let guest = Guest::boot(&site, DEBIAN_12);
    guest.settled(&site, "the first copy", COPY);
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
    guest.settled(&site, "a round of the agent that was put back", ROUND);

    site.serve_agent(&other);
    let (_, said) = guest.attempt("lifeboat-agent upgrade --check; echo code $?");
    assert!(said.contains("code 10"), "{said}");
    let (done, said) = guest.attempt("lifeboat-agent upgrade");
    assert!(done, "{said}\n{}", guest.agent_log());
    println!("{said}");
    assert!(sum() != first && guest.shell(&format!("sha256sum <{PROGRAM}.previous")) == first);
    let (done, said) = guest.attempt("lifeboat-agent upgrade --check");
    assert!(done && said.contains("already up to date"), "{said}");
    guest.settled(&site, "a round of the new agent", ROUND);
    let log = guest.agent_log();
    assert_eq!(log.matches("tracking starts with new marks").count(), 1, "at the first start alone: {log}");

    // What it has put into the initramfs and at the shutdown serves it.
    guest.reboot();
    guest.settled(&site, "a round after the restart", ROUND);
    let log = guest.agent_log();
    assert!(log.contains("no comparison of what is unchanged"), "{log}");
    guest.assert_same(&site);
    guest.thawed();

    guest.shell("lifeboat-agent uninstall");
    let left = guest.shell("find /usr/local/bin /var/lib -maxdepth 1 -name '*lifeboat-agent*'");
    assert_eq!(left, "", "nothing is left");
}
