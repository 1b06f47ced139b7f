//! What lies on the protected disks without a mounted file system, and whether somebody uses it.
//!
//! ```text
//!   disk ─► partitions, and arrays and volumes on them (holders), to any depth ─► leaves ─┬─ mounted, or swap
//!                                                                                         └─ bare ─► in use?
//! ```
//! In: sysfs, the mounts, /proc. Out: names with the reason. A freeze does not stop whoever writes to a bare partition or
//! volume: with one in use nothing is said to stand still. It is in use when a process has it open for writing, when a
//! loop device is on it, or when it was written since the last look (which also shows users inside the kernel: ZFS,
//! DRBD, exports).
//!
//! Weakness accepted: who writes to the whole disk past its partitions is not looked for.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{
    bio_based::partitions,
    disks::{Disk, text},
    sys,
};

/// Nothing on Linux nests deeper; ends a walk through links that lead in a circle.
const DEEPEST: usize = 16;

type Device = (u32, u32);

/// Something that nothing else lies on and that is not mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bare {
    pub(super) device: Device,
    folder: PathBuf,
}

impl Bare {
    /// For example `/dev/sda3`; a volume has its own name.
    pub(super) fn name(&self) -> String {
        let mapped = text(&self.folder.join("dm/name")).map(|name| format!("/dev/mapper/{name}"));
        mapped.unwrap_or_else(|| {
            let name = self.folder.file_name().unwrap_or_default().to_string_lossy();
            format!("/dev/{}", name.replace('!', "/"))
        })
    }

    /// Sectors written and discarded since the machine started (Documentation/block/stat.rst).
    fn written(&self) -> Option<u64> {
        let stat = fs::read_to_string(self.folder.join("stat")).ok()?;
        let field = |index| stat.split_whitespace().nth(index).and_then(|field| field.parse::<u64>().ok());
        Some(field(6)? + field(13).unwrap_or(0))
    }
}

/// `used`: what is mounted (by anybody) or swap.
pub(super) fn find(sysfs: &Path, disks: &[Disk], used: &BTreeSet<Device>) -> Vec<Bare> {
    let mut found = BTreeMap::new();
    let of_file_systems = btrfs_members(sysfs);
    for disk in disks {
        leaves(&sysfs.join("block").join(&disk.name), DEEPEST, &mut found);
    }
    found.retain(|device, _| !used.contains(device) && !of_file_systems.contains(device));
    found.into_iter().map(|(device, folder)| Bare { device, folder }).collect()
}

fn device(folder: &Path) -> Option<Device> {
    let text = text(&folder.join("dev"))?;
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn leaves(folder: &Path, depth: usize, found: &mut BTreeMap<Device, PathBuf>) {
    let Ok(folder) = fs::canonicalize(folder) else { return };
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut above = partitions(&folder, &name);
    let holders = fs::read_dir(folder.join("holders")).into_iter().flatten();
    above.extend(holders.filter_map(|holder| Some(holder.ok()?.path())));
    if above.is_empty() || depth == 0 {
        if let Some(device) = device(&folder) {
            found.insert(device, folder);
        }
        return;
    }
    above.iter().for_each(|above| leaves(above, depth - 1, found));
}

/// All devices of mounted btrfs file systems: the list of mounts names one of each.
fn btrfs_members(sysfs: &Path) -> BTreeSet<Device> {
    let entries = |folder: PathBuf| {
        fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()))
    };
    let file_systems = entries(sysfs.join("fs/btrfs"));
    let members = file_systems.flat_map(|file_system| entries(file_system.join("devices")));
    members.filter_map(|member| device(&member)).collect()
}

/// Remembers how much was written to what is bare.
#[derive(Debug, Default)]
pub(super) struct Watch {
    written: BTreeMap<Device, Option<u64>>,
}

impl Watch {
    /// Looks anew. Those that were written since the last look, by device; what is seen for the first time is not.
    pub(super) fn look(&mut self, bare: &[Bare]) -> BTreeSet<Device> {
        let now: BTreeMap<_, _> = bare.iter().map(|bare| (bare.device, bare.written())).collect();
        let before = std::mem::replace(&mut self.written, now);
        let changed = self
            .written
            .iter()
            .filter(|(device, now)| before.get(device).is_some_and(|before| before != *now));
        changed.map(|(device, _)| *device).collect()
    }
}

/// Names of those in use, each with its reason. `written`: those that [`Watch::look`] has told of.
pub(super) fn in_use(sysfs: &Path, bare: &[Bare], written: &BTreeSet<Device>) -> Vec<String> {
    let devices: BTreeSet<Device> = bare.iter().map(|bare| bare.device).collect();
    if devices.is_empty() {
        return Vec::new();
    }
    let mut reasons = writers(&devices);
    for (device, loop_device) in loops(sysfs, &devices) {
        reasons.entry(device).or_insert_with(|| format!("{loop_device} is on it"));
    }
    for device in written {
        reasons.entry(*device).or_insert_with(|| "written without a mounted file system".to_owned());
    }
    let named = bare
        .iter()
        .filter_map(|bare| reasons.get(&bare.device).map(|reason| format!("{} ({reason})", bare.name())));
    named.collect()
}

/// Number of a block device, or of nothing.
fn block_device(path: &Path) -> Option<Device> {
    let device = sys::split_device(fs::metadata(path).ok()?.rdev());
    (device.0 != 0).then_some(device)
}

/// Who has one of these open for writing.
fn writers(devices: &BTreeSet<Device>) -> BTreeMap<Device, String> {
    let mut found = BTreeMap::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    // Processes end while they are looked at; kernel threads have no files.
    for process in processes.filter(|process| {
        process.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.parse::<u32>().is_ok())
    }) {
        for file in fs::read_dir(process.join("fd")).into_iter().flatten().flatten() {
            // Only what is below /dev is asked about: a question about a file of a network that hangs would hang.
            if !fs::read_link(file.path()).is_ok_and(|target| target.starts_with("/dev")) {
                continue;
            }
            let Some(device) = block_device(&file.path()).filter(|device| devices.contains(device)) else {
                continue;
            };
            if !opened_for_writing(&process.join("fdinfo").join(file.file_name())) {
                continue;
            }
            let number = process.file_name().unwrap_or_default().to_string_lossy();
            let name = text(&process.join("comm")).unwrap_or_default();
            found.entry(device).or_insert_with(|| format!("process {number} {name} writes to it"));
        }
    }
    found
}

/// `flags: 0100002`: octal; the last two bits are how it was opened.
fn opened_for_writing(fdinfo: &Path) -> bool {
    let info = fs::read_to_string(fdinfo).unwrap_or_default();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| flags & libc::O_ACCMODE != libc::O_RDONLY)
}

/// Loop devices that stand on one of these.
fn loops(sysfs: &Path, devices: &BTreeSet<Device>) -> Vec<(Device, String)> {
    let blocks = fs::read_dir(sysfs.join("block")).into_iter().flatten().flatten();
    let of = |entry: fs::DirEntry| {
        let file = text(&entry.path().join("loop/backing_file"))?;
        let device = Path::new(&file).starts_with("/dev").then(|| block_device(Path::new(&file)))??;
        let name = format!("/dev/{}", entry.file_name().to_string_lossy());
        devices.contains(&device).then_some((device, name))
    };
    blocks.filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// sda with a mounted partition, an unmounted one, and one under two volumes; sdb bare.
    fn sysfs() -> tempfile::TempDir {
        let sysfs = tempfile::tempdir().unwrap();
        let devices = sysfs.path().join("devices");
        let write = |file: &str, content: &str| {
            let path = devices.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        for (name, number) in [
            ("sda", "8:0"),
            ("sda/sda1", "8:1"),
            ("sda/sda2", "8:2"),
            ("sda/sda3", "8:3"),
            ("sdb", "8:16"),
            ("dm-0", "253:0"),
            ("dm-1", "253:1"),
        ] {
            write(&format!("{name}/dev"), number);
            fs::create_dir_all(devices.join(name).join("holders")).unwrap();
        }
        for partition in ["sda1", "sda2", "sda3"] {
            write(&format!("sda/{partition}/partition"), "1");
        }
        write("dm-1/dm/name", "vg-raw\n");
        write("sda/sda2/stat", "0 0 0 0 5 0 40 0 0 0 0 1 0 8 0 0 0");
        fs::create_dir_all(sysfs.path().join("block")).unwrap();
        let link = |to: &str, from: &str| {
            std::os::unix::fs::symlink(devices.join(to), sysfs.path().join(from)).unwrap();
        };
        link("sda", "block/sda");
        link("sdb", "block/sdb");
        link("dm-0", "devices/sda/sda3/holders/dm-0");
        link("dm-1", "devices/sda/sda3/holders/dm-1");
        sysfs
    }

    fn names(bare: &[Bare]) -> Vec<String> {
        bare.iter().map(Bare::name).collect()
    }

    #[test]
    fn leaves_that_are_not_mounted_are_bare_at_any_depth() {
        let sysfs = sysfs();
        let used = BTreeSet::from([(8, 1), (253, 0)]);
        let bare = find(sysfs.path(), &[Disk::test("sda")], &used);
        assert_eq!(names(&bare), ["/dev/sda2", "/dev/mapper/vg-raw"]);
        assert_eq!(names(&find(sysfs.path(), &[Disk::test("sdb")], &used)), ["/dev/sdb"]);
    }

    #[test]
    fn further_disks_of_a_mounted_btrfs_are_not_bare() {
        let sysfs = sysfs();
        let members = sysfs.path().join("fs/btrfs/1234/devices");
        fs::create_dir_all(&members).unwrap();
        std::os::unix::fs::symlink(sysfs.path().join("devices/sdb"), members.join("sdb")).unwrap();
        assert_eq!(find(sysfs.path(), &[Disk::test("sdb")], &BTreeSet::new()), []);
    }

    #[test]
    fn what_is_written_between_two_looks_is_in_use() {
        let sysfs = sysfs();
        let bare = find(sysfs.path(), &[Disk::test("sda")], &BTreeSet::from([(8, 1), (253, 0)]));
        let mut watch = Watch::default();
        assert!(watch.look(&bare).is_empty(), "seen for the first time");
        assert!(watch.look(&bare).is_empty(), "nothing was written");
        fs::write(sysfs.path().join("devices/sda/sda2/stat"), "0 0 0 0 5 0 40 0 0 0 0 1 0 16 0 0 0").unwrap();
        let written = watch.look(&bare);
        assert_eq!(written, BTreeSet::from([(8, 2)]));
        let told = in_use(sysfs.path(), &bare, &written);
        assert_eq!(told, ["/dev/sda2 (written without a mounted file system)"]);
    }
}
