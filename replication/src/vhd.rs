//! The fixed VHD that a seed disk is: the disk's bytes, zeros up to a whole number of MiB, and a footer of 512 bytes.
//!
//! Clouds import it as it is. The creator is given as "win ", for which QEMU (`block/vpc.c`) and others believe the
//! size in bytes; for unknown creators they compute it from the cylinders, heads and sectors, which cannot name every
//! size.

use ring::digest::{SHA256, digest};

pub const FOOTER_BYTES: u64 = 512;
const MIB: u64 = 1 << 20;
/// Most sectors that the geometry can name.
const MAX_GEOMETRY_SECTORS: u64 = 65535 * 16 * 255;

/// Size of the disk in the image: `size_bytes` rounded up to whole MiB.
pub fn virtual_bytes(size_bytes: u64) -> u64 {
    size_bytes.next_multiple_of(MIB)
}

/// Size of the blob.
pub fn blob_bytes(size_bytes: u64) -> u64 {
    virtual_bytes(size_bytes) + FOOTER_BYTES
}

/// The footer, always the same for the same disk so that writing it again changes nothing. All numbers big-endian:
///
/// ```text
///  0  8  "conectix"           28  4  creator "win "           56  4  geometry
///  8  4  features: 2          32  4  creator's version        60  4  type: 2, fixed
/// 12  4  version 1.0          36  4  creator's system "Wi2k"  64  4  ones' complement of the sum of all other bytes
/// 16  8  all ones: fixed      40  8  original size            68 16  unique id
/// 24  4  time: 0              48  8  size                     84     zeros
/// ```
pub fn footer(server: &str, disk_id: &str, size_bytes: u64) -> [u8; FOOTER_BYTES as usize] {
    let size = virtual_bytes(size_bytes);
    let mut footer = [0; FOOTER_BYTES as usize];
    let mut put = |at: usize, bytes: &[u8]| footer[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"conectix");
    put(8, &2_u32.to_be_bytes());
    put(12, &0x0001_0000_u32.to_be_bytes());
    put(16, &u64::MAX.to_be_bytes());
    put(28, b"win ");
    put(32, &0x000a_0000_u32.to_be_bytes());
    put(36, b"Wi2k");
    put(40, &size.to_be_bytes());
    put(48, &size.to_be_bytes());
    put(56, &geometry(size / 512));
    put(60, &2_u32.to_be_bytes());
    put(68, &digest(&SHA256, format!("{server}/{disk_id}").as_bytes()).as_ref()[..16]);
    let sum: u32 = footer.iter().map(|byte| u32::from(*byte)).sum();
    footer[64..68].copy_from_slice(&(!sum).to_be_bytes());
    footer
}

/// Cylinders (u16), heads (u8), sectors a track (u8) as the VHD specification computes them.
fn geometry(sectors: u64) -> [u8; 4] {
    let sectors = sectors.min(MAX_GEOMETRY_SECTORS);
    let (mut per_track, mut heads, mut tracks);
    if sectors >= 65535 * 16 * 63 {
        (per_track, heads, tracks) = (255, 16, sectors / 255);
    } else {
        per_track = 17;
        tracks = sectors / per_track;
        heads = tracks.div_ceil(1024).max(4);
        if tracks >= heads * 1024 || heads > 16 {
            (per_track, heads, tracks) = (31, 16, sectors / 31);
        }
        if tracks >= heads * 1024 {
            (per_track, heads, tracks) = (63, 16, sectors / 63);
        }
    }
    let [.., high, low] = (tracks / heads).to_be_bytes();
    [high, low, heads as u8, per_track as u8]
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::FileExt as _, process::Command};

    use super::*;

    #[test]
    fn the_checksum_is_the_complement_of_the_sum_without_itself() {
        let mut footer = footer("s", "sda", 10 << 20);
        let sum = u32::from_be_bytes(*footer[64..].first_chunk().unwrap());
        footer[64..68].fill(0);
        assert_eq!(sum, !footer.iter().map(|byte| u32::from(*byte)).sum::<u32>());
    }

    #[test]
    fn a_size_is_rounded_up_to_whole_mebibytes() {
        assert_eq!(virtual_bytes(1), MIB);
        assert_eq!(virtual_bytes(5 * MIB), 5 * MIB);
        assert_eq!(blob_bytes(5 * MIB + 512), 6 * MIB + 512);
    }

    /// QEMU must see exactly our size, above all for sizes that no geometry can name. It opens VHDs up to 2040 GiB;
    /// clouds take larger ones.
    #[test]
    fn qemu_reads_the_size_and_not_the_geometry() {
        for mib in [1, 3, 127, 2048, 10 * 1024 + 1, 130 * 1024, 2000 * 1024] {
            let size = mib * MIB;
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("disk.vhd");
            let file = File::create(&path).unwrap();
            file.set_len(blob_bytes(size)).unwrap();
            file.write_all_at(&footer("s", "sda", size), size).unwrap();
            let output = Command::new("qemu-img")
                .args(["info", "-f", "vpc", "--output=json"])
                .arg(&path)
                .output()
                .unwrap();
            let info: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
                panic!("qemu-img refuses {mib} MiB: {}", String::from_utf8_lossy(&output.stderr))
            });
            assert_eq!(info["virtual-size"].as_u64(), Some(size), "{mib} MiB");
        }
    }
}
