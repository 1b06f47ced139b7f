//! Which disks without a request queue can be tracked by their bios, and which can not. Pure but for reading sysfs.
//!
//! What makes one safe: every change of its content is a bio to it that the kernel queues there, and that ends as the
//! same bio. So it must be
//! - **named** by the user: otherwise it is a view of disks that are tracked themselves;
//! - a **multipath** map of device mapper, or an **md array** with redundancy or stripes. Any other table of device
//!   mapper can change what the device holds without a write to it (a snapshot that is merged, a table exchanged). md
//!   linear and the heads of NVMe multipath hand their bios down as they are, and their end is told of another disk;
//! - with **statistics**: md copies bios only then, and they are how completions that escape are found out;
//! - below drivers that copy: device mapper always, md of the levels above with its own statistics on.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use super::disks::text;

/// Levels of md that make a bio of their own for each one that they hand down (Linux 5.14 and later).
const LEVELS: [&str; 6] = ["raid0", "raid1", "raid4", "raid5", "raid6", "raid10"];

/// Why a disk is refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: &'static str,
    /// After the disk's path.
    pub(super) message: String,
    pub(super) remedy: String,
}

fn refuse(message: impl Into<String>, remedy: impl Into<String>) -> Refusal {
    Refusal { code: "DiskIsBioBased", message: message.into(), remedy: remedy.into() }
}

/// Is the disk with this folder in sysfs to be tracked by its bios? `named`: the user has named it.
pub(super) fn judge(folder: &Path, name: &str, named: bool) -> Result<bool, Refusal> {
    // blk-mq is what request-based disks have; without it no request reaches the tracepoints.
    let has_requests = folder.join("mq").is_dir();
    let mapped = name.starts_with("dm-");
    if mapped && !text(&folder.join("dm/uuid")).is_some_and(|uuid| uuid.starts_with("mpath-")) {
        return Err(refuse(
            "is a volume of device mapper, whose content can change without a write to it",
            "name the disks below it instead: volumes are protected with their disks",
        ));
    }
    if has_requests {
        return Ok(false);
    }
    let level = text(&folder.join("md/level"));
    let level = level.as_deref().filter(|_| name.starts_with("md"));
    match level {
        _ if !named => {}
        Some(level) if LEVELS.contains(&level) => return statistics_and_holders(folder, name).map(|()| true),
        Some(level) => {
            return Err(refuse(
                format!("is an md array of level {level}, which hands writes down unseen"),
                "name the disks below it instead: arrays are protected with their disks",
            ));
        }
        None if mapped => return statistics_and_holders(folder, name).map(|()| true),
        None => {}
    }
    Err(refuse(
        "has no request queue (NVMe multipath, or a driver that takes bios)",
        "for NVMe boot with nvme_core.multipath=N; otherwise leave it out of the list",
    ))
}

fn statistics_and_holders(folder: &Path, name: &str) -> Result<(), Refusal> {
    let counts = |folder: &Path| text(&folder.join("queue/iostats")).is_some_and(|value| value != "0");
    let switch_on = |name: &str| format!("echo 1 > /sys/block/{name}/queue/iostats, also at every start");
    if !counts(folder) {
        let message = "has no request queue and its statistics are switched off: writes could escape unseen";
        return Err(refuse(message, switch_on(name)));
    }
    // Partitions have holders of their own.
    for place in std::iter::once(folder.to_owned()).chain(partitions(folder, name)) {
        for holder in entries(&place.join("holders")) {
            let Some(above) = holder.file_name().and_then(|name| name.to_str()) else { continue };
            let level = text(&holder.join("md/level"));
            let copies = level.as_deref().is_some_and(|level| LEVELS.contains(&level));
            if above.starts_with("dm-") || (copies && counts(&holder)) {
                continue;
            }
            return Err(match copies {
                true => refuse(
                    format!("has no request queue, and {above} on it counts no statistics"),
                    switch_on(above),
                ),
                false => refuse(
                    format!("has no request queue, and {above} on it may hand writes down unseen"),
                    "name the disks below it instead: arrays are protected with their disks",
                ),
            });
        }
    }
    Ok(())
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()))
}

/// Folders of a disk's partitions.
pub(super) fn partitions(folder: &Path, name: &str) -> Vec<PathBuf> {
    let of_this = |path: &PathBuf| {
        path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name))
            && path.join("partition").exists()
    };
    entries(folder).filter(of_this).collect()
}

/// Names of all disks under a disk, at any depth.
pub(super) fn below(block: &Path, name: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![name.to_owned()];
    while let Some(name) = open.pop() {
        for slave in entries(&block.join(name).join("slaves")) {
            let Ok(folder) = fs::canonicalize(slave) else { continue };
            let whole = if folder.join("partition").exists() { folder.parent() } else { Some(&*folder) };
            let whole = whole.and_then(|folder| folder.file_name()).and_then(|name| name.to_str());
            if let Some(whole) = whole.filter(|whole| found.insert((*whole).to_owned())) {
                open.push(whole.to_owned());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new(files: &[(&str, &str)]) -> Self {
            let folder = Self(tempfile::tempdir().unwrap());
            for (file, content) in [("queue/iostats", "1")].iter().chain(files) {
                folder.write(file, content);
            }
            folder
        }

        fn write(&self, file: &str, content: &str) {
            let path = self.0.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }

        fn refused(&self, name: &str) -> String {
            let refusal = judge(self.0.path(), name, true).unwrap_err();
            assert_eq!(refusal.code, "DiskIsBioBased");
            format!("{}; {}", refusal.message, refusal.remedy)
        }
    }

    #[test]
    fn arrays_and_multipath_maps_are_tracked_by_bios_when_they_are_named() {
        let array = Folder::new(&[("md/level", "raid1\n")]);
        assert_eq!(judge(array.0.path(), "md0", true), Ok(true));
        assert!(judge(array.0.path(), "md0", false).is_err());
        let multipath = Folder::new(&[("dm/uuid", "mpath-36001405f\n")]);
        assert_eq!(judge(multipath.0.path(), "dm-0", true), Ok(true));
    }

    #[test]
    fn a_disk_with_a_request_queue_is_tracked_by_requests() {
        let disk = Folder::new(&[("mq/0/nr_tags", "1")]);
        assert_eq!(judge(disk.0.path(), "sda", false), Ok(false));
        disk.write("dm/uuid", "mpath-1");
        assert_eq!(judge(disk.0.path(), "dm-0", true), Ok(false));
    }

    #[test]
    fn what_changes_or_ends_unseen_is_refused_with_the_remedy() {
        let volume = Folder::new(&[("dm/uuid", "LVM-abc")]).refused("dm-1");
        assert!(volume.contains("disks below"), "{volume}");
        let linear = Folder::new(&[("md/level", "linear")]).refused("md0");
        assert!(linear.contains("level linear"), "{linear}");
        let head = Folder::new(&[]).refused("nvme0n1");
        assert!(head.contains("nvme_core.multipath=N"), "{head}");
        let uncounted = Folder::new(&[("md/level", "raid1"), ("queue/iostats", "0")]).refused("md0");
        assert!(uncounted.contains("/sys/block/md0/queue/iostats"), "{uncounted}");
    }

    #[test]
    fn whoever_is_above_must_copy_bios() {
        let array = Folder::new(&[("md/level", "raid1"), ("md0p1/partition", "1")]);
        array.write("holders/dm-3/dm/uuid", "LVM-x");
        assert_eq!(judge(array.0.path(), "md0", true), Ok(true));
        array.write("md0p1/holders/md1/md/level", "raid0");
        array.write("md0p1/holders/md1/queue/iostats", "1");
        assert_eq!(judge(array.0.path(), "md0", true), Ok(true));
        array.write("md0p1/holders/md1/queue/iostats", "0");
        assert!(array.refused("md0").contains("/sys/block/md1/queue/iostats"));
        array.write("md0p1/holders/md1/md/level", "linear");
        assert!(array.refused("md0").contains("md1"));
    }

    #[test]
    fn disks_below_are_found_at_any_depth() {
        let sysfs = tempfile::tempdir().unwrap();
        let (block, devices) = (sysfs.path().join("block"), sysfs.path().join("devices"));
        fs::create_dir_all(&block).unwrap();
        for device in ["sda/sda1", "sdb", "md0", "dm-0"] {
            fs::create_dir_all(devices.join(device).join("slaves")).unwrap();
        }
        fs::write(devices.join("sda/sda1/partition"), "1").unwrap();
        for name in ["sda", "sdb", "md0", "dm-0"] {
            std::os::unix::fs::symlink(devices.join(name), block.join(name)).unwrap();
        }
        for (above, name, under) in
            [("dm-0", "md0", "md0"), ("md0", "sda1", "sda/sda1"), ("md0", "sdb", "sdb")]
        {
            std::os::unix::fs::symlink(devices.join(under), devices.join(above).join("slaves").join(name))
                .unwrap();
        }
        let names: Vec<String> = below(&block, "dm-0").into_iter().collect();
        assert_eq!(names, ["md0", "sda", "sdb"]);
    }
}
