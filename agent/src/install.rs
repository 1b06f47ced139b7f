//! Makes the agent a service of this machine, and takes it away again without leaving anything.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    files, hook_files, kernel,
    restart_files::{self, RestartError, RestartPlaces},
    state::{StateDir, StateError},
    upgrade::files::beside,
};

pub const UNIT_DIR: &str = "/etc/systemd/system";

pub const AGENT_UNIT: &str = "lifeboat-agent.service";
const THAW_UNIT: &str = "lifeboat-thaw.service";
const UNITS: [(&str, &str); 2] = [
    (THAW_UNIT, include_str!("../install/lifeboat-thaw.service")),
    (AGENT_UNIT, include_str!("../install/lifeboat-agent.service")),
];

#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error("cannot {operation} {path}; run as root")]
    File { operation: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "the path {path} of this program cannot stand in a unit file; move it, for example to /usr/local/bin"
    )]
    Path { path: PathBuf },
    #[error("systemctl could not be started; the agent needs systemd")]
    Systemctl(#[source] io::Error),
    #[error("`systemctl {arguments}` failed: {message}")]
    Refused { arguments: String, message: String },
    #[error("the tracker's pins in {path} cannot be removed; run as root")]
    Pins { path: PathBuf, source: io::Error },
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Restart(#[from] RestartError),
}

/// Where things are; tests use other places.
#[derive(Debug, Clone)]
pub struct Places {
    pub units: PathBuf,
    pub pins: PathBuf,
    pub thaw_socket: PathBuf,
    pub hooks: PathBuf,
    pub hooks_state: PathBuf,
    pub restart: RestartPlaces,
    /// Notes of this boot.
    pub run: PathBuf,
    pub binary: PathBuf,
    pub state: StateDir,
}

/// The path of this program, as it may stand in units and scripts.
fn binary(places: &Places) -> Result<&str, InstallError> {
    let harmless = |c: char| !c.is_whitespace() && !matches!(c, '%' | '"' | '$' | '`' | '\\');
    let binary = places.binary.to_str().filter(|path| path.chars().all(harmless));
    binary.ok_or_else(|| InstallError::Path { path: places.binary.clone() })
}

/// Writes the units for the program at `places.binary`.
pub fn write_units(places: &Places) -> Result<(), InstallError> {
    let binary = binary(places)?;
    for (name, unit) in UNITS {
        let path = places.units.join(name);
        fs::write(&path, unit.replace("@BINARY@", binary)).map_err(|source| InstallError::File {
            operation: "write",
            path,
            source,
        })?;
    }
    Ok(())
}

/// Writes the units and (re)starts them. Then makes restarts of the machine orderly, for which the initramfs is made
/// anew; where that cannot be, the second answer says why.
pub fn install(places: &Places) -> Result<Result<(), RestartError>, InstallError> {
    write_units(places)?;
    systemctl(&["daemon-reload"])?;
    systemctl(&["enable", THAW_UNIT, AGENT_UNIT])?;
    systemctl(&["restart", THAW_UNIT, AGENT_UNIT])?;
    Ok(restart_files::write(&places.restart, binary(places)?)
        .and_then(|()| restart_files::update_initramfs()))
}

/// Stops the services, then removes units, pins, state and the program. Goes on after a failure and returns all of
/// them; repeating it finishes what is left.
pub fn uninstall(places: &Places) -> Vec<InstallError> {
    let mut failures = Vec::new();
    let installed = UNITS.iter().any(|(name, _)| places.units.join(name).exists());
    if installed {
        failures.extend(systemctl(&["disable", "--now", AGENT_UNIT, THAW_UNIT]).err());
    }
    for (name, _) in UNITS {
        failures.extend(remove_file(&places.units.join(name)).err());
    }
    if installed {
        failures.extend(systemctl(&["daemon-reload"]).err());
    }
    match restart_files::remove(&places.restart) {
        Ok(true) => failures.extend(restart_files::update_initramfs().err().map(InstallError::Restart)),
        Ok(false) => {}
        Err(error) => failures.push(InstallError::Restart(error)),
    }
    failures.extend(remove_after_stop(places));
    failures
}

/// What is left once nothing runs any more.
pub fn remove_after_stop(places: &Places) -> Vec<InstallError> {
    let mut failures = Vec::new();
    // Hooks of the machine's own stay: they are not ours.
    _ = kernel::hooks::release_left(&places.hooks, &places.hooks_state);
    _ = fs::remove_dir_all(&places.hooks_state);
    _ = fs::remove_dir_all(&places.run);
    hook_files::remove_unchanged(&places.hooks);
    let pins = kernel::remove_pins(&places.pins);
    failures.extend(pins.map_err(|source| InstallError::Pins { path: places.pins.clone(), source }).err());
    failures.extend(places.state.remove().map_err(InstallError::State).err());
    failures.extend(remove_file(&places.thaw_socket).err());
    if let Some(folder) = places.thaw_socket.parent() {
        // Its directory goes when it is empty, and stays when it holds something of others.
        _ = fs::remove_dir(folder);
    }
    for file in beside(&places.binary) {
        failures.extend(remove_file(&file).err());
    }
    failures.extend(remove_file(&places.binary).err());
    failures
}

fn remove_file(path: &Path) -> Result<(), InstallError> {
    files::remove(path).map_err(|source| InstallError::File {
        operation: "remove",
        path: path.to_owned(),
        source,
    })
}

fn systemctl(arguments: &[&str]) -> Result<(), InstallError> {
    let output = Command::new("systemctl").args(arguments).output().map_err(InstallError::Systemctl)?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(InstallError::Refused { arguments: arguments.join(" "), message })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(root: &Path) -> Places {
        let places = Places {
            units: root.join("units"),
            pins: root.join("pins"),
            thaw_socket: root.join("run/thaw.sock"),
            hooks: root.join("hooks.d"),
            hooks_state: root.join("run/hooks"),
            run: root.join("run/notes"),
            restart: RestartPlaces { shutdown: root.join("shutdown"), initramfs: root.join("initramfs") },
            binary: root.join("bin/lifeboat-agent"),
            state: StateDir::new(root.join("state")),
        };
        for folder in ["units", "run", "bin", "state"] {
            fs::create_dir(root.join(folder)).unwrap();
        }
        fs::create_dir(root.join("run/notes")).unwrap();
        for file in ["run/notes/early.json", "bin/lifeboat-agent", "run/thaw.sock", "state/agent.json"] {
            fs::write(root.join(file), "x").unwrap();
        }
        places
    }

    #[test]
    fn the_units_start_this_program() {
        let root = tempfile::tempdir().unwrap();
        let places = places(root.path());
        write_units(&places).unwrap();
        let unit = fs::read_to_string(places.units.join(AGENT_UNIT)).unwrap();
        assert!(unit.contains(&format!("ExecStart={} run", places.binary.display())), "{unit}");
        let unit = fs::read_to_string(places.units.join(THAW_UNIT)).unwrap();
        assert!(unit.contains(&format!("ExecStart={} thaw-watchdog", places.binary.display())), "{unit}");
    }

    #[test]
    fn nothing_is_left_and_removing_twice_is_fine() {
        let root = tempfile::tempdir().unwrap();
        let places = places(root.path());
        hook_files::enable(&places.hooks, "postgresql").unwrap();
        for upgrade in
            ["lifeboat-agent.previous", ".lifeboat-agent.previous.partial", ".lifeboat-agent.partial"]
        {
            fs::write(root.path().join("bin").join(upgrade), "x").unwrap();
        }
        for _ in 0..2 {
            let failures = remove_after_stop(&places);
            assert!(failures.is_empty(), "{failures:?}");
        }
        for path in ["run", "bin/lifeboat-agent", "state", "hooks.d"] {
            assert!(!root.path().join(path).exists(), "{path}");
        }
        assert_eq!(fs::read_dir(root.path().join("bin")).unwrap().count(), 0);
    }
}
