//! Records written to a disk without a file system: slots overwritten with O_DSYNC, and ranges of up to 40 MiB
//! discarded or zeroed. What every byte is after each record follows from the seed.

use std::{
    fs::File,
    io::Read as _,
    ops::{Range, RangeInclusive},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
    sync::Arc,
    time::Duration,
};

use lifeboat_tests::rig::{Loop, Random, Served, run};

use super::{Times, Workload, torn, writer::Writer};

pub const DISK_BYTES: u64 = 96 << 20;
const SLOT_BYTES: u64 = 16 << 10;
const SLOTS: u64 = DISK_BYTES / SLOT_BYTES;
/// Half of the writes fall on so many slots.
const HOT_SLOTS: u64 = 24;
/// One record in so many clears a range.
const CLEAR_EVERY: u64 = 40;
/// 40 MiB: more than the tracker notes block by block.
const MOST_CLEARED_SLOTS: u64 = (40 << 20) / SLOT_BYTES;

#[derive(Debug)]
enum Step {
    Write(u64),
    /// Slots; with zeros written instead of a discard.
    Clear(Range<u64>, bool),
}

fn step(seed: u64, number: u64) -> Step {
    let mut random = Random::part(seed, number);
    if number.is_multiple_of(CLEAR_EVERY) {
        let first = random.below(SLOTS);
        let end = (first + 1 + random.below(MOST_CLEARED_SLOTS)).min(SLOTS);
        return Step::Clear(first..end, random.below(2) == 0);
    }
    let hot = random.below(2) == 0;
    Step::Write(random.below(if hot { HOT_SLOTS } else { SLOTS }))
}

fn content(seed: u64, number: u64) -> Vec<u8> {
    Random::part(!seed, number).bytes(usize::try_from(SLOT_BYTES).unwrap())
}

/// Which record each slot holds; 0: zeros.
struct State(Vec<u64>);

impl State {
    fn after(seed: u64, records: u64) -> Self {
        let mut state = Self(vec![0; usize::try_from(SLOTS).unwrap()]);
        (1..=records).for_each(|number| state.apply(seed, number));
        state
    }

    fn apply(&mut self, seed: u64, number: u64) {
        match step(seed, number) {
            Step::Write(slot) => self.0[slot as usize] = number,
            Step::Clear(slots, _) => self.0[slots.start as usize..slots.end as usize].fill(0),
        }
    }

    /// The slots of `disk` that hold something else, if `pending` may have been carried out in part.
    fn differences(&self, seed: u64, disk: &[u8], pending: Option<u64>) -> Vec<u64> {
        let zeros = vec![0; SLOT_BYTES as usize];
        let bytes = |record: u64| if record == 0 { zeros.clone() } else { content(seed, record) };
        let pending = pending.map(|number| (number, step(seed, number)));
        let mut different = Vec::new();
        for (slot, (found, record)) in (0..).zip(disk.chunks(SLOT_BYTES as usize).zip(&self.0)) {
            let old = bytes(*record);
            let fits = found == old
                || match &pending {
                    Some((number, Step::Write(target))) if *target == slot => {
                        torn(found, &old, &content(seed, *number))
                    }
                    Some((_, Step::Clear(slots, _))) if slots.contains(&slot) => torn(found, &old, &zeros),
                    _ => false,
                };
            if !fits {
                different.push(slot);
            }
        }
        different
    }
}

pub struct Blocks {
    seed: u64,
    times: Arc<Times>,
    writer: Writer,
}

impl Blocks {
    pub fn start(disk: &Loop, seed: u64, pause: Duration) -> Self {
        let times = Arc::new(Times::default());
        let (device, name) = (disk.open(libc::O_DSYNC), disk.name().to_owned());
        let write = move |number| match step(seed, number) {
            Step::Write(slot) => device.write_all_at(&content(seed, number), slot * SLOT_BYTES).unwrap(),
            Step::Clear(slots, zeros) => {
                let offset = (slots.start * SLOT_BYTES).to_string();
                let length = ((slots.end - slots.start) * SLOT_BYTES).to_string();
                let zeros: &[&str] = if zeros { &["--zeroout"] } else { &[] };
                let range = ["--force", "--offset", &offset, "--length", &length, &name];
                run("blkdiscard", &[zeros, &range].concat());
            }
        };
        let writer = Writer::start(Random::part(seed, 0), pause, Arc::clone(&times), write);
        Self { seed, times, writer }
    }
}

fn read(device: &Path) -> Vec<u8> {
    run("blockdev", &["--flushbufs", device.to_str().unwrap()]);
    let mut disk = Vec::new();
    File::open(device).unwrap().read_to_end(&mut disk).unwrap();
    disk
}

/// The newest record of a prefix that is on the disk, of those allowed; the next one may be there in part.
fn newest(seed: u64, disk: &[u8], allowed: RangeInclusive<u64>) -> Result<u64, String> {
    let mut state = State::after(seed, *allowed.start());
    let mut first = None;
    for number in allowed.clone() {
        if number > *allowed.start() {
            state.apply(seed, number);
        }
        let pending = (number < *allowed.end()).then_some(number + 1);
        let different = state.differences(seed, disk, pending);
        if different.is_empty() {
            return Ok(number);
        }
        first.get_or_insert(different);
    }
    let state = State::after(seed, *allowed.start());
    let different = first.unwrap_or_default();
    let found: Vec<_> = different.iter().map(|slot| (*slot, state.0[*slot as usize])).collect();
    Err(format!(
        "no prefix of the records ending within {allowed:?} is on the disk: after the first of them these slots do \
         not hold these records: {found:?}"
    ))
}

impl Workload for Blocks {
    fn name(&self) -> &'static str {
        "raw"
    }

    fn times(&self) -> &Times {
        &self.times
    }

    fn stop(&mut self) {
        self.writer.stop();
    }

    fn judge(&self, point: &mut Served, allowed: RangeInclusive<u64>, kill: bool) -> u64 {
        let disk = read(point.device());
        assert_eq!(disk.len() as u64, DISK_BYTES);
        let newest = newest(self.seed, &disk, allowed).unwrap_or_else(|why| panic!("{why}"));

        // It can be written, and what is written stays.
        let at = Random::part(self.seed, newest).below(DISK_BYTES - SLOT_BYTES);
        let written = content(self.seed, u64::MAX);
        let device = File::options().write(true).custom_flags(libc::O_DSYNC).open(point.device()).unwrap();
        device.write_all_at(&written, at).unwrap();
        drop(device);
        if kill {
            point.kill_and_reopen();
        }
        run("blockdev", &["--flushbufs", point.device().to_str().unwrap()]);
        let around = at.saturating_sub(SLOT_BYTES)..(at + 2 * SLOT_BYTES).min(DISK_BYTES);
        let mut expected = disk[around.start as usize..around.end as usize].to_vec();
        let within = (at - around.start) as usize;
        expected[within..within + written.len()].copy_from_slice(&written);
        let mut found = vec![0; expected.len()];
        File::open(point.device()).unwrap().read_exact_at(&mut found, around.start).unwrap();
        assert!(found == expected, "what was written to the served point changed, or what is beside it");
        newest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: u64 = 1;

    /// The whole disk after so many records.
    fn disk(records: u64) -> Vec<u8> {
        let zeros = vec![0; SLOT_BYTES as usize];
        let of = |record: &u64| if *record == 0 { zeros.clone() } else { content(SEED, *record) };
        State::after(SEED, records).0.iter().flat_map(of).collect()
    }

    /// The slot that the newest of the records wrote, if it is not a range cleared.
    fn slot(number: u64) -> usize {
        match step(SEED, number) {
            Step::Write(slot) => slot as usize * SLOT_BYTES as usize,
            Step::Clear(..) => panic!("{number} clears: choose another"),
        }
    }

    #[test]
    fn a_prefix_is_told_by_its_length() {
        for records in [39, 40, 41] {
            let disk = disk(records);
            assert_eq!(newest(SEED, &disk, records..=records), Ok(records));
            newest(SEED, &disk, records + 1..=records + 1).unwrap_err();
            newest(SEED, &disk, records - 1..=records - 1).unwrap_err();
        }
    }

    #[test]
    fn a_record_that_is_missing_before_the_last_one_is_found() {
        let mut found = disk(33);
        let at = slot(31);
        assert!(found[at..].starts_with(&content(SEED, 31)), "another seed is needed: it was written over");
        found[at..at + SLOT_BYTES as usize].fill(0);
        newest(SEED, &found, 29..=39).unwrap_err();
    }

    #[test]
    fn only_the_record_under_way_may_be_torn() {
        let (mut found, before, at) = (disk(31), disk(30), slot(31));
        found[at..at + 512].copy_from_slice(&before[at..at + 512]);
        assert_eq!(newest(SEED, &found, 30..=31), Ok(30));
        newest(SEED, &found, 31..=35).unwrap_err();
    }
}
