//! Records written to files, each made durable before the next is issued: overwritten in place, appended, put in place
//! of a file by a rename; large files written and removed, so that space is discarded and used again. What every file
//! holds after each record follows from the seed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::Write as _,
    ops::RangeInclusive,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use lifeboat_tests::rig::{Loop, Mounted, Random, Served, run};

use super::{Times, Workload, begun, judge_mounted, torn, writer::Writer};

pub const DISK_BYTES: u64 = 384 << 20;
const FILES: u64 = 16;
const FILE_BYTES: usize = 64 << 10;
/// Overwritten at once.
const PART_BYTES: usize = 16 << 10;
const LARGE_BYTES: usize = 6 << 20;
/// Records from one large file to the next.
const LARGE_EVERY: u64 = 300;
const CUT_LOG_EVERY: u64 = 190;

const FOLDER: &str = "records";
const LOG: &str = "log";
const LARGE: &str = "large";

#[derive(Debug)]
enum Step {
    Overwrite(String, usize),
    Append,
    CutLog,
    Replace(String),
    Large,
    RemoveLarge,
}

fn file(number: u64) -> String {
    format!("file-{number:02}")
}

fn new_of(file: &str) -> String {
    format!("{file}.new")
}

fn step(seed: u64, number: u64) -> Step {
    let mut random = Random::part(seed, number);
    let (kind, name) = (random.below(10), file(random.below(FILES)));
    match number % LARGE_EVERY {
        50 => return Step::Large,
        200 => return Step::RemoveLarge,
        _ => {}
    }
    match kind {
        _ if number.is_multiple_of(CUT_LOG_EVERY) => Step::CutLog,
        0..5 => Step::Overwrite(name, PART_BYTES * random.below((FILE_BYTES / PART_BYTES) as u64) as usize),
        5..8 => Step::Append,
        _ => Step::Replace(name),
    }
}

/// What the record writes.
fn content(seed: u64, number: u64) -> Vec<u8> {
    let mut random = Random::part(!seed, number);
    let bytes = match step(seed, number) {
        Step::Overwrite(..) => PART_BYTES,
        Step::Append => 100 + random.below(6000) as usize,
        Step::Replace(_) => FILE_BYTES,
        Step::Large => LARGE_BYTES,
        Step::CutLog | Step::RemoveLarge => 0,
    };
    random.bytes(bytes)
}

#[derive(Clone)]
struct State(BTreeMap<String, Vec<u8>>);

impl State {
    fn first() -> Self {
        let files = (0..FILES).map(|number| (file(number), vec![0x11; FILE_BYTES]));
        Self(files.chain([(LOG.to_owned(), Vec::new())]).collect())
    }

    fn after(seed: u64, records: u64) -> Self {
        let mut state = Self::first();
        (1..=records).for_each(|number| state.apply(seed, number));
        state
    }

    fn read(folder: &Path) -> Self {
        let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
        let read =
            |entry: fs::DirEntry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
        Self(entries.map(read).collect())
    }

    fn apply(&mut self, seed: u64, number: u64) {
        let content = || content(seed, number);
        match step(seed, number) {
            Step::Overwrite(name, at) => {
                self.0.get_mut(&name).unwrap()[at..at + PART_BYTES].copy_from_slice(&content());
            }
            Step::Append => self.0.get_mut(LOG).unwrap().extend(content()),
            Step::CutLog => self.0.get_mut(LOG).unwrap().clear(),
            Step::Replace(name) => _ = self.0.insert(name, content()),
            Step::Large => _ = self.0.insert(LARGE.to_owned(), content()),
            Step::RemoveLarge => _ = self.0.remove(LARGE),
        }
    }

    /// The names whose content in `found` is another, if `pending` may have been carried out in part.
    fn differences(&self, seed: u64, found: &Self, pending: Option<u64>) -> Vec<String> {
        let mut after = self.clone();
        let mut step_of = None;
        if let Some(number) = pending {
            after.apply(seed, number);
            step_of = Some((step(seed, number), content(seed, number)));
        }
        let names: BTreeSet<&String> =
            [self, &after, found].into_iter().flat_map(|state| state.0.keys()).collect();
        let fits = |name: &str| {
            let [old, new, found] = [self, &after, found].map(|state| state.0.get(name));
            if found == old || found == new {
                return true;
            }
            match (&step_of, found) {
                (Some((Step::Overwrite(..), _)), Some(found)) => {
                    old.zip(new).is_some_and(|(old, new)| old != new && torn(found, old, new))
                }
                (Some((Step::Append, _)), Some(found)) if name == LOG => {
                    let old = old.map_or(0, Vec::len);
                    found.len() >= old && found[..old] == new.unwrap()[..old] && begun(found, new.unwrap())
                }
                (Some((Step::CutLog, _)), Some(found)) if name == LOG => old.unwrap().starts_with(found),
                (Some((Step::Replace(target), content)), Some(found)) if name == new_of(target) => {
                    begun(found, content)
                }
                (Some((Step::Large, content)), Some(found)) if name == LARGE => begun(found, content),
                _ => false,
            }
        };
        names.into_iter().filter(|name| !fits(name)).cloned().collect()
    }
}

/// Carries the record out on the disk; it is durable when this returns.
fn write(folder: &Path, seed: u64, number: u64) {
    let content = content(seed, number);
    let open = |name: &str| File::options().read(true).write(true).open(folder.join(name)).unwrap();
    let sync_folder = || File::open(folder).unwrap().sync_all().unwrap();
    let whole = |name: &str| {
        let mut file = File::create_new(folder.join(name)).unwrap();
        file.write_all(&content).unwrap();
        file.sync_all().unwrap();
    };
    match step(seed, number) {
        Step::Overwrite(name, at) => {
            let file = open(&name);
            file.write_all_at(&content, at as u64).unwrap();
            file.sync_data().unwrap();
        }
        Step::Append => {
            let mut log = File::options().append(true).open(folder.join(LOG)).unwrap();
            log.write_all(&content).unwrap();
            log.sync_data().unwrap();
        }
        Step::CutLog => {
            let log = open(LOG);
            log.set_len(0).unwrap();
            log.sync_all().unwrap();
        }
        Step::Replace(name) => {
            whole(&new_of(&name));
            fs::rename(folder.join(new_of(&name)), folder.join(&name)).unwrap();
            sync_folder();
        }
        Step::Large => {
            whole(LARGE);
            sync_folder();
        }
        Step::RemoveLarge => {
            fs::remove_file(folder.join(LARGE)).unwrap();
            sync_folder();
        }
    }
}

pub struct Files {
    file_system: &'static str,
    seed: u64,
    times: Arc<Times>,
    writer: Writer,
    mounted: Option<Mounted>,
}

impl Files {
    pub fn start(disk: &Loop, file_system: &'static str, seed: u64, pause: Duration) -> Self {
        let mounted = Mounted::new(disk, file_system);
        let folder: PathBuf = mounted.path().join(FOLDER);
        fs::create_dir(&folder).unwrap();
        for (name, content) in State::first().0 {
            fs::write(folder.join(name), content).unwrap();
        }
        run("sync", &["--file-system", folder.to_str().unwrap()]);
        let times = Arc::new(Times::default());
        let write = move |number| write(&folder, seed, number);
        let writer = Writer::start(Random::part(seed, 0), pause, Arc::clone(&times), write);
        Self { file_system, seed, times, writer, mounted: Some(mounted) }
    }
}

/// The newest record of a prefix that is in the files, of those allowed; the next one may be there in part.
fn newest(seed: u64, found: &State, allowed: RangeInclusive<u64>) -> Result<u64, String> {
    let mut state = State::after(seed, *allowed.start());
    let mut first = None;
    for number in allowed.clone() {
        if number > *allowed.start() {
            state.apply(seed, number);
        }
        let pending = (number < *allowed.end()).then_some(number + 1);
        let different = state.differences(seed, found, pending);
        if different.is_empty() {
            return Ok(number);
        }
        first.get_or_insert(different);
    }
    let (last, next) = (step(seed, *allowed.start()), step(seed, allowed.start() + 1));
    Err(format!(
        "no prefix of the records ending within {allowed:?} is in the files: after the first of them ({last:?}, then \
         {next:?}) these differ: {first:?}"
    ))
}

impl Workload for Files {
    fn name(&self) -> &'static str {
        self.file_system
    }

    fn times(&self) -> &Times {
        &self.times
    }

    fn stop(&mut self) {
        self.writer.stop();
        self.mounted.take().unwrap().unmount();
    }

    fn judge(&self, point: &mut Served, allowed: RangeInclusive<u64>, kill: bool) -> u64 {
        judge_mounted(self.file_system, point, kill, |root| {
            let found = State::read(&root.join(FOLDER));
            newest(self.seed, &found, allowed).unwrap_or_else(|why| panic!("{why}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: u64 = 3;
    const RECORDS: u64 = 140;

    /// The number of the last overwrite up to `RECORDS`, and its file and place.
    fn last_overwrite() -> (u64, String, usize) {
        let overwrite = |number| match step(SEED, number) {
            Step::Overwrite(name, at) => Some((number, name, at)),
            _ => None,
        };
        (1..=RECORDS).rev().find_map(overwrite).unwrap()
    }

    #[test]
    fn every_prefix_is_told_by_its_length() {
        for records in [1, 49, 50, 51, 100, RECORDS] {
            assert_eq!(newest(SEED, &State::after(SEED, records), records..=records), Ok(records));
            let (before, after) = (records - 1, records + 1);
            newest(SEED, &State::after(SEED, records), after..=after).unwrap_err();
            newest(SEED, &State::after(SEED, records), before..=before).unwrap_err();
        }
    }

    #[test]
    fn a_record_that_is_missing_before_the_last_one_is_found() {
        let (number, name, at) = last_overwrite();
        let old = State::after(SEED, number - 1).0[&name][at..at + PART_BYTES].to_vec();
        let mut found = State::after(SEED, RECORDS + 10);
        let Some(file) =
            found.0.get_mut(&name).filter(|file| file[at..at + PART_BYTES] == content(SEED, number))
        else {
            panic!("another seed is needed: the record was written over")
        };
        file[at..at + PART_BYTES].copy_from_slice(&old);
        newest(SEED, &found, RECORDS..=RECORDS + 20).unwrap_err();
    }

    #[test]
    fn only_the_record_under_way_may_be_torn() {
        let (number, name, at) = last_overwrite();
        let mut found = State::after(SEED, number);
        let old = State::after(SEED, number - 1).0[&name].clone();
        found.0.get_mut(&name).unwrap()[at..at + 512].copy_from_slice(&old[at..at + 512]);
        assert_eq!(newest(SEED, &found, number - 1..=number), Ok(number - 1));
        newest(SEED, &found, number..=number + 5).unwrap_err();
    }
}
