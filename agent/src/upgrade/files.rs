//! The files of an upgrade: the installed program, what lies beside it, and the note that an upgrade is under way.
//!
//! ```text
//!   /usr/local/bin/lifeboat-agent              replaced by rename: there is always a whole program
//!                 .lifeboat-agent.partial      the one that comes, until it is known to run here
//!                  lifeboat-agent.previous     the one that was there before
//!   /var/lib/lifeboat-agent/upgrade.json       from before the first replacement until the service runs well
//! ```
//! Every change is durable when the call comes back, and may be made again.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::UpgradeError;
use crate::{
    digest::Digest,
    files::{self, remove, sync_folder},
};

const NOTE: &str = "upgrade.json";
/// Names, with `{}` for the program's.
const PARTIAL: &str = ".{}.partial";
const PREVIOUS: &str = "{}.previous";
const PREVIOUS_PARTIAL: &str = ".{}.previous.partial";

/// What is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Note {
    /// The program that comes.
    pub to: Digest,
    pub step: Step,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Step {
    /// The program that comes takes its place.
    Replace,
    /// It does not run well: the former one comes back.
    PutBack,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NoteFile {
    to: String,
    step: Step,
}

#[derive(Debug, Clone)]
pub struct Files {
    pub program: PathBuf,
    /// The agent's state directory.
    pub state: PathBuf,
}

/// What an upgrade leaves beside the program, however it ends.
pub(crate) fn beside(program: &Path) -> [PathBuf; 3] {
    // The installer uses the first name, too, for what it downloads.
    [PARTIAL, PREVIOUS_PARTIAL, PREVIOUS].map(|name| named(program, name))
}

/// `name`: with `{}` for the program's.
fn named(program: &Path, name: &str) -> PathBuf {
    let of_program = program.file_name().unwrap_or_default().to_string_lossy();
    program.with_file_name(name.replace("{}", &of_program))
}

impl Files {
    pub fn partial(&self) -> PathBuf {
        named(&self.program, PARTIAL)
    }

    pub fn previous(&self) -> PathBuf {
        named(&self.program, PREVIOUS)
    }

    pub fn installed(&self) -> Result<Digest, UpgradeError> {
        Digest::of_file(&self.program).map_err(file("read", &self.program))
    }

    /// As long as the answer lives, nobody else upgrades.
    pub fn lock(&self) -> Result<File, UpgradeError> {
        let folder = File::open(&self.state).map_err(file("open", &self.state))?;
        match folder.try_lock() {
            Ok(()) => Ok(folder),
            Err(fs::TryLockError::WouldBlock) => Err(UpgradeError::Busy),
            Err(fs::TryLockError::Error(source)) => Err(file("lock", &self.state)(source)),
        }
    }

    pub fn note(&self) -> Result<Option<Note>, UpgradeError> {
        let path = self.state.join(NOTE);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(file("read", &path))?,
        };
        let note: Option<NoteFile> = serde_json::from_str(&text).ok();
        let note = note.and_then(|NoteFile { to, step }| Some(Note { to: Digest::parse(&to)?, step }));
        note.map(Some).ok_or(UpgradeError::Note { path })
    }

    pub fn write_note(&self, note: &Note) -> Result<(), UpgradeError> {
        let path = self.state.join(NOTE);
        let text = serde_json::to_vec(&NoteFile { to: note.to.to_string(), step: note.step });
        text.map_err(io::Error::other)
            .and_then(|text| files::replace(&path, &text))
            .map_err(file("write", &path))
    }

    pub fn forget(&self) -> Result<(), UpgradeError> {
        let path = self.state.join(NOTE);
        remove(&path).and_then(|()| sync_folder(&path)).map_err(file("remove", &path))
    }

    pub fn discard(&self) -> Result<(), UpgradeError> {
        let partial = self.partial();
        remove(&partial).map_err(file("remove", &partial))
    }

    /// Keeps the installed program beside itself.
    pub fn keep(&self) -> Result<(), UpgradeError> {
        let previous = self.previous();
        self.link_or_copy(&previous).map_err(file("write", &previous))
    }

    /// A link takes no room. Through a name of its own, so that the former one is there whole or not at all.
    fn link_or_copy(&self, previous: &Path) -> io::Result<()> {
        let new = named(&self.program, PREVIOUS_PARTIAL);
        remove(&new)?;
        if fs::hard_link(&self.program, &new).is_err() {
            // Not every file system has links.
            fs::copy(&self.program, &new)?;
            File::open(&new)?.sync_all()?;
        }
        // Two names of one file: such a rename does nothing and leaves both.
        fs::rename(&new, previous)?;
        remove(&new)?;
        sync_folder(previous)
    }

    /// What has come takes the program's place. A process that runs the former one keeps it.
    pub fn replace(&self) -> Result<(), UpgradeError> {
        self.rename(&self.partial())
    }

    /// `false`: there is no former one.
    pub fn put_back(&self) -> Result<bool, UpgradeError> {
        let previous = self.previous();
        match previous.exists() {
            true => self.rename(&previous).map(|()| true),
            false => Ok(false),
        }
    }

    fn rename(&self, from: &Path) -> Result<(), UpgradeError> {
        let renamed = fs::rename(from, &self.program).and_then(|()| sync_folder(&self.program));
        renamed.map_err(file("replace", &self.program))
    }
}

fn file(operation: &'static str, path: &Path) -> impl Fn(io::Error) -> UpgradeError {
    move |source| UpgradeError::File { operation, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(root: &Path) -> Files {
        let files = Files { program: root.join("lifeboat-agent"), state: root.to_owned() };
        fs::write(&files.program, "old").unwrap();
        files
    }

    #[test]
    fn the_former_program_is_kept_and_comes_back_also_when_each_step_is_done_twice() {
        let root = tempfile::tempdir().unwrap();
        let files = files(root.path());
        for _ in 0..2 {
            files.keep().unwrap();
        }
        fs::write(files.partial(), "new").unwrap();
        files.replace().unwrap();
        let read = |path: &Path| fs::read_to_string(path).unwrap();
        assert_eq!((read(&files.program), read(&files.previous())), ("new".to_owned(), "old".to_owned()));
        assert!(files.put_back().unwrap());
        assert_eq!(read(&files.program), "old");
        assert!(!files.put_back().unwrap(), "there is none any more");
        let left: Vec<_> = fs::read_dir(root.path()).unwrap().map(|one| one.unwrap().file_name()).collect();
        assert_eq!(left, ["lifeboat-agent"]);
    }

    #[test]
    fn a_note_is_read_as_written_and_one_that_cannot_be_read_names_the_remedy() {
        let root = tempfile::tempdir().unwrap();
        let files = files(root.path());
        assert_eq!(files.note().unwrap(), None);
        let note = Note { to: files.installed().unwrap(), step: Step::PutBack };
        files.write_note(&note).unwrap();
        assert_eq!(files.note().unwrap(), Some(note));
        fs::write(root.path().join(NOTE), "{").unwrap();
        let refused = files.note().unwrap_err().to_string();
        assert!(refused.contains("remove it"), "{refused}");
        for _ in 0..2 {
            files.forget().unwrap();
        }
        assert_eq!(files.note().unwrap(), None);
    }

    #[test]
    fn one_upgrades_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let files = files(root.path());
        let first = files.lock().unwrap();
        assert!(matches!(files.lock(), Err(UpgradeError::Busy)));
        drop(first);
        files.lock().unwrap();
    }
}
