//! Reads as slow as those of a device that exists: the kernel's limit for a control group and a disk.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

const UNIFIED: &str = "/sys/fs/cgroup";

/// A control group whose reads of one disk are limited. It is removed with this, and its processes have ended by then.
pub struct Slow {
    group: PathBuf,
    /// Where version 1 was mounted for it.
    mounted: Option<tempfile::TempDir>,
}

impl Slow {
    /// So many bytes a second; `None`: this kernel cannot do that.
    pub fn reads_of(disk: &str, bytes_per_second: u64) -> Option<Self> {
        let number = fs::metadata(disk).unwrap().rdev();
        let device = format!("{}:{}", libc::major(number), libc::minor(number));
        let name = format!("lifeboat-bench-{}", std::process::id());
        let controllers =
            fs::read_to_string(Path::new(UNIFIED).join("cgroup.controllers")).unwrap_or_default();
        let (slow, file, limit) = if controllers.split_whitespace().any(|controller| controller == "io") {
            fs::write(Path::new(UNIFIED).join("cgroup.subtree_control"), "+io").ok()?;
            let slow = Self { group: Path::new(UNIFIED).join(name), mounted: None };
            (slow, "io.max", format!("{device} rbps={bytes_per_second}"))
        } else {
            let dir = tempfile::tempdir().unwrap();
            run(Command::new("mount").args(["-t", "cgroup", "-o", "blkio", "none"]).arg(dir.path()))?;
            let slow = Self { group: dir.path().join(name), mounted: Some(dir) };
            (slow, "blkio.throttle.read_bps_device", format!("{device} {bytes_per_second}"))
        };
        fs::create_dir(&slow.group).ok()?;
        fs::write(slow.group.join(file), limit).ok()?;
        Some(slow)
    }

    pub fn add(&self, pid: u32) {
        fs::write(self.group.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    /// Reads the whole disk once.
    pub fn read(&self, disk: &str) {
        let procs = self.group.join("cgroup.procs");
        let read = r#"echo $$ >"$1" && exec dd if="$2" of=/dev/null bs=4M iflag=direct status=none"#;
        let ended = Command::new("sh").args(["-c", read, "sh"]).arg(procs).arg(disk).status().unwrap();
        assert!(ended.success(), "dd: {ended}");
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        _ = fs::remove_dir(&self.group);
        if let Some(dir) = &self.mounted {
            _ = run(Command::new("umount").arg(dir.path()));
        }
    }
}

fn run(command: &mut Command) -> Option<()> {
    command.status().ok()?.success().then_some(())
}
