//! Parts of a disk, and for each a fingerprint that any other system changes when it mounts it for writing.
//!
//! In: the partitions that sysfs knows, and reads past the cache. Out: areas. Taken twice, at shutdown and before the
//! first mount of the next boot, and compared.
//!
//! ```text
//!   disk ─┬─ table (hashed whole)
//!         └─ partitions ─┬─ up to 4 MiB: hashed whole (a boot loader's)
//!                        ├─ a file system that vouches for itself (`file_system`)
//!                        ├─ LVM's metadata (hashed whole) ─► its volumes (`lvm`) ─► as partitions
//!                        └─ anything else: nothing vouches for it, it is compared with the vault
//! ```
//! A file system or physical volume must fill its area but for 4 MiB, which are hashed: behind a shorter one lies what somebody else writes (an
//! array's or a mirror's own data), who may change the file system as well.

use std::{fs, io, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use lifeboat_replication::blocks::BLOCK_BYTES;
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use super::{
    super::disks::text,
    file_system::{self, HEAD},
    lvm,
};

/// Which areas there are and what is hashed: counts up with each change, for the initramfs may hold an older agent.
pub(super) const PRINTS: u32 = 1;
/// What lies before the first partition: partition table and boot loader.
const FRONT: u64 = 1 << 20;
/// The second copy of a GPT, at the end of the disk.
const BACK: u64 = 33 * 512;
/// Up to this size an area is hashed whole: the BIOS boot partition of GRUB has 1 MiB, and so have LVM's metadata.
const SMALL: u64 = 4 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Kind {
    /// Partition table and what lies beside it.
    Table,
    /// An ext file system that is not mounted for writing and was unmounted cleanly.
    Ext,
    /// An XFS of which the same is true.
    Xfs,
    /// Hashed whole.
    Small,
    /// LVM's metadata, hashed whole: where its volumes lie.
    Volumes,
    /// Nothing tells whether somebody wrote here.
    Unproven,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Area {
    pub(super) first_byte: u64,
    pub(super) bytes: u64,
    pub(super) kind: Kind,
    /// Where nothing is proven, why, in a few words.
    pub(super) print: String,
}

impl Area {
    fn unproven(first_byte: u64, bytes: u64, why: &str) -> Self {
        Self { first_byte, bytes, kind: Kind::Unproven, print: why.to_owned() }
    }
}

/// Who has a partition or disk open besides file systems.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holder {
    Nobody,
    /// LVM: its metadata say what it may write.
    Volumes,
    /// It may write there at any time.
    Other,
}

/// A partition as sysfs knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Partition {
    pub(super) first_byte: u64,
    pub(super) bytes: u64,
    pub(super) holder: Holder,
}

/// Reads whole sectors past the cache.
pub(super) trait ReadAt {
    fn read_at(&self, first_byte: u64, bytes: u64) -> io::Result<Vec<u8>>;
}

/// The partitions of a disk, in order, and who holds the whole disk.
pub(super) fn partitions(sysfs: &Path, disk: &str) -> io::Result<(Vec<Partition>, Holder)> {
    let folder = sysfs.join("block").join(disk);
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
        found.push(Partition { first_byte: first * 512, bytes: sectors * 512, holder: holder(&partition) });
    }
    found.sort_by_key(|partition| (partition.first_byte, partition.bytes));
    Ok((found, holder(&folder)))
}

fn holder(folder: &Path) -> Holder {
    let holders = fs::read_dir(folder.join("holders")).into_iter().flatten();
    let mut found = Holder::Nobody;
    for holder in holders {
        let uuid = holder.ok().and_then(|holder| text(&holder.path().join("dm/uuid")));
        match uuid.is_some_and(|uuid| uuid.starts_with("LVM-")) {
            true => found = Holder::Volumes,
            false => return Holder::Other,
        }
    }
    found
}

/// The areas of a disk with these partitions.
pub(super) fn survey(
    size_bytes: u64,
    partitions: &[Partition],
    whole: Holder,
    disk: &dyn ReadAt,
) -> io::Result<Vec<Area>> {
    let Some(first) = partitions.first() else {
        return look_into(&Partition { first_byte: 0, bytes: size_bytes, holder: whole }, disk);
    };
    let end = partitions.iter().map(|partition| partition.first_byte + partition.bytes).max().unwrap_or(0);
    let (front, back) = (FRONT.min(first.first_byte), BACK.min(size_bytes.saturating_sub(end)));
    let print = hash(disk, &[(0, front), (size_bytes - back, back)])?;
    let mut areas = vec![Area { first_byte: 0, bytes: front, kind: Kind::Table, print }];
    for partition in partitions {
        // Whoever has the disk has its partitions.
        let holder = if whole == Holder::Nobody { partition.holder } else { Holder::Other };
        areas.extend(look_into(&Partition { holder, ..*partition }, disk)?);
    }
    Ok(areas)
}

fn hash(disk: &dyn ReadAt, ranges: &[(u64, u64)]) -> io::Result<String> {
    let mut context = Context::new(&SHA256);
    for (first, bytes) in ranges.iter().filter(|(_, bytes)| *bytes > 0) {
        context.update(&disk.read_at(*first, *bytes)?);
    }
    Ok(STANDARD.encode(context.finish()))
}

fn look_into(partition: &Partition, disk: &dyn ReadAt) -> io::Result<Vec<Area>> {
    let Partition { first_byte, bytes, holder } = *partition;
    let unproven = |why| vec![Area::unproven(first_byte, bytes, why)];
    if holder == Holder::Other {
        return Ok(unproven("RAID, encryption or another driver has it"));
    }
    let head = disk.read_at(first_byte, bytes.min(HEAD as u64))?;
    match (lvm::is_labelled(&head), holder) {
        (true, _) => Ok(volumes(partition, &head, disk)?.unwrap_or_else(unproven)),
        (false, Holder::Nobody) => content(&[(first_byte, bytes)], disk),
        (false, _) => Ok(unproven("LVM has it without a label")),
    }
}

/// Of a physical volume: its metadata, then its volumes. Extents that are no volume's nobody writes to. The inner error:
/// why its metadata do not tell all that may be written.
fn volumes(
    partition: &Partition,
    head: &[u8],
    disk: &dyn ReadAt,
) -> io::Result<Result<Vec<Area>, &'static str>> {
    let Partition { first_byte, bytes, .. } = *partition;
    let Some(header) = lvm::header(head).filter(|header| header.data <= SMALL) else {
        return Ok(Err("LVM's label is not the usual one"));
    };
    let Some(behind) = bytes.checked_sub(header.bytes).filter(|behind| *behind <= SMALL) else {
        return Ok(Err("LVM does not fill it"));
    };
    let metadata = disk.read_at(first_byte, header.data)?;
    let volumes = match lvm::volumes(&header, &metadata) {
        Ok(volumes) => volumes,
        Err(why) => return Ok(Err(why)),
    };
    let print = hash(disk, &[(first_byte, header.data), (first_byte + header.bytes, behind)])?;
    let mut areas = vec![Area { first_byte, bytes: header.data, kind: Kind::Volumes, print }];
    for volume in volumes {
        let pieces: Vec<_> =
            volume.pieces.iter().map(|(first, length)| (first_byte + first, *length)).collect();
        areas.extend(content(&pieces, disk)?);
    }
    Ok(Ok(areas))
}

/// A partition or volume, by its own bytes: pieces of a disk, one after the other.
struct Volume<'a> {
    pieces: &'a [(u64, u64)],
    disk: &'a dyn ReadAt,
}

impl ReadAt for Volume<'_> {
    fn read_at(&self, mut first_byte: u64, mut bytes: u64) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        for (first, length) in self.pieces {
            if bytes > 0 && first_byte < *length {
                let here = bytes.min(length - first_byte);
                content.extend(self.disk.read_at(first + first_byte, here)?);
                (first_byte, bytes) = (first_byte + here, bytes - here);
            }
            first_byte = first_byte.saturating_sub(*length);
        }
        if bytes == 0 { Ok(content) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

/// What lies in these pieces of the disk, which are one volume or partition: an area for each of them.
fn content(pieces: &[(u64, u64)], disk: &dyn ReadAt) -> io::Result<Vec<Area>> {
    let bytes: u64 = pieces.iter().map(|(_, length)| length).sum();
    let volume = Volume { pieces, disk };
    let (kind, print) = if bytes <= SMALL {
        (Kind::Small, hash(&volume, &[(0, bytes)])?)
    } else {
        let found = file_system::clean(&volume)?;
        let behind = |end: u64| bytes.checked_sub(end).filter(|behind| *behind <= SMALL);
        match found.map(|found| (behind(found.bytes), found)) {
            Some((Some(behind), found)) => {
                // Whole sectors: of the file system some more do no harm, they are as it was left.
                let behind = behind.next_multiple_of(512);
                let ranges = [&found.ranges[..], &[(bytes - behind, behind)]].concat();
                (found.kind, hash(&volume, &ranges)?)
            }
            Some((None, _)) => (Kind::Unproven, "its file system does not fill it".to_owned()),
            None => (Kind::Unproven, String::new()),
        }
    };
    let area = |(first_byte, bytes): &(u64, u64)| Area {
        first_byte: *first_byte,
        bytes: *bytes,
        kind,
        print: print.clone(),
    };
    Ok(pieces.iter().map(area).collect())
}

/// The partition that begins here is written by others without a trace. An error: it is none of these areas.
pub(super) fn distrust(areas: &mut [Area], first_byte: u64) -> Result<(), String> {
    let area = areas.iter_mut().find(|area| area.first_byte == first_byte && area.kind != Kind::Table);
    let area = area.filter(|area| area.kind != Kind::Volumes).ok_or("/boot is not a partition of its own")?;
    *area = Area::unproven(area.first_byte, area.bytes, "/boot, where the boot loader may write");
    Ok(())
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
                Kind::Volumes => format!("the volume group at byte {first} was changed"),
                _ => format!("the file system at byte {first} was mounted or changed"),
            });
        }
    }
    Ok(runs)
}

#[cfg(test)]
#[path = "areas_tests.rs"]
mod tests;
