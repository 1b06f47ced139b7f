//! The kernel's maps in our memory: eBPF arrays of u64 seen as slices of atomics.
#![allow(unsafe_code, reason = "memory shared with the kernel; the reasoning is beside each block")]

use std::{
    io,
    ops::Deref,
    os::fd::{AsRawFd as _, BorrowedFd},
    ptr::NonNull,
    sync::atomic::AtomicU64,
};

/// A whole eBPF array with u64 values and the flag `BPF_F_MMAPABLE`, mapped for reading and writing.
///
/// The kernel's programs change these words at any time with atomic operations, or store whole bytes of them; seen as
/// [`AtomicU64`] that is the same as another thread doing so, which atomics allow.
#[derive(Debug)]
pub(super) struct Mapped {
    start: NonNull<AtomicU64>,
    words: usize,
}

impl Mapped {
    /// `words` must not exceed the map's entries: the kernel refuses a longer mapping with `EINVAL`.
    pub(super) fn new(map: BorrowedFd<'_>, words: usize) -> io::Result<Self> {
        let bytes = words.checked_mul(8).filter(|bytes| *bytes > 0).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new shared mapping at an address of the kernel's choice touches no memory of ours.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { start, words })
    }
}

impl Deref for Mapped {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, `words` × 8 bytes long, readable and writable, and lives until drop,
        // which the borrow of self excludes. Arrays of eBPF have a fixed size and their memory stays as long as it
        // is mapped, so no access can fault. Every bit pattern is a valid AtomicU64.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `new`, to which no reference is left.
        unsafe {
            libc::munmap(self.start.as_ptr().cast(), self.words * 8);
        }
    }
}

// SAFETY: the mapping belongs to the process, not to a thread, and is only reachable as atomics.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}
