//! Judges an agent's Hello against the log: who may speak, which slots its disks have, and whether the vault holds
//! what the agent believes. Pure.

use std::collections::{BTreeMap, BTreeSet};

use lifeboat_replication::{
    ids::ServerId,
    log::LogState,
    resync::Cause,
    wire::{PROTOCOL_VERSION, v1},
};

/// Disks of a server; more would make headers of log parts large, and no machine of today has them.
const MAX_DISKS: usize = 64;
/// Disks that a server ever had: each has its slot for ever and stands in every header of the log.
const MAX_DISKS_EVER: usize = 256;
/// A disk's path stands in the log likewise.
const MAX_PATH_BYTES: usize = 1024;
/// A disk becomes a page blob with a footer behind it, and those end at 8 TiB.
const MAX_DISK_BYTES: u64 = (8 << 40) - (1 << 20);
/// A disk's id stands in blob names.
const MAX_DISK_ID_BYTES: usize = 128;
/// How disks are left out on the machine.
const INCLUDE: &str =
    "systemctl edit lifeboat-agent, and give `lifeboat-agent run` an --include-disk for each disk to protect";

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HelloRefused {
    #[error("the agent speaks protocol version {0}, this process server speaks {PROTOCOL_VERSION}")]
    Protocol(u32),
    #[error("the certificate is for another server than {0:?}")]
    OtherServer(String),
    #[error("it reports {0} disks")]
    DiskCount(usize),
    #[error("it reports disks that it never had before, and had {0} already")]
    DisksEver(usize),
    #[error("the path of disk {id} has {bytes} bytes")]
    DiskPath { id: String, bytes: usize },
    #[error("disk id {0:?} is empty, too long or not safe in a blob name")]
    DiskId(String),
    #[error("disk {0} is reported twice")]
    DiskTwice(String),
    #[error("disk {id} has a size of {size_bytes} bytes")]
    DiskSize { id: String, size_bytes: u64 },
    #[error("disk {id} shrank from {from} to {to} bytes, which its seed disk cannot follow")]
    Shrank { id: String, from: u64, to: u64 },
}

impl HelloRefused {
    /// What a person can do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::Protocol(_) => {
                "update the agent: download it again from the management endpoint".to_owned()
            }
            Self::OtherServer(_) => "enrol the agent again with a token of its ProtectedServer".to_owned(),
            Self::DiskCount(_) => {
                format!("name the disks to protect, at most {MAX_DISKS}: {INCLUDE}")
            }
            Self::DisksEver(_) => {
                format!(
                    "leave out disks that come and go: {INCLUDE}; or remove the ProtectedServer and protect the machine anew"
                )
            }
            Self::DiskPath { .. } => format!("leave it out: {INCLUDE}"),
            Self::DiskId(_) | Self::DiskTwice(_) => {
                format!("give the disk a serial number of its own, or leave it out: {INCLUDE}")
            }
            Self::Shrank { .. } => {
                "give the disk its size back, or remove the ProtectedServer and protect the machine anew"
                    .to_owned()
            }
            Self::DiskSize { .. } => {
                format!(
                    "its size must be a multiple of 512 and at most {MAX_DISK_BYTES} bytes; leave it out: {INCLUDE}"
                )
            }
        }
    }
}

/// What follows from a Hello.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged {
    /// The agent's disks in its order, with their slots.
    pub disks: Vec<v1::Disk>,
    /// The log's set of disks, when it has to change before the first record.
    pub new_set: Option<Vec<v1::Disk>>,
    /// Non-empty: everything must be copied again, and why.
    pub full_copy_reason: String,
    /// The vault holds less than was acknowledged: its checksums may be of what is lost.
    pub vault_went_back: bool,
}

/// `recent` are chain values of the last records, as far as this process server knows them.
pub fn judge(
    hello: &v1::Hello,
    server: &ServerId,
    log: &LogState,
    recent: &BTreeMap<u64, [u8; 32]>,
) -> Result<Judged, HelloRefused> {
    if hello.protocol == 0 {
        return Err(HelloRefused::Protocol(hello.protocol));
    }
    if hello.server_id != server.as_str() {
        return Err(HelloRefused::OtherServer(hello.server_id.clone()));
    }
    check_disks(&hello.disks)?;

    let mut set: Vec<v1::Disk> = log.disks.iter().map(v1::Disk::from).collect();
    let mut disks = Vec::with_capacity(hello.disks.len());
    let mut changes = Vec::new();
    let (mut changed, mut resized) = (false, false);
    for reported in &hello.disks {
        let had = set.len();
        let next_slot = set.iter().map(|disk| disk.slot).max().unwrap_or(0) + 1;
        let mut disk = v1::Disk { left_out: false, ..reported.clone() };
        match set.iter_mut().find(|known| known.id == reported.id) {
            Some(known) => {
                disk.slot = known.slot;
                if known.left_out {
                    changes.push(format!("disk {} is protected again", disk.id));
                }
                if known.size_bytes > disk.size_bytes {
                    let (id, from, to) = (disk.id, known.size_bytes, disk.size_bytes);
                    return Err(HelloRefused::Shrank { id, from, to });
                }
                if known.size_bytes != disk.size_bytes {
                    resized = true;
                    changes.push(format!(
                        "disk {} changed its size from {} to {}",
                        disk.id, known.size_bytes, disk.size_bytes
                    ));
                }
                if *known != disk {
                    *known = disk.clone();
                    changed = true;
                }
            }
            None if had >= MAX_DISKS_EVER => return Err(HelloRefused::DisksEver(had)),
            None => {
                disk.slot = next_slot;
                set.push(disk.clone());
                changes.push(format!("disk {} is new", disk.id));
                changed = true;
            }
        }
        disks.push(disk);
    }
    // A disk that is not reported stays in the set: its slot must never be given to another one.
    for known in set.iter_mut().filter(|known| !known.left_out) {
        known.left_out = !disks.iter().any(|disk: &v1::Disk| disk.slot == known.slot);
        changed |= known.left_out;
    }

    let lost = missing(hello.believes.as_ref(), log, recent);
    let vault_went_back = lost.is_some();
    let full_copy_reason = match lost {
        Some(lost) => Cause::JournalDamaged.because(lost),
        None if log.last_number.0 == 0 => String::new(),
        None if resized => Cause::DiskResized.because(changes.join(", ")),
        None if !changes.is_empty() => Cause::DisksChanged.because(changes.join(", ")),
        None if hello.believes.is_none() => {
            Cause::AgentAnew.because("the agent starts anew and does not know what the vault holds")
        }
        None => String::new(),
    };
    Ok(Judged { disks, new_set: changed.then_some(set), full_copy_reason, vault_went_back })
}

/// Why the log is not the one that the agent was told about.
fn missing(
    believes: Option<&v1::DurableMark>,
    log: &LogState,
    recent: &BTreeMap<u64, [u8; 32]>,
) -> Option<String> {
    let last = log.last_number.0;
    let mark = believes?;
    if mark.number > last || mark.epoch > log.epoch.0 {
        return Some(format!(
            "the store has lost what it had acknowledged: record {} of epoch {} was durable, the log now ends at record {last} of epoch {}",
            mark.number, mark.epoch, log.epoch,
        ));
    }
    match recent.get(&mark.number) {
        Some(chain) if mark.chain != *chain => {
            Some(format!("the log holds another record {} than the one that was acknowledged", mark.number))
        }
        _ => None,
    }
}

fn check_disks(disks: &[v1::Disk]) -> Result<(), HelloRefused> {
    if disks.is_empty() || disks.len() > MAX_DISKS {
        return Err(HelloRefused::DiskCount(disks.len()));
    }
    let mut ids = BTreeSet::new();
    for disk in disks {
        let safe = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let id = disk.id.as_bytes();
        if id.is_empty()
            || id.len() > MAX_DISK_ID_BYTES
            || !id.iter().copied().all(safe)
            || id.starts_with(b".")
        {
            return Err(HelloRefused::DiskId(disk.id.clone()));
        }
        if disk.path.len() > MAX_PATH_BYTES {
            return Err(HelloRefused::DiskPath { id: disk.id.clone(), bytes: disk.path.len() });
        }
        if !ids.insert(&disk.id) {
            return Err(HelloRefused::DiskTwice(disk.id.clone()));
        }
        if disk.size_bytes == 0 || !disk.size_bytes.is_multiple_of(512) || disk.size_bytes > MAX_DISK_BYTES {
            return Err(HelloRefused::DiskSize { id: disk.id.clone(), size_bytes: disk.size_bytes });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use lifeboat_replication::{
        ids::{Epoch, RecordNumber},
        keys::KeyId,
    };

    use super::*;

    fn server() -> ServerId {
        ServerId::from_random([7; 16])
    }

    fn disk(id: &str, slot: u32) -> v1::Disk {
        v1::Disk { slot, id: id.into(), size_bytes: 1 << 20, path: "/dev/x".into(), left_out: false }
    }

    fn log(last: u64, disks: &[v1::Disk]) -> LogState {
        let mut log = LogState::empty(KeyId("k".into()));
        log.epoch = Epoch(3);
        log.last_number = RecordNumber(last);
        log.disks = disks.iter().map(Into::into).collect();
        log
    }

    fn hello(disks: &[v1::Disk], believes: Option<(u64, u32)>) -> v1::Hello {
        v1::Hello {
            protocol: 1,
            server_id: server().to_string(),
            disks: disks.to_vec(),
            believes: believes.map(|(number, epoch)| v1::DurableMark { number, epoch, chain: vec![1; 32] }),
            ..Default::default()
        }
    }

    fn judged(hello: &v1::Hello, log: &LogState) -> Judged {
        judge(hello, &server(), log, &BTreeMap::new()).unwrap()
    }

    #[test]
    fn new_disks_get_slots_that_were_never_given() {
        let judged = judged(&hello(&[disk("b", 0), disk("c", 0)], None), &log(0, &[disk("a", 4)]));
        assert_eq!(judged.disks.iter().map(|disk| disk.slot).collect::<Vec<_>>(), [5, 6]);
        let set = judged.new_set.unwrap();
        assert_eq!(set.iter().map(|disk| disk.id.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(judged.full_copy_reason, "");
        assert_eq!(set.iter().map(|disk| disk.left_out).collect::<Vec<_>>(), [true, false, false]);
    }

    #[test]
    fn a_disk_that_comes_back_is_compared_with_the_vault() {
        let left_out = v1::Disk { left_out: true, ..disk("b", 5) };
        let judged =
            judged(&hello(&[disk("a", 4), disk("b", 5)], Some((5, 3))), &log(5, &[disk("a", 4), left_out]));
        assert_eq!(judged.full_copy_reason, "DisksChanged: disk b is protected again");
        assert!(judged.new_set.unwrap().iter().all(|disk| !disk.left_out));
    }

    #[test]
    fn known_disks_change_nothing_and_keep_the_slot_of_the_log() {
        let judged = judged(&hello(&[disk("a", 9)], Some((5, 3))), &log(5, &[disk("a", 4)]));
        assert_eq!((judged.disks[0].slot, judged.new_set, judged.full_copy_reason.as_str()), (4, None, ""));
    }

    #[test]
    fn a_log_that_went_back_means_a_full_copy() {
        let judged = judged(&hello(&[disk("a", 4)], Some((6, 3))), &log(5, &[disk("a", 4)]));
        assert!(
            judged.full_copy_reason.contains("lost what it had acknowledged"),
            "{}",
            judged.full_copy_reason
        );
    }

    #[test]
    fn another_record_under_the_same_number_means_a_full_copy() {
        let recent = BTreeMap::from([(5, [2; 32])]);
        let hello = hello(&[disk("a", 4)], Some((5, 3)));
        let judged = judge(&hello, &server(), &log(5, &[disk("a", 4)]), &recent).unwrap();
        assert!(judged.full_copy_reason.contains("another record 5"), "{}", judged.full_copy_reason);
    }

    #[test]
    fn an_agent_without_memory_copies_everything_unless_the_log_is_empty() {
        assert_ne!(judged(&hello(&[disk("a", 0)], None), &log(5, &[disk("a", 4)])).full_copy_reason, "");
        assert_eq!(judged(&hello(&[disk("a", 0)], None), &log(0, &[])).full_copy_reason, "");
    }

    #[test]
    fn a_grown_disk_is_named_in_the_log_and_compared_and_a_shrunk_one_refused() {
        let mut grown = disk("a", 0);
        grown.size_bytes *= 2;
        let judged = judged(&hello(&[grown.clone()], Some((5, 3))), &log(5, &[disk("a", 4)]));
        assert!(judged.full_copy_reason.starts_with("DiskResized: "), "{}", judged.full_copy_reason);
        assert_eq!(judged.new_set.unwrap()[0].size_bytes, grown.size_bytes);
        let refused = judge(
            &hello(&[disk("a", 0)], Some((5, 3))),
            &server(),
            &log(5, &[v1::Disk { slot: 4, ..grown }]),
            &BTreeMap::new(),
        );
        assert!(matches!(refused, Err(HelloRefused::Shrank { .. })), "{refused:?}");
    }

    #[test]
    fn an_agent_with_other_disks_each_time_does_not_fill_the_log_with_them() {
        let mut log = log(0, &[]);
        let mut times = 0;
        let refused = loop {
            let disks: Vec<v1::Disk> =
                (0..60).map(|disk_no| disk(&format!("{times}-{disk_no}"), 0)).collect();
            match judge(&hello(&disks, None), &server(), &log, &BTreeMap::new()) {
                Ok(judged) => log.disks = judged.new_set.unwrap().iter().map(Into::into).collect(),
                Err(refused) => break refused,
            }
            times += 1;
        };
        assert!((MAX_DISKS..=MAX_DISKS_EVER).contains(&log.disks.len()), "{}", log.disks.len());
        assert!(refused.remedy().contains("come and go"), "{refused}");
        // Its own disks are served as before.
        let known: Vec<v1::Disk> = log.disks.iter().take(3).map(Into::into).collect();
        judge(&hello(&known, None), &server(), &log, &BTreeMap::new()).unwrap();
    }

    #[test]
    fn a_path_that_would_fill_the_log_is_refused() {
        let long = v1::Disk { path: "x".repeat(MAX_PATH_BYTES + 1), ..disk("a", 0) };
        let refused = judge(&hello(&[long], None), &server(), &log(0, &[]), &BTreeMap::new()).unwrap_err();
        assert!(matches!(refused, HelloRefused::DiskPath { .. }), "{refused}");
    }

    #[test]
    fn a_disk_id_that_could_leave_its_folder_is_refused() {
        let refused =
            judge(&hello(&[disk("../x", 0)], None), &server(), &log(0, &[]), &BTreeMap::new()).unwrap_err();
        assert!(refused.to_string().contains("not safe in a blob name"), "{refused}");
    }

    #[test]
    fn a_hello_for_another_server_is_refused_with_the_remedy() {
        let mut hello = hello(&[disk("a", 0)], None);
        hello.server_id = "x".into();
        let refused = judge(&hello, &server(), &log(0, &[]), &BTreeMap::new()).unwrap_err();
        assert!(refused.remedy().contains("enrol the agent again"), "{refused}");
    }
}
