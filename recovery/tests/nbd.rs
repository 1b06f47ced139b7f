//! QEMU's own NBD client against the server: whole disks read bit for bit, writes kept in the overlay only.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

#[path = "../../applier/tests/support/mod.rs"]
mod support;

use std::{path::Path, process::Output, sync::Arc};

use lifeboat_recovery::{BlockIndex, IndexOptions, PointSelector, damage::REFUSED_FOR, serve};
use lifeboat_replication::wire::v1::RecordKind;
use support::{Source, Write};
use tokio::process::Command;

/// Not a whole number of blocks, and one of several mebibytes.
const SIZES: [u64; 2] = [(1 << 20) + 512, 9 << 20];

async fn source() -> Source {
    let mut source = Source::new(&SIZES).await;
    let copy = |disk, first, blocks, byte| vec![Write { disk, first, blocks, byte: Some(byte) }];
    source
        .record(RecordKind::Copy, false, 0, &[copy(1, 0, 256, 1), copy(2, 0, 700, 2), copy(2, 1000, 500, 3)])
        .await;
    source.record(RecordKind::Exact, true, 1, &[copy(1, 30, 3, 9), copy(2, 650, 100, 4)]).await;
    source
}

async fn open(source: &Source) -> Arc<BlockIndex> {
    let options = IndexOptions::default();
    BlockIndex::open(&source.vault, &source.server, &source.env, PointSelector::Latest, &options)
        .await
        .unwrap()
}

async fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).output().await.unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn url(dir: &Path, slot: u32) -> String {
    format!("nbd+unix:///?socket={}/{slot}.sock", dir.display())
}

async fn whole(dir: &Path, slot: u32) -> Vec<u8> {
    let out = dir.join("out.raw");
    run("qemu-img", &["convert", "-f", "raw", "-O", "raw", &url(dir, slot), out.to_str().unwrap()]).await;
    std::fs::read(out).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_reads_every_disk_bit_for_bit() {
    let source = source().await;
    let dir = tempfile::tempdir().unwrap();
    let server =
        serve::start(&open(&source).await, &source.server, dir.path(), dir.path(), REFUSED_FOR).unwrap();
    for (slot, size) in (1..).zip(SIZES) {
        let wanted = &source.points[&2][&slot][..size as usize];
        // qemu-img rounds an odd size up to whole sectors; ours are whole sectors.
        assert!(whole(dir.path(), slot).await == wanted, "disk {slot} differs");
    }
    assert!(server.stats().bytes_read > 0, "{:?}", server.stats());
    server.stop().await.unwrap();
    assert!(!dir.path().join("1.sock").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_trims_and_zeroes_stay_in_the_overlay() {
    let source = source().await;
    let dir = tempfile::tempdir().unwrap();
    let server =
        serve::start(&open(&source).await, &source.server, dir.path(), dir.path(), REFUSED_FOR).unwrap();
    let mut wanted = source.points[&2][&2][..SIZES[1] as usize].to_vec();
    let commands =
        ["write -P 0xab 4000 5000", "write -z 100k 300k", "discard 2M 1M", "write -P 0xcd 512 512", "flush"];
    let mut arguments = vec!["-f", "raw"];
    commands.iter().for_each(|command| arguments.extend(["-c", command]));
    let url = url(dir.path(), 2);
    arguments.push(&url);
    run("qemu-io", &arguments).await;
    wanted[4000..9000].fill(0xab);
    wanted[100 << 10..400 << 10].fill(0);
    wanted[2 << 20..3 << 20].fill(0);
    wanted[512..1024].fill(0xcd);
    assert!(whole(dir.path(), 2).await == wanted, "what was written is not read back");
    server.stop().await.unwrap();
    drop(server);

    // The same overlay goes on after a restart, and the vault has not changed.
    let server =
        serve::start(&open(&source).await, &source.server, dir.path(), dir.path(), REFUSED_FOR).unwrap();
    assert!(whole(dir.path(), 2).await == wanted, "the overlay was lost");
    server.stop().await.unwrap();
    let fresh = tempfile::tempdir().unwrap();
    let server =
        serve::start(&open(&source).await, &source.server, fresh.path(), fresh.path(), REFUSED_FOR).unwrap();
    assert!(
        whole(fresh.path(), 2).await == source.points[&2][&2][..SIZES[1] as usize],
        "the vault has changed"
    );
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn several_clients_share_a_disk_and_a_broken_one_harms_nobody() {
    let source = source().await;
    let dir = tempfile::tempdir().unwrap();
    let server =
        serve::start(&open(&source).await, &source.server, dir.path(), dir.path(), REFUSED_FOR).unwrap();
    let mut broken = tokio::net::UnixStream::connect(dir.path().join("1.sock")).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut broken, b"this is not NBD at all, whatever it is")
        .await
        .unwrap();
    let url = url(dir.path(), 1);
    let arguments = ["-r", "-f", "raw", "-c", "read -P 9 120k 12k", &url];
    let client = || run("qemu-io", &arguments);
    let outputs = tokio::join!(client(), client(), client());
    for output in [outputs.0, outputs.1, outputs.2] {
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(!said.contains("Pattern verification failed"), "{said}");
    }
    let info = run("qemu-img", &["info", "--output=json", &url]).await;
    let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
    assert_eq!(info["virtual-size"].as_u64(), Some(SIZES[0]));
    server.stop().await.unwrap();
}
