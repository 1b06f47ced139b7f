//! The kernel edge: what `crate::edge` asks for, made of eBPF, O_DIRECT and FIFREEZE.
//!
//! ```text
//!   disks (sysfs) ──► pins (program, maps, links in bpffs) ──► tracker: DirtyMap
//!        │ bio_based      marks · words · layout · bits · control · suspects · bios     (marks, held, to copy)
//!        │                program · btf: which program serves the kernel · extents · in_flight
//!        ├──────────► reader: BlockSource (O_DIRECT)
//!        └──────────► mounts, bare ──► freezer: Freezer ──socket──► watchdog (a process of its own)
//!   rung: which tracker; scan: without eBPF, DirtyMap and BlockSource made of reading the disks again and again
//!   hooks: Hooks (scripts of applications)
//!   reboot: what is dirty over an orderly restart of the machine
//!   power: takes the machine out of service
//!   sys, aio, mapped: all the unsafe code
//! ```

mod aio;
mod bare;
mod bio_based;
mod bios;
mod bits;
mod btf;
mod control;
mod disks;
mod exclude;
pub mod extents;
mod first_start;
mod freezer;
pub mod hooks;
mod in_flight;
pub mod layout;
mod mapped;
pub mod marks;
mod mounts;
mod pins;
mod power;
mod program;
mod reader;
pub mod reboot;
mod rung;
mod scan;
mod suspects;
mod sys;
mod tracker;
pub mod watchdog;
pub mod words;

pub use disks::{Discovery, Disk, Found};
pub use freezer::KernelFreezer;
pub use hooks::KernelHooks;
pub use pins::remove as remove_pins;
pub use power::KernelPower;
pub use reader::DiskReader;
pub use rung::{Tracked, Tracking, best, open};
pub use tracker::{Counters, PINS, RebootPlaces, Tracker, TrackerOptions};
