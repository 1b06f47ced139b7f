//! What the marks are kept in, and what the kernel says beside them: pinned maps and the running kernel, or a test's.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use tokio::time::Instant;

use super::extents::Ranges;
use crate::edge::TrackError;

/// A word that others change at any time. Each method is one atomic access.
pub trait Word {
    fn get(&self) -> u64;
    fn put(&self, value: u64);
    /// As [`Word::and`] and [`Word::add`], returns what was there before.
    fn or(&self, bits: u64) -> u64;
    fn and(&self, bits: u64) -> u64;
    fn add(&self, value: u64) -> u64;
}

impl Word for AtomicU64 {
    fn get(&self) -> u64 {
        self.load(SeqCst)
    }

    fn put(&self, value: u64) {
        self.store(value, SeqCst);
    }

    fn or(&self, bits: u64) -> u64 {
        self.fetch_or(bits, SeqCst)
    }

    fn and(&self, bits: u64) -> u64 {
        self.fetch_and(bits, SeqCst)
    }

    fn add(&self, value: u64) -> u64 {
        self.fetch_add(value, SeqCst)
    }
}

/// What agent and program share, see [`super::layout`].
#[derive(Debug)]
pub struct Maps<'a, W> {
    pub marks: &'a [W],
    pub summary: &'a [W],
    pub extents: Ranges<'a, W>,
    pub control: &'a [W],
}

impl<W> Clone for Maps<'_, W> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<W> Copy for Maps<'_, W> {}

/// What the kernel says, beside the maps.
pub trait Kernel {
    /// Returns when no run of the program is left that had begun before.
    fn barrier(&mut self) -> Result<(), TrackError>;

    /// Nothing is under way on any disk, by the kernel's count.
    fn is_quiet(&mut self) -> bool;

    /// Runs of the program that were left out since tracking began, at issue.
    fn missed_issues(&mut self) -> Result<u64, TrackError>;

    /// And at completion.
    fn missed_completions(&mut self) -> Result<u64, TrackError>;

    fn now(&mut self) -> Instant;
}
