//! The eBPF program and its maps: loaded, attached and pinned once, taken up again by every later run of the agent.
//!
//! In: the disks. Out: the mapped bitmaps, and whether they go on from before or are new (with the reason).
//!
//! Maps, programs and links are pinned in a bpf file system, so tracking goes on while no agent runs. Everything is
//! pinned before `READY` is set in the control words: a start that was cut off leaves pins that no later one takes
//! up. A fresh start removes what is there (which detaches the old programs) and begins with all blocks to copy.
//!
//! [`Pins::unpinned`] pins nothing: tracking then lives as long as the process and ends with it, however that ends.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};

use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{HashMap as BpfHash, Map},
    programs::{BtfTracePoint, links::FdLink},
};

use super::{
    disks::Disk,
    layout::{
        BIOS, CONTROL_COUNTERS, CONTROL_DIGEST, CONTROL_MAGIC, CONTROL_READY, CONTROL_WORDS, EXTENT_WORDS,
        FORMAT, Layout, MAGIC, Set,
    },
    mapped::Mapped,
    sys,
    words::Maps,
};
use crate::edge::TrackError;

static PROGRAM: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tracker.bpf.o"));

/// Function in the program, and the tracepoint it is attached to.
const TRACEPOINTS: [(&str, &str); 3] =
    [("issue", "block_rq_issue"), ("complete", "block_rq_complete"), ("requeue", "block_rq_requeue")];
/// Also, where a disk has no request queue.
const BIO_TRACEPOINTS: [(&str, &str); 2] =
    [("bio_queue", "block_bio_queue"), ("bio_complete", "block_bio_complete")];
/// Name in the program, and file in the pin directory.
const MAPS: [(&str, &str); 6] = [
    ("MARKS", "marks"),
    ("SUMMARY", "summary"),
    ("EXTENT_TABLE", "extents"),
    ("CONTROL", "control"),
    ("DISKS", "disks"),
    ("BIOS", "bios"),
];
const BPF_FILE_SYSTEM: &str = "/sys/fs/bpf";

/// Value of DISKS: `struct disk` of the program.
#[derive(Clone, Copy)]
#[repr(C)]
struct DiskEntry {
    base: [u64; 4],
    blocks: u64,
    number: u64,
    bios: u64,
}

#[allow(unsafe_code, reason = "aya copies map values as bytes")]
mod pod {
    // SAFETY: `repr(C)`, seven u64, no padding, every bit pattern valid.
    unsafe impl aya::Pod for super::DiskEntry {}
}

/// Everything opened and mapped. Dropping it leaves pins, and the tracking that they stand for, as they are.
#[derive(Debug)]
pub(super) struct Pins {
    pub(super) marks: Mapped,
    pub(super) summary: Mapped,
    pub(super) extents: Mapped,
    pub(super) control: Mapped,
    /// Programs at the beginning of a write, and at its end.
    pub(super) issue: Vec<OwnedFd>,
    pub(super) complete: Vec<OwnedFd>,
    /// Held so that the programs stay attached even if somebody removes the pins.
    _links: Vec<OwnedFd>,
    /// Locked, so that a second agent cannot take marks away from the first.
    _lock: Option<File>,
    /// Holds programs and links where nothing is pinned.
    _unpinned: Option<Ebpf>,
}

/// Why pins of other disks, or of another size, cannot be used.
pub(super) const OTHER_DISKS: &str = "the disks of the server are not the same as before";

/// How tracking began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Start {
    /// Nothing was missed since the last run.
    Resumed,
    /// There were no pins.
    Absent,
    /// There were pins that cannot be used.
    Unusable(String),
}

impl Pins {
    /// `folder`: a directory of its own in a bpf file system. `identity`: who the marks belong to.
    pub(super) fn open(
        folder: &Path,
        identity: &str,
        disks: &[Disk],
        layout: &Layout,
    ) -> Result<(Self, Start), TrackError> {
        if folder.starts_with(BPF_FILE_SYSTEM) {
            sys::ensure_bpf_file_system(Path::new(BPF_FILE_SYSTEM))
                .map_err(kernel("mount the bpf file system"))?;
        }
        fs::create_dir_all(folder).map_err(kernel("create its directory in the bpf file system"))?;
        let lock = File::open(folder).map_err(kernel("open its directory in the bpf file system"))?;
        lock.try_lock().map_err(|_| TrackError::Unsupported {
            reason: format!("another agent uses {}", folder.display()),
            remedy: "stop it first: systemctl stop lifeboat-agent".to_owned(),
        })?;
        let digest = digest(identity, disks);
        let start = match Self::resume(folder, disks, layout, digest, &lock) {
            Ok(pins) => return Ok((pins, Start::Resumed)),
            Err(start) => start,
        };
        clear(folder).map_err(kernel("remove old pins"))?;
        load(Some(folder), disks, layout).map_err(unsupported)?;
        let mut pins = Self::map(folder, disks, layout, &lock).map_err(kernel("map its bitmaps"))?;
        pins.fill(layout, digest);
        attach_links(folder, disks, &mut pins).map_err(kernel("open its links"))?;
        pins.control[CONTROL_READY].store(1, SeqCst);
        Ok((pins, start))
    }

    /// Takes up what is pinned, or says why it cannot be; never begins anew.
    pub(super) fn reopen(
        folder: &Path,
        identity: &str,
        disks: &[Disk],
        layout: &Layout,
    ) -> Result<Self, String> {
        let lock = File::open(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        lock.try_lock().map_err(|_| format!("another agent uses {}", folder.display()))?;
        Self::resume(folder, disks, layout, digest(identity, disks), &lock).map_err(|start| match start {
            Start::Unusable(reason) => reason,
            Start::Absent | Start::Resumed => "nothing is pinned".to_owned(),
        })
    }

    /// For a process that only watches: no other run takes the marks up, and nothing is left behind.
    pub(super) fn unpinned(disks: &[Disk], layout: &Layout) -> Result<Self, TrackError> {
        let ebpf = load(None, disks, layout).map_err(unsupported)?;
        Self::map_unpinned(ebpf, disks, layout).map_err(kernel("map its bitmaps"))
    }

    fn map_unpinned(ebpf: Ebpf, disks: &[Disk], layout: &Layout) -> io::Result<Self> {
        let map = |name: &str, words: usize| match ebpf.map(name) {
            Some(Map::Array(data)) => Mapped::new(data.fd().as_fd(), words),
            _ => Err(io::Error::other(format!("the program has no array {name}"))),
        };
        let program = |name: &str| {
            let program = ebpf.program(name).ok_or_else(|| io::Error::other(name.to_owned()))?;
            program.fd().map_err(io::Error::other)?.as_fd().try_clone_to_owned()
        };
        let programs = |functions: Vec<&str>| functions.into_iter().map(program).collect::<io::Result<_>>();
        Ok(Self {
            marks: map("MARKS", layout.mark_words().ok_or(io::ErrorKind::OutOfMemory)? as usize)?,
            summary: map("SUMMARY", layout.summary_words())?,
            extents: map("EXTENT_TABLE", EXTENT_WORDS)?,
            control: map("CONTROL", CONTROL_WORDS)?,
            issue: programs(beginnings(disks))?,
            complete: programs(ends(disks))?,
            _links: Vec::new(),
            _lock: None,
            _unpinned: Some(ebpf),
        })
    }

    fn resume(
        folder: &Path,
        disks: &[Disk],
        layout: &Layout,
        digest: [u64; 4],
        lock: &File,
    ) -> Result<Self, Start> {
        let is_empty = fs::read_dir(folder).map(|mut files| files.next().is_none()).unwrap_or(true);
        if is_empty {
            return Err(Start::Absent);
        }
        let unusable = |reason: String| Start::Unusable(reason);
        // The control words first: they say whether the rest has the size expected.
        let control = sys::open_pinned(&folder.join("control"))
            .and_then(|map| Mapped::new(map.as_fd(), CONTROL_WORDS))
            .map_err(|error| unusable(format!("the pinned control words cannot be read ({error})")))?;
        let word = |index: usize| control[index].load(SeqCst);
        if word(CONTROL_READY) != 1 {
            return Err(unusable("an earlier start did not get to its end".to_owned()));
        }
        if word(CONTROL_MAGIC) != MAGIC ^ (FORMAT << 56) {
            return Err(unusable(
                "the pinned maps have the format of another version of the agent".to_owned(),
            ));
        }
        let found: Vec<u64> = CONTROL_DIGEST.map(word).collect();
        if found[..2] != digest[..2] {
            return Err(unusable("the agent's tracking program is another version".to_owned()));
        }
        if found[2..] != digest[2..] {
            return Err(unusable(OTHER_DISKS.to_owned()));
        }
        let mut pins = Self::map(folder, disks, layout, lock)
            .map_err(|error| unusable(format!("a pinned map is missing ({error})")))?;
        attach_links(folder, disks, &mut pins)
            .map_err(|error| unusable(format!("tracking was detached ({error})")))?;
        Ok(pins)
    }

    fn map(folder: &Path, disks: &[Disk], layout: &Layout, lock: &File) -> io::Result<Self> {
        let programs = |functions: Vec<&str>| {
            let program = |function| sys::open_pinned(&folder.join(format!("program_{function}")));
            functions.into_iter().map(program).collect::<io::Result<_>>()
        };
        let map = |name: &str, words: usize| {
            let map = sys::open_pinned(&folder.join(name))?;
            Mapped::new(map.as_fd(), words)
        };
        Ok(Self {
            marks: map("marks", layout.mark_words().ok_or(io::ErrorKind::OutOfMemory)? as usize)?,
            summary: map("summary", layout.summary_words())?,
            extents: map("extents", EXTENT_WORDS)?,
            control: map("control", CONTROL_WORDS)?,
            issue: programs(beginnings(disks))?,
            complete: programs(ends(disks))?,
            _links: Vec::new(),
            _lock: Some(lock.try_clone()?),
            _unpinned: None,
        })
    }

    /// All blocks are to be copied; whose the maps are.
    fn fill(&self, layout: &Layout, digest: [u64; 4]) {
        for disk in 0..layout.disks() {
            super::bits::set_first(&self.marks[layout.words(Set::ToCopy, disk)], layout.blocks(disk));
        }
        self.control[CONTROL_MAGIC].store(MAGIC ^ (FORMAT << 56), SeqCst);
        for (index, word) in CONTROL_DIGEST.zip(digest) {
            self.control[index].store(word, SeqCst);
        }
    }

    pub(super) fn maps(&self) -> Maps<'_, AtomicU64> {
        Maps { marks: &self.marks, summary: &self.summary, extents: &self.extents, control: &self.control }
    }

    pub(super) fn counter(&self, disk: usize, counter: usize) -> u64 {
        let index = CONTROL_COUNTERS + disk * super::layout::COUNTERS_PER_DISK + counter;
        self.control.get(index).map_or(0, |word| word.load(SeqCst))
    }
}

/// Removes the pins in a directory and those below it, which ends the tracking they stand for.
pub fn remove(folder: &Path) -> io::Result<()> {
    let files = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        files => files?,
    };
    for file in files {
        let file = file?;
        if file.file_type()?.is_dir() { remove(&file.path())? } else { fs::remove_file(file.path())? }
    }
    fs::remove_dir(folder)
}

fn clear(folder: &Path) -> io::Result<()> {
    for file in fs::read_dir(folder)? {
        fs::remove_file(file?.path())?;
    }
    Ok(())
}

/// What is attached for these disks.
fn tracepoints(disks: &[Disk]) -> impl Iterator<Item = (&'static str, &'static str)> {
    let bios: &[_] = if disks.iter().any(|disk| disk.bio_based) { &BIO_TRACEPOINTS } else { &[] };
    TRACEPOINTS.iter().chain(bios).copied()
}

fn beginnings(disks: &[Disk]) -> Vec<&'static str> {
    let is_one = |function: &&str| matches!(*function, "issue" | "bio_queue");
    tracepoints(disks).map(|(function, _)| function).filter(is_one).collect()
}

fn ends(disks: &[Disk]) -> Vec<&'static str> {
    let is_one = |function: &&str| matches!(*function, "complete" | "bio_complete");
    tracepoints(disks).map(|(function, _)| function).filter(is_one).collect()
}

fn attach_links(folder: &Path, disks: &[Disk], pins: &mut Pins) -> io::Result<()> {
    pins._links = tracepoints(disks)
        .map(|(function, _)| sys::open_pinned(&folder.join(format!("link_{function}"))))
        .collect::<io::Result<_>>()?;
    Ok(())
}

/// Loads, fills and attaches. Everything is pinned in `folder`; without one, tracking ends when the result is dropped.
fn load(folder: Option<&Path>, disks: &[Disk], layout: &Layout) -> Result<Ebpf, Box<dyn std::error::Error>> {
    let btf = Btf::from_sys_fs()?;
    let words = layout.mark_words().ok_or("the disks are larger than 140 TiB together")?;
    let bios = if disks.iter().any(|disk| disk.bio_based) { BIOS } else { 1 };
    let mut ebpf = EbpfLoader::new()
        .btf(Some(&btf))
        .map_max_entries("MARKS", words)
        .map_max_entries("SUMMARY", u32::try_from(layout.summary_words())?)
        .map_max_entries("BIOS", bios)
        .load(PROGRAM)?;
    for (name, file) in MAPS {
        let Some(folder) = folder else { break };
        let map = ebpf.map(name).ok_or_else(|| format!("the program has no map {name}"))?;
        match map {
            Map::Array(data) | Map::HashMap(data) => data.pin(folder.join(file))?,
            other => return Err(format!("map {name} is of another type: {other:?}").into()),
        }
    }
    let mut entries: BpfHash<_, u32, DiskEntry> =
        BpfHash::try_from(ebpf.map_mut("DISKS").ok_or("the program has no map DISKS")?)?;
    for (number, disk) in disks.iter().enumerate() {
        let base = [Set::Issued(0), Set::Issued(1), Set::Completed(0), Set::Completed(1)]
            .map(|set| layout.start(set, number) as u64);
        let entry = DiskEntry {
            base,
            blocks: layout.blocks(number).into(),
            number: number as u64,
            bios: disk.bio_based.into(),
        };
        entries.insert(disk.device, entry, 0)?;
    }
    for (function, tracepoint) in tracepoints(disks) {
        let program =
            ebpf.program_mut(function).ok_or_else(|| format!("the program has no function {function}"))?;
        let program: &mut BtfTracePoint = program.try_into()?;
        program.load(tracepoint, &btf)?;
        let Some(folder) = folder else {
            program.attach()?;
            continue;
        };
        program.pin(folder.join(format!("program_{function}")))?;
        let link = program.attach()?;
        let link: FdLink = program.take_link(link)?.into();
        link.pin(folder.join(format!("link_{function}")))?;
    }
    Ok(ebpf)
}

/// Two words for the program, two for server and disks.
fn digest(identity: &str, disks: &[Disk]) -> [u64; 4] {
    use ring::digest::{Context, SHA256, digest};
    let mut context = Context::new(&SHA256);
    context.update(identity.as_bytes());
    for Disk { name, id, size_bytes, device, sequence, bio_based } in disks {
        context.update(format!("\n{name} {id} {size_bytes} {device} {sequence} {bio_based}").as_bytes());
    }
    let half = |bytes: &[u8], index: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[index * 8..index * 8 + 8]);
        u64::from_le_bytes(word)
    };
    let (program, owner) = (digest(&SHA256, PROGRAM), context.finish());
    [half(program.as_ref(), 0), half(program.as_ref(), 1), half(owner.as_ref(), 0), half(owner.as_ref(), 1)]
}

pub(super) fn kernel(operation: &'static str) -> impl Fn(io::Error) -> TrackError {
    move |source| TrackError::Kernel { operation, source }
}

/// The loader's errors are many; what a person can do is one of few.
fn unsupported(error: Box<dyn std::error::Error>) -> TrackError {
    let mut reason = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let text = inner.to_string();
        if !reason.contains(&text) {
            reason += &format!(": {text}");
        }
        cause = inner.source();
    }
    let remedy = if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        "use a kernel with BTF (CONFIG_DEBUG_INFO_BTF, as distributions have since 2021)"
    } else if reason.contains("Operation not permitted") {
        "run the agent as root, outside a container, with kernel lockdown not above `integrity`"
    } else {
        "use Linux 5.15 or newer; the agent's log has the kernel's words"
    };
    TrackError::Unsupported { reason, remedy: remedy.to_owned() }
}
