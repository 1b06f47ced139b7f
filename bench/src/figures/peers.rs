//! Peers on the same disk and the same change: what they need for 1 % of changed blocks.

use std::{fs, os::unix::fs::FileExt as _, path::Path, process::Command, time::Instant};

use lifeboat_replication::env::Env;
use lifeboat_tests::rig::{Loop, Site, SiteOptions, now, point, run};

use crate::{
    free_store::FreeStore,
    load::{TMPFS, mixed_disk},
    report::Figure,
};

const DISK_MIB: u64 = 512;
/// 1 % of the blocks.
const CHANGED: u64 = DISK_MIB * 256 / 100;

pub fn measure(repeat: usize) -> Vec<Figure> {
    let mut times: [Vec<f64>; 4] = Default::default();
    let mut sent: [Vec<f64>; 4] = Default::default();
    for _ in 0..repeat {
        let store = FreeStore::start();
        let options = SiteOptions {
            name: "peers",
            store: Some(store.address.clone()),
            spool_bytes: 1 << 30,
            applier: false,
            ..SiteOptions::default()
        };
        let site = Site::new(&options, vec![mixed_disk(DISK_MIB)]);
        site.wait_for("the first copy ends", |records| point(records).is_some());
        let disk = &site.servers[0].disk;
        let home = tempfile::Builder::new().prefix("lifeboat-peers-").tempdir_in(TMPFS).unwrap();
        let peers = [Peer::Rsync, Peer::Restic, Peer::Casync];
        for peer in peers {
            peer.take(home.path(), disk);
        }

        let (before, changed) = (site.records().len(), Instant::now());
        change(disk);
        let written = now();
        let records = site.wait_for("the change is in the vault", |records| {
            point(records).is_some_and(|point| point.t0_micros > written)
        });
        times[0].push(changed.elapsed().as_secs_f64());
        let stored: u64 =
            records[before..].iter().flat_map(|record| &record.segments).map(|segment| segment.length).sum();
        sent[0].push(stored as f64 / (CHANGED * 4096) as f64);
        for (place, peer) in peers.into_iter().enumerate() {
            let began = Instant::now();
            let bytes = peer.take(home.path(), disk);
            times[place + 1].push(began.elapsed().as_secs_f64());
            sent[place + 1].push(bytes as f64 / (CHANGED * 4096) as f64);
        }
    }
    let names = ["lifeboat", "rsync", "restic", "casync"];
    let time = "time to bring 1 % of changed 4 KiB blocks (not compressible) of a 512 MiB disk to the other side; lifeboat: with the round's interval of 1 s";
    let bytes = "bytes sent or stored / bytes changed";
    let times = names
        .iter()
        .zip(&times)
        .map(|(name, times)| Figure::new(format!("delta_seconds_{name}"), time, "s", times));
    let sent = names
        .iter()
        .zip(&sent)
        .map(|(name, sent)| Figure::new(format!("delta_sent_over_changed_{name}"), bytes, "", sent));
    times.chain(sent).collect()
}

fn change(disk: &Loop) {
    let file = disk.open(0);
    let entropy = Env::system().entropy;
    let mut block = vec![0; 4096];
    for _ in 0..CHANGED {
        entropy.fill(&mut block);
        let at = entropy.next_u64() % (DISK_MIB * 256);
        file.write_all_at(&block, at * 4096).unwrap();
    }
    file.sync_all().unwrap();
}

#[derive(Debug, Clone, Copy)]
enum Peer {
    Rsync,
    Restic,
    Casync,
}

impl Peer {
    /// Brings the disk's file to the other side; returns the bytes sent or stored for it.
    fn take(self, home: &Path, disk: &Loop) -> u64 {
        let source = disk.file().to_str().unwrap();
        let at = |name: &str| home.join(name).to_str().unwrap().to_owned();
        match self {
            Self::Rsync => {
                let said =
                    run("rsync", &["--inplace", "--no-whole-file", "--stats", source, &at("rsync.img")]);
                let line = said.lines().find_map(|line| line.strip_prefix("Total bytes sent: ")).unwrap();
                line.chars().filter(char::is_ascii_digit).collect::<String>().parse().unwrap()
            }
            Self::Restic => {
                let repository = at("restic");
                let restic = |arguments: &[&str]| {
                    let mut restic = Command::new("restic");
                    restic.args(["--repo", &repository, "--quiet", "--no-cache"]).args(arguments);
                    let done = restic.env("RESTIC_PASSWORD", "benchmark").output().unwrap();
                    assert!(done.status.success(), "restic: {}", String::from_utf8_lossy(&done.stderr));
                };
                if !Path::new(&repository).exists() {
                    restic(&["init"]);
                }
                let before = used(Path::new(&repository));
                restic(&["backup", source]);
                used(Path::new(&repository)) - before
            }
            Self::Casync => {
                let (store, index) = (at("casync"), at("casync.caibx"));
                fs::create_dir_all(&store).unwrap();
                let before = used(Path::new(&store));
                run("casync", &["make", &format!("--store={store}"), &index, source]);
                used(Path::new(&store)) - before
            }
        }
    }
}

/// Bytes of all files in a folder.
fn used(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries
        .map(|entry| {
            let about = entry.metadata().unwrap();
            if about.is_dir() { used(&entry.path()) } else { about.len() }
        })
        .sum()
}
