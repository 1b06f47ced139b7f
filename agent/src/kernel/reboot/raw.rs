//! Files and disks past the file system and its cache: where a file's blocks lie on its disk, and sectors read and
//! written there.
//!
//! A boot loader that writes to a file (GRUB's environment block) does it in the same way. Only files on a whole disk, a
//! partition, or a volume that is simply a part of one (`device_mapper`): what else a volume manager does with a write is not
//! known here.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::AsFd as _,
        unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use super::{super::disks::text, super::sys, areas::ReadAt, device_mapper};

/// `FIEMAP_EXTENT_LAST` and `FIEMAP_EXTENT_MERGED`: all other flags say that the bytes are not simply there.
const HARMLESS: u32 = 0x1 | 0x1000;
/// A file in more pieces than this is not ours to write.
const MOST_EXTENTS: usize = 512;
/// Buffers for O_DIRECT begin at a page.
const ALIGNMENT: usize = 4096;

/// Where a file lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Name of the whole disk in sysfs.
    pub(super) disk: String,
    /// Bytes on the whole disk, in the order of the file: first byte and length.
    pub(super) ranges: Vec<(u64, u64)>,
}

impl Place {
    /// First byte on the disk of each `block_bytes` of the file; `None` when one of them is not in one piece.
    pub(super) fn blocks(&self, block_bytes: u64, count: usize) -> Option<Vec<u64>> {
        let whole = self.ranges.iter().all(|(_, length)| length % block_bytes == 0);
        let blocks: Vec<u64> = self
            .ranges
            .iter()
            .flat_map(|(first, length)| {
                (0..length / block_bytes).map(move |index| first + index * block_bytes)
            })
            .take(count)
            .collect();
        (whole && blocks.len() == count).then_some(blocks)
    }
}

/// Volumes on volumes on …: nobody nests deeper.
const DEEPEST: usize = 8;

/// An error says why the file's blocks cannot be known.
pub(super) fn locate(sysfs: &Path, path: &Path) -> io::Result<Place> {
    let file = File::open(path)?;
    let device = sys::split_device(file.metadata()?.dev());
    // What has no block device of its own has nothing to ask for.
    let on = |reason| io::Error::other(format!("{} is on {reason}", path.display()));
    folder_of(sysfs, device).map_err(on)?;
    let extents = sys::file_extents(file.as_fd(), MOST_EXTENTS)?;
    let mut ranges = Vec::new();
    let mut next = 0;
    for extent in &extents {
        if extent.flags & !HARMLESS != 0 || extent.logical != next {
            let message =
                format!("{} does not simply lie on its disk (flags {:#x})", path.display(), extent.flags);
            return Err(io::Error::other(message));
        }
        next += extent.length;
        ranges.push((extent.physical, extent.length));
    }
    if next < file.metadata()?.len() || extents.len() == MOST_EXTENTS {
        return Err(io::Error::other(format!("{} lies in too many pieces, or has holes", path.display())));
    }
    on_disk(sysfs, device, ranges).map_err(on)
}

/// Where these bytes of a block device lie on its whole disk.
fn on_disk(sysfs: &Path, mut device: (u32, u32), mut ranges: Vec<(u64, u64)>) -> Result<Place, String> {
    for _ in 0..DEEPEST {
        let folder = folder_of(sysfs, device)?;
        let Some(volume) = text(&folder.join("dm/name")) else {
            let (disk, start) = disk_of(sysfs, device)?;
            ranges.iter_mut().for_each(|(first, _)| *first += start);
            return Ok(Place { disk, ranges });
        };
        let of = |why: String| format!("the volume {volume}: {why}");
        let pieces = device_mapper::pieces(device).map_err(|error| of(error.to_string()))?;
        (device, ranges) = device_mapper::below(&pieces, &ranges).map_err(of)?;
    }
    Err("a volume of too many layers".to_owned())
}

fn folder_of(sysfs: &Path, (major, minor): (u32, u32)) -> Result<PathBuf, String> {
    fs::canonicalize(sysfs.join(format!("dev/block/{major}:{minor}")))
        .map_err(|_| "a file system without a block device of its own (btrfs, ZFS, network)".to_owned())
}

/// The whole disk with this block device, and the byte at which the device begins.
pub(super) fn disk_of(sysfs: &Path, device: (u32, u32)) -> Result<(String, u64), String> {
    let folder = folder_of(sysfs, device)?;
    let name = |folder: &Path| folder.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    if fs::read_dir(folder.join("slaves")).is_ok_and(|mut slaves| slaves.next().is_some()) {
        let volume = text(&folder.join("dm/name")).or_else(|| name(&folder)).unwrap_or_default();
        return Err(format!("the volume {volume} (LVM, RAID or encryption)"));
    }
    let (whole, start) = match text(&folder.join("start")).filter(|_| folder.join("partition").exists()) {
        Some(start) => (folder.parent().unwrap_or(&folder), start.parse().unwrap_or(u64::MAX / 512)),
        None => (folder.as_path(), 0),
    };
    name(whole).map(|name| (name, start * 512)).ok_or_else(|| "a device without a name".to_owned())
}

/// A disk, opened past the cache.
pub(super) struct Direct {
    file: File,
}

impl Direct {
    pub(super) fn open(disk: &str, write: bool) -> io::Result<Self> {
        let path: PathBuf = Path::new("/dev").join(disk.replace('!', "/"));
        let flags = libc::O_DIRECT | libc::O_CLOEXEC | if write { libc::O_DSYNC } else { 0 };
        let file = OpenOptions::new().read(true).write(write).custom_flags(flags).open(&path);
        let file =
            file.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        Ok(Self { file })
    }

    /// Comes back when it is on stable storage.
    pub(super) fn write_at(&self, first_byte: u64, content: &[u8]) -> io::Result<()> {
        let mut buffer = vec![0; content.len() + ALIGNMENT];
        let start = buffer.as_ptr().align_offset(ALIGNMENT);
        let target = buffer.get_mut(start..start + content.len()).ok_or(io::ErrorKind::OutOfMemory)?;
        target.copy_from_slice(content);
        self.file.write_all_at(target, first_byte)
    }
}

impl ReadAt for Direct {
    fn read_at(&self, first_byte: u64, bytes: u64) -> io::Result<Vec<u8>> {
        let length = usize::try_from(bytes).map_err(io::Error::other)?;
        let mut buffer = vec![0; length + ALIGNMENT];
        let start = buffer.as_ptr().align_offset(ALIGNMENT);
        let target = buffer.get_mut(start..start + length).ok_or(io::ErrorKind::OutOfMemory)?;
        self.file.read_exact_at(target, first_byte)?;
        buffer.drain(..start);
        buffer.truncate(length);
        Ok(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_follow_the_file_and_not_the_disk() {
        let place = Place { disk: "vda".into(), ranges: vec![(81_920, 8192), (4096, 4096)] };
        assert_eq!(place.blocks(4096, 3), Some(vec![81_920, 86_016, 4096]));
        assert_eq!(place.blocks(4096, 4), None);
        let torn = Place { disk: "vda".into(), ranges: vec![(0, 1024), (4096, 4096)] };
        assert_eq!(torn.blocks(4096, 1), None);
    }

    #[test]
    fn partitions_begin_where_sysfs_says_and_volumes_are_refused() {
        let sysfs = tempfile::tempdir().unwrap();
        let path = |name: &str| sysfs.path().join(name);
        for (device, number) in [("vda", "254:0"), ("vda/vda1", "254:1"), ("dm-0", "253:0")] {
            fs::create_dir_all(path("devices").join(device)).unwrap();
            fs::create_dir_all(path("dev/block")).unwrap();
            std::os::unix::fs::symlink(path("devices").join(device), path("dev/block").join(number)).unwrap();
        }
        fs::write(path("devices/vda/vda1/partition"), "1").unwrap();
        fs::write(path("devices/vda/vda1/start"), "2048\n").unwrap();
        fs::create_dir_all(path("devices/dm-0/slaves/vda2")).unwrap();
        assert_eq!(disk_of(sysfs.path(), (254, 1)), Ok(("vda".to_owned(), 1 << 20)));
        assert_eq!(disk_of(sysfs.path(), (254, 0)), Ok(("vda".to_owned(), 0)));
        assert!(disk_of(sysfs.path(), (253, 0)).unwrap_err().contains("LVM"));
        assert!(disk_of(sysfs.path(), (0, 42)).unwrap_err().contains("btrfs"));
    }
}
