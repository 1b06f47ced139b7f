//! What an interrupted export leaves beside its file, and what the next try finds.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{ExportError, Format};

/// What is noted beside a file that is not whole yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Note {
    pub vault: String,
    pub server: String,
    pub point: u64,
    pub epoch: u32,
    pub disk: String,
    pub format: Format,
    /// Everything before this block is durable.
    pub next_block: u32,
    /// Name of the pin.
    #[serde(default)]
    pub pin: String,
}

fn with_suffix(to: &Path, suffix: &str) -> PathBuf {
    let mut name = to.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

pub(super) fn partial(to: &Path) -> PathBuf {
    with_suffix(to, ".partial")
}

pub(super) fn noted(to: &Path) -> PathBuf {
    with_suffix(to, ".partial.json")
}

/// `None`: there is nothing to go on with.
pub(super) fn read_note(to: &Path) -> Result<Option<Note>, ExportError> {
    let path = noted(to);
    let content = match fs::read(&path) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(ExportError::File { path, source }),
    };
    let note = serde_json::from_slice(&content).map_err(|_| ExportError::OtherExport {
        note: path,
        partial: partial(to),
        found: "it cannot be read".to_owned(),
    })?;
    Ok(Some(note).filter(|_| partial(to).exists()))
}

/// What stands in the file becomes durable before the note says so.
pub(super) fn save(to: &Path, file: &File, note: &Note) -> Result<(), ExportError> {
    let path = noted(to);
    let new = with_suffix(to, ".partial.json.new");
    let write = || {
        file.sync_data()?;
        fs::write(&new, serde_json::to_vec(note).map_err(io::Error::other)?)?;
        File::open(&new)?.sync_all()?;
        fs::rename(&new, &path)
    };
    write().map_err(|source| ExportError::File { path: path.clone(), source })
}
