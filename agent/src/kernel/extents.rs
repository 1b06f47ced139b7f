//! Ranges too long to be marked block by block, as the eBPF program notes them.
//!
//! Each is two words: first block | blocks << 32; [`EXTENT_VALID`] | generation << 40 | kind << 32 | number of the disk.
//! `Table` (Program::Bits): in a mapped table for each generation, whose places are given out by an atomic addition. `Set`
//! (Program::Bytes): the two words are the key in a hash table of the kernel's, read and emptied by system calls.
//!
//! The count of those noted is in the control words; it is raised before the entry is made, so zero means none.

use std::{
    fmt, io,
    os::fd::AsFd as _,
    path::Path,
    sync::{Mutex, PoisonError},
};

use aya::{
    Ebpf,
    maps::{HashMap as BpfHash, Map, MapData, MapError},
};
use lifeboat_replication::{blocks::BlockRun, ids::DiskSlot};

use super::{
    layout::{EXTENT_COMPLETED, EXTENT_SECOND_GENERATION, EXTENT_VALID, EXTENT_WORDS, EXTENTS},
    mapped::Mapped,
    program::Program,
    sys,
    words::Word,
};

/// A range, and whether it is of a completion.
pub type Extent = (BlockRun, bool);

/// Where the ranges are: in words that both generations have half of, or in a set.
#[derive(Debug)]
pub enum Ranges<'a, W> {
    Table(&'a [W]),
    Set(&'a dyn RangeSet),
}

impl<W> Clone for Ranges<'_, W> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<W> Copy for Ranges<'_, W> {}

/// Ranges that are keys.
pub trait RangeSet: fmt::Debug {
    /// Others may be added meanwhile.
    fn keys(&self) -> io::Result<Vec<[u64; 2]>>;
    fn remove(&self, key: [u64; 2]) -> io::Result<()>;
}

/// `None`: an entry that is only being written. It belongs to a request that has not gone to its disk yet.
fn extent([place, owner]: [u64; 2]) -> Option<Extent> {
    let run = BlockRun {
        disk: DiskSlot((owner as u32).saturating_add(1)),
        first: place as u32,
        blocks: (place >> 32) as u32,
    };
    (owner & EXTENT_VALID != 0).then_some((run, owner & EXTENT_COMPLETED != 0))
}

fn is_of(generation: usize, owner: u64) -> bool {
    (owner & EXTENT_SECOND_GENERATION != 0) == (generation == 1)
}

impl<W: Word> Ranges<'_, W> {
    /// Those of a generation, of which `used` were counted.
    pub(super) fn read(&self, generation: usize, used: u64) -> io::Result<Vec<Extent>> {
        if used == 0 {
            return Ok(Vec::new());
        }
        match self {
            Self::Table(table) => {
                let entry = |place: usize| {
                    // The owner first: it is written last.
                    let owner = table[place + 1].get();
                    extent([table[place].get(), owner])
                };
                let first = generation * EXTENTS * 2;
                let used = used.min(EXTENTS as u64) as usize;
                Ok((0..used).filter_map(|index| entry(first + 2 * index)).collect())
            }
            Self::Set(set) => {
                let keys = set.keys()?.into_iter();
                Ok(keys.filter(|key| is_of(generation, key[1])).filter_map(extent).collect())
            }
        }
    }

    /// Removes those of a generation that no program notes any more.
    pub(super) fn clear(&self, generation: usize, used: u64) -> io::Result<()> {
        if used == 0 {
            return Ok(());
        }
        match self {
            Self::Table(table) => {
                let first = generation * EXTENTS * 2;
                let used = used.min(EXTENTS as u64) as usize;
                for word in &table[first..first + used * 2] {
                    word.put(0);
                }
            }
            Self::Set(set) => {
                // All keys before any is removed: the kernel begins anew after one that is gone.
                for key in set.keys()?.into_iter().filter(|key| is_of(generation, key[1])) {
                    set.remove(key)?;
                }
            }
        }
        Ok(())
    }
}

/// The program's own.
#[derive(Debug)]
pub(super) enum Extents {
    Table(Mapped),
    Set(KernelSet),
}

#[derive(Debug)]
pub(super) struct KernelSet(Mutex<BpfHash<MapData, [u64; 2], u32>>);

impl RangeSet for KernelSet {
    fn keys(&self) -> io::Result<Vec<[u64; 2]>> {
        let set = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        set.keys().collect::<Result<_, MapError>>().map_err(io::Error::other)
    }

    fn remove(&self, key: [u64; 2]) -> io::Result<()> {
        let mut set = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        set.remove(&key).map_err(io::Error::other)
    }
}

impl Extents {
    /// Pinned ones.
    pub(super) fn pinned(program: Program, path: &Path) -> io::Result<Self> {
        let map = sys::open_pinned(path)?;
        match program {
            Program::Bits => Ok(Self::Table(Mapped::new(map.as_fd(), EXTENT_WORDS)?)),
            Program::Bytes => Self::set(MapData::from_fd(map).map_err(io::Error::other)?),
        }
    }

    /// Of a program that is not pinned.
    pub(super) fn of(program: Program, ebpf: &mut Ebpf) -> io::Result<Self> {
        let missing = || io::Error::other("the program has no map of extents");
        match (program, ebpf.take_map(program.extents()).ok_or_else(missing)?) {
            (Program::Bits, Map::Array(data)) => {
                Ok(Self::Table(Mapped::new(data.fd().as_fd(), EXTENT_WORDS)?))
            }
            (Program::Bytes, Map::HashMap(data)) => Self::set(data),
            _ => Err(missing()),
        }
    }

    fn set(data: MapData) -> io::Result<Self> {
        let set = BpfHash::try_from(Map::HashMap(data)).map_err(io::Error::other)?;
        Ok(Self::Set(KernelSet(Mutex::new(set))))
    }

    pub(super) fn ranges(&self) -> Ranges<'_, std::sync::atomic::AtomicU64> {
        match self {
            Self::Table(table) => Ranges::Table(table),
            Self::Set(set) => Ranges::Set(set),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_words_tell_disk_range_kind_and_generation() {
        let run = BlockRun { disk: DiskSlot(4), first: 8, blocks: 1 << 20 };
        let place = 8 | 1 << 52;
        assert_eq!(extent([place, EXTENT_VALID | 3]), Some((run, false)));
        assert_eq!(extent([place, EXTENT_VALID | EXTENT_COMPLETED | 3]), Some((run, true)));
        assert_eq!(extent([place, EXTENT_VALID | EXTENT_SECOND_GENERATION | 3]), Some((run, false)));
        assert_eq!(extent([place, 0]), None);
        for generation in [0, 1] {
            let owner = EXTENT_VALID | (generation as u64) << 40 | EXTENT_COMPLETED;
            assert!(is_of(generation, owner) && !is_of(1 - generation, owner));
        }
    }
}
