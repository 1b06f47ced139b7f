//! What the outcome of an append means: pure, so that every case is a line and a test.

use crate::store::{Refusal, StoreError};

/// What the writer does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// The frame stands where it should.
    Committed,
    /// Look at what stands at the position.
    ReadTail,
    /// Nothing stands there: send the same bytes to the same position again.
    SendAgain,
    /// The lease may have run out unnoticed: renew it, then look at the tail.
    RenewLease,
    /// Another writer has taken over: stop, and say nothing to anybody.
    Fenced,
    /// The blob is not as this writer left it: stop and report.
    WentBack,
    /// The store refuses for another reason, which somebody must mend (rights, container): wait and try again.
    Wait,
}

/// After a try to append.
pub fn after_append(outcome: &Result<(), StoreError>) -> Next {
    match outcome {
        Ok(()) => Next::Committed,
        // An earlier try may have landed after its caller had given it up.
        Err(StoreError::Unknown { .. }) => Next::ReadTail,
        Err(StoreError::Refused { why, .. }) => match why {
            Refusal::Position => Next::ReadTail,
            Refusal::Sealed => Next::Fenced,
            Refusal::Lease => Next::RenewLease,
            Refusal::NotFound | Refusal::Kind | Refusal::AlreadyExists => Next::WentBack,
            Refusal::Denied
            | Refusal::NoContainer
            | Refusal::Condition
            | Refusal::Range
            | Refusal::HasSnapshots => Next::Wait,
        },
    }
}

/// After a look at the tail: `found` is what stands from the position on, `None` when the blob ends before it.
pub fn after_tail(frame: &[u8], found: Option<&[u8]>) -> Next {
    match found {
        None => Next::WentBack,
        Some([]) => Next::SendAgain,
        Some(bytes) if bytes == frame => Next::Committed,
        // One writer at a time holds the lease, and this one sends one frame at a time: what stands here is not ours.
        Some(_) => Next::Fenced,
    }
}

/// After a try to renew a lease that the store said is not held.
pub fn after_renew(outcome: &Result<(), StoreError>) -> Next {
    match outcome {
        Ok(()) => Next::ReadTail,
        Err(StoreError::Unknown { .. }) => Next::RenewLease,
        Err(StoreError::Refused { .. }) => Next::Fenced,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(why: Refusal) -> Result<(), StoreError> {
        Err(StoreError::Refused { operation: "append", name: "log".into(), why, detail: String::new() })
    }

    #[test]
    fn an_answer_that_was_lost_is_settled_by_what_stands_at_the_position() {
        let unknown =
            Err(StoreError::Unknown { operation: "append", name: "log".into(), detail: "cut".into() });
        assert_eq!(after_append(&unknown), Next::ReadTail);
        assert_eq!(after_tail(b"frame", Some(b"frame")), Next::Committed);
        assert_eq!(after_tail(b"frame", Some(b"")), Next::SendAgain);
        assert_eq!(after_tail(b"frame", Some(b"frame of another")), Next::Fenced);
    }

    #[test]
    fn a_blob_that_ends_before_the_position_went_back_in_time() {
        assert_eq!(after_tail(b"frame", None), Next::WentBack);
    }

    #[test]
    fn a_sealed_part_means_that_another_writer_has_taken_over() {
        assert_eq!(after_append(&refused(Refusal::Sealed)), Next::Fenced);
        assert_eq!(after_renew(&refused(Refusal::Lease)), Next::Fenced);
    }

    #[test]
    fn a_lease_that_ran_out_while_the_store_was_away_may_be_renewed() {
        assert_eq!(after_append(&refused(Refusal::Lease)), Next::RenewLease);
        assert_eq!(after_renew(&Ok(())), Next::ReadTail);
    }
}
