//! Writes under way to a disk, by the kernel's own count. Reads sysfs.

use std::{fs, path::Path};

use super::disks::text;

/// `None`: the disk is not counted.
///
/// Before Linux 5.11 a disk's count leaves out what goes to its partitions: theirs are looked at too. So zero means zero,
/// and no more than what is under way is told.
pub(super) fn writes(sysfs: &Path, name: &str) -> Option<u64> {
    let folder = sysfs.join("block").join(name);
    if text(&folder.join("queue/iostats"))? == "0" {
        return None;
    }
    let whole = count(&folder)?;
    let inside = fs::read_dir(&folder).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let partitions = inside.filter(|path| path.join("partition").exists());
    let parts = partitions.map(|path| count(&path)).sum::<Option<u64>>()?;
    Some(whole.max(parts))
}

/// The second number of `inflight`.
fn count(folder: &Path) -> Option<u64> {
    fs::read_to_string(folder.join("inflight")).ok()?.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_to_partitions_count_also_where_the_disk_leaves_them_out() {
        let sysfs = tempfile::tempdir().unwrap();
        let disk = sysfs.path().join("block/sda");
        for folder in ["queue", "sda1", "sda2", "holders"] {
            fs::create_dir_all(disk.join(folder)).unwrap();
        }
        let put = |file: &str, text: &str| fs::write(disk.join(file), text).unwrap();
        put("queue/iostats", "1\n");
        assert_eq!(writes(sysfs.path(), "sda"), None);
        put("inflight", "       3        0\n");
        assert_eq!(writes(sysfs.path(), "sda"), Some(0));
        for (partition, counts) in [("sda1", "1 2"), ("sda2", "0 5")] {
            put(&format!("{partition}/partition"), "1\n");
            put(&format!("{partition}/inflight"), counts);
        }
        assert_eq!(writes(sysfs.path(), "sda"), Some(7));
        put("inflight", "3 9");
        assert_eq!(writes(sysfs.path(), "sda"), Some(9));
        put("queue/iostats", "0\n");
        assert_eq!(writes(sysfs.path(), "sda"), None);
    }
}
