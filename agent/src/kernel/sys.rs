//! The system calls that no safe library covers: all the unsafe code of the agent but for the mapped bitmaps
//! (`mapped.rs`) and asynchronous reads (`aio.rs`). Each function takes and returns owned or borrowed descriptors and reports the kernel's error.
#![allow(unsafe_code, reason = "raw system calls; each block says why it is sound")]

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

/// `BPF_OBJ_GET` and `BPF_OBJ_GET_INFO_BY_FD` of `enum bpf_cmd`.
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
/// Offset of `recursion_misses` in `struct bpf_prog_info`, fixed by the kernel's ABI (Linux 5.12).
const RECURSION_MISSES_OFFSET: usize = 208;
/// `MEMBARRIER_CMD_GLOBAL` of `enum membarrier_cmd`.
const MEMBARRIER_GLOBAL: libc::c_int = 1;
/// `BPF_FS_MAGIC`.
const BPF_FS_MAGIC: libc::__fsword_t = 0xcafe_4a11;
/// `_IOWR('X', 119, int)` and `_IOWR('X', 120, int)`.
const FIFREEZE: libc::Ioctl = 0xc004_5877_u32 as libc::Ioctl;
const FITHAW: libc::Ioctl = 0xc004_5878_u32 as libc::Ioctl;

/// `_IOWR('f', 11, struct fiemap)`, and its flag `FIEMAP_FLAG_SYNC`.
const FIEMAP: libc::Ioctl = 0xc020_660b_u32 as libc::Ioctl;
const FIEMAP_SYNC: u32 = 1;

/// `DM_TABLE_STATUS`: `_IOWR(0xfd, 12, struct dm_ioctl)`.
const DM_TABLE_STATUS: libc::Ioctl = 0xc138_fd0c_u32 as libc::Ioctl;

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Returns after every eBPF program that was running when it was called has ended: programs run inside an RCU
/// read side, and this waits for a grace period of all of them. 5 to 30 ms. `EINVAL` with `nohz_full`.
pub(super) fn membarrier_global() -> io::Result<()> {
    // SAFETY: takes numbers only and changes no memory of ours.
    check(unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_GLOBAL, 0, 0) }).map(|_| ())
}

/// Writes back what is dirty in every file system.
pub(super) fn sync() {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::sync() }
}

/// Makes the file system that is mounted here read-only. `EBUSY` while a file is open for writing.
pub(super) fn remount_read_only(point: &Path) -> io::Result<()> {
    let point = c_path(point)?;
    let flags = libc::MS_REMOUNT | libc::MS_RDONLY;
    // SAFETY: the path lives until the call is over; absent source, type and options are null.
    let done =
        unsafe { libc::mount(std::ptr::null(), point.as_ptr(), std::ptr::null(), flags, std::ptr::null()) };
    check(done.into()).map(|_| ())
}

/// Switches the machine off at once, without writing anything back. Comes back only if that fails.
pub(super) fn power_off() -> io::Error {
    // SAFETY: takes a number only.
    unsafe { libc::reboot(libc::RB_POWER_OFF) };
    io::Error::last_os_error()
}

/// Kills a child's process group. The child must not have been waited for, so that the number is still its own.
pub(super) fn kill_group(child: u32) -> io::Result<()> {
    let group = libc::pid_t::try_from(child).map_err(io::Error::other)?;
    // SAFETY: takes numbers only.
    check(libc::c_long::from(unsafe { libc::kill(-group, libc::SIGKILL) })).map(|_| ())
}

/// Opens a map, program or link that is pinned in a bpf file system.
pub(super) fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    /// The part of `union bpf_attr` for `BPF_OBJ_GET`.
    #[repr(C)]
    struct Attributes {
        pathname: u64,
        bpf_fd: u32,
        file_flags: u32,
    }
    let name = c_path(path)?;
    let attributes = Attributes { pathname: name.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: the kernel reads `attributes` and the name it points to, both alive during the call, and returns a
    // descriptor (close-on-exec) that nobody else owns.
    unsafe {
        let fd = check(libc::syscall(
            libc::SYS_bpf,
            BPF_OBJ_GET,
            std::ptr::from_ref(&attributes),
            size_of::<Attributes>(),
        ))?;
        Ok(OwnedFd::from_raw_fd(fd as libc::c_int))
    }
}

/// How often the kernel left out a run of this program because it was already running on the same CPU.
pub(super) fn recursion_misses(program: BorrowedFd<'_>) -> io::Result<u64> {
    /// The part of `union bpf_attr` for `BPF_OBJ_GET_INFO_BY_FD`.
    #[repr(C)]
    struct Attributes {
        bpf_fd: u32,
        info_len: u32,
        info: u64,
    }
    let mut info = [0_u8; RECURSION_MISSES_OFFSET + 8];
    let attributes = Attributes {
        bpf_fd: program.as_raw_fd() as u32,
        info_len: info.len() as u32,
        info: info.as_mut_ptr() as u64,
    };
    // SAFETY: the kernel writes at most `info_len` bytes to `info`, which lives through the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_OBJ_GET_INFO_BY_FD,
            std::ptr::from_ref(&attributes),
            size_of::<Attributes>(),
        )
    })?;
    let mut misses = [0; 8];
    misses.copy_from_slice(&info[RECURSION_MISSES_OFFSET..]);
    Ok(u64::from_ne_bytes(misses))
}

/// Mounts a bpf file system at `path` unless one is there.
pub(super) fn ensure_bpf_file_system(path: &Path) -> io::Result<()> {
    let name = c_path(path)?;
    // SAFETY: `status` is plain numbers, for which all zeros is a value; the kernel fills it; `name` and the
    // literals are terminated strings.
    unsafe {
        let mut status: libc::statfs = std::mem::zeroed();
        check(libc::statfs(name.as_ptr(), &raw mut status).into())?;
        if status.f_type == BPF_FS_MAGIC {
            return Ok(());
        }
        let bpf = c"bpf".as_ptr();
        let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
        check(libc::mount(bpf, name.as_ptr(), bpf, flags, c"mode=700".as_ptr().cast()).into())?;
    }
    Ok(())
}

/// Is the file system with `path`, or its mount, read-only?
pub(super) fn is_read_only(path: &Path) -> io::Result<bool> {
    let name = c_path(path)?;
    // SAFETY: `status` is plain numbers, for which all zeros is a value; the kernel fills it; `name` is terminated.
    unsafe {
        let mut status: libc::statvfs = std::mem::zeroed();
        check(libc::statvfs(name.as_ptr(), &raw mut status).into())?;
        Ok(status.f_flag & libc::ST_RDONLY != 0)
    }
}

/// Writes back everything dirty of the file system that `file` is on.
pub(super) fn sync_file_system(file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes a descriptor that lives through the call.
    check(unsafe { libc::syncfs(file.as_raw_fd()) }.into()).map(|_| ())
}

/// Blocks all writes to the file system of `directory` until [`thaw`].
pub(super) fn freeze(directory: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the request takes no memory (its argument is ignored).
    check(unsafe { libc::ioctl(directory.as_raw_fd(), FIFREEZE, 0) }.into()).map(|_| ())
}

/// `EINVAL` when it is not frozen.
pub(super) fn thaw(directory: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the request takes no memory (its argument is ignored).
    check(unsafe { libc::ioctl(directory.as_raw_fd(), FITHAW, 0) }.into()).map(|_| ())
}

/// Keeps every page of this process, present and future, in memory: it must run while the disk with its program
/// is frozen.
pub(super) fn lock_memory() -> io::Result<()> {
    // SAFETY: takes flags only.
    check(unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) }.into()).map(|_| ())
}

/// Device number of the block device behind `path`, as (major, minor).
pub(super) fn split_device(device: u64) -> (u32, u32) {
    (libc::major(device), libc::minor(device))
}

/// Asks device mapper for a table; `buffer` holds a `struct dm_ioctl` that says its own size, and then the answer.
pub(super) fn device_mapper_table(control: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<()> {
    let said = buffer.get(12..).and_then(|rest| rest.first_chunk()).map(|size| u32::from_ne_bytes(*size));
    if said.map(|size| size as usize) != Some(buffer.len()) || buffer.len() < 312 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the kernel reads and writes at most as many bytes as the structure says, which are all of the buffer
    // (checked above); it copies them, so no alignment is asked for.
    check(unsafe { libc::ioctl(control.as_raw_fd(), DM_TABLE_STATUS, buffer.as_mut_ptr()) }.into())
        .map(|_| ())
}

/// A piece of a file: `struct fiemap_extent`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(super) struct FileExtent {
    pub(super) logical: u64,
    pub(super) physical: u64,
    pub(super) length: u64,
    reserved: [u64; 2],
    pub(super) flags: u32,
    reserved_too: [u32; 3],
}

/// Where a file lies on the device of its file system; at most `most` pieces.
pub(super) fn file_extents(file: BorrowedFd<'_>, most: usize) -> io::Result<Vec<FileExtent>> {
    /// `struct fiemap` without its extents.
    #[repr(C)]
    struct Head {
        start: u64,
        length: u64,
        flags: u32,
        mapped: u32,
        count: u32,
        reserved: u32,
    }
    const HEAD: usize = size_of::<Head>();
    const EXTENT: usize = size_of::<FileExtent>();
    let count = u32::try_from(most).map_err(io::Error::other)?;
    // In words, so that it is aligned as both structures are.
    let mut buffer = vec![0_u64; (HEAD + most * EXTENT) / 8];
    let head = Head { start: 0, length: u64::MAX, flags: FIEMAP_SYNC, mapped: 0, count, reserved: 0 };
    // SAFETY: the buffer holds a head and `most` extents behind it, aligned, all plain numbers; the kernel writes
    // no more than `count` extents. `mapped` of them, at most `most`, are read.
    unsafe {
        let start = buffer.as_mut_ptr();
        start.cast::<Head>().write(head);
        check(libc::ioctl(file.as_raw_fd(), FIEMAP, start).into())?;
        let mapped = (start.cast::<Head>().read().mapped as usize).min(most);
        let first = start.cast::<u8>().add(HEAD).cast::<FileExtent>();
        Ok(std::slice::from_raw_parts(first, mapped).to_vec())
    }
}
