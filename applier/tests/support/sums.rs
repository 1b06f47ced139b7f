//! Reads a disk's checksums as somebody would who compares, and says whether one of them claims too much.

use lifeboat_replication::{
    catalogue::{self, Position},
    store::BlobStore,
    sums::{self, Header, ROW_BLOCKS, ROW_BYTES, SumKeys, UNKNOWN},
    vault::layout,
};

use super::{Source, disk_id};

/// Blocks whose checksum is known, after having seen that none is that of an older record than the position's.
pub async fn known_blocks(source: &Source, slot: u32) -> usize {
    let name = layout::seed_sum(&source.server, &disk_id(slot));
    let Ok(page) = source.store.get(&name, None, Some(0..512)).await else { return 0 };
    let Some(header) = Header::from_page(&page) else { return 0 };
    let secret = header.secret(&source.vault.keys, &source.server, &disk_id(slot)).unwrap();
    let keys = SumKeys::new(&secret);
    let position = catalogue::read::<Position>(&source.vault, &source.server).await.unwrap();
    let position = position.map_or(0, |(position, _)| position.log.last_number.0);
    let states = || source.history.range(position..).map(|(_, images)| &images[&slot]);
    let blocks = source.images[&slot].len() / 4096;
    let mut known = 0;
    for row in 0..u32::try_from(blocks.div_ceil(ROW_BLOCKS as usize)).unwrap() {
        let at = sums::row_at(row);
        let stored = source.store.get(&name, None, Some(at..at + ROW_BYTES)).await.unwrap();
        let mut stored = sums::row_from(&stored);
        keys.mask_blocks(row, &mut stored);
        let content = |image: &Vec<u8>, block: usize| {
            let at = (row as usize * ROW_BLOCKS as usize + block) * 4096;
            image.get(at..at + 4096).map_or(UNKNOWN, |content| keys.block(content))
        };
        for (block, sum) in stored.iter().enumerate().filter(|(_, sum)| **sum != UNKNOWN) {
            let right = states().any(|image| content(image, block) == *sum);
            assert!(right, "row {row} block {block} of disk {slot}: not of a record from {position} on");
            known += 1;
        }
        let at = sums::row_sum_at(row);
        let own = source.store.get(&name, None, Some(at..at + 16)).await.unwrap();
        let own = keys.mask_row(row, sums::row_from(&own)[0]);
        // A row's own sum says that all its blocks are as they were in one state: it may be of any mixture of states
        // from the position on, so only the pure ones are looked for when nothing is half done.
        let pure = states().any(|image| {
            let mut whole = [UNKNOWN; ROW_BLOCKS as usize];
            whole.iter_mut().enumerate().for_each(|(block, sum)| *sum = content(image, block));
            keys.row(&whole) == own
        });
        assert!(own == UNKNOWN || pure || own == keys.row(&stored) || !known_all(&stored), "row {row}");
    }
    known
}

/// Blocks whose checksum is that of their content now; others may stand there that are no content's.
pub async fn plausible(source: &Source, slot: u32) -> usize {
    let name = layout::seed_sum(&source.server, &disk_id(slot));
    let page = source.store.get(&name, None, Some(0..512)).await.unwrap();
    let header = Header::from_page(&page).unwrap();
    let keys = SumKeys::new(&header.secret(&source.vault.keys, &source.server, &disk_id(slot)).unwrap());
    let mut right = 0;
    for (row, content) in (0..).zip(source.images[&slot].chunks(ROW_BLOCKS as usize * 4096)) {
        let at = sums::row_at(row);
        let stored = source.store.get(&name, None, Some(at..at + ROW_BYTES)).await.unwrap();
        let mut stored = sums::row_from(&stored);
        keys.mask_blocks(row, &mut stored);
        let same = |(sum, content): (&sums::Sum, &[u8])| *sum == keys.block(content);
        right += stored.iter().zip(content.chunks(4096)).filter(|pair| same(*pair)).count();
    }
    right
}

fn known_all(row: &sums::Row) -> bool {
    row.iter().all(|sum| *sum != UNKNOWN)
}
