//! The shutdown that `spec.requestShutdown` asks for: what the agent is told, and what the status says of it. Pure.
//!
//! The request is its own time: an old one, that comes with a Git repository into a new cluster, or lies in the spec of a
//! server that is protected anew, does nothing. One that the agent has begun is repeated until it says that it is over.

use lifeboat_crds::{
    ProtectedServer, Time,
    server::{Shutdown, ShutdownState},
};
use lifeboat_replication::wire::v1;

use super::figures::time;

/// A request that is not seen within this time is not done any more.
const FRESH_SECONDS: i64 = 600;
/// An agent that has not answered by then will not: it is not connected, or too old to know of it.
const ANSWER_SECONDS: i64 = 900;

/// Name of the order for the agent; empty: there is none.
pub fn order(server: &ProtectedServer) -> String {
    let known = server.status.as_ref().and_then(|status| status.shutdown.as_ref());
    let open = known.filter(|known| Some(known.requested_at) == server.spec.request_shutdown);
    let open =
        open.filter(|known| !matches!(known.state, ShutdownState::PoweredOff | ShutdownState::Refused));
    open.map_or_else(String::new, |known| id(known.requested_at))
}

/// The shutdown by which it went off, if that is the last thing that was asked of it.
pub(in crate::controllers) fn switched_off(server: &ProtectedServer) -> Option<&Shutdown> {
    let known = server.status.as_ref()?.shutdown.as_ref()?;
    let asked = Some(known.requested_at) == server.spec.request_shutdown;
    (asked && known.state == ShutdownState::PoweredOff).then_some(known)
}

/// Of a server that is off, for its conditions.
pub(super) fn words(off: &Shutdown) -> String {
    let complete = off.complete_at.map_or_else(String::new, |at| format!(", as of {at}"));
    format!(
        "it was shut down by spec.requestShutdown, and the vault holds all that it ever wrote{complete}; when it is switched on again it goes on replicating"
    )
}

fn id(requested_at: Time) -> String {
    requested_at.as_microsecond().to_string()
}

/// The request's state in the status. The order goes to the agent once it is on record there.
pub(super) fn state(
    server: &ProtectedServer,
    answer: Option<&v1::ShutdownAnswer>,
    now: Time,
) -> Option<Shutdown> {
    let before = server.status.as_ref().and_then(|status| status.shutdown.clone());
    let Some(wanted) = server.spec.request_shutdown else { return before };
    let age = now.as_second() - wanted.as_second();
    match (before, answer) {
        (Some(open), Some(answer)) if open.requested_at == wanted && answer.id == id(wanted) => {
            Some(answered(open, answer))
        }
        (Some(open), _) if open.requested_at == wanted => match open.state {
            ShutdownState::Requested if age >= ANSWER_SECONDS => Some(refused(
                wanted,
                "NoAnswer",
                "the agent did not answer: see the condition AgentConnected and the agent's version, then ask again",
            )),
            _ => Some(open),
        },
        _ if age.abs() >= FRESH_SECONDS => Some(refused(
            wanted,
            "Outdated",
            "the request is older than ten minutes (or in the future): if it is meant, ask again with the time of now",
        )),
        _ => Some(Shutdown {
            requested_at: wanted,
            state: ShutdownState::Requested,
            complete_at: None,
            reason: None,
            message: None,
        }),
    }
}

fn answered(open: Shutdown, answer: &v1::ShutdownAnswer) -> Shutdown {
    let text = |text: &String, most: usize| (!text.is_empty()).then(|| text.chars().take(most).collect());
    let state = match answer.state() {
        v1::ShutdownState::Stopping => ShutdownState::Stopping,
        v1::ShutdownState::Replicating => ShutdownState::Replicating,
        v1::ShutdownState::Off => ShutdownState::PoweredOff,
        v1::ShutdownState::Refused => ShutdownState::Refused,
        v1::ShutdownState::Unspecified => return open,
    };
    // What was said last stays said: a server that is off does not begin again.
    if open.state == ShutdownState::PoweredOff {
        return open;
    }
    Shutdown {
        state,
        complete_at: time(answer.complete_at_micros).or(open.complete_at),
        reason: text(&answer.reason, 64),
        message: text(&answer.message, 1024),
        ..open
    }
}

fn refused(requested_at: Time, reason: &str, message: &str) -> Shutdown {
    Shutdown {
        requested_at,
        state: ShutdownState::Refused,
        complete_at: None,
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing::server, *};

    fn at(second: i64) -> Time {
        Time::from_second(second).unwrap()
    }

    fn asked(second: i64, known: Option<Shutdown>) -> ProtectedServer {
        let mut server = server("db-1");
        server.spec.request_shutdown = Some(at(second));
        server.status.as_mut().unwrap().shutdown = known;
        server
    }

    fn said(state: v1::ShutdownState, id: &str) -> v1::ShutdownAnswer {
        v1::ShutdownAnswer {
            id: id.to_owned(),
            state: state.into(),
            complete_at_micros: 1_002_000_000,
            ..Default::default()
        }
    }

    #[test]
    fn the_agent_hears_of_it_once_it_is_on_record_and_until_it_is_over() {
        let mut known = None;
        assert_eq!(order(&asked(1000, known.clone())), "");
        known = state(&asked(1000, known), None, at(1001));
        assert_eq!(known.as_ref().unwrap().state, ShutdownState::Requested);
        for (said_state, wanted) in [
            (v1::ShutdownState::Stopping, ShutdownState::Stopping),
            (v1::ShutdownState::Replicating, ShutdownState::Replicating),
            (v1::ShutdownState::Off, ShutdownState::PoweredOff),
        ] {
            assert_eq!(order(&asked(1000, known.clone())), "1000000000");
            let answer = said(said_state, "1000000000");
            known = state(&asked(1000, known), Some(&answer), at(1900));
            assert_eq!(known.as_ref().unwrap().state, wanted);
        }
        assert_eq!(known.as_ref().unwrap().complete_at, Some(at(1002)));
        assert_eq!(order(&asked(1000, known.clone())), "");
        // Switched on again: whatever it says now is about another run of the machine.
        let answer = said(v1::ShutdownState::Refused, "1000000000");
        let later = state(&asked(1000, known), Some(&answer), at(9000)).unwrap();
        assert_eq!((later.state, later.complete_at), (ShutdownState::PoweredOff, Some(at(1002))));
    }

    #[test]
    fn an_old_request_does_nothing_and_says_so() {
        for now in [1600, 400, 1_000_000] {
            let refused = state(&asked(1000, None), None, at(now)).unwrap();
            assert_eq!(
                (refused.state, refused.reason.as_deref()),
                (ShutdownState::Refused, Some("Outdated"))
            );
            assert_eq!(order(&asked(1000, Some(refused))), "");
        }
    }

    #[test]
    fn an_agent_that_never_answers_is_given_up_but_not_one_that_has_begun() {
        let open = state(&asked(1000, None), None, at(1000));
        let given_up = state(&asked(1000, open.clone()), None, at(1900)).unwrap();
        assert_eq!(given_up.reason.as_deref(), Some("NoAnswer"));
        let begun =
            state(&asked(1000, open), Some(&said(v1::ShutdownState::Stopping, "1000000000")), at(1010));
        let later = state(&asked(1000, begun), None, at(99_999)).unwrap();
        assert_eq!(later.state, ShutdownState::Stopping);
    }

    #[test]
    fn an_answer_to_another_request_is_none() {
        let open = state(&asked(1000, None), None, at(1000));
        let same = state(&asked(1000, open), Some(&said(v1::ShutdownState::Off, "7")), at(1010)).unwrap();
        assert_eq!(same.state, ShutdownState::Requested);
    }
}
