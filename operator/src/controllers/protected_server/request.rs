//! The point that `spec.requestPoint` asks for: what the agent is asked, and what the status says of it.
//!
//! The request is on record (state `Taking`, with its time) before the agent hears of it, so that a restart of the
//! operator asks for the same point and not for another one.

use kube::ResourceExt as _;
use lifeboat_crds::{
    ProtectedServer, Time,
    run::Consistency,
    server::{RequestPoint, RequestState, RequestedPoint},
};
use lifeboat_replication::wire::v1;

use super::figures::{time, whole};
use crate::{
    control::{ApplianceKey, Asked},
    runtime::Context,
};

/// Without an answer for this long nobody waits any more: the agent is not connected, or its vault stands still.
const LIMIT_SECONDS: i64 = 900;

/// Asks the agent as long as the request is open; its answer, when it is there.
pub(super) fn ask(
    server: &ProtectedServer,
    key: &ApplianceKey,
    process_server: &str,
    server_id: &str,
    context: &Context,
) -> Option<v1::PointAnswer> {
    let open = server.status.as_ref()?.requested_point.as_ref()?;
    let id = agent_id(server, open);
    if open.state != RequestState::Taking || server.spec.request_point != Some(request(open)) {
        context.fleet.settle_point(key, server_id, &id);
        return None;
    }
    let wanted = Asked { consistency: wire(open.asked), group: server.spec.consistency_group.is_some() };
    context.fleet.ask_point(key, process_server, server_id, &id, wanted)
}

fn request(open: &RequestedPoint) -> RequestPoint {
    RequestPoint { id: open.id.clone(), consistency: open.asked }
}

/// An id that comes back after another one asks for another point.
fn agent_id(server: &ProtectedServer, open: &RequestedPoint) -> String {
    let (id, at) = (&open.id, open.requested_at.as_second());
    match &server.spec.consistency_group {
        None => format!("server/{id}/{at}"),
        // Another member may ask for its group's with the same id.
        Some(_) => format!("group/{}/{id}/{at}", server.name_any()),
    }
}

/// The request's state in the status.
pub(super) fn state(
    server: &ProtectedServer,
    answer: Option<&v1::PointAnswer>,
    now: Time,
) -> Option<RequestedPoint> {
    let before = server.status.as_ref().and_then(|status| status.requested_point.clone());
    let Some(wanted) = &server.spec.request_point else { return before };
    match (before, answer) {
        (Some(open), Some(answer))
            if open.state == RequestState::Taking && agent_id(server, &open) == answer.id =>
        {
            Some(answered(open, answer))
        }
        (Some(open), None) if open.state == RequestState::Taking && request(&open) == *wanted => {
            let late = now.duration_since(open.requested_at).as_secs() >= LIMIT_SECONDS;
            Some(if late { given_up(open) } else { open })
        }
        (Some(before), _) if before.id == wanted.id => Some(before),
        _ => Some(RequestedPoint {
            id: wanted.id.clone(),
            asked: wanted.consistency,
            requested_at: whole(now),
            state: RequestState::Taking,
            time: None,
            consistency: None,
            epoch: None,
            record: None,
            longest_freeze_millis: None,
            reason: None,
            message: None,
        }),
    }
}

fn answered(open: RequestedPoint, answer: &v1::PointAnswer) -> RequestedPoint {
    let text = |text: &String| (!text.is_empty()).then(|| text.chars().take(1024).collect());
    let taken = answer.number > 0;
    RequestedPoint {
        state: if taken { RequestState::Taken } else { RequestState::Refused },
        time: time(answer.t0_micros),
        consistency: taken.then(|| consistency(answer.consistency())),
        epoch: taken.then_some(u64::from(answer.epoch)),
        record: taken.then_some(answer.number),
        longest_freeze_millis: Some(answer.longest_freeze_micros.div_ceil(1000)).filter(|millis| *millis > 0),
        reason: text(&answer.reason),
        message: text(&answer.message),
        ..open
    }
}

fn given_up(open: RequestedPoint) -> RequestedPoint {
    RequestedPoint {
        state: RequestState::Refused,
        reason: Some("NoAnswer".to_owned()),
        message: Some(
            "the agent did not answer: see the condition AgentConnected, then ask again with another id"
                .to_owned(),
        ),
        ..open
    }
}

fn wire(consistency: Consistency) -> v1::Consistency {
    match consistency {
        Consistency::CrashConsistent => v1::Consistency::CrashConsistent,
        Consistency::FilesystemConsistent => v1::Consistency::FilesystemConsistent,
        Consistency::AppConsistent => v1::Consistency::AppConsistent,
    }
}

fn consistency(wire: v1::Consistency) -> Consistency {
    match wire {
        v1::Consistency::AppConsistent => Consistency::AppConsistent,
        v1::Consistency::FilesystemConsistent => Consistency::FilesystemConsistent,
        v1::Consistency::CrashConsistent | v1::Consistency::Unspecified => Consistency::CrashConsistent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::protected_server::testing::server;

    fn at(second: i64) -> Time {
        Time::from_second(second).unwrap()
    }

    fn asked(id: &str, before: Option<RequestedPoint>) -> ProtectedServer {
        let mut db = server("db-1");
        db.spec.request_point =
            Some(RequestPoint { id: id.to_owned(), consistency: Consistency::FilesystemConsistent });
        db.status.get_or_insert_default().requested_point = before;
        db
    }

    #[test]
    fn a_request_is_on_record_before_anybody_is_asked_and_stays_the_same() {
        let first = state(&asked("a", None), None, at(100)).unwrap();
        assert_eq!((first.state, first.requested_at), (RequestState::Taking, at(100)));
        let again = state(&asked("a", Some(first.clone())), None, at(200)).unwrap();
        assert_eq!(agent_id(&server("db-1"), &again), "server/a/100");
        let other = state(&asked("b", Some(first)), None, at(300)).unwrap();
        assert_eq!(agent_id(&server("db-1"), &other), "server/b/300");
        let mut member = server("db-1");
        member.spec.consistency_group = Some("erp".into());
        assert_eq!(agent_id(&member, &other), "group/db-1/b/300");
    }

    #[test]
    fn an_answer_says_what_was_reached_and_why_it_is_less() {
        let open = state(&asked("a", None), None, at(100)).unwrap();
        let answer = v1::PointAnswer {
            id: agent_id(&server("db-1"), &open),
            number: 7,
            epoch: 2,
            t0_micros: 101_000_000,
            consistency: v1::Consistency::CrashConsistent.into(),
            longest_freeze_micros: 30_400,
            reason: "NotAllFrozen".into(),
            message: "/boot/efi cannot be frozen".into(),
        };
        let taken = state(&asked("a", Some(open)), Some(&answer), at(102)).unwrap();
        assert_eq!((taken.state, taken.record, taken.time), (RequestState::Taken, Some(7), Some(at(101))));
        assert_eq!(taken.consistency, Some(Consistency::CrashConsistent));
        assert_eq!((taken.longest_freeze_millis, taken.reason.as_deref()), (Some(31), Some("NotAllFrozen")));
        assert_eq!(state(&asked("a", Some(taken.clone())), None, at(5000)), Some(taken));
    }

    #[test]
    fn a_request_that_nobody_answers_is_given_up_with_the_remedy() {
        let open = state(&asked("a", None), None, at(100)).unwrap();
        let refused = state(&asked("a", Some(open)), None, at(100 + LIMIT_SECONDS)).unwrap();
        assert_eq!((refused.state, refused.reason.as_deref()), (RequestState::Refused, Some("NoAnswer")));
        assert!(refused.message.unwrap().contains("AgentConnected"));
    }
}
