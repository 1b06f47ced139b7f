//! Many reads with one system call and one wait: Linux's own asynchronous I/O, which block devices do with O_DIRECT.
//!
//! Scattered blocks are read in short pieces, and a thread that waits for each alone is put to sleep and woken each
//! time: half of what the agent took of the processor. In: where to read, and memory for it. Out: how many bytes came
//! to each. Bounded by [`DEPTH`] reads under way.
//!
//! Nothing here fails: where the kernel has no queue left (`fs.aio-max-nr`) or refuses a read, no bytes come, and
//! whoever asked reads it the usual way and learns why it does not work.
#![allow(unsafe_code, reason = "raw system calls; each block says why it is sound")]

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

/// Reads under way: as many pieces as are handed over together.
const DEPTH: usize = 64;
/// `IOCB_CMD_PREAD`.
const READ: u16 = 0;

/// One read: `target` is filled from `offset` of `file` on.
pub(super) struct Read<'a> {
    pub(super) file: BorrowedFd<'a>,
    pub(super) offset: u64,
    pub(super) target: &'a mut [u8],
}

/// `struct iocb` of the kernel's ABI on little-endian machines.
#[repr(C)]
struct Request {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    result_fd: u32,
}

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Event {
    data: u64,
    request: u64,
    result: i64,
    result2: i64,
}

const _: () =
    assert!(size_of::<Request>() == 64 && size_of::<Event>() == 32 && cfg!(target_endian = "little"));

/// A queue of the kernel; `None`: there is none.
#[derive(Debug)]
pub(super) struct Queue(Option<libc::c_ulong>);

impl Queue {
    pub(super) fn new() -> Self {
        let mut context: libc::c_ulong = 0;
        // SAFETY: the kernel writes the queue's number to `context`, which lives through the call.
        let made = unsafe { libc::syscall(libc::SYS_io_setup, DEPTH as libc::c_uint, &raw mut context) };
        Self((made == 0).then_some(context))
    }

    /// For a read alone, which needs none.
    pub(super) fn none() -> Self {
        Self(None)
    }

    /// Reads all of them, and says how many bytes came to each, from its beginning on. None of them is under way any
    /// more when it returns.
    pub(super) fn read(&mut self, reads: &mut [Read<'_>]) -> Vec<usize> {
        let mut came = vec![0; reads.len()];
        for (reads, came) in reads.chunks_mut(DEPTH).zip(came.chunks_mut(DEPTH)) {
            if let Some(context) = self.0
                && !some(context, reads, came)
            {
                self.end();
                came.fill(0);
            }
        }
        came
    }

    /// Waits until nothing is under way.
    fn end(&mut self) {
        if let Some(context) = self.0.take() {
            // SAFETY: takes a number only; a queue is ended once.
            unsafe { libc::syscall(libc::SYS_io_destroy, context) };
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.end();
    }
}

/// `false`: something may be under way still.
fn some(context: libc::c_ulong, reads: &mut [Read<'_>], came: &mut [usize]) -> bool {
    let mut requests: Vec<Request> = (0..)
        .zip(reads)
        .map(|(data, read)| Request {
            data,
            key: 0,
            rw_flags: 0,
            opcode: READ,
            priority: 0,
            file: read.file.as_raw_fd() as u32,
            buffer: read.target.as_mut_ptr() as u64,
            bytes: read.target.len() as u64,
            offset: i64::try_from(read.offset).unwrap_or(i64::MAX),
            reserved: 0,
            flags: 0,
            result_fd: 0,
        })
        .collect();
    let pointers: Vec<*mut Request> = requests.iter_mut().map(std::ptr::from_mut).collect();
    let mut under_way = 0;
    while let Some(rest) = pointers.get(under_way..).filter(|rest| !rest.is_empty()) {
        // SAFETY: the kernel reads as many pointers and the requests behind them, all alive during the call. What it
        // writes to later is the targets, borrowed for longer than `Queue::read` lasts, and that returns only once
        // nothing is under way: here, or by ending the queue.
        let sent = unsafe { libc::syscall(libc::SYS_io_submit, context, rest.len(), rest.as_ptr()) };
        match usize::try_from(sent) {
            Ok(sent) if sent > 0 => under_way += sent,
            _ => break,
        }
    }
    let mut events = [Event::default(); DEPTH];
    while under_way > 0 {
        // SAFETY: the kernel writes at most as many events as there is room for; without a time it waits.
        let found = unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                context,
                under_way,
                under_way,
                events.as_mut_ptr(),
                std::ptr::null::<libc::timespec>(),
            )
        };
        let Ok(found) = usize::try_from(found) else {
            if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return false;
        };
        for event in events.iter().take(found) {
            let place = usize::try_from(event.data).ok().and_then(|place| came.get_mut(place));
            if let Some(place) = place {
                *place = usize::try_from(event.result).unwrap_or(0);
            }
        }
        under_way = under_way.saturating_sub(found);
    }
    true
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write as _, os::fd::AsFd as _};

    use super::*;

    fn file(bytes: usize) -> (File, Vec<u8>) {
        let content: Vec<u8> = (0..bytes).map(|byte| (byte / 7 % 251) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&content).unwrap();
        (file, content)
    }

    fn read(queue: &mut Queue, file: &File, bytes: usize, offsets: &[u64]) -> Vec<Vec<u8>> {
        let mut targets = vec![vec![0; bytes]; offsets.len()];
        let mut reads: Vec<Read<'_>> = targets
            .iter_mut()
            .zip(offsets)
            .map(|(target, offset)| Read { file: file.as_fd(), offset: *offset, target })
            .collect();
        let came = queue.read(&mut reads);
        targets.iter().zip(came).map(|(target, came)| target[..came].to_vec()).collect()
    }

    #[test]
    fn each_read_gets_what_stands_there_also_more_than_fit_the_queue() {
        let (file, content) = file(400_000);
        let offsets: Vec<u64> = (0..DEPTH as u64 * 2 + 5).map(|read| read * 7919 % 390_000).collect();
        let mut queue = Queue::new();
        assert!(queue.0.is_some(), "no queue: see fs.aio-max-nr");
        for (offset, came) in offsets.iter().zip(read(&mut queue, &file, 5000, &offsets)) {
            assert!(came == content[*offset as usize..][..5000], "at {offset}");
        }
    }

    #[test]
    fn at_the_end_of_the_file_fewer_bytes_come() {
        let (file, content) = file(10_000);
        let came = read(&mut Queue::new(), &file, 4096, &[8192, 0, 20_000]);
        assert_eq!(came, [&content[8192..], &content[..4096], &[]]);
    }

    #[test]
    fn what_is_refused_leaves_the_others_as_they_are() {
        let (file, content) = file(10_000);
        let closed = File::options().write(true).open("/dev/null").unwrap();
        let [mut one, mut two] = [[0; 100], [0; 100]];
        let mut reads = [
            Read { file: file.as_fd(), offset: 50, target: &mut one },
            Read { file: closed.as_fd(), offset: 0, target: &mut two },
        ];
        let mut queue = Queue::new();
        assert_eq!(queue.read(&mut reads), [100, 0]);
        assert_eq!(one, content[50..150]);
        queue.end();
        assert_eq!(read(&mut queue, &file, 100, &[0]), [Vec::<u8>::new()], "without a queue nothing comes");
    }
}
