//! The files that make a restart of the machine orderly: the program that saves at shutdown, and the agent in the
//! initramfs. Written by `install`, removed by `uninstall`.
//!
//! Only initramfs-tools (Debian, Ubuntu) has a place for the early tracker so far; elsewhere (dracut, mkinitcpio) every
//! restart needs a comparison, and `install` says so.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

/// Below /lib or /usr/lib.
const SHUTDOWN_DIR: &str = "systemd/system-shutdown";
pub const INITRAMFS_DIR: &str = "/etc/initramfs-tools";

const NAME: &str = "lifeboat-agent";
const SHUTDOWN: &str = include_str!("../install/system-shutdown");
const HOOK: &str = include_str!("../install/initramfs-hook");
const PREMOUNT: &str = include_str!("../install/initramfs-premount");

/// Where the files go; tests use other places.
#[derive(Debug, Clone)]
pub struct RestartPlaces {
    pub shutdown: PathBuf,
    pub initramfs: PathBuf,
}

impl Default for RestartPlaces {
    fn default() -> Self {
        Self { shutdown: shutdown_dir(Path::new("/")), initramfs: INITRAMFS_DIR.into() }
    }
}

/// systemd looks only where it lies itself: in /lib, where that is a directory of its own (Debian 11 and Ubuntu 20.04 that
/// were upgraded from before the two were merged), and in /usr/lib everywhere else.
fn shutdown_dir(root: &Path) -> PathBuf {
    let (lib, own) = (root.join("lib"), root.join("lib").join(SHUTDOWN_DIR));
    if own.is_dir() && !lib.is_symlink() { own } else { root.join("usr/lib").join(SHUTDOWN_DIR) }
}

#[derive(Debug, thiserror::Error)]
pub enum RestartError {
    #[error("restarts of this server need a comparison of its disks: {reason}")]
    Unsupported { reason: &'static str },
    #[error("cannot {operation} {path}; run as root and check that the file system is writable")]
    File { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("`update-initramfs -u -k all` failed: {message}; mend that and run it again")]
    Initramfs { message: String },
}

impl RestartPlaces {
    fn shutdown_program(&self) -> PathBuf {
        self.shutdown.join(NAME)
    }

    fn initramfs_files(&self) -> [(PathBuf, &'static str); 2] {
        [
            (self.initramfs.join("hooks").join(NAME), HOOK),
            (self.initramfs.join("scripts/local-premount").join(NAME), PREMOUNT),
        ]
    }

    pub fn are_written(&self) -> bool {
        self.initramfs_files().iter().all(|(path, _)| path.exists()) && self.shutdown_program().exists()
    }

    /// Has the initramfs a place for the early tracker?
    pub fn has_initramfs_tools(&self) -> bool {
        self.initramfs.join("scripts").is_dir()
    }
}

/// Writes the files. The initramfs holds them after [`update_initramfs`].
pub fn write(places: &RestartPlaces, binary: &str) -> Result<(), RestartError> {
    if !places.has_initramfs_tools() {
        let reason = "the early tracker needs initramfs-tools, which this system does not have";
        return Err(RestartError::Unsupported { reason });
    }
    let shutdown = (places.shutdown_program(), SHUTDOWN);
    for (path, content) in places.initramfs_files().into_iter().chain([shutdown]) {
        write_program(&path, &content.replace("@BINARY@", binary)).map_err(|source| RestartError::File {
            operation: "write",
            path,
            source,
        })?;
    }
    Ok(())
}

/// Removes the files; `Ok(true)`: an initramfs may hold the agent until [`update_initramfs`].
pub fn remove(places: &RestartPlaces) -> Result<bool, RestartError> {
    let mut in_initramfs = false;
    let files = places.initramfs_files().into_iter().map(|(path, _)| (path, true));
    for (path, is_initramfs) in files.chain([(places.shutdown_program(), false)]) {
        match fs::remove_file(&path) {
            Ok(()) => in_initramfs |= is_initramfs,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(RestartError::File { operation: "remove", path, source }),
        }
    }
    Ok(in_initramfs)
}

/// For every kernel that is installed: nobody knows which one starts next.
pub fn update_initramfs() -> Result<(), RestartError> {
    let failed = |message: String| RestartError::Initramfs { message };
    let output = Command::new("update-initramfs").args(["-u", "-k", "all"]).output();
    let output = output.map_err(|error| failed(error.to_string()))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}

fn write_program(path: &Path, content: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder)?;
    // Whole or not at all, and not run half written. Programs that run parts pass over names with a dot.
    let partial = folder.join(format!(".{NAME}.partial"));
    fs::write(&partial, content)?;
    fs::set_permissions(&partial, fs::Permissions::from_mode(0o755))?;
    fs::rename(partial, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(root: &Path) -> RestartPlaces {
        RestartPlaces { shutdown: root.join("shutdown"), initramfs: root.join("initramfs") }
    }

    #[test]
    fn the_files_are_programs_that_start_this_one_and_go_without_a_trace() {
        let root = tempfile::tempdir().unwrap();
        let places = places(root.path());
        fs::create_dir_all(places.initramfs.join("scripts")).unwrap();
        write(&places, "/usr/local/bin/lifeboat-agent").unwrap();
        for path in ["shutdown/lifeboat-agent", "initramfs/hooks/lifeboat-agent"] {
            let path = root.path().join(path);
            let content = fs::read_to_string(&path).unwrap();
            assert!(content.contains("/usr/local/bin/lifeboat-agent") && !content.contains('@'), "{content}");
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o755);
        }
        assert!(remove(&places).unwrap());
        assert!(!remove(&places).unwrap(), "the second time there was nothing in the initramfs");
        for folder in ["shutdown", "initramfs/hooks", "initramfs/scripts/local-premount"] {
            assert_eq!(fs::read_dir(root.path().join(folder)).unwrap().count(), 0, "{folder}");
        }
    }

    #[test]
    fn the_program_for_the_shutdown_goes_where_systemd_looks() {
        let root = tempfile::tempdir().unwrap();
        let usr = root.path().join("usr/lib/systemd/system-shutdown");
        fs::create_dir_all(&usr).unwrap();
        assert_eq!(shutdown_dir(root.path()), usr);
        std::os::unix::fs::symlink("usr/lib", root.path().join("lib")).unwrap();
        assert_eq!(shutdown_dir(root.path()), usr);
        fs::remove_file(root.path().join("lib")).unwrap();
        let own = root.path().join("lib/systemd/system-shutdown");
        fs::create_dir_all(&own).unwrap();
        assert_eq!(shutdown_dir(root.path()), own);
    }

    #[test]
    fn without_initramfs_tools_nothing_is_written_and_it_is_said() {
        let root = tempfile::tempdir().unwrap();
        let refused = write(&places(root.path()), "/bin/agent").unwrap_err().to_string();
        assert!(refused.contains("initramfs-tools"), "{refused}");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }
}
