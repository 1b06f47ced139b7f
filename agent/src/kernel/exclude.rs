//! Which disks are left out, by serial number, path or WWN. Pure but for reading sysfs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use lifeboat_replication::wire::v1::DiskSelector;

use super::disks::{sysfs_name, text};

/// What a disk is known by.
#[derive(Debug, Default, PartialEq, Eq)]
struct Known {
    name: String,
    serials: Vec<String>,
    wwns: Vec<String>,
}

/// As people and tools write it: case, prefixes and blanks do not matter.
fn plain(value: &str) -> String {
    let value = value.trim().to_ascii_lowercase();
    let value = ["naa.", "eui.", "uuid.", "0x"]
        .into_iter()
        .find_map(|prefix| value.strip_prefix(prefix))
        .unwrap_or(&value);
    value.chars().filter(char::is_ascii_alphanumeric).collect()
}

impl Known {
    fn of(folder: &Path, name: &str) -> Self {
        let read = |files: &[&str]| -> Vec<String> {
            files.iter().filter_map(|file| text(&folder.join(file))).collect()
        };
        let mut serials = read(&["serial", "device/serial"]);
        // SCSI page 0x80: four bytes of header, then the serial number.
        if let Ok(page) = fs::read(folder.join("device/vpd_pg80")) {
            serials.push(String::from_utf8_lossy(page.get(4..).unwrap_or_default()).into_owned());
        }
        Self { name: name.to_owned(), serials, wwns: read(&["wwid", "device/wwid"]) }
    }

    fn is(&self, selector: &DiskSelector) -> bool {
        let same = |values: &[String], wanted: &str| {
            let wanted = plain(wanted);
            !wanted.is_empty() && values.iter().any(|value| plain(value) == wanted)
        };
        // A link, as in /dev/disk/by-id, names the disk that it leads to.
        let path = || {
            let real = fs::canonicalize(&selector.path).unwrap_or_else(|_| PathBuf::from(&selector.path));
            sysfs_name(&real).is_some_and(|name| name == self.name)
        };
        same(&self.serials, &selector.serial)
            || same(&self.wwns, &selector.wwn)
            || (!selector.path.is_empty() && path())
    }
}

/// Is the disk with this folder in sysfs named by one of them?
pub(super) fn is_excluded(selectors: &[DiskSelector], folder: &Path, name: &str) -> bool {
    !selectors.is_empty() && {
        let known = Known::of(folder, name);
        selectors.iter().any(|selector| known.is(selector))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> Known {
        Known {
            name: "sdc".into(),
            serials: vec!["  WD-WX31 ".into()],
            wwns: vec!["naa.5000C500A1B2C3D4".into()],
        }
    }

    fn selector(serial: &str, path: &str, wwn: &str) -> DiskSelector {
        DiskSelector { serial: serial.into(), path: path.into(), wwn: wwn.into() }
    }

    #[test]
    fn a_disk_is_named_by_serial_path_or_wwn_as_tools_write_them() {
        for (serial, path, wwn, named) in [
            ("wd-wx31", "", "", true),
            ("WD-WX3", "", "", false),
            ("", "/dev/sdc", "", true),
            ("", "/dev/sdd", "", false),
            ("", "", "0x5000c500a1b2c3d4", true),
            ("", "", "5000c500a1b2c3d5", false),
            ("", "", "", false),
            ("-", "", "0x", false),
        ] {
            assert_eq!(disk().is(&selector(serial, path, wwn)), named, "{serial:?} {path:?} {wwn:?}");
        }
    }
}
