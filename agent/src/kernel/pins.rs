//! An eBPF program and its maps: loaded, attached and pinned once, taken up again by every later run of the agent.
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
    programs::{BtfTracePoint, ProgramError, links::FdLink},
};

use super::{
    btf,
    disks::Disk,
    extents::Extents,
    layout::{
        BIOS, CONTROL_COUNTERS, CONTROL_DIGEST, CONTROL_MAGIC, CONTROL_READY, CONTROL_WORDS, FORMAT, Layout,
        MAGIC, Set,
    },
    mapped::Mapped,
    program::{Attachment, Program},
    sys,
    words::Maps,
};
use crate::edge::TrackError;

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
    pub(super) program: Program,
    pub(super) marks: Mapped,
    pub(super) summary: Mapped,
    pub(super) extents: Extents,
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
        let owner = digest_of_owner(identity, disks);
        let start = match Self::resume(folder, disks, layout, owner, &lock) {
            Ok(pins) => return Ok((pins, Start::Resumed)),
            Err(start) => start,
        };
        clear(folder).map_err(kernel("remove old pins"))?;
        let (program, _) = load(Some(folder), disks, layout).map_err(unsupported)?;
        let mut pins = Self::map(program, folder, disks, layout, &lock).map_err(kernel("map its bitmaps"))?;
        pins.fill(layout, owner);
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
        let owner = digest_of_owner(identity, disks);
        Self::resume(folder, disks, layout, owner, &lock).map_err(|start| match start {
            Start::Unusable(reason) => reason,
            Start::Absent | Start::Resumed => "nothing is pinned".to_owned(),
        })
    }

    /// For a process that only watches: no other run takes the marks up, and nothing is left behind.
    pub(super) fn unpinned(disks: &[Disk], layout: &Layout) -> Result<Self, TrackError> {
        let (program, ebpf) = load(None, disks, layout).map_err(unsupported)?;
        Self::map_unpinned(program, ebpf, layout).map_err(kernel("map its bitmaps"))
    }

    fn map_unpinned(kind: Program, mut ebpf: Ebpf, layout: &Layout) -> io::Result<Self> {
        let extents = Extents::of(kind, &mut ebpf)?;
        let map = |name: &str, words: usize| match ebpf.map(name) {
            Some(Map::Array(data)) => Mapped::new(data.fd().as_fd(), words),
            _ => Err(io::Error::other(format!("the program has no array {name}"))),
        };
        // Of those that were loaded: which functions serve was found out there.
        let programs = |wanted: fn(&str) -> bool| {
            let loaded = ebpf.programs().filter(|(name, _)| wanted(name));
            let loaded = loaded.filter_map(|(_, program)| program.fd().ok());
            loaded.map(|program| program.as_fd().try_clone_to_owned()).collect::<io::Result<Vec<_>>>()
        };
        let (issue, complete) = (programs(is_beginning)?, programs(is_end)?);
        Ok(Self {
            program: kind,
            marks: map("MARKS", layout.mark_words().ok_or(io::ErrorKind::OutOfMemory)? as usize)?,
            summary: map("SUMMARY", layout.summary_words())?,
            control: map("CONTROL", CONTROL_WORDS)?,
            extents,
            issue,
            complete,
            _links: Vec::new(),
            _lock: None,
            _unpinned: Some(ebpf),
        })
    }

    fn resume(
        folder: &Path,
        disks: &[Disk],
        layout: &Layout,
        owner: [u64; 2],
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
        // Which of the programs it is, too: a kernel takes only one.
        let program = Program::ALL.into_iter().find(|program| found[..2] == digest_of_program(*program));
        let Some(program) = program else {
            return Err(unusable("the agent's tracking program is another version".to_owned()));
        };
        if found[2..] != owner {
            return Err(unusable(OTHER_DISKS.to_owned()));
        }
        let mut pins = Self::map(program, folder, disks, layout, lock)
            .map_err(|error| unusable(format!("a pinned map is missing ({error})")))?;
        attach_links(folder, disks, &mut pins)
            .map_err(|error| unusable(format!("tracking was detached ({error})")))?;
        Ok(pins)
    }

    fn map(
        program: Program,
        folder: &Path,
        disks: &[Disk],
        layout: &Layout,
        lock: &File,
    ) -> io::Result<Self> {
        let names = program.names(disks);
        let programs = |wanted: fn(&str) -> bool| {
            let open = |name: &&str| sys::open_pinned(&folder.join(format!("program_{name}")));
            names.iter().filter(|name| wanted(name)).map(open).collect::<io::Result<Vec<_>>>()
        };
        let map = |name: &str, words: usize| {
            let map = sys::open_pinned(&folder.join(name))?;
            Mapped::new(map.as_fd(), words)
        };
        Ok(Self {
            program,
            marks: map("marks", layout.mark_words().ok_or(io::ErrorKind::OutOfMemory)? as usize)?,
            summary: map("summary", layout.summary_words())?,
            extents: Extents::pinned(program, &folder.join("extents"))?,
            control: map("control", CONTROL_WORDS)?,
            issue: programs(is_beginning)?,
            complete: programs(is_end)?,
            _links: Vec::new(),
            _lock: Some(lock.try_clone()?),
            _unpinned: None,
        })
    }

    /// All blocks are to be copied; whose the maps are.
    fn fill(&self, layout: &Layout, owner: [u64; 2]) {
        for disk in 0..layout.disks() {
            super::bits::set_first(&self.marks[layout.words(Set::ToCopy, disk)], layout.blocks(disk));
        }
        self.control[CONTROL_MAGIC].store(MAGIC ^ (FORMAT << 56), SeqCst);
        let digest = digest_of_program(self.program).into_iter().chain(owner);
        for (index, word) in CONTROL_DIGEST.zip(digest) {
            self.control[index].store(word, SeqCst);
        }
    }

    pub(super) fn maps(&self) -> Maps<'_, AtomicU64> {
        Maps {
            marks: &self.marks,
            summary: &self.summary,
            extents: self.extents.ranges(),
            control: &self.control,
        }
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

fn is_beginning(name: &str) -> bool {
    matches!(name, "issue" | "issue_after_queue" | "bio_queue")
}

fn is_end(name: &str) -> bool {
    matches!(name, "complete" | "bio_complete")
}

fn attach_links(folder: &Path, disks: &[Disk], pins: &mut Pins) -> io::Result<()> {
    let names = pins.program.names(disks).into_iter();
    pins._links = names
        .map(|name| sys::open_pinned(&folder.join(format!("link_{name}"))))
        .collect::<io::Result<_>>()?;
    Ok(())
}

type LoadError = Box<dyn std::error::Error>;

/// The kernel gives up checking a program when a signal comes for the thread, and says so.
const INTERRUPTED: i32 = libc::EAGAIN;
/// More signals in a row than anybody sends.
const LOADS: u32 = 100;

fn load_function(function: &mut BtfTracePoint, tracepoint: &str, btf: &Btf) -> Result<(), ProgramError> {
    let mut tried = 0;
    loop {
        tried += 1;
        match function.load(tracepoint, btf) {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.raw_os_error() == Some(INTERRUPTED) && tried < LOADS => {}
            loaded => return loaded,
        }
    }
}

/// Loads what serves this kernel, fills and attaches it. Everything is pinned in `folder`; without one, tracking ends when
/// the result is dropped.
fn load(folder: Option<&Path>, disks: &[Disk], layout: &Layout) -> Result<(Program, Ebpf), LoadError> {
    let (program, attachments) = Program::serving(disks)?;
    let btf = Btf::from_sys_fs()?;
    let words = layout.mark_words().ok_or("the disks are larger than 140 TiB together")?;
    let bios = if disks.iter().any(|disk| disk.bio_based) { BIOS } else { 1 };
    let mut ebpf = EbpfLoader::new()
        .btf(Some(&btf))
        .map_max_entries("MARKS", words)
        .map_max_entries("SUMMARY", u32::try_from(layout.summary_words())?)
        .map_max_entries("BIOS", bios)
        .load(program.object())?;
    for (name, file) in program.maps() {
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
    for Attachment { name, function, tracepoint } in &attachments {
        let function = function_of(&mut ebpf, function)?;
        load_function(function, tracepoint, &btf)?;
        if let Some(folder) = folder {
            function.pin(folder.join(format!("program_{name}")))?;
        }
    }
    // The ends first: a write whose beginning is seen and whose end is not would prove that ends escape. And only when all
    // are loaded, which takes the kernel its time.
    for Attachment { name, function, .. } in attachments.iter().rev() {
        let function = function_of(&mut ebpf, function)?;
        let link = function.attach()?;
        if let Some(folder) = folder {
            let link: FdLink = function.take_link(link)?.into();
            link.pin(folder.join(format!("link_{name}")))?;
        }
    }
    Ok((program, ebpf))
}

fn function_of<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut BtfTracePoint, LoadError> {
    let function = ebpf.program_mut(name).ok_or_else(|| format!("the program has no function {name}"))?;
    Ok(function.try_into()?)
}

fn two_words(digest: &ring::digest::Digest) -> [u64; 2] {
    let word = |index: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&digest.as_ref()[index * 8..index * 8 + 8]);
        u64::from_le_bytes(word)
    };
    [word(0), word(1)]
}

fn digest_of_program(program: Program) -> [u64; 2] {
    two_words(&ring::digest::digest(&ring::digest::SHA256, program.object()))
}

/// Of server and disks.
fn digest_of_owner(identity: &str, disks: &[Disk]) -> [u64; 2] {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    context.update(identity.as_bytes());
    for Disk { name, id, size_bytes, device, sequence, bio_based } in disks {
        context.update(format!("\n{name} {id} {size_bytes} {device} {sequence} {bio_based}").as_bytes());
    }
    two_words(&context.finish())
}

pub(super) fn kernel(operation: &'static str) -> impl Fn(io::Error) -> TrackError {
    move |source| TrackError::Kernel { operation, source }
}

/// The loader's errors are many; what a person can do is one of few.
fn unsupported(error: LoadError) -> TrackError {
    let mut reason = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let text = inner.to_string();
        if !reason.contains(&text) {
            reason += &format!(": {text}");
        }
        cause = inner.source();
    }
    let remedy = if !Path::new(btf::KERNEL).exists() {
        "use a kernel with BTF (CONFIG_DEBUG_INFO_BTF, as distributions have since 2021)"
    } else if reason.contains("Operation not permitted") {
        "run the agent as root, outside a container, with kernel lockdown not above `integrity`"
    } else {
        "use Linux 5.15 or newer (5.7 or newer, where all disks have a request queue); the agent's log has the kernel's words"
    };
    let told = shortened(&reason);
    if told != reason {
        tracing::warn!(reason, "the kernel does not take the tracking program");
    }
    TrackError::Unsupported { reason: told, remedy: remedy.to_owned() }
}

/// The verifier tells each step that it took, up to megabytes of them: why is said first, and where it stopped last.
fn shortened(reason: &str) -> String {
    const END: usize = 300;
    let length = reason.chars().count();
    if length <= 3 * END {
        return reason.to_owned();
    }
    let (first, last) = (reason.chars().take(END), reason.chars().skip(length - END));
    first.chain(" … ".chars()).chain(last).collect()
}

#[cfg(test)]
mod tests {
    use super::shortened;

    #[test]
    fn of_a_long_reason_the_beginning_and_the_end_are_told() {
        assert_eq!(shortened("no BTF"), "no BTF");
        let long = format!("refused: {}; at instruction 7", "step\n".repeat(10_000));
        let told = shortened(&long);
        assert!(
            told.starts_with("refused: ") && told.ends_with("instruction 7") && told.len() < 700,
            "{told}"
        );
    }
}
