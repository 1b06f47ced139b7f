//! Parts of a disk, and for each a fingerprint that any other system changes when it mounts it for writing.
//!
//! In: the partitions that sysfs knows, and reads past the cache. Out: areas. Taken twice, at shutdown and before the
//! first mount of the next boot, and compared.
//!
//! ext2, ext3 and ext4 write their superblock (mount count, times, state) with the first mount for writing, before any
//! other block changes: it vouches for all of its area. Of other file systems, volumes, swap and unknown content no
//! single block does, so these areas are compared with the vault. The partition table and small areas (a boot loader's)
//! are hashed whole.

use std::{fs, io, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use lifeboat_replication::blocks::BLOCK_BYTES;
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use super::super::disks::text;

/// What lies before the first partition: partition table and boot loader.
const FRONT: u64 = 1 << 20;
/// The second copy of a GPT, at the end of the disk.
const BACK: u64 = 33 * 512;
/// Up to this size an area is hashed whole: the BIOS boot partition of GRUB has 1 MiB.
const SMALL: u64 = 4 << 20;
/// Superblock of ext: at byte 1024, magic at 56, state at 58, incompatible features at 96.
const EXT_SUPERBLOCK: usize = 1024;
const EXT_MAGIC: [u8; 2] = [0x53, 0xef];
const EXT_CLEAN: u8 = 1;
const EXT_NEEDS_RECOVERY: u8 = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Kind {
    /// Partition table and what lies beside it.
    Table,
    /// An ext file system that is not mounted for writing and was unmounted cleanly.
    Ext,
    /// Hashed whole.
    Small,
    /// Nothing tells whether somebody wrote here.
    Unproven,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Area {
    pub(super) first_byte: u64,
    pub(super) bytes: u64,
    pub(super) kind: Kind,
    pub(super) print: String,
}

/// A partition as sysfs knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Partition {
    pub(super) first_byte: u64,
    pub(super) bytes: u64,
    /// A volume manager has it open: it may write there at any time.
    pub(super) held: bool,
}

/// Reads whole sectors past the cache.
pub(super) trait ReadAt {
    fn read_at(&self, first_byte: u64, bytes: u64) -> io::Result<Vec<u8>>;
}

/// The partitions of a disk, in order, and whether the whole disk is held.
pub(super) fn partitions(sysfs: &Path, disk: &str) -> io::Result<(Vec<Partition>, bool)> {
    let folder = sysfs.join("block").join(disk);
    let held = |folder: &Path| fs::read_dir(folder.join("holders")).is_ok_and(|mut all| all.next().is_some());
    let mut found = Vec::new();
    for entry in fs::read_dir(&folder)? {
        let partition = entry?.path();
        if !partition.join("partition").exists() {
            continue;
        }
        let sectors = |file: &str| text(&partition.join(file)).and_then(|text| text.parse::<u64>().ok());
        let (Some(first), Some(sectors)) = (sectors("start"), sectors("size")) else {
            return Err(io::Error::other(format!("{} has no start or size", partition.display())));
        };
        found.push(Partition { first_byte: first * 512, bytes: sectors * 512, held: held(&partition) });
    }
    found.sort_by_key(|partition| (partition.first_byte, partition.bytes));
    Ok((found, held(&folder)))
}

/// The areas of a disk with these partitions.
pub(super) fn survey(
    size_bytes: u64,
    partitions: &[Partition],
    whole_held: bool,
    disk: &dyn ReadAt,
) -> io::Result<Vec<Area>> {
    let Some(first) = partitions.first() else {
        let whole = Partition { first_byte: 0, bytes: size_bytes, held: whole_held };
        return Ok(vec![area(&whole, disk)?]);
    };
    let end = partitions.iter().map(|partition| partition.first_byte + partition.bytes).max().unwrap_or(0);
    let (front, back) = (FRONT.min(first.first_byte), BACK.min(size_bytes.saturating_sub(end)));
    let mut context = Context::new(&SHA256);
    context.update(&disk.read_at(0, front)?);
    context.update(&disk.read_at(size_bytes - back, back)?);
    let print = STANDARD.encode(context.finish());
    let mut areas = vec![Area { first_byte: 0, bytes: front, kind: Kind::Table, print }];
    for partition in partitions {
        let partition = Partition { held: partition.held || whole_held, ..*partition };
        areas.push(area(&partition, disk)?);
    }
    Ok(areas)
}

fn area(partition: &Partition, disk: &dyn ReadAt) -> io::Result<Area> {
    let Partition { first_byte, bytes, held } = *partition;
    let unproven = Area { first_byte, bytes, kind: Kind::Unproven, print: String::new() };
    if held {
        return Ok(unproven);
    }
    let (kind, content) = if bytes <= SMALL {
        (Kind::Small, disk.read_at(first_byte, bytes)?)
    } else {
        let head = disk.read_at(first_byte, 4096)?;
        if !is_clean_ext(&head) {
            return Ok(unproven);
        }
        (Kind::Ext, head)
    };
    let mut context = Context::new(&SHA256);
    context.update(&content);
    Ok(Area { first_byte, bytes, kind, print: STANDARD.encode(context.finish()) })
}

fn is_clean_ext(head: &[u8]) -> bool {
    let Some(superblock) = head.get(EXT_SUPERBLOCK..) else { return false };
    let byte = |offset: usize| superblock.get(offset).copied().unwrap_or(0);
    superblock.get(56..58) == Some(&EXT_MAGIC[..])
        && byte(58) & EXT_CLEAN != 0
        && byte(96) & EXT_NEEDS_RECOVERY == 0
}

/// Where nothing proves that nobody wrote, as first block and number of blocks. An error: somebody did.
pub(super) fn unproven(before: &[Area], now: &[Area]) -> Result<Vec<(u32, u32)>, String> {
    if before.len() != now.len() {
        return Err("its partitions are others".to_owned());
    }
    let mut runs = Vec::new();
    for (before, now) in before.iter().zip(now) {
        let (first, bytes) = (before.first_byte, before.bytes);
        if (first, bytes) != (now.first_byte, now.bytes) {
            return Err("its partitions are others".to_owned());
        }
        if before.kind == Kind::Unproven {
            let block = first / BLOCK_BYTES;
            let after = (first + bytes).div_ceil(BLOCK_BYTES);
            let number =
                |value: u64| u32::try_from(value).map_err(|_| "its areas are beyond its end".to_owned());
            runs.push((number(block)?, number(after - block)?));
        } else if before != now {
            return Err(match before.kind {
                Kind::Table => "its partition table or boot loader was changed".to_owned(),
                _ => format!("the file system at byte {first} was mounted or changed"),
            });
        }
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 64 << 20;

    struct Bytes(Vec<u8>);

    impl ReadAt for Bytes {
        fn read_at(&self, first_byte: u64, bytes: u64) -> io::Result<Vec<u8>> {
            let found = self.0.get(first_byte as usize..(first_byte + bytes) as usize);
            found.map(<[u8]>::to_vec).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
        }
    }

    /// GRUB's partition, an ext file system, and swap.
    const PARTITIONS: [Partition; 3] = [
        Partition { first_byte: 1 << 20, bytes: 1 << 20, held: false },
        Partition { first_byte: 2 << 20, bytes: 32 << 20, held: false },
        Partition { first_byte: 34 << 20, bytes: 29 << 20, held: false },
    ];

    fn disk() -> Bytes {
        let mut bytes = vec![0; SIZE as usize];
        let superblock = (2 << 20) + EXT_SUPERBLOCK;
        bytes[superblock + 56..superblock + 58].copy_from_slice(&EXT_MAGIC);
        bytes[superblock + 58] = EXT_CLEAN;
        Bytes(bytes)
    }

    fn of(disk: &Bytes) -> Vec<Area> {
        survey(SIZE, &PARTITIONS, false, disk).unwrap()
    }

    #[test]
    fn what_nobody_touched_is_trusted_and_what_cannot_tell_is_compared() {
        let areas = of(&disk());
        let kinds: Vec<_> = areas.iter().map(|area| area.kind).collect();
        assert_eq!(kinds, [Kind::Table, Kind::Small, Kind::Ext, Kind::Unproven]);
        assert_eq!(unproven(&areas, &of(&disk())), Ok(vec![(34 << 8, 29 << 8)]));
    }

    #[test]
    fn a_change_of_table_end_loader_or_superblock_is_noticed() {
        let before = of(&disk());
        let superblock = (2 << 20) + EXT_SUPERBLOCK;
        for (byte, word) in [
            (446, "partition table"),
            (SIZE as usize - 512, "partition table"),
            ((1 << 20) + 99_999, "changed"),
            (superblock + 52, "was mounted"),
        ] {
            let mut changed = disk();
            changed.0[byte] ^= 1;
            let error = unproven(&before, &of(&changed)).unwrap_err();
            assert!(error.contains(word), "{byte}: {error}");
        }
    }

    #[test]
    fn a_file_system_that_was_not_unmounted_or_lies_under_a_volume_vouches_for_nothing() {
        let superblock = (2 << 20) + EXT_SUPERBLOCK;
        let mut dirty = disk();
        dirty.0[superblock + 96] |= EXT_NEEDS_RECOVERY;
        assert_eq!(of(&dirty)[2].kind, Kind::Unproven);
        let mut mounted = disk();
        mounted.0[superblock + 58] = 0;
        assert_eq!(of(&mounted)[2].kind, Kind::Unproven);
        let held = survey(SIZE, &PARTITIONS, true, &disk()).unwrap();
        assert!(held[1..].iter().all(|area| area.kind == Kind::Unproven));
        // It was clean and is not any more: somebody has mounted it.
        assert!(unproven(&of(&disk()), &of(&mounted)).is_err());
    }

    #[test]
    fn other_partitions_are_noticed() {
        let before = of(&disk());
        let fewer = survey(SIZE, &PARTITIONS[..2], false, &disk()).unwrap();
        assert_eq!(unproven(&before, &fewer), Err("its partitions are others".to_owned()));
    }

    #[test]
    fn a_disk_without_partitions_is_one_area() {
        let areas = survey(SIZE, &[], false, &Bytes(vec![0; SIZE as usize])).unwrap();
        assert_eq!(areas.len(), 1);
        assert_eq!(unproven(&areas, &areas), Ok(vec![(0, (SIZE / 4096) as u32)]));
    }

    #[test]
    fn partitions_are_found_in_the_order_in_which_they_lie() {
        let sysfs = tempfile::tempdir().unwrap();
        for (name, start, holder) in [("vda2", "4096", true), ("vda1", "2048", false)] {
            let folder = sysfs.path().join("block/vda").join(name);
            fs::create_dir_all(folder.join("holders")).unwrap();
            for (file, value) in [("partition", "1"), ("start", start), ("size", "2048\n")] {
                fs::write(folder.join(file), value).unwrap();
            }
            if holder {
                fs::write(folder.join("holders/dm-0"), "").unwrap();
            }
        }
        let (found, held) = partitions(sysfs.path(), "vda").unwrap();
        let partition = |first_byte, held| Partition { first_byte, bytes: 1 << 20, held };
        assert_eq!((found, held), (vec![partition(1 << 20, false), partition(2 << 20, true)], false));
    }
}
