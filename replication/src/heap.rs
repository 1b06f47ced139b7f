//! The C library's heap, kept small.
//!
//! Segments of megabytes pass through many threads. Glibc gives each thread a heap of its own (eight for each processor)
//! and keeps what is freed in it: the resident memory of a process server was up to twice what it holds.

/// As many heaps as processors work on segments at a time; more are for programs that allocate all the time.
const HEAPS: libc::c_int = 2;

/// Before any thread is started. Does nothing where the C library is another one.
pub fn keep_small() {
    #[cfg(target_env = "gnu")]
    #[allow(unsafe_code, reason = "no library sets it; it takes no memory of ours")]
    // SAFETY: sets a number that glibc looks at when it would make another heap.
    let _ = unsafe { libc::mallopt(libc::M_ARENA_MAX, HEAPS) };
}
