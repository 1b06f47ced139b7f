use lifeboat_replication::blocks::RoaringBitmap;
use proptest::prelude::*;

use super::*;

const SECRET: [u8; 32] = [9; 32];

/// A small disk of several rows, the last one partial; each block holds one byte over and over.
type Image = Vec<u8>;

/// What the process server answers from a file that is right but for blocks of which it knows nothing.
fn answer(vault: &Image, unknown: &RoaringBitmap, ask: &v1::SumsAsk) -> v1::Sums {
    let keys = SumKeys::new(&SECRET);
    let mut bytes = Vec::new();
    for row in ask.rows.iter().flat_map(|run| run.first..run.first + run.count) {
        let mut sums = [UNKNOWN; ROW_BLOCKS as usize];
        let first = (row * ROW_BLOCKS) as usize;
        for (sum, byte) in sums.iter_mut().zip(vault.get(first..).unwrap_or_default()) {
            *sum = keys.block(&[*byte; 4096]);
        }
        let hidden = unknown.range(row * ROW_BLOCKS..(row + 1) * ROW_BLOCKS);
        let own = if hidden.count() > 0 { UNKNOWN } else { keys.mask_row(row, keys.row(&sums)) };
        unknown.range(row * ROW_BLOCKS..(row + 1) * ROW_BLOCKS).for_each(|block| {
            sums[(block - row * ROW_BLOCKS) as usize] = UNKNOWN;
        });
        keys.mask_blocks(row, &mut sums);
        match ask.level {
            1 => bytes.extend_from_slice(&own),
            _ => bytes.extend_from_slice(sums.as_flattened()),
        }
    }
    v1::Sums { id: ask.id, sums: bytes.into(), unusable: String::new() }
}

fn disk(blocks: u32) -> v1::Disk {
    v1::Disk { slot: 1, id: "a".into(), size_bytes: u64::from(blocks) * BLOCK_BYTES, ..v1::Disk::default() }
}

fn offer() -> v1::SumsOffer {
    let disks = vec![v1::SumsKey { disk_slot: 5, secret: SECRET.to_vec() }];
    v1::SumsOffer { disks, unusable: String::new() }
}

fn set(blocks: impl IntoIterator<Item = u32>) -> BlockSet {
    let mut set = BlockSet::default();
    set.insert_disk(DiskSlot(1), blocks.into_iter().collect());
    set
}

/// Runs a comparison to its end. Returns what is left to be copied, and how many rows were asked for in detail.
fn run(local: &Image, vault: &Image, unknown: &RoaringBitmap, to_copy: BlockSet) -> (BlockSet, u32) {
    let blocks = u32::try_from(local.len()).unwrap();
    let mut awaiting = to_copy;
    let mut compare = Compare::new(&offer(), &[disk(blocks)], |_| Some(5), &awaiting);
    let mut detail = 0;
    loop {
        match compare.step(&awaiting, 3) {
            Step::Ask(ask) => {
                assert_eq!(ask.disk_slot, 5);
                assert_eq!(compare.step(&awaiting, 3), Step::Wait);
                detail += if ask.level == 2 { ask.rows.iter().map(|run| run.count).sum() } else { 0 };
                let same = compare.answered(&awaiting, &answer(vault, unknown, &ask)).unwrap();
                awaiting.subtract(&same);
            }
            Step::Read(runs) => {
                for run in runs {
                    let blocks = &local[run.first as usize..(run.first + run.blocks) as usize];
                    let content: Vec<u8> = blocks.iter().flat_map(|byte| [*byte; 4096]).collect();
                    let same = compare.read(&awaiting, run, &content);
                    awaiting.subtract(&same);
                }
            }
            Step::Wait => panic!("it waits for an answer that it has"),
            Step::Done => {
                assert_eq!(compare.differing(), &awaiting);
                return (awaiting, detail);
            }
        }
    }
}

#[test]
fn only_rows_that_differ_are_asked_for_in_detail() {
    let vault: Image = (0..700_u32).map(|block| u8::try_from(block % 7).unwrap()).collect();
    let mut local = vault.clone();
    local[300] = 99;
    let (left, detail) = run(&local, &vault, &RoaringBitmap::new(), set(0..700));
    assert_eq!((left, detail), (set([300]), 1));
}

#[test]
fn what_is_not_to_be_copied_is_left_alone() {
    let (left, _) = run(&vec![1; 600], &vec![2; 600], &RoaringBitmap::new(), set(256..300));
    assert_eq!(left, set(256..300));
}

#[test]
fn a_disk_without_checksums_is_copied() {
    let none = v1::SumsOffer::default();
    let mut compare = Compare::new(&none, &[disk(10)], |_| Some(5), &set(0..10));
    assert_eq!(compare.step(&set(0..10), 3), Step::Done);
    assert_eq!(compare.differing(), &set(0..10));
}

#[test]
fn an_answer_that_is_too_short_or_of_another_question_is_not_taken() {
    let awaiting = set(0..10);
    let mut compare = Compare::new(&offer(), &[disk(10)], |_| Some(5), &awaiting);
    let Step::Ask(ask) = compare.step(&awaiting, 3) else { panic!("it asks first") };
    let mut sums = answer(&vec![1; 10], &RoaringBitmap::new(), &ask);
    sums.sums = sums.sums.slice(1..);
    assert_eq!(compare.answered(&awaiting, &sums), Err(Unexpected));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever differs, and only that, is left to be copied; a comparison that breaks off and begins again as well.
    #[test]
    fn exactly_the_differing_blocks_are_left(
        blocks in 1_u32..900, seed in prop::collection::vec((0_u32..900, 0_u8..4), 0..40),
        hidden in prop::collection::vec(0_u32..900, 0..4),
    ) {
        let vault: Image = (0..blocks).map(|block| u8::try_from(block % 3).unwrap()).collect();
        let mut local = vault.clone();
        for (block, byte) in seed.into_iter().filter(|(block, _)| *block < blocks) {
            local[block as usize] = byte;
        }
        let hidden: RoaringBitmap = hidden.into_iter().filter(|block| *block < blocks).collect();
        let differs = |block: &u32| local[*block as usize] != vault[*block as usize] || hidden.contains(*block);
        let wanted = set((0..blocks).filter(differs));
        let (left, _) = run(&local, &vault, &hidden, set(0..blocks));
        prop_assert_eq!(&left, &wanted);
        let (again, _) = run(&local, &vault, &hidden, left);
        prop_assert_eq!(again, wanted);
    }
}
