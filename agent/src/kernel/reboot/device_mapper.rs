//! What a volume of device mapper is made of: its table, asked of the kernel. Only for tables that say where each byte lies
//! (`linear`), as LVM makes them for plain volumes.
//!
//! In: a device number. Out: pieces of the volume with their places on the devices below, or why there are none. Asked at
//! start and again at the very end, when no program but this runs.

use std::{fs::OpenOptions, io, os::fd::AsFd as _};

use super::super::sys;

const CONTROL: &str = "/dev/mapper/control";
/// `struct dm_ioctl`, and fields in it: its version, sizes, count of targets, flags, device.
const HEADER: usize = 312;
const DATA_SIZE: usize = 12;
const DATA_START: usize = 16;
const TARGETS: usize = 20;
const FLAGS: usize = 28;
const DEVICE: usize = 40;
/// Version 4 of the interface, which is what there has been since 2003.
const VERSION: u32 = 4;
/// `DM_STATUS_TABLE_FLAG` and `DM_BUFFER_FULL_FLAG`.
const TABLE: u32 = 1 << 4;
const FULL: u32 = 1 << 8;
/// `struct dm_target_spec`; its parameters follow as text.
const TARGET: usize = 40;
/// Some hundreds of pieces: more are not ours to follow.
const BUFFER: usize = 64 << 10;

/// First bytes and lengths.
pub(super) type Ranges = Vec<(u64, u64)>;

/// A piece of a volume, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) first: u64,
    pub(super) bytes: u64,
    /// The device below, and where on it.
    pub(super) device: (u32, u32),
    pub(super) at: u64,
}

/// An error says why nobody knows where its bytes lie.
pub(super) fn pieces((major, minor): (u32, u32)) -> io::Result<Vec<Piece>> {
    let mut buffer = vec![0; BUFFER];
    let number = u64::from((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12));
    for (at, value) in [(0, VERSION), (DATA_SIZE, BUFFER as u32), (DATA_START, HEADER as u32), (FLAGS, TABLE)]
    {
        put(&mut buffer, at, &value.to_ne_bytes());
    }
    put(&mut buffer, DEVICE, &number.to_ne_bytes());
    let control = OpenOptions::new().read(true).write(true).open(CONTROL)?;
    sys::device_mapper_table(control.as_fd(), &mut buffer)?;
    parse(&buffer).ok_or_else(|| io::Error::other("it is not simply a part of a disk"))
}

fn put(buffer: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = buffer.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

fn number<const N: usize>(buffer: &[u8], at: usize) -> Option<[u8; N]> {
    buffer.get(at..)?.first_chunk().copied()
}

/// The kernel's answer. `None`: another table, or one that did not fit.
fn parse(answer: &[u8]) -> Option<Vec<Piece>> {
    let word = |at| number(answer, at).map(u32::from_ne_bytes);
    if word(FLAGS)? & FULL != 0 {
        return None;
    }
    let data = answer.get(word(DATA_START)? as usize..word(DATA_SIZE)? as usize)?;
    let (mut pieces, mut at, mut next) = (Vec::new(), 0, 0);
    for _ in 0..word(TARGETS)? {
        let target = data.get(at..)?;
        let sectors = |at| number(target, at).map(u64::from_ne_bytes);
        let text = |from: usize, to: usize| -> Option<&str> {
            let bytes = target.get(from..to)?;
            std::str::from_utf8(bytes.split(|byte| *byte == 0).next()?).ok()
        };
        let (first, count) = (sectors(0)?, sectors(8)?);
        let after = u32::from_ne_bytes(number(target, 20)?) as usize;
        if text(24, TARGET)? != "linear" || first != next || count == 0 || after <= at {
            return None;
        }
        // `254:2 2048`
        let (device, sector) = text(TARGET, target.len().min(TARGET + 64))?.split_once(' ')?;
        let (major, minor) = device.split_once(':')?;
        pieces.push(Piece {
            first: first.checked_mul(512)?,
            bytes: count.checked_mul(512)?,
            device: (major.parse().ok()?, minor.parse().ok()?),
            at: sector.trim().parse::<u64>().ok()?.checked_mul(512)?,
        });
        next = first.checked_add(count)?;
        at = after;
    }
    (!pieces.is_empty()).then_some(pieces)
}

/// Where these bytes of the volume (first and length) lie: on one device, in the same order.
pub(super) fn below(pieces: &[Piece], ranges: &[(u64, u64)]) -> Result<((u32, u32), Ranges), String> {
    let device = pieces.first().map(|piece| piece.device).ok_or("an empty volume")?;
    let mut found = Vec::new();
    for (mut first, mut bytes) in ranges.iter().copied() {
        while bytes > 0 {
            let holds = |piece: &&Piece| first >= piece.first && first - piece.first < piece.bytes;
            let piece = pieces.iter().find(holds).ok_or("a file beyond the end of its volume")?;
            if piece.device != device {
                return Err("a volume on several disks".to_owned());
            }
            let skipped = first - piece.first;
            let here = bytes.min(piece.bytes - skipped);
            found.push((piece.at + skipped, here));
            (first, bytes) = (first + here, bytes - here);
        }
    }
    Ok((device, found))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the kernel answers.
    fn answer(targets: &[(u64, u64, &str, &str)]) -> Vec<u8> {
        let mut data = Vec::new();
        for (first, count, kind, parameters) in targets {
            let length = (TARGET + parameters.len() + 1).next_multiple_of(8);
            let next = (data.len() + length) as u32;
            let mut target = vec![0; length];
            put(&mut target, 0, &first.to_ne_bytes());
            put(&mut target, 8, &count.to_ne_bytes());
            put(&mut target, 20, &next.to_ne_bytes());
            put(&mut target, 24, kind.as_bytes());
            put(&mut target, TARGET, parameters.as_bytes());
            data.extend(target);
        }
        let mut answer = vec![0; HEADER];
        for (at, value) in [
            (DATA_SIZE, (HEADER + data.len()) as u32),
            (DATA_START, HEADER as u32),
            (TARGETS, targets.len() as u32),
        ] {
            put(&mut answer, at, &value.to_ne_bytes());
        }
        answer.extend(data);
        answer
    }

    #[test]
    fn a_plain_volume_is_followed_piece_by_piece() {
        let pieces =
            parse(&answer(&[(0, 8192, "linear", "254:2 2048"), (8192, 8192, "linear", "254:2 32768")]))
                .unwrap();
        assert_eq!(pieces[1], Piece { first: 4 << 20, bytes: 4 << 20, device: (254, 2), at: 16 << 20 });
        // Over the seam, and behind it.
        let found = below(&pieces, &[((4 << 20) - 4096, 8192), (5 << 20, 4096)]).unwrap();
        let expected = vec![((5 << 20) - 4096, 4096), (16 << 20, 4096), (17 << 20, 4096)];
        assert_eq!(found, ((254, 2), expected));
        assert!(below(&pieces, &[((8 << 20) - 4096, 8192)]).unwrap_err().contains("beyond"));
    }

    #[test]
    fn what_is_not_plain_is_not_followed() {
        for table in [
            &[(0, 8192, "crypt", "aes-xts-plain64 0 0 254:2 4096")][..],
            &[(0, 8192, "snapshot-origin", "253:2")],
            &[(0, 8192, "linear", "254:2 2048"), (8192, 8192, "striped", "2 128 254:2 0 254:3 0")],
            &[(8, 8192, "linear", "254:2 2048")],
            &[],
        ] {
            assert_eq!(parse(&answer(table)), None, "{table:?}");
        }
        let mut full = answer(&[(0, 8192, "linear", "254:2 2048")]);
        put(&mut full, FLAGS, &FULL.to_ne_bytes());
        assert_eq!(parse(&full), None);
        let cut = answer(&[(0, 8192, "linear", "254:2 2048")]);
        assert_eq!(parse(&cut[..HEADER + 30]), None);
    }

    #[test]
    fn a_volume_on_two_disks_is_refused() {
        let pieces =
            parse(&answer(&[(0, 8192, "linear", "254:2 2048"), (8192, 8192, "linear", "254:17 2048")]))
                .unwrap();
        assert!(below(&pieces, &[((4 << 20) - 4096, 8192)]).unwrap_err().contains("several disks"));
    }
}
