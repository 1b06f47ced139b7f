//! Which blocks stand in an overlay, and the file that remembers it.
//!
//! ```text
//! 0     "LBOVMAP1"
//! 8     u32 little-endian: length of the identity
//! 12    identity (UTF-8), then zeros up to 4096
//! 4096  bitmap, bit b of byte i is block 8·i + b; padded to a multiple of 4096
//! ```
//! Pages of the bitmap that changed are written at a flush, after the data that they name.

use std::{
    collections::BTreeSet,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

const MAGIC: &[u8; 8] = b"LBOVMAP1";
const PAGE: usize = 4096;
const PAGE_BLOCKS: usize = PAGE * 8;

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "the overlay file {path} cannot be used: check that the folder exists, is writable and has space"
    )]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} is in use by another lifeboat-recovery: stop it or give another --overlay-dir")]
    InUse { path: PathBuf },
    #[error(
        "{path} belongs to {found}, not to {wanted}: delete it together with its .overlay file, or give another --overlay-dir"
    )]
    Other { path: PathBuf, found: String, wanted: String },
    #[error(
        "{path} is not an overlay's map: delete it together with its .overlay file, or give another --overlay-dir"
    )]
    Damaged { path: PathBuf },
}

#[derive(Debug)]
pub(super) struct Map {
    file: Arc<File>,
    bits: Vec<u8>,
    count: u64,
    /// Pages of the bitmap that differ from the file.
    changed: BTreeSet<usize>,
}

/// Pages of the bitmap on their way to the file.
#[derive(Debug)]
pub(super) struct Changed {
    file: Arc<File>,
    pages: Vec<(usize, Vec<u8>)>,
}

impl Map {
    pub(super) fn open(path: &Path, identity: &str, blocks: u64) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io { path: path.to_owned(), source };
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(io)?;
        file.try_lock().map_err(|error| match error {
            std::fs::TryLockError::WouldBlock => OpenError::InUse { path: path.to_owned() },
            std::fs::TryLockError::Error(source) => io(source),
        })?;
        let bytes = usize::try_from(blocks.div_ceil(8)).unwrap_or(usize::MAX).next_multiple_of(PAGE);
        let mut bits = vec![0; bytes];
        if file.metadata().map_err(io)?.len() == 0 {
            file.set_len((PAGE + bytes) as u64).map_err(io)?;
            file.write_all_at(&header(identity), 0).map_err(io)?;
        } else {
            let found = read_identity(&file).ok_or_else(|| OpenError::Damaged { path: path.to_owned() })?;
            if found != identity {
                return Err(OpenError::Other { path: path.to_owned(), found, wanted: identity.to_owned() });
            }
            file.read_exact_at(&mut bits, PAGE as u64)
                .map_err(|_| OpenError::Damaged { path: path.to_owned() })?;
        }
        let count = bits.iter().map(|byte| u64::from(byte.count_ones())).sum();
        Ok(Self { file: Arc::new(file), bits, count, changed: BTreeSet::new() })
    }

    pub(super) fn contains(&self, block: u32) -> bool {
        self.bits.get(block as usize / 8).is_some_and(|byte| byte & (1 << (block % 8)) != 0)
    }

    pub(super) fn insert(&mut self, first: u32, blocks: u32) {
        for block in first..first + blocks {
            let Some(byte) = self.bits.get_mut(block as usize / 8) else { return };
            let bit = 1 << (block % 8);
            if *byte & bit == 0 {
                *byte |= bit;
                self.count += 1;
                self.changed.insert(block as usize / PAGE_BLOCKS);
            }
        }
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn take_changed(&mut self) -> Changed {
        let pages = std::mem::take(&mut self.changed);
        let pages = pages
            .into_iter()
            .map(|page| (page, self.bits[page * PAGE..(page + 1) * PAGE].to_vec()))
            .collect();
        Changed { file: Arc::clone(&self.file), pages }
    }

    /// After a failed write of the pages: they have to be written again.
    pub(super) fn put_back(&mut self, changed: &Changed) {
        self.changed.extend(changed.pages.iter().map(|(page, _)| page));
    }
}

impl Changed {
    pub(super) fn write(&self) -> io::Result<()> {
        for (page, bits) in &self.pages {
            self.file.write_all_at(bits, (PAGE + page * PAGE) as u64)?;
        }
        if self.pages.is_empty() { Ok(()) } else { self.file.sync_data() }
    }
}

fn header(identity: &str) -> Vec<u8> {
    let mut header = MAGIC.to_vec();
    header.extend_from_slice(&u32::try_from(identity.len()).unwrap_or(0).to_le_bytes());
    header.extend_from_slice(identity.as_bytes());
    header.resize(PAGE, 0);
    header
}

fn read_identity(file: &File) -> Option<String> {
    let mut page = [0; PAGE];
    file.read_exact_at(&mut page, 0).ok()?;
    let rest = page.strip_prefix(MAGIC)?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let identity = rest.get(..usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
    String::from_utf8(identity.to_vec()).ok()
}
