//! Where the process server meets the machine: files, threads, figures. Nothing here decides.

pub mod metered;
pub mod persisted;
pub mod seal_pool;
pub mod spool_dir;
pub mod throttled;
