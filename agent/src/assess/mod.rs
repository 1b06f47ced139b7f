//! `lifeboat-agent assess`: how much of this server's disks changes, and what protecting it will need.
//!
//! ```text
//!   Churn (eBPF, unpinned) ──rounds──► Measurement ──► Series, Wider     what would be sent, when
//!   BlockSource (O_DIRECT) ──samples─►     │      ──► Sample            how it compresses, how full the disks are
//!                                          ▼
//!                                       Figures ──sizing──► Report ──► text, JSON
//! ```
//! `series`, `sample`, `pages` (what the seed disks would be asked for) and `sizing` are pure; `measurement` owns no thread and no clock but `tokio::time`; `program` is
//! the edge (signals, disks, the kernel). Nothing is written, neither to a disk nor to the bpf file system: whatever
//! ends the process also ends the tracking.

mod length;
pub mod measurement;
pub mod pages;
mod program;
pub mod report;
pub mod sample;
pub mod series;
pub mod sizing;
mod text;

pub use length::parse as parse_length;
pub use program::{AssessError, run};
