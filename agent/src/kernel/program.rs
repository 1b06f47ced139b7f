//! Which eBPF program tracks changes, and which of its functions serve this kernel (docs/adr/0012).
//!
//! ```text
//!   Bits    tracker.bpf.c   atomic operations, one block at a time      Linux 5.15 and later
//!   Bytes   bytes.bpf.c     plain stores, eight blocks at a time        Linux 5.7 to 5.14
//! ```
//! A member of `request_queue` that only the kernels of one of them have decides, and each reads it: a program is refused
//! where it would not serve. What a tracepoint is called with is read in the kernel's type information as well, and a form
//! that is not known is refused: a program that takes something else for a request must never run. Pure but for reading it.

use super::{
    btf::{Btf, BtfError},
    disks::Disk,
};

static BITS: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tracker.bpf.o"));
static BYTES: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/bytes.bpf.o"));

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Program {
    Bits,
    Bytes,
}

/// A function that is attached. `name` is that of its pins, whichever function serves the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attachment {
    pub(super) name: &'static str,
    pub(super) function: &'static str,
    pub(super) tracepoint: &'static str,
}

const ISSUE: Attachment = attachment("issue", "issue", "block_rq_issue");
const COMPLETE: Attachment = attachment("complete", "complete", "block_rq_complete");
const REQUEUE: Attachment = attachment("requeue", "requeue", "block_rq_requeue");
/// Also, where a disk has no request queue.
const BIOS: [Attachment; 2] = [
    attachment("bio_queue", "bio_queue", "block_bio_queue"),
    attachment("bio_complete", "bio_complete", "block_bio_complete"),
];

const fn attachment(name: &'static str, function: &'static str, tracepoint: &'static str) -> Attachment {
    Attachment { name, function, tracepoint }
}

#[derive(Debug, thiserror::Error)]
pub(super) enum ProgramError {
    #[error(
        "{0} has no request queue, and tracking such a disk needs Linux 5.15 or newer: protect the disks below it instead"
    )]
    NoRequestQueue(String),
    #[error(
        "the kernel's block layer is not of a form that this agent knows: use Linux 5.15 or newer, or a newer agent"
    )]
    BlockLayer,
    #[error(
        "the kernel's tracepoint {0} is not called with what this agent knows: use Linux 5.15 or newer, or a newer agent"
    )]
    Tracepoint(&'static str),
    #[error(transparent)]
    Btf(#[from] BtfError),
}

impl Program {
    pub(super) const ALL: [Self; 2] = [Self::Bits, Self::Bytes];

    /// As compiled.
    pub(super) fn object(self) -> &'static [u8] {
        match self {
            Self::Bits => BITS,
            Self::Bytes => BYTES,
        }
    }

    /// Its maps: name in the program, and file in the pin directory.
    pub(super) fn maps(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Bits => &[
                ("MARKS", "marks"),
                ("SUMMARY", "summary"),
                ("EXTENT_TABLE", "extents"),
                ("CONTROL", "control"),
                ("DISKS", "disks"),
                ("BIOS", "bios"),
            ],
            Self::Bytes => &[
                ("MARKS", "marks"),
                ("SUMMARY", "summary"),
                ("EXTENT_SET", "extents"),
                ("CONTROL", "control"),
                ("DISKS", "disks"),
            ],
        }
    }

    /// The map of ranges too long to be marked.
    pub(super) fn extents(self) -> &'static str {
        match self {
            Self::Bits => "EXTENT_TABLE",
            Self::Bytes => "EXTENT_SET",
        }
    }

    /// Names of what is attached for these disks.
    pub(super) fn names(self, disks: &[Disk]) -> Vec<&'static str> {
        let bios: &[_] = if disks.iter().any(|disk| disk.bio_based) { &BIOS } else { &[] };
        [ISSUE, COMPLETE, REQUEUE].iter().chain(bios).map(|attachment| attachment.name).collect()
    }

    /// The program for this kernel and these disks, and its functions: beginnings before ends.
    pub(super) fn serving(disks: &[Disk]) -> Result<(Self, Vec<Attachment>), ProgramError> {
        let btf = Btf::of_kernel()?;
        let program = if btf.has_member("request_queue", "disk") {
            Self::Bits
        } else if btf.has_member("request_queue", "backing_dev_info") {
            Self::Bytes
        } else {
            return Err(ProgramError::BlockLayer);
        };
        let bio_based = disks.iter().find(|disk| disk.bio_based);
        if let Some(disk) = bio_based.filter(|_| program == Self::Bytes) {
            return Err(ProgramError::NoRequestQueue(disk.path().display().to_string()));
        }
        let functions = functions(program, bio_based.is_some(), |tracepoint| btf.tracepoint(tracepoint));
        Ok((program, functions.map_err(ProgramError::Tracepoint)?))
    }
}

/// By what each tracepoint is called with; an error is the tracepoint that is called otherwise.
fn functions(
    program: Program,
    bios: bool,
    arguments: impl Fn(&str) -> Option<Vec<String>>,
) -> Result<Vec<Attachment>, &'static str> {
    let fits = |attachment: Attachment, form: &[&str]| {
        let fits = arguments(attachment.tracepoint).is_some_and(|arguments| arguments == form);
        if fits { Ok(attachment) } else { Err(attachment.tracepoint) }
    };
    let either = |first: Attachment, second: &'static str| {
        fits(first, &["request"]).or_else(|unknown| match program {
            Program::Bits => Err(unknown),
            Program::Bytes => fits(Attachment { function: second, ..first }, &["request_queue", "request"]),
        })
    };
    let mut found = vec![
        either(ISSUE, "issue_after_queue")?,
        fits(COMPLETE, &["request", "", ""])?,
        either(REQUEUE, "requeue_after_queue")?,
    ];
    if bios {
        let [queue, complete] = BIOS;
        found.extend([fits(queue, &["bio"])?, fits(complete, &["request_queue", "bio"])?]);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Form = &'static [&'static str];
    const ALONE: Form = &["request"];
    const BEHIND: Form = &["request_queue", "request"];
    const END: Form = &["request", "", ""];

    fn chosen(
        program: Program,
        issue: Form,
        complete: Form,
        requeue: Form,
    ) -> Result<Vec<&'static str>, &'static str> {
        let found = functions(program, program == Program::Bits, |tracepoint| {
            let form: Form = match tracepoint {
                "block_rq_issue" => issue,
                "block_rq_complete" => complete,
                "block_rq_requeue" => requeue,
                "block_bio_queue" => &["bio"],
                "block_bio_complete" => &["request_queue", "bio"],
                _ => return None,
            };
            Some(form.iter().map(|name| (*name).to_owned()).collect())
        });
        found.map(|found| found.iter().map(|attachment| attachment.function).collect())
    }

    #[test]
    fn the_functions_follow_the_arguments() {
        let found = |issue, requeue| chosen(Program::Bytes, issue, END, requeue).unwrap();
        assert_eq!(found(ALONE, ALONE), ["issue", "complete", "requeue"]);
        assert_eq!(found(BEHIND, BEHIND), ["issue_after_queue", "complete", "requeue_after_queue"]);
        assert_eq!(found(BEHIND, ALONE), ["issue_after_queue", "complete", "requeue"]);
        let found = chosen(Program::Bits, ALONE, END, ALONE).unwrap();
        assert_eq!(found, ["issue", "complete", "requeue", "bio_queue", "bio_complete"]);
    }

    #[test]
    fn a_form_that_is_not_known_is_refused() {
        let refused = |issue, complete, requeue| {
            let found = Program::ALL.map(|program| chosen(program, issue, complete, requeue));
            assert_eq!(found[0], found[1]);
            found[0].clone().unwrap_err()
        };
        assert_eq!(refused(&["bio", "request"], END, ALONE), "block_rq_issue");
        assert_eq!(refused(&["request", "request"], END, ALONE), "block_rq_issue");
        assert_eq!(refused(ALONE, &["request", ""], ALONE), "block_rq_complete");
        assert_eq!(refused(ALONE, &["request_queue", "request", "", ""], ALONE), "block_rq_complete");
        assert_eq!(refused(ALONE, END, &[]), "block_rq_requeue");
        assert_eq!(chosen(Program::Bits, BEHIND, END, ALONE), Err("block_rq_issue"));
    }
}
