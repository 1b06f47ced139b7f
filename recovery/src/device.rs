//! What the NBD server serves and what an overlay stands on.

use std::io;

use async_trait::async_trait;
use bytes::Bytes;

/// A disk as a client sees it: any byte range, from several requests at once.
#[async_trait]
pub trait Device: std::fmt::Debug + Send + Sync + 'static {
    /// True size of the disk in bytes.
    fn size(&self) -> u64;

    /// The range lies within the disk.
    async fn read(&self, offset: u64, length: u32) -> io::Result<Bytes>;

    async fn write(&self, offset: u64, data: Bytes) -> io::Result<()>;

    /// Afterwards the range reads as zeros.
    async fn zero(&self, offset: u64, length: u64) -> io::Result<()>;

    /// Everything answered before is durable in the overlay.
    async fn flush(&self) -> io::Result<()>;
}

/// A disk at one point, in whole blocks of 4096 bytes; the last block is padded with zeros.
#[async_trait]
pub trait Base: std::fmt::Debug + Send + Sync + 'static {
    /// True size of the disk in bytes.
    fn size(&self) -> u64;

    /// Exactly `blocks * 4096` bytes, verified.
    async fn read_blocks(&self, first: u32, blocks: u32) -> io::Result<Bytes>;
}
