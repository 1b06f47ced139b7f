//! Which parts of an LVM physical volume belong to which logical volume, as its own metadata says. Pure.
//!
//! In: the first bytes of the physical volume, up to its first extent. Out: its volumes, or why nothing is said of them.
//! Read from the disk and not asked of device mapper: at the end of a shutdown most volumes are switched off, in the
//! initramfs most are not on yet.
//!
//! Whoever makes, grows, moves or removes a volume writes new metadata, so these bytes vouch for where volumes lie; switching
//! a volume on writes nothing. Only a group of plain volumes (`linear`) on one physical volume is followed: snapshots,
//! thin pools, caches, mirrors change what a volume holds without a write to it.
//!
//! The format: a label sector among the first four, a header with the places of metadata and extents, a ring with text
//! (`lib/format_text` in LVM's sources).

use std::collections::BTreeMap;

use super::lvm_text::{Section, Value, parse};

const SECTOR: usize = 512;
const LABEL: &[u8] = b"LABELONE";
const TYPE: &[u8] = b"LVM2 001";
const RING_MAGIC: &[u8] = b" LVM2 x[5A%r0N*>";
/// The text begins behind the ring's header, also when it goes round.
const RING_HEADER: usize = 512;
/// `RAW_LOCN_IGNORED`: the ring holds nothing that counts.
const IGNORED: u32 = 1;
/// What must be read to see whether there is a label, and where the first extent begins.
pub(super) const LABELS: usize = 4 * SECTOR;

/// Where the parts of a physical volume lie.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Header {
    id: String,
    /// How long the physical volume is: what lies behind it is somebody else's (an array's or a mirror's own data).
    pub(super) bytes: u64,
    /// First byte of the first extent.
    pub(super) data: u64,
    ring: (u64, u64),
}

/// A logical volume: first byte from the beginning of the physical volume and length of each piece, in its own order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Volume {
    pub(super) pieces: Vec<(u64, u64)>,
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    number(bytes, at).map(u64::from_le_bytes)
}

/// Does a physical volume begin with these bytes?
pub(super) fn is_labelled(head: &[u8]) -> bool {
    label(head).is_some()
}

fn label(head: &[u8]) -> Option<&[u8]> {
    let mut sectors = head.chunks_exact(SECTOR).take(LABELS / SECTOR);
    sectors.find(|sector| sector.starts_with(LABEL) && sector.get(24..32) == Some(TYPE))
}

/// `None`: it has another form than the usual one (several places of metadata, or none).
pub(super) fn header(head: &[u8]) -> Option<Header> {
    let sector = label(head)?;
    // LVM has emptied the others: whoever took the place since has not.
    let others = head.get(..LABELS)?.chunks_exact(SECTOR).filter(|other| *other != sector);
    if others.flatten().any(|byte| *byte != 0) {
        return None;
    }
    let offset = u32::from_le_bytes(number(sector, 20)?) as usize;
    let header = sector.get(offset..)?;
    let id = std::str::from_utf8(header.get(..32)?).ok()?.to_owned();
    let bytes = u64_at(header, 32)?;
    // Two lists, of data areas and of metadata areas, each ended by a zero.
    let mut at = 40;
    let mut lists = [Vec::new(), Vec::new()];
    for list in &mut lists {
        loop {
            let place = (u64_at(header, at)?, u64_at(header, at + 8)?);
            at += 16;
            if place.0 == 0 {
                break;
            }
            list.push(place);
        }
    }
    match (&lists[0][..], &lists[1][..]) {
        ([(data, _)], [ring]) if ring.0.checked_add(ring.1)? <= *data && *data < bytes => {
            Some(Header { id, bytes, data: *data, ring: *ring })
        }
        _ => None,
    }
}

/// `head`: all bytes up to the first extent. An error says why its volumes are not followed.
pub(super) fn volumes(header: &Header, head: &[u8]) -> Result<Vec<Volume>, &'static str> {
    let damaged = "its metadata cannot be read";
    let text = text(header, head).ok_or(damaged)?;
    let all = parse(&text).ok_or(damaged)?;
    let is_group = |section: &&Section| section.sections.contains_key("physical_volumes");
    let group = all.sections.values().find(is_group).ok_or(damaged)?;
    if group.values.contains_key("lock_type") || group.texts("status").any(|status| status == "CLUSTERED") {
        return Err("its group is shared with other servers");
    }
    let disks = group.sections.get("physical_volumes").ok_or(damaged)?;
    let mut disks = disks.sections.iter();
    let (Some((name, disk)), None) = (disks.next(), disks.next()) else {
        return Err("its group lies on several disks");
    };
    if disk.text("id").ok_or(damaged)?.replace('-', "") != header.id {
        return Err(damaged);
    }
    let sectors = |section: &Section, key: &str| section.number(key)?.checked_mul(SECTOR as u64);
    let extent = sectors(group, "extent_size").filter(|extent| *extent > 0).ok_or(damaged)?;
    let data = sectors(disk, "pe_start").filter(|start| *start == header.data).ok_or(damaged)?;
    let none = BTreeMap::new();
    let mut found = Vec::new();
    for volume in group.sections.get("logical_volumes").map_or(&none, |volumes| &volumes.sections).values() {
        if !volume.texts("status").any(|status| status == "VISIBLE") {
            return Err("its group has volumes that are more than a part of a disk");
        }
        let count = volume.number("segment_count").ok_or(damaged)?;
        let mut pieces = Vec::new();
        for number in 1..=count {
            let segment = volume.sections.get(&format!("segment{number}")).ok_or(damaged)?;
            if segment.text("type") != Some("striped") || segment.number("stripe_count") != Some(1) {
                return Err("its group has volumes that are more than a part of a disk");
            }
            let Some(Value::List(stripes)) = segment.values.get("stripes") else { return Err(damaged) };
            let [Value::Text(on), Value::Number(first)] = &stripes[..] else { return Err(damaged) };
            if on != name {
                return Err(damaged);
            }
            let extents = segment.number("extent_count").filter(|count| *count > 0).ok_or(damaged)?;
            let place = || {
                let first = data.checked_add(first.checked_mul(extent)?)?;
                let length = extents.checked_mul(extent)?;
                (first.checked_add(length)? <= header.bytes).then_some((first, length))
            };
            pieces.push(place().ok_or(damaged)?);
        }
        if pieces.is_empty() {
            return Err(damaged);
        }
        found.push(Volume { pieces });
    }
    let mut places: Vec<_> = found.iter().flat_map(|volume: &Volume| volume.pieces.iter().copied()).collect();
    places.sort_unstable();
    if places.windows(2).any(|pair| pair[0].0 + pair[0].1 > pair[1].0) {
        return Err(damaged);
    }
    // As they lie, whatever they are called.
    found.sort_by(|a, b| a.pieces.cmp(&b.pieces));
    Ok(found)
}

/// The newest text of the ring.
fn text(header: &Header, head: &[u8]) -> Option<String> {
    let (start, size) = (usize::try_from(header.ring.0).ok()?, usize::try_from(header.ring.1).ok()?);
    let ring = head.get(start..start.checked_add(size)?)?;
    if ring.get(4..20)? != RING_MAGIC {
        return None;
    }
    let (offset, length) = (u64_at(ring, 40)? as usize, u64_at(ring, 48)? as usize);
    let flags = u32::from_le_bytes(number(ring, 60)?);
    if flags & IGNORED != 0 || offset < RING_HEADER || length > size - RING_HEADER {
        return None;
    }
    let first = ring.get(offset..offset.checked_add(length)?.min(size))?;
    let again = ring.get(RING_HEADER..RING_HEADER + (length - first.len()))?;
    let text = [first, again].concat();
    Some(String::from_utf8(text).ok()?.trim_end_matches(['\0', '\n']).to_owned())
}

#[cfg(test)]
#[path = "lvm_tests.rs"]
pub(super) mod tests;
