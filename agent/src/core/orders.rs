//! What the settings say about resynchronizations: one that is asked for begins at once, another one may have to wait.
//!
//! A request is a text of the user's; each one that differs from the last one heard asks again. The last one heard is
//! kept with the marks, since it is they that the request is about: new marks have everything to copy anyway.

use lifeboat_replication::{resync::Cause, wire::v1};
use tokio::time::Instant;

use super::{
    Options,
    session::{Session, SessionError},
};
use crate::edge::{DirtyMap, TrackError};

/// Notes the request; returns why everything is compared again, if it is a new one.
pub(super) fn heed(map: &mut dyn DirtyMap, settings: &v1::Settings) -> Result<Option<String>, TrackError> {
    let request = settings.resynchronize.as_str();
    let known = map.request();
    if known.as_deref() == Some(request) {
        return Ok(None);
    }
    let asks = known.is_some() && !request.is_empty();
    let reason =
        asks.then(|| Cause::Requested.because(format!("spec.resynchronize asks for it ({request})")));
    if let Some(reason) = &reason {
        map.copy_all(reason)?;
    }
    // Last: a crash in between does it again.
    map.set_request(request)?;
    Ok(reason)
}

/// Why marks that know of records up to `sent` cannot be about a log that ends at `last`: another run of this server has
/// sent more, so the machine was put back to an earlier state (a snapshot of its disks or its memory), or is there twice.
pub(super) fn put_back(sent: Option<u64>, last: u64) -> Option<String> {
    let sent = sent.filter(|sent| last > *sent)?;
    Some(Cause::AgentAnew.because(format!(
        "the vault has records of this server up to {last}, and the agent knows only of {sent}: the server was put back to an earlier state, or runs twice"
    )))
}

/// Passes on which disks are to be left out.
pub(super) fn exclude(options: &Options, settings: &v1::Settings) {
    options.excluded.send_if_modified(|known| {
        let changed = *known != settings.exclude;
        known.clone_from(&settings.exclude);
        changed
    });
}

/// Has what is to be copied again to wait? The first copy and one that was asked for never do.
pub(super) fn has_to_wait(map: &dyn DirtyMap, settings: &v1::Settings) -> bool {
    settings.resynchronization_waits
        && map.copy_reason().is_some_and(|reason| Cause::of(&reason).0 != Cause::Requested)
}

impl Session<'_> {
    /// An order to shut the server down, if there is one.
    pub(super) fn shut_down(&mut self, settings: &v1::Settings) {
        let obstacle = if settings.paused {
            let remedy = "replication is paused: set spec.replication to Enabled and ask again";
            Some(("Paused", remedy.to_owned()))
        } else if !self.tracker.complete() {
            let remedy = "the vault does not hold the whole server yet: ask again when the copy is complete";
            Some(("CopyUnderWay", remedy.to_owned()))
        } else {
            None
        };
        self.kept.shutdown.asked(&settings.shutdown, self.options.power.as_ref(), obstacle);
    }

    /// All is in the vault, and that was heard: off, unless something was written in this moment.
    pub(super) fn go_off(&mut self) -> Result<(), SessionError> {
        let clean_at = self.clean_at(Instant::now())?;
        self.kept.shutdown.clean(clean_at);
        if let Some(power) = self.options.power.as_ref().filter(|_| clean_at.0 > 0) {
            power.off();
        }
        Ok(())
    }

    /// The settings have changed. What begins now begins in a new session, for which the process server looks at the
    /// vault's checksums anew.
    pub(super) fn obey(&mut self, settings: &v1::Settings) -> Result<(), SessionError> {
        exclude(self.options, settings);
        self.shut_down(settings);
        if let Some(reason) = heed(&mut *self.parts.map, settings)? {
            return Err(SessionError::Again { reason });
        }
        let before = std::mem::replace(&mut self.waits, has_to_wait(&*self.parts.map, settings));
        match before && !self.waits {
            true => Err(SessionError::Again { reason: self.parts.map.copy_reason().unwrap_or_default() }),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use lifeboat_replication::env::Env;

    use super::*;
    use crate::memory::Machine;

    fn settings(request: &str, waits: bool) -> v1::Settings {
        v1::Settings {
            resynchronize: request.to_owned(),
            resynchronization_waits: waits,
            ..Default::default()
        }
    }

    fn copied() -> Box<dyn DirtyMap> {
        let mut map = Machine::new(Arc::clone(&Env::system().wall), &[4], 1).map();
        let all = map.to_copy().unwrap();
        map.copied(&all).unwrap();
        map
    }

    #[test]
    fn the_first_request_that_new_marks_hear_of_is_only_noted() {
        let mut map = copied();
        assert_eq!(heed(&mut *map, &settings("7", false)).unwrap(), None);
        assert_eq!(heed(&mut *map, &settings("7", false)).unwrap(), None);
        assert!(map.to_copy().unwrap().is_empty());
    }

    #[test]
    fn every_other_value_asks_again_but_taking_it_away_does_not() {
        let mut map = copied();
        heed(&mut *map, &settings("", false)).unwrap();
        for (request, asks) in [("1", true), ("1", false), ("", false), ("1", true), ("2", true)] {
            let reason = heed(&mut *map, &settings(request, false)).unwrap();
            assert_eq!(reason.is_some(), asks, "{request:?} {reason:?}");
        }
        assert!(!map.to_copy().unwrap().is_empty());
    }

    #[test]
    fn only_what_nobody_asked_for_waits() {
        let mut map = copied();
        assert!(!has_to_wait(&*map, &settings("", true)), "there is nothing to do");
        map.copy_all(&Cause::TrackingLost.because("x")).unwrap();
        assert!(has_to_wait(&*map, &settings("", true)));
        assert!(!has_to_wait(&*map, &settings("", false)));
        map.copy_all(&Cause::Requested.because("x")).unwrap();
        assert!(!has_to_wait(&*map, &settings("", true)));
    }
}
