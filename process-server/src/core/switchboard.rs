//! Where the sessions of a process server and the coordinator of its consistency groups meet: orders go to the session
//! that a server has now, answers and durable records come back.
//!
//! Nothing waits here: an order that its connection does not take is told as the server being gone, and what the
//! coordinator cannot take is lost, as if the network had lost it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use lifeboat_replication::wire::v1::{self, GroupAnswer, GroupMember, GroupOrder, GroupPoint};
use tokio::sync::mpsc;

/// Events that the coordinator has not looked at: a handful for each member of an attempt.
const EVENTS: usize = 1024;

#[derive(Debug)]
pub enum Event {
    Answer { server: String, answer: GroupAnswer },
    Gone { server: String },
    Durable { id: String, member: GroupMember },
}

#[derive(Debug, Clone, Default)]
pub struct Switchboard(Arc<Mutex<Lines>>);

#[derive(Debug, Default)]
struct Lines {
    /// By server: the number of its line, and the way down.
    sessions: BTreeMap<String, (u64, mpsc::Sender<v1::Down>)>,
    connected: u64,
    /// By server: the point that its next record may bear, with the members as the coordinator knows them.
    borne: BTreeMap<String, GroupPoint>,
    events: Option<mpsc::Sender<Event>>,
}

/// A session's; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Line {
    board: Switchboard,
    server: String,
    number: u64,
}

impl Switchboard {
    /// For the one coordinator.
    pub fn listen(&self) -> mpsc::Receiver<Event> {
        let (sender, events) = mpsc::channel(EVENTS);
        self.lines().events = Some(sender);
        events
    }

    /// Replaces the line of an earlier session, which is gone by that.
    pub(super) fn connect(&self, server: &str, down: mpsc::Sender<v1::Down>) -> Line {
        let mut lines = self.lines();
        lines.connected += 1;
        let number = lines.connected;
        if lines.sessions.insert(server.to_owned(), (number, down)).is_some() {
            lines.tell(Event::Gone { server: server.to_owned() });
        }
        Line { board: self.clone(), server: server.to_owned(), number }
    }

    pub fn is_connected(&self, server: &str) -> bool {
        self.lines().sessions.contains_key(server)
    }

    /// False: it takes none.
    pub fn order(&self, server: &str, order: GroupOrder) -> bool {
        let message = v1::Down { message: Some(v1::down::Message::Group(order)) };
        let lines = self.lines();
        lines.sessions.get(server).is_some_and(|(_, down)| down.try_send(message).is_ok())
    }

    /// From now on a record of the server may bear this point.
    pub fn bear(&self, server: &str, point: GroupPoint) {
        self.lines().borne.insert(server.to_owned(), point);
    }

    /// The attempt is over.
    pub fn bear_no_more(&self, id: &str) {
        self.lines().borne.retain(|_, point| point.id != id);
    }

    /// What a record that names this point may bear; `None`: nobody asked for it, or not any more.
    pub(super) fn borne(&self, server: &str, id: &str) -> Option<GroupPoint> {
        self.lines().borne.get(server).filter(|point| point.id == id).cloned()
    }

    pub(super) fn answered(&self, server: &str, answer: GroupAnswer) {
        self.lines().tell(Event::Answer { server: server.to_owned(), answer });
    }

    pub(super) fn durable(&self, id: String, member: GroupMember) {
        self.lines().tell(Event::Durable { id, member });
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lines {
    fn tell(&self, event: Event) {
        if let Some(events) = &self.events {
            let _ = events.try_send(event);
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let mut lines = self.board.lines();
        if lines.sessions.get(&self.server).is_some_and(|(number, _)| *number == self.number) {
            lines.sessions.remove(&self.server);
            lines.tell(Event::Gone { server: self.server.clone() });
        }
    }
}
