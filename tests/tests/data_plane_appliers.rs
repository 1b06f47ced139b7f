//! Two appliers share two servers, on real parts: agents with their kernel trackers on block devices under load, a
//! process server and two appliers as programs, Azurite. One applier is killed (-9), comes back, and is stopped in
//! order; the other one takes its server over each time, and in the end every sector of both servers is the same on
//! the seed disks, which `qemu-img` takes as what they are.
//!
//! Needs root, loop devices, fio, eBPF and qemu-img.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper is a failed test")]
#![allow(clippy::disallowed_methods, reason = "real programs run in real time")]

use std::{collections::BTreeMap, fs, time::Instant};

use lifeboat_replication::{
    catalogue::{self, Position},
    ids::ServerId,
    store::LeaseState,
    vault::layout,
};
use lifeboat_tests::rig::{Load, Loop, Mounted, Site, SiteOptions, assert_nothing_lost_on, fill, point, run};

const DISK_BYTES: u64 = 192 << 20;
const FILLED_BYTES: u64 = 24 << 20;

/// What running appliers say that they hold, by their names. Those that are dead say what they said last.
fn shares(site: &Site) -> BTreeMap<String, Vec<String>> {
    site.block_on(async {
        let listed = site.vault.store.list(layout::APPLIERS_PREFIX, false, None).await.unwrap().blobs;
        let mut shares = BTreeMap::new();
        for blob in listed {
            let Ok(content) = site.vault.store.get(&blob.name, None, None).await else { continue };
            let said: serde_json::Value = serde_json::from_slice(&content).unwrap();
            let holds = said["holds"].as_array().unwrap().iter();
            let holds = holds.map(|server| server.as_str().unwrap().to_owned()).collect();
            shares.insert(said["name"].as_str().unwrap().to_owned(), holds);
        }
        shares
    })
}

fn holds(site: &Site, applier: &str) -> Vec<String> {
    shares(site).remove(applier).unwrap_or_default()
}

/// Last record on the seed disk.
fn applied(site: &Site, server: &ServerId) -> u64 {
    let read = site.block_on(catalogue::read::<Position>(&site.vault, server)).unwrap();
    read.map_or(0, |(position, _)| position.log.last_number.0)
}

/// Waits until records that are in the log now stand on the seed disks of all servers.
fn goes_on(site: &Site, what: &str) {
    for server in &site.servers {
        let number = site.records_by(&server.id).last().map_or(0, |record| record.number);
        site.wait(what, || (applied(site, &server.id) > number).then_some(()));
    }
}

#[test]
fn two_appliers_share_servers_and_take_over_from_each_other() {
    let mut mounted: Vec<(Mounted, Load)> = Vec::new();
    let disks = [(); 2].map(|()| {
        let disk = Loop::new(DISK_BYTES);
        let mount = Mounted::new(&disk, "ext4");
        fill(&mount.path().join("filled"), FILLED_BYTES);
        let load = Load::start(&mount.path().join("written"));
        mounted.push((mount, load));
        disk
    });
    let options = SiteOptions { name: "appliers", second_applier: true, ..SiteOptions::default() };
    let mut site = Site::new(&options, disks.into());
    for server in &site.servers {
        site.wait("the first copy ends", || point(&site.records_by(&server.id)).map(|_| ()));
    }
    let (first, second) = ("main-applier-0", "main-applier-1");
    let even = |site: &Site| {
        let shares = shares(site);
        (shares.len() == 2 && shares.values().all(|holds| holds.len() == 1)).then_some(())
    };
    site.wait("each has one of the two", || even(&site));
    goes_on(&site, "both apply");
    println!("shared out: {:?}", shares(&site));

    let lost: ServerId = holds(&site, first)[0].parse().unwrap();
    let (clock, before) = (Instant::now(), site.records_by(&lost).last().unwrap().number);
    site.applier.as_mut().unwrap().kill();
    site.wait("the other one has both", || (holds(&site, second).len() == 2).then_some(()));
    let taken = clock.elapsed();
    site.wait("what came since is applied", || (applied(&site, &lost) > before).then_some(()));
    println!(
        "killed -9: the other one has both after {taken:.1?}, newer records applied after {:.1?}",
        clock.elapsed()
    );
    goes_on(&site, "one applies both");

    let clock = Instant::now();
    site.applier.as_mut().unwrap().start();
    site.wait("each has one again", || even(&site));
    println!("back: each has one again after {:.1?}", clock.elapsed());
    goes_on(&site, "both apply again");

    let lost: ServerId = holds(&site, second)[0].parse().unwrap();
    let clock = Instant::now();
    site.second_applier.as_mut().unwrap().stop();
    let left = clock.elapsed();
    assert!(!shares(&site).contains_key(second), "it takes its announcement along");
    site.wait("the first one has both", || (holds(&site, first).len() == 2).then_some(()));
    println!("stopped in {left:.1?}: the other one has both after {:.1?}", clock.elapsed());
    let lease = site.block_on(site.vault.store.properties(&layout::apply_lease(&lost), None)).unwrap().lease;
    assert_eq!(lease, LeaseState::Leased);
    site.second_applier.as_mut().unwrap().start();

    for (server, (mounted, load)) in site.servers.iter().zip(mounted) {
        let last = assert_nothing_lost_on(&site, server, load, mounted);
        taken_by_qemu_img(&site, server.id.clone(), last, &server.disk.content());
    }
}

/// The seed disk as a file is a fixed VHD of the disk's size with the disk's content.
fn taken_by_qemu_img(site: &Site, server: ServerId, number: u64, content: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let [vhd, raw] = ["seed.vhd", "seed.raw"].map(|name| dir.path().join(name));
    let (blob, size) = site.seed_blob_of(&server, number);
    fs::write(&vhd, blob).unwrap();
    let [vhd, raw] = [&vhd, &raw].map(|path| path.to_str().unwrap());
    let told = run("qemu-img", &["info", "-f", "vpc", "--output=json", vhd]);
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    let virtual_size = told["virtual-size"].as_u64().unwrap();
    assert_eq!(virtual_size, (size as u64).next_multiple_of(1 << 20), "{told}");
    run("qemu-img", &["convert", "-f", "vpc", "-O", "raw", vhd, raw]);
    let converted = fs::read(raw).unwrap();
    assert!(converted.starts_with(content), "qemu-img reads something else");
    assert!(converted[content.len()..].iter().all(|byte| *byte == 0));
}
