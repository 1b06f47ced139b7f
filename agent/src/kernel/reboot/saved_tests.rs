use lifeboat_replication::{blocks::BlockRun, ids::DiskSlot};
use proptest::prelude::*;

use super::*;

const BLOCKS: u32 = 1 << 16;
const LIMIT: usize = 4000;

fn set(runs: &[(u32, u32, u32)]) -> BlockSet {
    let mut set = BlockSet::default();
    for (disk, first, blocks) in runs {
        set.insert_run(BlockRun { disk: DiskSlot(*disk), first: *first, blocks: *blocks });
    }
    set
}

fn saved(dirty: BlockSet, to_copy: BlockSet) -> Saved {
    let disk =
        |id: &str| SavedDisk { id: id.into(), size_bytes: u64::from(BLOCKS) * 4096, areas: Vec::new() };
    Saved {
        boot: "boot".into(),
        server: "server".into(),
        disks: vec![disk("a"), disk("b")],
        durable: Some(SavedMark { number: 7, epoch: 3, chain: vec![1; 32] }),
        sent: Some(9),
        request: Some(String::new()),
        copy_reason: None,
        issue_only: true,
        dirty,
        to_copy,
    }
}

fn runs() -> impl Strategy<Value = BlockSet> {
    let run = (1..=2_u32, 0..BLOCKS - 64, 1..64_u32);
    proptest::collection::vec(run, 0..400).prop_map(|runs| set(&runs))
}

proptest! {
    /// Whatever fits comes back as it was; what does not fit comes back with more, never less.
    #[test]
    fn nothing_dirty_is_forgotten(dirty in runs(), to_copy in runs()) {
        let before = saved(dirty, to_copy);
        let whole = Saved::decode(&before.encode(1 << 20).unwrap()).unwrap();
        prop_assert_eq!(&whole, &before);
        let bytes = before.encode(LIMIT).unwrap();
        prop_assert!(bytes.len() <= LIMIT);
        let after = Saved::decode(&bytes).unwrap();
        for (before, after) in [(&before.dirty, &after.dirty), (&before.to_copy, &after.to_copy)] {
            let mut forgotten = before.clone();
            forgotten.subtract(after);
            prop_assert!(forgotten.is_empty(), "{:?}", forgotten);
        }
    }

    #[test]
    fn hostile_bytes_are_refused_without_a_panic(
        dirty in runs(), place in any::<prop::sample::Index>(), with in any::<u8>(), cut in any::<prop::sample::Index>()
    ) {
        let mut bytes = saved(dirty, BlockSet::default()).encode(1 << 20).unwrap();
        let short = cut.index(bytes.len());
        prop_assert!(Saved::decode(&bytes[..short]).is_err());
        let place = place.index(bytes.len());
        bytes[place] = with;
        // Some changes give another valid text (the digest of the image notices those); none may panic or go beyond a disk.
        if let Ok(saved) = Saved::decode(&bytes) {
            for (slot, blocks) in saved.dirty.disks() {
                let disk = saved.disks.get(slot.0 as usize - 1).map(blocks_of);
                prop_assert!(blocks.max() < disk || blocks.is_empty());
            }
        }
    }
}

#[test]
fn full_disks_take_next_to_nothing_and_scattered_ones_are_made_coarser() {
    let full = saved(set(&[(1, 0, BLOCKS), (2, 0, BLOCKS)]), BlockSet::default());
    assert_eq!(Saved::decode(&full.encode(LIMIT).unwrap()).unwrap(), full);
    let scattered: Vec<_> = (0..BLOCKS).step_by(2).map(|block| (1, block, 1)).collect();
    let scattered = saved(set(&scattered), BlockSet::default());
    let after = Saved::decode(&scattered.encode(LIMIT).unwrap()).unwrap();
    assert_eq!(after.dirty, set(&[(1, 0, BLOCKS)]));
}

#[test]
fn another_version_is_named_as_such() {
    let text = br#"{"version": 2, "something": "new"}"#;
    let mut bytes = (text.len() as u32).to_le_bytes().to_vec();
    bytes.extend_from_slice(text);
    assert_eq!(Saved::decode(&bytes), Err(SavedError::Version));
}
