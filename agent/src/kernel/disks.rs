//! Which disks this server has, and which of them can be protected.
//!
//! In: sysfs. Out: whole disks with a stable id each, and a coded issue with its remedy for each disk that is refused.
//! Disks without a request queue (md arrays, multipath maps) only when they are named.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use lifeboat_replication::wire::v1;
use serde::{Deserialize, Serialize};

use super::{bio_based, exclude::is_excluded, layout::MAX_DISKS};

/// A seed disk is a page blob of at most 8 TiB and holds the disk rounded up to MiB and a footer.
const LARGEST_BYTES: u64 = (8 << 40) - (2 << 20);
/// Longest id: part of a blob's name.
const LONGEST_ID: usize = 64;
/// Not disks of the server, or views of disks that are tracked themselves.
const SKIPPED: [&str; 9] = ["loop", "ram", "zram", "dm-", "md", "sr", "fd", "mtdblock", "nbd"];

/// A whole disk that can be tracked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Name in sysfs, for example `sda`.
    pub name: String,
    /// Stable name made of WWN or serial number, safe in a blob's name.
    pub id: String,
    pub size_bytes: u64,
    /// The kernel's internal device number (`major << 20 | minor`).
    pub device: u32,
    /// Number that the kernel gives once to each disk it finds: another one means another (or re-attached) disk.
    pub sequence: u64,
    /// It has no request queue: its bios are tracked.
    pub bio_based: bool,
}

impl Disk {
    pub fn path(&self) -> PathBuf {
        Path::new("/dev").join(self.name.replace('!', "/"))
    }

    /// A small disk that does not exist, of the kinds that these are: to try what the kernel takes.
    pub(super) fn none(disks: &[Self]) -> Self {
        Self {
            name: "none".to_owned(),
            id: "none".to_owned(),
            size_bytes: 1 << 20,
            device: u32::MAX,
            sequence: 0,
            bio_based: disks.iter().any(|disk| disk.bio_based),
        }
    }
}

#[cfg(test)]
impl Disk {
    /// Of a mebibyte.
    pub(super) fn test(name: &str) -> Self {
        let (name, id) = (name.to_owned(), name.to_owned());
        Self { name, id, size_bytes: 1 << 20, device: 0, sequence: 0, bio_based: false }
    }
}

/// Where to look, and what for.
#[derive(Debug, Clone)]
pub struct Discovery {
    pub sysfs: PathBuf,
    /// Paths of the disks to protect; empty means all. A loop device is only found when it is named here.
    pub include: Vec<PathBuf>,
    /// Disks to leave out.
    pub exclude: Vec<v1::DiskSelector>,
}

impl Default for Discovery {
    fn default() -> Self {
        Self { sysfs: PathBuf::from("/sys"), include: Vec::new(), exclude: Vec::new() }
    }
}

#[derive(Debug, Default)]
pub struct Found {
    /// In order of their ids, so that the tracker's numbers are the same at every start.
    pub disks: Vec<Disk>,
    pub issues: Vec<v1::AgentIssue>,
}

impl Discovery {
    pub fn find(&self) -> io::Result<Found> {
        let mut found = Found::default();
        let mut wanted = BTreeMap::new();
        for path in &self.include {
            match fs::canonicalize(path).ok().and_then(|real| sysfs_name(&real)) {
                Some(name) => _ = wanted.insert(name, path.clone()),
                None => found.issues.push(error(
                    "DiskNotFound",
                    format!("there is no disk {}", path.display()),
                    "name an existing whole disk, or remove it from the list of disks to protect",
                )),
            }
        }
        let block = self.sysfs.join("block");
        let mut names: Vec<String> = fs::read_dir(&block)?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| match self.include.is_empty() {
                true => !SKIPPED.iter().any(|prefix| name.starts_with(prefix)),
                false => wanted.contains_key(name),
            })
            .filter(|name| !is_excluded(&self.exclude, &block.join(name), name))
            .collect();
        names.sort();
        for (name, path) in &wanted {
            if !names.contains(name) {
                found.issues.push(error(
                    "NotAWholeDisk",
                    format!("{} is not a whole disk", path.display()),
                    "name the disk that holds it: partitions and volumes are protected with their disk",
                ));
            }
        }
        for name in names {
            self.judge(&block.join(&name), &name, &mut found);
        }
        found.disks.sort_by(|a, b| a.id.cmp(&b.id));
        refuse_doubles(&mut found);
        refuse_views(&block, &mut found);
        if found.disks.len() > MAX_DISKS {
            for disk in found.disks.split_off(MAX_DISKS) {
                found.issues.push(error(
                    "TooManyDisks",
                    format!(
                        "{} is not protected: the server has more than {MAX_DISKS} disks",
                        disk.path().display()
                    ),
                    "name the disks to protect in the agent's configuration",
                ));
            }
        }
        Ok(found)
    }

    fn judge(&self, folder: &Path, name: &str, found: &mut Found) {
        let number = |file: &str| text(&folder.join(file)).and_then(|text| text.parse::<u64>().ok());
        let size_bytes = number("size").unwrap_or(0) * 512;
        // Empty drives and the paths below a multipath head: nothing to protect, nothing to say.
        if size_bytes == 0 || number("hidden") == Some(1) {
            return;
        }
        let path = format!("/dev/{}", name.replace('!', "/"));
        let mut refuse = |code, message: String, remedy| found.issues.push(error(code, message, remedy));
        if size_bytes > LARGEST_BYTES {
            return refuse(
                "DiskTooLarge",
                format!("{path} has {size_bytes} bytes; a seed disk can hold {LARGEST_BYTES}"),
                "move its data to disks below 8 TiB, or leave it out of the list of disks to protect",
            );
        }
        let sector = number("queue/logical_block_size").unwrap_or(512);
        if sector != 512 {
            return refuse(
                "DiskHas4KnSectors",
                format!("{path} has sectors of {sector} bytes; the recovered disk would have 512"),
                "move its data to a disk with 512-byte (or 512e) sectors, or leave it out of the list",
            );
        }
        let zoned = text(&folder.join("queue/zoned")).unwrap_or_default();
        if !zoned.is_empty() && zoned != "none" {
            return refuse(
                "DiskIsZoned",
                format!("{path} is a zoned disk ({zoned})"),
                "move its data to a disk without zones, or leave it out of the list",
            );
        }
        let bio_based = match bio_based::judge(folder, name, !self.include.is_empty()) {
            Ok(bio_based) => bio_based,
            Err(why) => return refuse(why.code, format!("{path} {}", why.message), &why.remedy),
        };
        let device = text(&folder.join("dev")).and_then(|text| {
            let (major, minor) = text.split_once(':')?;
            Some((major.parse::<u32>().ok()? << 20) | minor.parse::<u32>().ok()?)
        });
        let Some(device) = device else {
            return refuse(
                "DiskUnreadable",
                format!("{path} has no device number in sysfs"),
                "restart the server",
            );
        };
        let (id, stable) = identity(folder, name);
        if !stable {
            found.issues.push(v1::AgentIssue {
                code: "DiskWithoutSerial".to_owned(),
                severity: "Warning".to_owned(),
                message: format!("{path} has neither WWN nor serial number; it is known by its place ({id})"),
                remedy:
                    "give the virtual disk a serial number; moving it to another slot makes it a new disk"
                        .to_owned(),
            });
        }
        if number("queue/iostats") == Some(0) {
            found.issues.push(v1::AgentIssue {
                code: "DiskStatisticsOff".to_owned(),
                severity: "Warning".to_owned(),
                message: format!(
                    "the kernel does not count the requests of {path}: an idle server cannot prove that"
                ),
                remedy: format!("echo 1 > /sys/block/{name}/queue/iostats"),
            });
        }
        // Kernels before 5.15 have no diskseq; the number of the disk's directory in sysfs is given once, too.
        let sequence = number("diskseq").or_else(|| Some(fs::metadata(folder).ok()?.ino())).unwrap_or(0);
        found.disks.push(Disk { name: name.to_owned(), id, size_bytes, device, sequence, bio_based });
    }
}

fn error(code: &str, message: String, remedy: &str) -> v1::AgentIssue {
    v1::AgentIssue { code: code.to_owned(), severity: "Error".to_owned(), message, remedy: remedy.to_owned() }
}

/// Two disks with one id (some hypervisors give all disks the same serial number) would overwrite each other.
fn refuse_doubles(found: &mut Found) {
    let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for disk in &found.disks {
        names.entry(disk.id.clone()).or_default().push(disk.path().display().to_string());
    }
    names.retain(|_, paths| paths.len() > 1);
    found.disks.retain(|disk| !names.contains_key(&disk.id));
    for (id, paths) in names {
        found.issues.push(error(
            "DiskIdNotUnique",
            format!("{} have the same id {id}", paths.join(" and ")),
            "give each virtual disk a serial number of its own",
        ));
    }
}

/// A disk that is protected by itself and through another one would be copied twice, and its two copies belong to one
/// instant only by chance.
fn refuse_views(block: &Path, found: &mut Found) {
    let names: Vec<String> = found.disks.iter().map(|disk| disk.name.clone()).collect();
    let Found { disks, issues } = found;
    disks.retain(|disk| {
        let below = bio_based::below(block, &disk.name);
        let twice: Vec<_> = names.iter().filter(|name| below.contains(*name)).map(String::as_str).collect();
        if !twice.is_empty() {
            issues.push(error(
                "DiskProtectedTwice",
                format!(
                    "{} lies on {}, which is protected itself",
                    disk.path().display(),
                    twice.join(" and ")
                ),
                "name either the disk or those below it",
            ));
        }
        twice.is_empty()
    });
}

/// `/dev/sda` → `sda`; sysfs writes the slash of `/dev/cciss/c0d0` as `!`.
pub(super) fn sysfs_name(path: &Path) -> Option<String> {
    Some(path.strip_prefix("/dev").ok()?.to_str()?.replace('/', "!"))
}

pub(super) fn text(path: &Path) -> Option<String> {
    let bytes = fs::read(path).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let text = text.trim_matches(|c: char| c.is_whitespace() || c.is_control());
    (!text.is_empty()).then(|| text.to_owned())
}

/// The id and whether it stays with the disk when that moves.
fn identity(folder: &Path, name: &str) -> (String, bool) {
    for file in ["wwid", "device/wwid", "serial", "device/serial", "dm/uuid", "md/uuid"] {
        if let Some(value) =
            text(&folder.join(file)).filter(|value| value.chars().any(|c| c.is_ascii_alphanumeric()))
        {
            return (sanitize(&value), true);
        }
    }
    // SCSI page 0x80: four bytes of header, then the serial number.
    if let Some(serial) =
        fs::read(folder.join("device/vpd_pg80")).ok().and_then(|page| page.get(4..).map(<[u8]>::to_vec))
    {
        let serial = sanitize(&String::from_utf8_lossy(&serial));
        if serial.chars().any(|c| c.is_ascii_alphanumeric()) {
            return (serial, true);
        }
    }
    if let Some(file) = text(&folder.join("loop/backing_file")) {
        return (sanitize(&format!("loop-{file}")), true);
    }
    // Older kernels tell the number of an array only to udev.
    if name.starts_with("md")
        && let Some(link) = udev_link("md-uuid-", name)
    {
        return (sanitize(&link), true);
    }
    let place = fs::canonicalize(folder).unwrap_or_default();
    let place: Vec<_> =
        place.iter().filter_map(|part| part.to_str()).skip_while(|part| *part != "devices").collect();
    match place.len() {
        0..3 => (sanitize(&format!("name-{name}")), false),
        parts => (sanitize(&format!("place-{}", place[1..parts - 2].join("-"))), false),
    }
}

/// A name that udev gives to this disk, with this beginning.
fn udev_link(beginning: &str, name: &str) -> Option<String> {
    let links = fs::read_dir("/dev/disk/by-id").ok()?.filter_map(|link| Some(link.ok()?.path()));
    let mut names: Vec<String> = links
        .filter(|link| fs::canonicalize(link).is_ok_and(|real| sysfs_name(&real).as_deref() == Some(name)))
        .filter_map(|link| Some(link.file_name()?.to_str()?.to_owned()))
        .filter(|link| link.starts_with(beginning))
        .collect();
    names.sort();
    names.into_iter().next()
}

/// Lower-case letters, digits, `-` and `.` only; what is too long ends with a checksum of the whole.
fn sanitize(value: &str) -> String {
    let mut id = String::new();
    for character in value.trim().chars() {
        match character.to_ascii_lowercase() {
            plain if plain.is_ascii_alphanumeric() => id.push(plain),
            '.' if !id.is_empty() && !id.ends_with(['-', '.']) => id.push('.'),
            _ if !id.is_empty() && !id.ends_with(['-', '.']) => id.push('-'),
            _ => {}
        }
    }
    let id = id.trim_end_matches(['-', '.']);
    if id.len() <= LONGEST_ID {
        return id.to_owned();
    }
    let kept = id[..LONGEST_ID - 9].trim_end_matches(['-', '.']);
    format!("{kept}-{:08x}", crc32c::crc32c(value.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Sysfs(tempfile::TempDir);

    impl Sysfs {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn disk(self, name: &str, files: &[(&str, &str)]) -> Self {
            let folder = self.0.path().join("block").join(name);
            fs::create_dir_all(folder.join("mq")).unwrap();
            for (file, content) in [("size", "2048"), ("dev", "8:16"), ("diskseq", "7")].iter().chain(files) {
                let path = folder.join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, content).unwrap();
            }
            self
        }

        fn find(&self, include: &[&str]) -> Found {
            let include = include.iter().map(PathBuf::from).collect();
            Discovery { sysfs: self.0.path().to_owned(), include, ..Discovery::default() }.find().unwrap()
        }

        fn only_issue(&self) -> v1::AgentIssue {
            let found = self.find(&[]);
            assert!(found.disks.is_empty(), "{:?}", found.issues);
            assert_eq!(found.issues.len(), 1, "{:?}", found.issues);
            found.issues[0].clone()
        }
    }

    #[test]
    fn a_disk_is_known_by_its_wwn_made_safe() {
        let found =
            Sysfs::new().disk("sda", &[("device/wwid", "t10.ATA  QEMU HARDDISK/QM00001\n")]).find(&[]);
        assert!(found.issues.is_empty(), "{:?}", found.issues);
        let disk = &found.disks[0];
        assert_eq!((disk.id.as_str(), disk.size_bytes), ("t10.ata-qemu-harddisk-qm00001", 1 << 20));
        assert_eq!((disk.device, disk.sequence), ((8 << 20) | 16, 7));
    }

    #[test]
    fn loop_devices_and_views_of_disks_are_not_found_by_themselves() {
        let found =
            Sysfs::new().disk("loop0", &[]).disk("dm-0", &[]).disk("zram0", &[]).disk("sr0", &[]).find(&[]);
        assert_eq!((found.disks.len(), found.issues.len()), (0, 0));
    }

    #[test]
    fn refuses_sectors_of_4_kib_with_the_remedy() {
        let issue =
            Sysfs::new().disk("sda", &[("serial", "x"), ("queue/logical_block_size", "4096")]).only_issue();
        assert_eq!(issue.code, "DiskHas4KnSectors");
        assert!(issue.remedy.contains("512"), "{}", issue.remedy);
    }

    #[test]
    fn refuses_a_disk_larger_than_a_page_blob() {
        let issue = Sysfs::new().disk("sda", &[("serial", "x"), ("size", "17179869184")]).only_issue();
        assert_eq!(issue.code, "DiskTooLarge");
    }

    #[test]
    fn refuses_a_disk_without_a_request_queue() {
        let sysfs = Sysfs::new().disk("nvme0n1", &[("serial", "x")]);
        fs::remove_dir(sysfs.0.path().join("block/nvme0n1/mq")).unwrap();
        assert_eq!(sysfs.only_issue().code, "DiskIsBioBased");
    }

    #[test]
    fn refuses_both_of_two_disks_with_one_serial_number() {
        let issue =
            Sysfs::new().disk("sda", &[("serial", "QM1")]).disk("sdb", &[("serial", "qm1")]).only_issue();
        assert_eq!(issue.code, "DiskIdNotUnique");
        assert!(issue.message.contains("/dev/sda and /dev/sdb"), "{}", issue.message);
    }

    #[test]
    fn warns_when_a_disk_is_only_known_by_its_place() {
        let found = Sysfs::new().disk("vda", &[]).find(&[]);
        assert_eq!(found.disks.len(), 1);
        assert_eq!(found.issues[0].code, "DiskWithoutSerial");
    }

    #[test]
    fn an_empty_drive_is_passed_over_in_silence() {
        let found = Sysfs::new().disk("sdc", &[("size", "0")]).find(&[]);
        assert_eq!((found.disks.len(), found.issues.len()), (0, 0));
    }

    #[test]
    fn says_when_a_named_disk_does_not_exist() {
        let found = Sysfs::new().disk("sda", &[]).find(&["/dev/lifeboat-no-such-disk"]);
        assert_eq!(found.issues[0].code, "DiskNotFound");
    }

    #[test]
    fn long_ids_stay_different() {
        let (a, b) = (sanitize(&"x".repeat(100)), sanitize(&"x".repeat(101)));
        assert!(a.len() <= LONGEST_ID && a != b, "{a} {b}");
    }
}
