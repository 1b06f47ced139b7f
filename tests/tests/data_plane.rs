//! The data plane on real parts: agent with its kernel tracker, process server and applier as programs, Azurite, a
//! block device with a file system under load. Whatever is killed or cut off, in the first copy and in rounds: when
//! the writes stop and one more round is committed, the seed disk equals the source, sector for sector, and nothing
//! was copied again.
//!
//! Needs root, loop devices, fio and eBPF.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper is a failed test")]
#![allow(clippy::disallowed_methods, reason = "real programs run in real time")]

use std::{thread::sleep, time::Duration};

use lifeboat_tests::rig::{
    Load, Loop, Mode, Mounted, Site, SiteOptions, assert_nothing_lost, fill, now, point,
};

const DISK_BYTES: u64 = 640 << 20;
/// Of data that cannot be compressed, so that the first copy has something to do.
const FILLED_BYTES: u64 = 320 << 20;
/// While the first copy is under way; slow enough that every fault falls into it.
const COPY_BYTES_PER_SECOND: u64 = 8 << 20;

#[derive(Debug, Clone, Copy)]
enum Fault {
    AgentKilled,
    ProcessServerKilled,
    ApplierKilled,
    StoreStopped,
    StoreRefused,
    /// Longer than a call waits: what was sent arrives after it was given up.
    StoreSilent,
}

const FAULTS: [Fault; 6] = [
    Fault::AgentKilled,
    Fault::StoreRefused,
    Fault::ApplierKilled,
    Fault::StoreSilent,
    Fault::ProcessServerKilled,
    Fault::StoreStopped,
];

fn strike(site: &mut Site, fault: Fault) {
    println!("{fault:?} at record {}", site.records().len());
    // Long enough for writes and messages to run into it.
    let a_while = Duration::from_secs(3);
    let program = match fault {
        Fault::AgentKilled => &mut site.servers[0].agent,
        Fault::ProcessServerKilled => &mut site.process_server,
        Fault::ApplierKilled => site.applier.as_mut().unwrap(),
        Fault::StoreStopped => {
            let store = site.store.as_ref().unwrap();
            store.stop().unwrap();
            sleep(a_while);
            return store.resume().unwrap();
        }
        Fault::StoreRefused | Fault::StoreSilent => {
            let silent = matches!(fault, Fault::StoreSilent);
            let link = site.link.as_ref().unwrap();
            link.set(if silent { Mode::Silent } else { Mode::Refused });
            sleep(if silent { Duration::from_secs(13) } else { a_while });
            return link.set(Mode::Open);
        }
    };
    program.kill();
    sleep(a_while);
    program.start();
}

fn survives_everything(file_system: &str) {
    let disk = Loop::new(DISK_BYTES);
    let mounted = Mounted::new(&disk, file_system);
    fill(&mounted.path().join("filled"), FILLED_BYTES);
    let load = Load::start(&mounted.path().join("written"));
    let options =
        SiteOptions { name: file_system, link: Some(COPY_BYTES_PER_SECOND), ..SiteOptions::default() };
    let mut site = Site::new(&options, vec![disk]);

    for fault in FAULTS {
        let before = site.wait_for("the copy goes on", |records| !records.is_empty()).len();
        strike(&mut site, fault);
        let after = site.wait_for("the copy goes on after the fault", |records| records.len() > before);
        assert!(
            !after.last().unwrap().complete,
            "the first copy ended before {fault:?} struck: make it slower"
        );
    }
    site.link.as_ref().unwrap().limit(0);
    site.wait_for("the first copy ends", |records| point(records).is_some());

    for fault in FAULTS {
        strike(&mut site, fault);
        let healed = now();
        site.wait_for("a point after the fault", |records| {
            point(records).is_some_and(|point| point.t0_micros > healed)
        });
    }

    received_outlives_its_sender(&mut site);
    assert_nothing_lost(&site, load, mounted);
}

/// The line to the store is down, then the process server is killed, and the server gone: what it had received whole is in
/// the log as soon as the line is up again.
fn received_outlives_its_sender(site: &mut Site) {
    site.link.as_ref().unwrap().set(Mode::Refused);
    let mut received = None;
    for _ in 0..120 {
        sleep(Duration::from_millis(500));
        received = site.received();
        if received.is_some() {
            break;
        }
    }
    assert!(received.is_some(), "nothing was received while the store was away");
    site.servers[0].agent.kill();
    site.process_server.kill();
    let received = site.received().unwrap();
    site.process_server.start();
    site.link.as_ref().unwrap().set(Mode::Open);
    println!("received up to record {received}; {} are in the log", site.records().len());
    site.wait_for("what was received is in the log", |records| {
        records.last().is_some_and(|last| last.number >= received)
    });
    site.servers[0].agent.start();
}

#[test]
fn ext4_survives_everything() {
    survives_everything("ext4");
}

#[test]
fn xfs_survives_everything() {
    survives_everything("xfs");
}
