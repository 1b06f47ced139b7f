//! Bits of blocks in words that others may change at the same time.

use lifeboat_replication::blocks::RoaringBitmap;

use super::words::Word;

/// Words that hold at least one of these blocks, with the blocks' bits, in order.
pub(super) fn words_of(blocks: &RoaringBitmap) -> impl Iterator<Item = (usize, u64)> + '_ {
    let mut blocks = blocks.iter().peekable();
    std::iter::from_fn(move || {
        let first = blocks.next()?;
        let word = first / 64;
        let mut bits = 1 << (first % 64);
        while let Some(block) = blocks.next_if(|block| block / 64 == word) {
            bits |= 1 << (block % 64);
        }
        Some((word as usize, bits))
    })
}

pub(super) fn set<W: Word>(words: &[W], blocks: &RoaringBitmap) {
    for (index, bits) in words_of(blocks) {
        if let Some(word) = words.get(index) {
            word.or(bits);
        }
    }
}

/// Returns how many of these blocks were set before.
pub(super) fn clear<W: Word>(words: &[W], blocks: &RoaringBitmap) -> u64 {
    let mut cleared = 0;
    for (index, bits) in words_of(blocks) {
        if let Some(word) = words.get(index) {
            cleared += u64::from((word.and(!bits) & bits).count_ones());
        }
    }
    cleared
}

/// Sets blocks 0 to `count` - 1.
pub(super) fn set_first<W: Word>(words: &[W], count: u32) {
    let whole = (count / 64) as usize;
    for word in words.iter().take(whole) {
        word.put(u64::MAX);
    }
    if let Some(last) = words.get(whole).filter(|_| !count.is_multiple_of(64)) {
        last.or((1 << (count % 64)) - 1);
    }
}

pub(super) fn collect<W: Word>(words: &[W]) -> RoaringBitmap {
    let mut blocks = RoaringBitmap::new();
    for (index, word) in words.iter().enumerate() {
        insert(&mut blocks, index, word.get());
    }
    blocks
}

pub(super) fn count<W: Word>(words: &[W]) -> u64 {
    words.iter().map(|word| u64::from(word.get().count_ones())).sum()
}

/// Adds the bits of the word with this index.
pub(super) fn insert(blocks: &mut RoaringBitmap, index: usize, mut bits: u64) {
    let Ok(first) = u32::try_from(index * 64) else { return };
    if bits == u64::MAX {
        blocks.insert_range(first..=first + 63);
        return;
    }
    while bits != 0 {
        blocks.insert(first + bits.trailing_zeros());
        bits &= bits - 1;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use proptest::prelude::*;

    use super::*;

    fn words(count: usize) -> Vec<AtomicU64> {
        (0..count).map(|_| AtomicU64::new(0)).collect()
    }

    #[test]
    fn what_is_set_is_collected_and_what_is_cleared_is_not() {
        let words = words(4);
        let blocks: RoaringBitmap = [0, 63, 64, 200].into_iter().collect();
        set(&words, &blocks);
        assert_eq!(collect(&words), blocks);
        assert_eq!(clear(&words, &[1, 63, 64].into_iter().collect()), 2);
        assert_eq!(collect(&words), [0, 200].into_iter().collect());
    }

    #[test]
    fn the_first_blocks_end_where_the_disk_ends() {
        for count in [0, 1, 63, 64, 65, 128] {
            let words = words(3);
            set_first(&words, count);
            assert_eq!(collect(&words), (0..count).collect());
            assert_eq!(super::count(&words), u64::from(count));
        }
    }

    /// One atomic operation a word, however many of its blocks are meant.
    #[test]
    fn each_word_comes_once_with_the_bits_of_all_its_blocks() {
        let blocks: RoaringBitmap = [0, 1, 63, 64, 190].into_iter().collect();
        let words: Vec<_> = words_of(&blocks).collect();
        assert_eq!(words, [(0, 1 | 2 | 1 << 63), (1, 1), (2, 1 << 62)]);
    }

    fn blocks() -> impl Strategy<Value = RoaringBitmap> {
        // Also whole words, and blocks beyond the words that there are.
        let runs = prop::collection::vec((0_u32..330, 1_u32..100), 0..6);
        runs.prop_map(|runs| runs.into_iter().flat_map(|(first, count)| first..first + count).collect())
    }

    proptest! {
        /// Nothing else is touched: another block's mark that is lost is a write that is lost.
        #[test]
        fn words_hold_exactly_what_was_set_and_not_cleared(one in blocks(), other in blocks(), gone in blocks()) {
            let there: RoaringBitmap = (0..320).collect();
            let words = words(5);
            set(&words, &one);
            set(&words, &other);
            let marked = &(&one | &other) & &there;
            prop_assert_eq!(collect(&words), marked.clone());
            prop_assert_eq!(count(&words), marked.len());
            prop_assert_eq!(clear(&words, &gone), (&marked & &gone).len());
            prop_assert_eq!(collect(&words), marked - gone);
        }
    }
}
