//! Passes signing requests to the operator, who alone has the CA's key, and matches its answers.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lifeboat_replication::wire::v1;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

/// The operator looks at tokens in Kubernetes, which takes a moment.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
/// Requests at a time: enrolment needs no certificate, so anybody can ask.
const WAITING: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SigningError {
    #[error(
        "the operator is not connected to this process server; try again in a moment, and if this stays, check that the pod of lifeboat-operator is running"
    )]
    NoOperator,
    #[error("the operator did not answer in time; try again")]
    NoAnswer,
    #[error("too many requests at once; try again in a moment")]
    Busy,
}

/// Where requests wait for their answers.
#[derive(Debug, Default)]
pub struct SignDesk {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// To the operator that attached last.
    operator: Option<mpsc::Sender<v1::FromProcessServer>>,
    waiting: BTreeMap<u64, oneshot::Sender<v1::SignAnswer>>,
    last_id: u64,
}

impl SignDesk {
    /// Requests go to this operator from now on.
    pub fn attach(&self, operator: mpsc::Sender<v1::FromProcessServer>) {
        self.state().operator = Some(operator);
    }

    /// An answer whose request has gone is dropped.
    pub fn answer(&self, answer: v1::SignAnswer) {
        let waiting = self.state().waiting.remove(&answer.id);
        if let Some(waiting) = waiting {
            let _ = waiting.send(answer);
        }
    }

    /// `request.id` is set here.
    pub async fn sign(&self, request: v1::SignRequest) -> Result<v1::SignAnswer, SigningError> {
        let (answer, answered) = oneshot::channel();
        let id = self.send(request, answer)?;
        let answer = timeout(ANSWER_LIMIT, answered).await;
        self.state().waiting.remove(&id);
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) | Err(_) => Err(SigningError::NoAnswer),
        }
    }

    fn send(
        &self,
        request: v1::SignRequest,
        answer: oneshot::Sender<v1::SignAnswer>,
    ) -> Result<u64, SigningError> {
        let mut state = self.state();
        state.waiting.retain(|_, waiting| !waiting.is_closed());
        if state.waiting.len() >= WAITING {
            return Err(SigningError::Busy);
        }
        let id = state.last_id + 1;
        let message = v1::from_process_server::Message::SignRequest(v1::SignRequest { id, ..request });
        let operator = state.operator.as_ref().ok_or(SigningError::NoOperator)?;
        match operator.try_send(v1::FromProcessServer { message: Some(message) }) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => return Err(SigningError::Busy),
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(SigningError::NoOperator),
        }
        state.last_id = id;
        state.waiting.insert(id, answer);
        Ok(id)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id_of(message: v1::FromProcessServer) -> u64 {
        match message.message {
            Some(v1::from_process_server::Message::SignRequest(request)) => request.id,
            other => panic!("no request: {other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn answers_reach_the_request_they_are_for() {
        let desk = SignDesk::default();
        let (operator, mut requests) = mpsc::channel(4);
        desk.attach(operator);
        let operator = async {
            let (first, second) =
                (id_of(requests.recv().await.unwrap()), id_of(requests.recv().await.unwrap()));
            for (id, name) in [(second, "two"), (first, "one"), (99, "nobody")] {
                desk.answer(v1::SignAnswer { id, server_id: name.into(), ..Default::default() });
            }
        };
        let (one, two, ()) =
            tokio::join!(desk.sign(Default::default()), desk.sign(Default::default()), operator);
        assert_eq!((one.unwrap().server_id.as_str(), two.unwrap().server_id.as_str()), ("one", "two"));
    }

    #[tokio::test(start_paused = true)]
    async fn says_that_the_operator_is_not_connected() {
        let desk = SignDesk::default();
        let error = desk.sign(Default::default()).await.unwrap_err();
        assert!(error.to_string().contains("operator is not connected"), "{error}");
        let (operator, requests) = mpsc::channel(4);
        desk.attach(operator);
        assert_eq!(desk.sign(Default::default()).await, Err(SigningError::NoAnswer));
        drop(requests);
        assert_eq!(desk.sign(Default::default()).await, Err(SigningError::NoOperator));
    }
}
