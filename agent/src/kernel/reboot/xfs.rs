//! Was an XFS unmounted cleanly, and where does its log show that somebody has mounted it since? Pure but for reads.
//!
//! In: an area. Out: how long its file system is, and the bytes that vouch for it.
//!
//! The log is a ring of sectors, each of which begins with the number of the round (cycle) in which it was written: up to the
//! head those of this round, behind it those of the last. A clean unmount leaves a record that says so, right before the
//! head. Whoever mounts the file system again, also read-only, first writes the sectors from the head on anew, with the tail of
//! that record in them (`xlog_clear_stale_blocks` in Linux), before any other block changes; whoever unmounts it moves
//! the head. So the superblock, that record and the sectors behind the head vouch for the whole file system.
//! A log on another device, and whatever is not as expected, says nothing.

use std::io;

use super::areas::ReadAt;

const SECTOR: u64 = 512;
const MAGIC: &[u8] = b"XFSB";
/// `XLOG_HEADER_MAGIC_NUM`: a record of the log begins here.
const RECORD: [u8; 4] = [0xfe, 0xed, 0xba, 0xbe];
/// `XLOG_UNMOUNT_TRANS` in an operation's flags.
const UNMOUNT: u8 = 0x20;
/// The largest record that says "unmounted": a header, and one stripe unit.
const LONGEST: u64 = 1 + 512;
/// So many sectors behind the head: the first of them is enough.
const BEHIND: u64 = 64;
/// The largest log has 2 GiB.
const MOST_SECTORS: u64 = 4 << 20;

/// What vouches for a file system.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Clean {
    /// Of the whole file system.
    pub(super) bytes: u64,
    /// First byte and length, within the area.
    pub(super) ranges: Vec<(u64, u64)>,
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}

/// Where things are, as the superblock says.
struct Shape<'a> {
    bytes: u64,
    /// First byte and sectors of the log.
    log: u64,
    sectors: u64,
    uuid: &'a [u8],
}

fn shape(head: &[u8]) -> Option<Shape<'_>> {
    if !head.starts_with(MAGIC) {
        return None;
    }
    let block = u64::from(word(head, 4)?);
    let (log, group_blocks, shift) =
        (long(head, 48)?, u64::from(word(head, 84)?), u32::from(*head.get(124)?));
    // Zero: on another device.
    if log == 0 || !block.is_power_of_two() || !(512..=65_536).contains(&block) || shift >= 32 {
        return None;
    }
    let (group, inside) = (log >> shift, log & ((1 << shift) - 1));
    let first = group.checked_mul(group_blocks)?.checked_add(inside)?.checked_mul(block)?;
    let (bytes, log_bytes) =
        (long(head, 8)?.checked_mul(block)?, u64::from(word(head, 96)?).checked_mul(block)?);
    let sectors = log_bytes / SECTOR;
    let fits = first.checked_add(log_bytes)? <= bytes && (2 * LONGEST..=MOST_SECTORS).contains(&sectors);
    fits.then_some(Shape { bytes, log: first, sectors, uuid: head.get(32..48)? })
}

/// `None`: there is no XFS, or it was not unmounted cleanly, or is mounted for writing.
pub(super) fn clean(head: &[u8], area: &dyn ReadAt) -> io::Result<Option<Clean>> {
    let Some(shape) = shape(head) else { return Ok(None) };
    let sector = |number: u64| area.read_at(shape.log + number * SECTOR, SECTOR);
    let Some(end) = head_of_log(shape.sectors, &sector)? else { return Ok(None) };
    let before = LONGEST.min(end);
    let first = end - before;
    let last = area.read_at(shape.log + first * SECTOR, before * SECTOR)?;
    let Some(record) = unmounted(&last, shape.uuid) else { return Ok(None) };
    let record = first + record;
    let behind = BEHIND.min(shape.sectors - end);
    let mut ranges = vec![(0, SECTOR), (shape.log + record * SECTOR, (end - record + behind) * SECTOR)];
    if behind < BEHIND {
        // The head is at the end of the ring.
        ranges.push((shape.log, (BEHIND - behind) * SECTOR));
    }
    Ok(Some(Clean { bytes: shape.bytes, ranges }))
}

fn cycle(sector: &[u8]) -> Option<u32> {
    word(sector, if sector.starts_with(&RECORD) { 4 } else { 0 })
}

/// The first sector that was not written in this round; one after the last if all were.
fn head_of_log(sectors: u64, sector: &dyn Fn(u64) -> io::Result<Vec<u8>>) -> io::Result<Option<u64>> {
    let of = |number| -> io::Result<Option<u32>> { Ok(cycle(&sector(number)?)) };
    let (Some(this), Some(other)) = (of(0)?, of(sectors - 1)?) else { return Ok(None) };
    if this == other {
        return Ok(Some(sectors));
    }
    if this.checked_sub(1) != Some(other) {
        return Ok(None);
    }
    let (mut of_this, mut of_other) = (0, sectors - 1);
    while of_other - of_this > 1 {
        let middle = of_this + (of_other - of_this) / 2;
        match of(middle)? {
            Some(cycle) if cycle == this => of_this = middle,
            Some(cycle) if cycle == other => of_other = middle,
            _ => return Ok(None),
        }
    }
    Ok(Some(of_other))
}

/// Where among these sectors the record begins that ends with them and says "unmounted".
fn unmounted(sectors: &[u8], uuid: &[u8]) -> Option<u64> {
    let all: Vec<&[u8]> = sectors.chunks_exact(SECTOR as usize).collect();
    let at = all.iter().rposition(|sector| sector.starts_with(&RECORD))?;
    let header = all.get(at)?;
    let (version, length, operations) = (word(header, 8)?, word(header, 12)?, word(header, 40)?);
    let (of, size) = (header.get(304..320)?, word(header, 320)?);
    // Large records of version 2 have several sectors of header.
    let headers = if version & 2 != 0 && size > 32_768 { size.div_ceil(32_768) } else { 1 } as usize;
    let operation = all.get(at + headers)?;
    let ends = at + headers + (length as usize).div_ceil(SECTOR as usize) == all.len();
    let says = operations == 1 && operation.get(9)? & UNMOUNT != 0;
    (ends && says && of == uuid && cycle(header) == cycle(operation)).then_some(at as u64)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Sectors of the log, and where it begins.
    const LOG: usize = 4096;
    const AT: usize = 1 << 20;

    struct Bytes<'a>(&'a [u8]);

    impl ReadAt for Bytes<'_> {
        fn read_at(&self, first_byte: u64, bytes: u64) -> io::Result<Vec<u8>> {
            let found = self.0.get(first_byte as usize..(first_byte + bytes) as usize);
            found.map(<[u8]>::to_vec).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
        }
    }

    fn put(bytes: &mut [u8], at: usize, what: &[u8]) {
        bytes[at..at + what.len()].copy_from_slice(what);
    }

    /// A clean one of so many bytes, with the head of its log at this sector, in the fifth round.
    pub(in super::super) fn xfs(disk: &mut [u8], bytes: u64, head: usize) {
        put(disk, 0, MAGIC);
        put(disk, 4, &4096_u32.to_be_bytes());
        put(disk, 8, &(bytes / 4096).to_be_bytes());
        put(disk, 32, &[7; 16]);
        // Four groups of 64 blocks; the log begins with the last.
        put(disk, 48, &(4_u64 << 6).to_be_bytes());
        put(disk, 84, &64_u32.to_be_bytes());
        put(disk, 96, &((LOG * 512 / 4096) as u32).to_be_bytes());
        disk[124] = 6;
        for sector in 0..LOG {
            let cycle = if sector < head { 5_u32 } else { 4 };
            put(disk, AT + sector * 512, &cycle.to_be_bytes());
        }
        let header = AT + (head - 2) * 512;
        put(disk, header, &RECORD);
        for (at, value) in [(4, 5_u32), (8, 2), (12, 512), (40, 1), (320, 32_768)] {
            put(disk, header + at, &value.to_be_bytes());
        }
        put(disk, header + 304, &[7; 16]);
        disk[header + 512 + 9] = UNMOUNT;
    }

    fn look(disk: &[u8]) -> Option<Clean> {
        clean(&disk[..4096], &Bytes(disk)).unwrap()
    }

    fn disk(head: usize) -> Vec<u8> {
        let mut disk = vec![0; 8 << 20];
        xfs(&mut disk, 8 << 20, head);
        disk
    }

    #[test]
    fn the_unmount_record_and_what_is_behind_it_vouch() {
        let at = AT as u64;
        for head in [2, 3, 1000, 4000, LOG - 1] {
            let found = look(&disk(head)).unwrap_or_else(|| panic!("{head}"));
            assert_eq!((found.bytes, found.ranges[0]), (8 << 20, (0, 512)));
            assert_eq!(found.ranges[1].0, at + (head as u64 - 2) * 512);
            let behind: u64 = found.ranges[1..].iter().map(|(_, bytes)| bytes / 512).sum();
            assert_eq!(behind, 2 + BEHIND);
        }
        // The whole ring is of one round: the next one begins at its beginning.
        assert_eq!(look(&disk(LOG)).unwrap().ranges[2], (at, BEHIND * 512));
    }

    #[test]
    fn one_that_was_not_unmounted_says_nothing() {
        let header = AT + 998 * 512;
        for (at, what) in [
            // Other operations; more of them; another length; another file system's; an older round's.
            (header + 512 + 9, &[0x01_u8][..]),
            (header + 40, &2_u32.to_be_bytes()),
            (header + 12, &1024_u32.to_be_bytes()),
            (header + 304, &[8]),
            (header + 4, &4_u32.to_be_bytes()),
            (header, &[0; 4]),
            // The log is on another device, or longer than the file system.
            (48, &[0; 8]),
            (96, &[0x10]),
            (0, b"?"),
            // Rounds that do not follow one another.
            (AT + (LOG - 1) * 512, &9_u32.to_be_bytes()),
        ] {
            let mut changed = disk(1000);
            put(&mut changed, at, what);
            assert_eq!(look(&changed), None, "{at} {what:?}");
        }
    }
}
