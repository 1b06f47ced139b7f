//! Content of the disks, read past the page cache.
//!
//! In: runs of blocks. Out: their bytes. Bounded by `READERS` jobs under way and as many waiting; further callers
//! wait for a place. O_DIRECT, since a buffered read of the block device can return what an earlier one has cached
//! while a file system has written newer blocks through its own cache.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use lifeboat_replication::{
    blocks::{BLOCK_BYTES, BlockRun},
    wire::v1,
};
use tokio::sync::{mpsc, oneshot};

use super::disks::Disk;
use crate::edge::BlockSource;

/// Reads under way at once: enough to keep a solid-state disk busy, few enough to leave production its queue.
const READERS: usize = 4;
/// Buffers for O_DIRECT begin at a page.
const ALIGNMENT: usize = 4096;

type Answers = Vec<(BlockRun, io::Result<Bytes>)>;

struct Job {
    runs: Vec<BlockRun>,
    answer: oneshot::Sender<Answers>,
}

struct Opened {
    info: v1::Disk,
    file: File,
}

/// The protected disks, opened for reading past every cache. Disks get the tracker's numbers: 1, 2, … in the order given.
pub(super) struct Files(Vec<Opened>);

impl Files {
    pub(super) fn open(disks: &[Disk]) -> io::Result<Self> {
        let mut opened = Vec::new();
        for (number, disk) in (1..).zip(disks) {
            let path = disk.path();
            let file = OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_DIRECT | libc::O_CLOEXEC)
                .open(&path)
                .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
            let path = path.display().to_string();
            let info = v1::Disk {
                slot: number,
                id: disk.id.clone(),
                size_bytes: disk.size_bytes,
                path,
                left_out: false,
            };
            opened.push(Opened { info, file });
        }
        Ok(Self(opened))
    }

    /// Blocks until it is done. What is behind the end of the disk is zero.
    pub(super) fn read(&self, run: BlockRun) -> io::Result<Bytes> {
        read(&self.0, run)
    }
}

/// The protected disks. Dropping it ends its threads.
pub struct DiskReader {
    disks: Arc<Files>,
    jobs: mpsc::Sender<Job>,
}

impl DiskReader {
    pub fn open(disks: &[Disk]) -> io::Result<Self> {
        let disks = Arc::new(Files::open(disks)?);
        let (jobs, queue) = mpsc::channel(READERS);
        let queue = Arc::new(Mutex::new(queue));
        for number in 0..READERS {
            let (disks, queue) = (disks.clone(), queue.clone());
            std::thread::Builder::new()
                .name(format!("disk-reader-{number}"))
                .spawn(move || work(&disks, &queue))?;
        }
        Ok(Self { disks, jobs })
    }
}

#[async_trait]
impl BlockSource for DiskReader {
    fn disks(&self) -> Vec<v1::Disk> {
        self.disks.0.iter().map(|disk| disk.info.clone()).collect()
    }

    async fn read(&self, run: BlockRun) -> io::Result<Bytes> {
        let answer = self.read_each(vec![run]).await.pop();
        answer.map_or_else(|| Err(ended()), |(_, content)| content)
    }

    async fn read_each(&self, runs: Vec<BlockRun>) -> Answers {
        let (answer, answers) = oneshot::channel();
        let job = Job { runs: runs.clone(), answer };
        let answers = match self.jobs.send(job).await {
            Ok(()) => answers.await.ok(),
            Err(_) => None,
        };
        answers.unwrap_or_else(|| runs.into_iter().map(|run| (run, Err(ended()))).collect())
    }
}

/// A thread of its own for each reader, since reading a disk blocks; ends when the `DiskReader` is dropped.
fn work(disks: &Files, queue: &Mutex<mpsc::Receiver<Job>>) {
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
        let Some(Job { runs, answer }) = job else { return };
        let answers = runs.into_iter().map(|run| (run, disks.read(run))).collect();
        // Nobody waits for the answers any more when the session ended: not an error.
        _ = answer.send(answers);
    }
}

fn ended() -> io::Error {
    io::Error::other("the disk readers have ended")
}

fn read(disks: &[Opened], run: BlockRun) -> io::Result<Bytes> {
    let disk = disks.iter().find(|disk| disk.info.slot == run.disk.0);
    let disk = disk.ok_or_else(|| io::Error::other(format!("there is no disk number {}", run.disk)))?;
    let length = run.blocks as usize * BLOCK_BYTES as usize;
    let mut buffer = vec![0; length + ALIGNMENT];
    let start = buffer.as_ptr().align_offset(ALIGNMENT);
    let offset = u64::from(run.first) * BLOCK_BYTES;
    let target = buffer.get_mut(start..start + length).ok_or(io::ErrorKind::OutOfMemory)?;
    let mut done = 0;
    while done < length {
        match disk.file.read_at(&mut target[done..], offset + done as u64) {
            // The end of a disk that is not a whole number of blocks; the rest stays zero.
            Ok(0) if offset + done as u64 >= disk.info.size_bytes => break,
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                let message = format!("{} at byte {}: {error}", disk.info.path, offset + done as u64);
                return Err(io::Error::new(error.kind(), message));
            }
        }
    }
    Ok(Bytes::from(buffer).slice(start..start + length))
}
