//! Where the boot loader's files lie. It may write there before any kernel runs: GRUB keeps its environment block in
//! /boot/grub, and writes it past the file system.
//!
//! On the root file system that file is there to be looked at when the changes are saved. A /boot of its own is unmounted by
//! then, so all of its partition counts as written. Which one it is fstab says, in the end as at the start, and what was
//! mounted when the agent started must be the same.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{super::sys, raw::disk_of};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Boot {
    OnRoot,
    /// Name of the whole disk, and where the partition begins.
    Partition {
        device: (u32, u32),
        disk: String,
        first_byte: u64,
    },
}

/// An error says why nobody knows where the boot loader writes.
pub(super) fn find(sysfs: &Path, boot: &Path, fstab: &Path, by: &Path) -> Result<Boot, String> {
    let fstab = fs::read_to_string(fstab).unwrap_or_default();
    let lines = fstab.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let mut fields = lines.map(|line| line.split_whitespace().collect::<Vec<_>>());
    let is_boot = |fields: &Vec<&str>| fields.get(1).is_some_and(|at| at.trim_end_matches('/') == "/boot");
    let Some(source) =
        fields.find(is_boot).and_then(|fields| fields.first().map(|source| source.to_string()))
    else {
        // A separate one is an empty directory when it is not mounted.
        let filled = fs::read_dir(boot).is_ok_and(|mut files| files.next().is_some());
        return match filled {
            true => Ok(Boot::OnRoot),
            false => Err("/boot is a file system of its own that /etc/fstab does not name".to_owned()),
        };
    };
    let unknown = |why: String| format!("/boot is a file system of its own, and {why}");
    let about = fs::metadata(device_file(&source, by))
        .map_err(|error| unknown(format!("{source} of /etc/fstab is not found ({error})")))?;
    let device = sys::split_device(about.rdev());
    let (disk, first_byte) =
        disk_of(sysfs, device).map_err(|reason| unknown(format!("{source} is {reason}")))?;
    Ok(Boot::Partition { device, disk, first_byte })
}

/// The file systems of /boot and of the root.
pub(super) fn mounted(boot: &Path, root: &Path) -> io::Result<[(u32, u32); 2]> {
    let device = |path: &Path| fs::metadata(path).map(|about| sys::split_device(about.dev()));
    Ok([device(boot)?, device(root)?])
}

impl Boot {
    /// An error: what is mounted is something else.
    pub(super) fn is_mounted(&self, [boot, root]: [(u32, u32); 2]) -> Result<(), String> {
        match self {
            Self::OnRoot if boot != root => {
                Err("/boot is a file system of its own that /etc/fstab does not name".to_owned())
            }
            Self::Partition { device, .. } if boot != *device => {
                Err("/boot is another file system than /etc/fstab says, or was not mounted".to_owned())
            }
            Self::OnRoot | Self::Partition { .. } => Ok(()),
        }
    }
}

/// As udev names them, in `by` (/dev/disk); these names stay when it has ended.
fn device_file(source: &str, by: &Path) -> PathBuf {
    let kinds = [
        ("UUID=", "by-uuid"),
        ("LABEL=", "by-label"),
        ("PARTUUID=", "by-partuuid"),
        ("PARTLABEL=", "by-partlabel"),
    ];
    let named = kinds.iter().find_map(|(key, folder)| Some((source.strip_prefix(key)?, folder)));
    named.map_or_else(|| source.into(), |(name, folder)| by.join(folder).join(name.trim_matches('"')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_of_its_own_is_found_by_fstab_and_missed_by_its_emptiness() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let (boot, fstab) = (path("boot"), path("fstab"));
        let look = || find(folder.path(), &boot, &fstab, &path("disk"));
        fs::create_dir(&boot).unwrap();
        assert!(look().unwrap_err().contains("does not name"));
        fs::create_dir(boot.join("grub")).unwrap();
        assert_eq!(look(), Ok(Boot::OnRoot));
        fs::write(&fstab, "# UUID=1 /boot ext4\nUUID=2 / ext4 defaults 0 1\nUUID=3 /boot/efi vfat\n")
            .unwrap();
        assert_eq!(look(), Ok(Boot::OnRoot));
        fs::write(&fstab, "UUID=2 / ext4 defaults 0 1\nUUID=1\t/boot/ ext4\n").unwrap();
        assert!(look().unwrap_err().contains("UUID=1 of /etc/fstab is not found"));
        // A name that leads to something else than a block device.
        fs::create_dir_all(path("disk/by-uuid")).unwrap();
        fs::write(path("disk/by-uuid/1"), "").unwrap();
        assert!(look().unwrap_err().contains("UUID=1 is "));
    }

    #[test]
    fn what_is_mounted_must_be_what_fstab_says() {
        let partition = Boot::Partition { device: (8, 1), disk: "sda".into(), first_byte: 1 << 20 };
        assert!(partition.is_mounted([(8, 1), (8, 2)]).is_ok());
        assert!(partition.is_mounted([(8, 2), (8, 2)]).unwrap_err().contains("not mounted"));
        assert!(partition.is_mounted([(8, 17), (8, 2)]).is_err());
        assert!(Boot::OnRoot.is_mounted([(8, 2), (8, 2)]).is_ok());
        assert!(Boot::OnRoot.is_mounted([(8, 1), (8, 2)]).unwrap_err().contains("does not name"));
    }

    #[test]
    fn devices_are_named_as_udev_names_them() {
        for (source, expected) in [
            ("UUID=ab-1", "/dev/disk/by-uuid/ab-1"),
            ("LABEL=\"boot\"", "/dev/disk/by-label/boot"),
            ("PARTUUID=4c424f54-01", "/dev/disk/by-partuuid/4c424f54-01"),
            ("/dev/sda1", "/dev/sda1"),
        ] {
            assert_eq!(device_file(source, Path::new("/dev/disk")), Path::new(expected));
        }
    }
}
