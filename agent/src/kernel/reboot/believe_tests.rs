use proptest::prelude::*;

use super::{
    super::{
        areas::{Area, Kind},
        early::EarlyDisk,
        saved::SavedDisk,
    },
    *,
};

const BLOCKS: u32 = 4096;

fn disk(id: &str) -> Disk {
    Disk {
        name: format!("name-{id}"),
        id: id.into(),
        size_bytes: u64::from(BLOCKS) * 4096,
        device: 1,
        sequence: 1,
        bio_based: false,
    }
}

fn set(blocks: &[(u32, u32)]) -> BlockSet {
    let mut set = BlockSet::default();
    for (disk, first) in blocks {
        set.insert_run(BlockRun { disk: DiskSlot(*disk), first: *first, blocks: 1 });
    }
    set
}

/// An ext file system on the first half, something else on the second.
fn areas(print: &str) -> Vec<Area> {
    let half = u64::from(BLOCKS / 2) * 4096;
    vec![
        Area { first_byte: 0, bytes: half, kind: Kind::Ext, print: print.into() },
        Area { first_byte: half, bytes: half, kind: Kind::Unproven, print: "why it is".into() },
    ]
}

/// A server with two disks that was shut down and started in order. The early tracker found them in the other order.
struct Case {
    found: Found,
    disks: Vec<Disk>,
    early: Option<Early>,
    marks: Result<BlockSet, String>,
}

impl Case {
    fn new() -> Self {
        let saved_disk = |id: &str| SavedDisk {
            id: id.into(),
            size_bytes: disk(id).size_bytes,
            areas: areas("as it was"),
        };
        let seen = |id: &str| EarlyDisk { disk: disk(id), writes_before: 0, areas: areas("as it was") };
        Self {
            found: Found::Saved(Box::new(Saved {
                boot: "before".into(),
                server: "server".into(),
                disks: vec![saved_disk("a"), saved_disk("b")],
                durable: Some(SavedMark { number: 5, epoch: 1, chain: vec![1; 32] }),
                sent: Some(6),
                request: Some("1".into()),
                copy_reason: None,
                issue_only: false,
                dirty: set(&[(1, 10), (2, 20)]),
                to_copy: BlockSet::default(),
            })),
            disks: vec![disk("a"), disk("b")],
            early: Some(Early {
                prints: PRINTS,
                boot: "now".into(),
                disks: vec![seen("b"), seen("a")],
                error: None,
            }),
            marks: Ok(set(&[(1, 30), (2, 40)])),
        }
    }

    fn saved(&mut self) -> &mut Saved {
        match &mut self.found {
            Found::Saved(saved) => saved,
            other => panic!("{other:?}"),
        }
    }

    fn early(&mut self) -> &mut Early {
        self.early.as_mut().unwrap()
    }

    fn believe(&self) -> Result<Believed, String> {
        let marks = self.marks.as_ref().map_err(String::as_str);
        let known =
            Known { server: "server", boot: "now", disks: &self.disks, early: self.early.as_ref(), marks };
        believe(self.found.clone(), &known)
    }

    fn doubt(&self) -> String {
        self.believe().unwrap_err()
    }
}

#[test]
fn dirty_is_what_was_saved_and_what_the_early_tracker_saw_by_disk() {
    let believed = Case::new().believe().unwrap();
    assert_eq!(believed.dirty, set(&[(1, 10), (1, 40), (2, 20), (2, 30)]));
    assert_eq!(
        (believed.durable.unwrap().number, believed.sent, believed.request),
        (5, Some(6), Some("1".into()))
    );
}

#[test]
fn what_no_superblock_vouches_for_is_compared_and_said() {
    let believed = Case::new().believe().unwrap();
    let halves = |disk| {
        let mut set = BlockSet::default();
        set.insert_run(BlockRun { disk: DiskSlot(disk), first: BLOCKS / 2, blocks: BLOCKS / 2 });
        set
    };
    let mut expected = halves(1);
    expected.union(&halves(2));
    assert_eq!(believed.to_copy, expected);
    let reason = believed.reason.unwrap();
    assert!(reason.starts_with("UncleanShutdown: "), "{reason}");
    assert!(reason.ends_with("8 MiB at byte 8388608 of /dev/name-b (why it is)"), "{reason}");
    // With nothing to compare there is nothing to say.
    let mut case = Case::new();
    case.saved().disks.iter_mut().for_each(|disk| disk.areas.truncate(1));
    case.early().disks.iter_mut().for_each(|disk| disk.areas.truncate(1));
    let believed = case.believe().unwrap();
    assert_eq!((believed.to_copy, believed.reason), (BlockSet::default(), None));
}

#[test]
fn a_copy_that_was_under_way_goes_on_with_its_reason() {
    let mut case = Case::new();
    case.saved().to_copy = set(&[(2, 7)]);
    case.saved().copy_reason = Some("Requested: because".into());
    let believed = case.believe().unwrap();
    assert!(believed.to_copy.contains(DiskSlot(2), 7) && !believed.to_copy.contains(DiskSlot(1), 7));
    assert_eq!(believed.reason.as_deref(), Some("Requested: because"));
}

/// What is changed in an orderly restart, and the reason that it must give.
#[test]
fn every_doubt_has_its_own_code_and_words() {
    type Change = fn(&mut Case);
    let doubts: [(&str, &str, Change); 15] = [
        ("UncleanShutdown", "lost power", |case| case.found = Found::Nothing),
        ("UncleanShutdown", "still mounted", |case| {
            case.found = Found::Refused("/ was still mounted".into())
        }),
        ("UncleanShutdown", "cannot be emptied", |case| {
            case.found = Found::Unusable("cannot be emptied".into())
        }),
        ("UncleanShutdown", "another server", |case| case.saved().server = "other".into()),
        ("UncleanShutdown", "this very boot", |case| case.saved().boot = "now".into()),
        ("EarlyTrackerMissing", "initramfs", |case| case.early = None),
        ("EarlyTrackerMissing", "another boot", |case| case.early().boot = "older".into()),
        ("EarlyTrackerMissing", "update-initramfs", |case| case.early().prints = 0),
        ("EarlyTrackerMissing", "no BTF", |case| case.early().error = Some("no BTF".into())),
        ("EarlyTrackerMissing", "update-initramfs", |case| case.marks = Err("update-initramfs -u".into())),
        ("EarlyTrackerMissing", "not there yet", |case| _ = case.early().disks.pop()),
        ("EarlyTrackerMissing", "was written before", |case| case.early().disks[0].writes_before = 1),
        ("ChangedWhileDown", "was mounted", |case| case.early().disks[1].areas = areas("mounted since")),
        ("DisksChanged", "not those of before", |case| _ = case.disks.pop()),
        ("DisksChanged", "another size", |case| case.disks[1].size_bytes += 4096),
    ];
    for (code, words, change) in doubts {
        let mut case = Case::new();
        change(&mut case);
        let doubt = case.doubt();
        assert!(doubt.starts_with(&format!("{code}: ")) && doubt.contains(words), "{code}, {words}: {doubt}");
    }
}

#[test]
fn a_disk_that_was_taken_away_and_put_back_was_not_watched_meanwhile() {
    let mut case = Case::new();
    case.disks[0].sequence += 1;
    assert!(case.doubt().starts_with("EarlyTrackerMissing: "));
}

proptest! {
    /// The fold: nothing that was dirty at shutdown or written since is forgotten, and nothing else is named.
    #[test]
    fn dirty_is_the_union(
        saved in proptest::collection::vec((1..=2_u32, 0..BLOCKS), 0..50),
        early in proptest::collection::vec((1..=2_u32, 0..BLOCKS), 0..50),
    ) {
        let mut case = Case::new();
        case.saved().dirty = set(&saved);
        case.marks = Ok(set(&early));
        let swapped: Vec<_> = early.iter().map(|(disk, block)| (3 - disk, *block)).collect();
        let mut expected = set(&saved);
        expected.union(&set(&swapped));
        prop_assert_eq!(case.believe().unwrap().dirty, expected);
    }
}

fn quiet() -> Quiet<'static> {
    Quiet { writable: &[], swaps: 0, in_flight: Some(0), lost: None }
}

#[test]
fn only_a_quiet_server_is_saved_and_the_others_hear_why_not() {
    assert_eq!(orderly(&quiet()), Ok(()));
    let writable = ["/srv".to_owned()];
    for (quiet, words) in [
        (Quiet { writable: &writable, ..quiet() }, "/srv was still mounted"),
        (Quiet { swaps: 1, ..quiet() }, "swap"),
        (Quiet { in_flight: Some(1), ..quiet() }, "under way"),
        (Quiet { in_flight: None, ..quiet() }, "iostats"),
        (Quiet { lost: Some("TrackingLost: too many".into()), ..quiet() }, "too many"),
    ] {
        let reason = orderly(&quiet).unwrap_err();
        assert!(reason.contains(words), "{words}: {reason}");
    }
}

#[test]
fn bytes_touch_whole_blocks() {
    assert_eq!(blocks_of(1, &[(4095, 2), (12288, 4096)]), Ok(set(&[(2, 0), (2, 1), (2, 3)])));
}
