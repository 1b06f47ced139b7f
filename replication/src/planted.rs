//! Mistakes on purpose: what the simulation must find, to show that it is not blind (docs/adr/0005).
//!
//! Each is one line here and one branch beside the rule that it breaks. They are fields of options that no file, flag
//! or environment variable can set; every program leaves them at `None`.

/// The list, with a name for each to print and to ask for.
macro_rules! planted {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Planted {
            $($(#[$doc])* $name,)*
        }

        impl Planted {
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }
        }
    };
}

planted! {
    /// The process server sends `Durable` before the record is appended.
    AcknowledgeBeforeAppend,
    /// The agent forgets blocks on `Received`.
    ForgetOnReceived,
    /// An append without an answer is sent again to wherever the blob ends now.
    RetryAtNewEnd,
    /// A takeover reads the log before it fences the old writer.
    LogReadBeforeFence,
    /// A takeover opens an epoch in a closed log.
    TakeoverIgnoresClosed,
    /// Retention does not look at pins.
    CollectIgnoresPins,
    /// The journal begins at the newest point, not at the one that its oldest instant needs.
    JournalBeginsAtNewest,
    /// Retention deletes before the catalogue says so.
    DeleteBeforeDelisting,
    /// The log is shortened to where the applier is, not to the oldest base.
    LogBeginsAtPosition,
    /// A takeover does not follow `Rotate`: it goes on from an epoch's first part.
    RotateNotFollowed,
    /// Two sessions of an epoch give their segments the same names.
    SegmentNameReused,
    /// Page writes carry no condition on the sequence number.
    PagesWithoutTag,
    /// A copy batch is applied after the newer rounds of the same batch.
    CopyAppliedLast,
    /// The position is written before the pages.
    PositionBeforePages,
    // Chosen after reading the finished code: what a reviewer would fear.
    /// An append without an answer counts as done.
    UnknownIsDone,
    /// A round counts as exact although a block of it was written again before it was read.
    DisturbedIsExact,
    /// The agent calls a point consistent though the watchdog had thawed before it was taken.
    TrustExpiredFreeze,
    /// The process server offers checksums as if nothing had been committed behind the applier's position.
    ChecksumsIgnoreLaterRecords,
    /// An applier goes on with a server whose lease the store says is another one's.
    LostLeaseIsKept,
    /// An applier goes on for a term after its lease may have run out.
    TenureOutlivesLease,
    /// A restarted process server commits what it finds in its spool, whatever the log says.
    AnyLeftover,
    // What only the real wire can show.
    /// The agent waits for a handshake, and for a dial, as long as it takes.
    DialWithoutTimeOut,
    /// The agent sends no pings and takes silence for patience.
    SilenceIsPatience,
    /// The data port counts the streams of a server, and not those that have ended.
    StreamsCountedForEver,
    /// The data port hands every stream to the first server that it has, which does not look at whose it is.
    StreamsMixed,
    /// The listener shakes hands with one peer after the other, as long as it takes.
    HandshakesOneByOne,
}
