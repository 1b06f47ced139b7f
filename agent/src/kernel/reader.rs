//! Content of the disks, read past the page cache.
//!
//! In: runs of blocks. Out: their bytes. Bounded by `READERS` jobs under way and as many waiting; further callers
//! wait for a place. The runs of a job are read at once, by one system call. O_DIRECT, since a buffered read of the block
//! device can return what an earlier one has cached while a file system has written newer blocks through its own cache.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::AsFd as _,
        unix::fs::{FileExt as _, OpenOptionsExt as _},
    },
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use lifeboat_replication::{
    blocks::{BLOCK_BYTES, BlockRun},
    wire::v1,
};
use tokio::sync::{mpsc, oneshot};

use super::{
    aio::{Queue, Read},
    disks::Disk,
};
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
        let answer = read_all(&self.0, &mut Queue::none(), vec![run]).pop();
        answer.map_or_else(|| Err(ended()), |(_, content)| content)
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
    let mut together = Queue::new();
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
        let Some(Job { runs, answer }) = job else { return };
        let answers = read_all(&disks.0, &mut together, runs);
        // Nobody waits for the answers any more when the session ended: not an error.
        _ = answer.send(answers);
    }
}

fn ended() -> io::Error {
    io::Error::other("the disk readers have ended")
}

fn read_all(disks: &[Opened], queue: &mut Queue, runs: Vec<BlockRun>) -> Answers {
    let bytes = |run: &BlockRun| run.blocks as usize * BLOCK_BYTES as usize;
    let disk = |run: &BlockRun| disks.iter().find(|disk| disk.info.slot == run.disk.0);
    let length: usize = runs.iter().map(bytes).sum();
    let mut buffer = vec![0; length + ALIGNMENT];
    let start = buffer.as_ptr().align_offset(ALIGNMENT);
    let Some(mut rest) = buffer.get_mut(start..start + length) else {
        return runs.into_iter().map(|run| (run, Err(io::ErrorKind::OutOfMemory.into()))).collect();
    };
    let mut reads = Vec::with_capacity(runs.len());
    for run in &runs {
        let (target, after) = rest.split_at_mut(bytes(run));
        rest = after;
        if let Some(disk) = disk(run) {
            let offset = u64::from(run.first) * BLOCK_BYTES;
            reads.push((disk, Read { file: disk.file.as_fd(), offset, target }));
        }
    }
    // A run alone, up to 1 MiB, is quicker by itself.
    let came = if reads.len() > 1 {
        let (disks, mut alone): (Vec<_>, Vec<_>) = reads.into_iter().unzip();
        let came = queue.read(&mut alone);
        reads = disks.into_iter().zip(alone).collect();
        came
    } else {
        vec![0; reads.len()]
    };
    let mut done = reads.into_iter().zip(came).map(|((disk, read), came)| finish(disk, read, came));
    let outcomes: Vec<io::Result<()>> = runs
        .iter()
        .map(|run| match disk(run) {
            Some(_) => done.next().unwrap_or_else(|| Err(ended())),
            None => Err(io::Error::other(format!("there is no disk number {}", run.disk))),
        })
        .collect();
    drop(done);
    let content = Bytes::from(buffer);
    let mut at = start;
    let mut answers = Vec::with_capacity(runs.len());
    for (run, outcome) in runs.into_iter().zip(outcomes) {
        let end = at + bytes(&run);
        answers.push((run, outcome.map(|()| content.slice(at..end))));
        at = end;
    }
    answers
}

/// Reads what has not come, and says why if it does not come.
fn finish(disk: &Opened, read: Read<'_>, came: usize) -> io::Result<()> {
    let Read { offset, target, .. } = read;
    let mut done = came;
    while let Some(rest) = target.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match disk.file.read_at(rest, offset + done as u64) {
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
    Ok(())
}
