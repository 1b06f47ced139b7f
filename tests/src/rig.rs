//! Whole sites on this machine: agent, process server and applier as programs of their own, a blob store, block
//! devices. What the data-plane tests and the benchmarks stand on.
//!
//! Needs root, loop devices, fio and eBPF; for served points qemu-storage-daemon and /dev/fuse. A part that cannot be set up ends the run with a panic that says why.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a rig that cannot be set up is a failed run")]
#![allow(clippy::disallowed_methods, reason = "real programs run in real time")]

pub mod compare;
#[path = "../../agent/tests/kernel_support/mod.rs"]
pub mod disk;
pub mod guest;
pub mod guest_load;
pub mod link;
pub mod load;
#[path = "../../process-server/tests/support/pki.rs"]
pub mod pki;
pub mod process;
pub mod program;
pub mod random;
pub mod served;
pub mod site;

pub use self::{
    compare::{assert_same, different_blocks, settled},
    disk::{Loop, Mounted, run},
    guest::{DEBIAN_11, DEBIAN_12, DEBIAN_13, DEBIAN_13_LVM, Guest},
    guest_load::{NOT_COMPARED, TRACKED_ANEW},
    link::{Link, Mode},
    load::{Load, assert_nothing_lost, assert_nothing_lost_on, fill, sessions},
    process::Process,
    program::Program,
    random::Random,
    served::{Offered, Served, offered},
    site::{Control, Site, SiteOptions, StoreAddress, now, point},
};
