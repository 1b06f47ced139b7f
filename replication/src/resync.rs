//! Why disks are compared with the vault (or copied) again: a code for machines and words for people.
//!
//! Both travel as one text, `<code>: <words>`, which agents keep with their marks.

/// The code is the variant's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Marks of changed blocks may be missing: too many at a time, or a program that the kernel left out.
    TrackingLost,
    /// The server was restarted: what was written before tracking began again is not known.
    UncleanShutdown,
    /// The server was restarted in order, but no tracker of the initramfs covers the time until the agent ran.
    EarlyTrackerMissing,
    /// Another system wrote to a disk between an orderly shutdown and the next start.
    ChangedWhileDown,
    /// A disk has another size.
    DiskResized,
    /// Disks came or went, or were left out.
    DisksChanged,
    /// Commands reached a disk past the kernel's block layer.
    PassthroughWrites,
    /// The vault lost records, or holds others than were acknowledged.
    JournalDamaged,
    /// The agent does not know what it had sent: it was installed anew, or its marks are gone.
    AgentAnew,
    /// `ProtectedServer.spec.resynchronize` asks for it.
    Requested,
}

impl Cause {
    const ALL: [Self; 10] = [
        Self::TrackingLost,
        Self::UncleanShutdown,
        Self::EarlyTrackerMissing,
        Self::ChangedWhileDown,
        Self::DiskResized,
        Self::DisksChanged,
        Self::PassthroughWrites,
        Self::JournalDamaged,
        Self::AgentAnew,
        Self::Requested,
    ];

    pub fn code(self) -> &'static str {
        match self {
            Self::TrackingLost => "TrackingLost",
            Self::UncleanShutdown => "UncleanShutdown",
            Self::EarlyTrackerMissing => "EarlyTrackerMissing",
            Self::ChangedWhileDown => "ChangedWhileDown",
            Self::DiskResized => "DiskResized",
            Self::DisksChanged => "DisksChanged",
            Self::PassthroughWrites => "PassthroughWrites",
            Self::JournalDamaged => "JournalDamaged",
            Self::AgentAnew => "AgentAnew",
            Self::Requested => "Requested",
        }
    }

    /// Code and words as one text.
    pub fn because(self, words: impl AsRef<str>) -> String {
        format!("{}: {}", self.code(), words.as_ref())
    }

    /// The reverse. A text without a known code is one of an older version: tracking was lost.
    pub fn of(reason: &str) -> (Self, &str) {
        let known = |(code, words)| Some((Self::ALL.into_iter().find(|cause| cause.code() == code)?, words));
        reason.split_once(": ").and_then(known).unwrap_or((Self::TrackingLost, reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_told_apart_again() {
        for cause in Cause::ALL {
            assert_eq!(Cause::of(&cause.because("a: b")), (cause, "a: b"));
        }
        assert_eq!(Cause::of("some words"), (Cause::TrackingLost, "some words"));
    }
}
