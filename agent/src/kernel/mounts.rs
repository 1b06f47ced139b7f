//! Which mounted file systems live on the protected disks, in the order in which they may be frozen.
//!
//! In: `/proc/self/mountinfo` and sysfs. Out: one mount for each file system, nested ones first, root last: a frozen
//! parent would stop whoever still has to write to reach the child.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs, io,
    os::unix::{ffi::OsStringExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use super::{
    bare::{self, Bare},
    disks::Disk,
    sys,
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    /// Number of the file system: of its block device, or made up by the kernel (btrfs).
    pub(super) device: (u32, u32),
    pub(super) point: PathBuf,
    source: PathBuf,
    read_only: bool,
}

/// The writable file systems on these disks, and the names of those that only other mount namespaces have (containers,
/// services with mounts of their own): nothing here can reach them.
pub(super) fn find(sysfs: &Path, disks: &[Disk]) -> io::Result<(Vec<Mount>, Vec<String>)> {
    let own = on_disks(&read(Path::new("/proc/self"))?, sysfs, disks);
    let mut devices: BTreeSet<(u32, u32)> = own.iter().map(|mount| mount.device).collect();
    let mut elsewhere = Vec::new();
    for (process, mountinfo) in other_namespaces()? {
        for mount in on_disks(&mountinfo, sysfs, disks) {
            if devices.insert(mount.device) {
                elsewhere.push(format!(
                    "{} (mounted in the namespace of process {} only)",
                    mount.point.display(),
                    process.file_name().unwrap_or_default().to_string_lossy()
                ));
            }
        }
    }
    Ok((own, elsewhere))
}

/// A process of each other mount namespace, and what is mounted there.
fn other_namespaces() -> io::Result<Vec<(PathBuf, String)>> {
    let namespace = |process: &Path| fs::read_link(process.join("ns/mnt")).ok();
    let mut namespaces: BTreeSet<PathBuf> = namespace(Path::new("/proc/self")).into_iter().collect();
    let mut others = Vec::new();
    for process in fs::read_dir("/proc")?.filter_map(|entry| Some(entry.ok()?.path())) {
        // Processes end while they are looked at; kernel threads share the first namespace.
        let Some(other) = namespace(&process).filter(|other| !namespaces.contains(other)) else { continue };
        let Ok(mountinfo) = read(&process) else { continue };
        namespaces.insert(other);
        others.push((process, mountinfo));
    }
    Ok(others)
}

/// What is mounted in any namespace, writable or not, and swap.
fn used() -> BTreeSet<(u32, u32)> {
    let own = read(Path::new("/proc/self")).unwrap_or_default();
    let others = other_namespaces().unwrap_or_default();
    let all = std::iter::once(&own).chain(others.iter().map(|(_, mountinfo)| mountinfo));
    let mounted = all.flat_map(|mountinfo| mountinfo.lines()).filter_map(parse);
    mounted.filter_map(|mount| mount.of()).chain(swaps().into_iter().map(|(_, device)| device)).collect()
}

/// Partitions and volumes of the disks that nobody has mounted. Whole disks are told by [`without_file_system`].
pub(super) fn bare(sysfs: &Path, disks: &[Disk]) -> Vec<Bare> {
    let mut found = bare::find(sysfs, disks, &used());
    found.retain(|bare| !disks.iter().any(|disk| (disk.device >> 20, disk.device & 0xf_ffff) == bare.device));
    found
}

/// Block devices that are swapped to.
fn swaps() -> Vec<(String, (u32, u32))> {
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let paths = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    let of = |path: &str| {
        let device = sys::split_device(fs::metadata(unescape(path)).ok()?.rdev());
        (device.0 != 0).then(|| (path.to_owned(), device))
    };
    paths.filter_map(of).collect()
}

impl Mount {
    /// The block device that it is on. btrfs has no number of its own; its source is one of its disks.
    fn of(&self) -> Option<(u32, u32)> {
        let device = match self.device {
            (0, _) => fs::metadata(&self.source).ok().map(|source| sys::split_device(source.rdev())),
            device => Some(device),
        };
        device.filter(|(major, _)| *major != 0)
    }
}

/// Swap on the disks, and disks without any mounted file system, writable or not.
pub(super) fn without_file_system(sysfs: &Path, disks: &[Disk]) -> Vec<String> {
    let on_protected = |device| {
        let below = disks_below(sysfs, device, disks);
        below.into_iter().filter(|name| disks.iter().any(|disk| disk.name == *name))
    };
    let mountinfo = read(Path::new("/proc/self")).unwrap_or_default();
    let mounted: BTreeSet<String> =
        mountinfo.lines().filter_map(parse).filter_map(|mount| mount.of()).flat_map(on_protected).collect();
    let mut all: Vec<String> = disks
        .iter()
        .filter(|disk| !mounted.contains(&disk.name))
        .map(|disk| format!("{} (no mounted file system)", disk.path().display()))
        .collect();
    let on_disks = swaps().into_iter().filter(|(_, device)| on_protected(*device).next().is_some());
    all.extend(on_disks.map(|(swap, _)| format!("{swap} (swap)")));
    all
}

/// Where file systems on block devices can be written to, in any namespace: one mount for each.
pub(super) fn writable() -> io::Result<Vec<PathBuf>> {
    let own = read(Path::new("/proc/self"))?;
    let others = other_namespaces()?;
    let all = std::iter::once(&own).chain(others.iter().map(|(_, mountinfo)| mountinfo));
    let mounts = all.flat_map(|mountinfo| mountinfo.lines()).filter_map(parse);
    let writable = mounts.filter(|mount| !mount.read_only && mount.of().is_some());
    Ok(writable.map(|mount| (mount.device, mount.point)).collect::<BTreeMap<_, _>>().into_values().collect())
}

/// The writable file systems of this namespace.
pub(super) fn here(sysfs: &Path, disks: &[Disk]) -> io::Result<Vec<Mount>> {
    Ok(on_disks(&read(Path::new("/proc/self"))?, sysfs, disks))
}

fn read(process: &Path) -> io::Result<String> {
    Ok(String::from_utf8_lossy(&fs::read(process.join("mountinfo"))?).into_owned())
}

fn on_disks(mountinfo: &str, sysfs: &Path, disks: &[Disk]) -> Vec<Mount> {
    let mut chosen: BTreeMap<(u32, u32), Mount> = BTreeMap::new();
    for mount in mountinfo.lines().filter_map(parse) {
        let Some(device) = mount.of() else { continue };
        let below = disks_below(sysfs, device, disks);
        if !mount.read_only && below.iter().any(|name| disks.iter().any(|disk| disk.name == *name)) {
            // Later mounts of the same file system are no better than the first.
            chosen.entry(mount.device).or_insert(mount);
        }
    }
    let mut mounts: Vec<Mount> = chosen.into_values().collect();
    mounts.sort_by_key(|mount| std::cmp::Reverse(mount.point.components().count()));
    mounts
}

/// Names of the whole disks under a block device: partitions lie on one, volumes on those of their `slaves`. What is
/// protected itself counts as a disk, whatever lies below.
fn disks_below(sysfs: &Path, (major, minor): (u32, u32), protected: &[Disk]) -> Vec<String> {
    let Ok(folder) = fs::canonicalize(sysfs.join(format!("dev/block/{major}:{minor}"))) else {
        return Vec::new();
    };
    let whole = if folder.join("partition").exists() { folder.parent().unwrap_or(&folder) } else { &folder };
    let name = whole.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    if let Some(name) = name.as_ref().filter(|name| protected.iter().any(|disk| disk.name == **name)) {
        return vec![name.clone()];
    }
    let slaves: Vec<_> = fs::read_dir(whole.join("slaves"))
        .into_iter()
        .flatten()
        .filter_map(|slave| fs::read_to_string(slave.ok()?.path().join("dev")).ok())
        .filter_map(|device| {
            let (major, minor) = device.trim().split_once(':')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        })
        .collect();
    if slaves.is_empty() {
        return name.into_iter().collect();
    }
    slaves.into_iter().flat_map(|slave| disks_below(sysfs, slave, protected)).collect()
}

/// `36 35 98:0 /root /point rw,noatime shared:1 - ext4 /dev/sda1 rw,errors=continue`
fn parse(line: &str) -> Option<Mount> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut fields = mount.split(' ').skip(2);
    let (major, minor) = fields.next()?.split_once(':')?;
    let point = fields.nth(1)?;
    let mut fields = file_system.split(' ').skip(1);
    let (source, options) = (fields.next()?, fields.next().unwrap_or_default());
    Some(Mount {
        device: (major.parse().ok()?, minor.parse().ok()?),
        point: unescape(point),
        source: unescape(source),
        read_only: options.split(',').any(|option| option == "ro"),
    })
}

/// Spaces and the like are written as three octal digits after a backslash.
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let octal =
            after.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk sda with two partitions, sdb, and a volume on sda2.
    fn sysfs() -> tempfile::TempDir {
        let sysfs = tempfile::tempdir().unwrap();
        let path = |name: &str| sysfs.path().join(name);
        for (device, number) in
            [("sda", "8:0"), ("sda/sda1", "8:1"), ("sda/sda2", "8:2"), ("sdb", "8:16"), ("dm-0", "253:0")]
        {
            fs::create_dir_all(path("devices").join(device)).unwrap();
            fs::write(path("devices").join(device).join("dev"), number).unwrap();
            fs::create_dir_all(path("dev/block")).unwrap();
            std::os::unix::fs::symlink(path("devices").join(device), path("dev/block").join(number)).unwrap();
        }
        for partition in ["sda/sda1", "sda/sda2"] {
            fs::write(path("devices").join(partition).join("partition"), "1").unwrap();
        }
        fs::create_dir_all(path("devices/dm-0/slaves")).unwrap();
        std::os::unix::fs::symlink(path("devices/sda/sda2"), path("devices/dm-0/slaves/sda2")).unwrap();
        sysfs
    }

    const MOUNTINFO: &str = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw
23 22 0:5 / /proc rw - proc proc rw
24 22 253:0 / /var rw - xfs /dev/mapper/var rw
25 24 8:16 / /var/lib/other rw - ext4 /dev/sdb rw
26 24 8:2 / /var/lib/with\\040space rw - ext4 /dev/sda2 rw
27 22 8:1 /home /home rw - ext4 /dev/root rw
28 22 8:0 / /boot ro - ext4 /dev/sda ro
";

    #[test]
    fn nested_ones_come_first_root_last_and_each_once() {
        let sysfs = sysfs();
        let mounts = on_disks(MOUNTINFO, sysfs.path(), &[Disk::test("sda")]);
        let points: Vec<_> = mounts.iter().map(|mount| mount.point.to_str().unwrap()).collect();
        assert_eq!(points, ["/var/lib/with space", "/var", "/"]);
    }

    /// LVM on sda2: with sda as with the volume's own array, if that is what is protected.
    #[test]
    fn file_systems_of_a_disk_that_is_itself_on_others_are_found() {
        let sysfs = sysfs();
        let points = |name: &str| -> Vec<PathBuf> {
            on_disks(MOUNTINFO, sysfs.path(), &[Disk::test(name)])
                .into_iter()
                .map(|mount| mount.point)
                .collect()
        };
        assert_eq!(points("dm-0"), [PathBuf::from("/var")]);
        assert!(points("sda").contains(&PathBuf::from("/var")));
    }

    #[test]
    fn file_systems_of_other_disks_are_left_alone() {
        let sysfs = sysfs();
        let mounts = on_disks(MOUNTINFO, sysfs.path(), &[Disk::test("sdb")]);
        assert_eq!(mounts.len(), 1);
        assert_eq!(mounts[0].point, Path::new("/var/lib/other"));
    }
}
