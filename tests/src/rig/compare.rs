//! Whether what the vault holds is what the disk holds.

use std::os::unix::fs::FileExt as _;

use lifeboat_replication::wire::v1;

use super::{Site, now, point, site::Protected};

const SECTOR: usize = 512;
const BLOCK: usize = 4096;

/// Waits for a point that holds everything written to the first server's disk until now. The same bytes are written
/// again: a change that changes nothing asks for one more round.
pub fn settled(site: &Site) -> Vec<v1::Data> {
    settled_on(site, &site.servers[0])
}

/// The same for any server.
pub fn settled_on(site: &Site, server: &Protected) -> Vec<v1::Data> {
    let disk = &server.disk;
    let mut first = vec![0; BLOCK];
    let stopped = now();
    disk.open(0).read_exact_at(&mut first, 0).unwrap();
    disk.open(libc::O_SYNC).write_all_at(&first, 0).unwrap();
    site.wait("the last round", || {
        let records = site.records_by(&server.id);
        point(&records).is_some_and(|point| point.t0_micros > stopped).then_some(records)
    })
}

/// Every sector of the first server's disk is the same in its last point, read through the block index, and on the
/// seed disk.
pub fn assert_same(site: &Site, records: &[v1::Data]) {
    assert_same_on(site, &site.servers[0], records);
}

/// The same for any server.
pub fn assert_same_on(site: &Site, server: &Protected, records: &[v1::Data]) {
    let last = records.last().unwrap().number;
    let source = server.disk.content();
    assert_equal(&source, &site.recovered_of(&server.id, last), "the point read through the block index");
    assert_equal(&source, &site.seed_disk_of(&server.id, last), "the seed disk");
}

fn assert_equal(source: &[u8], copy: &[u8], what: &str) {
    assert_eq!(source.len(), copy.len(), "{what}: size");
    let different: Vec<usize> = source
        .chunks(SECTOR)
        .zip(copy.chunks(SECTOR))
        .enumerate()
        .filter_map(|(sector, (a, b))| (a != b).then_some(sector))
        .collect();
    assert!(
        different.is_empty(),
        "{what}: {} sectors differ, the first is {}",
        different.len(),
        different[0]
    );
}

/// Blocks of 4 KiB that differ.
pub fn different_blocks(one: &[u8], other: &[u8]) -> usize {
    one.chunks(BLOCK).zip(other.chunks(BLOCK)).filter(|(one, other)| one != other).count()
}
