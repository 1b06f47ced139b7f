//! Would an orderly restart of this server need a comparison? Asked at start, while everything is mounted, so that it is
//! known before the restart.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{
    super::{disks::Disk, tracker::RebootPlaces},
    IMAGE, boot, image,
    raw::locate,
};

/// Where udev names disks.
pub const DISK_NAMES: &str = "/dev/disk";

/// Where things are on a server.
#[derive(Debug, Clone)]
pub(super) struct Roots {
    pub(super) root: PathBuf,
    pub(super) boot: PathBuf,
    pub(super) fstab: PathBuf,
    pub(super) mountinfo: PathBuf,
    /// Folder of the names that udev gives to disks.
    pub(super) by: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self {
            root: "/".into(),
            boot: "/boot".into(),
            fstab: "/etc/fstab".into(),
            mountinfo: "/proc/self/mountinfo".into(),
            by: DISK_NAMES.into(),
        }
    }
}

/// Of disks without a request queue the initramfs knows nothing, and what is under way to them nobody counts at the end.
pub(in crate::kernel) fn carried(disks: &[Disk]) -> Result<(), String> {
    match disks.iter().find(|disk| disk.bio_based) {
        Some(disk) => Err(format!("{} has no request queue", disk.path().display())),
        None => Ok(()),
    }
}

/// An error says why each restart is followed by a comparison. The image has been made.
pub fn ready(state: &Path, sysfs: &Path, places: &RebootPlaces) -> Result<(), String> {
    if !places.files.has_initramfs_tools() {
        return Err("this system has no initramfs-tools for an early tracker".to_owned());
    }
    if !places.files.are_written() {
        return Err("run `lifeboat-agent install` once more".to_owned());
    }
    look(state, sysfs, &Roots::default())
}

fn look(state: &Path, sysfs: &Path, roots: &Roots) -> Result<(), String> {
    let path = state.join(IMAGE);
    let words = |error: io::Error| error.to_string();
    if !path.exists() {
        return Err("the agent has not made its place for that yet; its log says when it starts (journalctl -u lifeboat-agent)".to_owned());
    }
    let place = locate(sysfs, &path).map_err(words)?;
    if place.blocks(image::BLOCK as u64, image::BLOCKS).is_none() {
        return Err(format!("{} does not lie in whole blocks", path.display()));
    }
    let device = |path: &Path| fs::metadata(path).map(|about| about.dev()).map_err(words);
    if device(&path)? != device(&roots.root)? {
        return Err(format!("{} is not on the root file system", state.display()));
    }
    let mounted = boot::mounted(&roots.boot, &roots.root).map_err(words)?;
    boot::find(sysfs, &roots.boot, &roots.fstab, &roots.by)?.is_mounted(mounted)?;
    let mountinfo = fs::read_to_string(&roots.mountinfo).map_err(words)?;
    match root_kind(&mountinfo) {
        Some("ext2" | "ext3" | "ext4" | "xfs") => Ok(()),
        kind => Err(format!("the root file system is {}, neither ext4 nor XFS", kind.unwrap_or("unknown"))),
    }
}

/// `22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw`; the last one mounted at / is the one that is seen.
fn root_kind(mountinfo: &str) -> Option<&str> {
    let mut lines = mountinfo.lines().filter(|line| line.split(' ').nth(4) == Some("/"));
    lines.next_back()?.split_once(" - ")?.1.split(' ').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_that_is_seen_counts() {
        let mountinfo = "1 0 0:2 / / rw - rootfs none rw\n22 1 8:1 / / rw shared:1 - ext4 /dev/root rw\n\
                         23 22 8:2 / /srv rw - xfs /dev/sda2 rw\n";
        assert_eq!(root_kind(mountinfo), Some("ext4"));
        assert_eq!(root_kind(""), None);
    }
}
