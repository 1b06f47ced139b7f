//! `lifeboat-agent hooks`: installs the hooks that come with the agent, and tries all that are installed.

use std::{
    error::Error,
    fs, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    cli::{HookArgs, HooksCommand},
    edge::{HookError, HookLimits, Hooks as _},
    kernel::KernelHooks,
};

/// Name, `pre`, `post`.
const SHIPPED: [(&str, &str, &str); 2] = [
    ("postgresql", include_str!("../hooks/postgresql/pre"), include_str!("../hooks/postgresql/post")),
    ("mariadb", include_str!("../hooks/mariadb/pre"), include_str!("../hooks/mariadb/post")),
];
const CHECK_LIMITS: HookLimits =
    HookLimits { timeout: Duration::from_secs(30), hold: Duration::from_secs(45) };

#[derive(Debug, thiserror::Error)]
pub enum HookFileError {
    #[error("no hook {name} comes with the agent, only: {known}")]
    Unknown { name: String, known: String },
    #[error("{path} is not what the agent has installed: it stays; remove it by hand")]
    Changed { path: PathBuf },
    #[error("cannot write {path}; run as root")]
    Write { path: PathBuf, source: io::Error },
}

pub fn run(places: &HookArgs, command: &HooksCommand) -> Result<(), Box<dyn Error>> {
    match command {
        HooksCommand::Enable { name } => {
            enable(&places.hooks_dir, name)?;
            println!("{name} is enabled; try it with `lifeboat-agent hooks check`");
        }
        HooksCommand::Disable { name } => {
            disable(&places.hooks_dir, name)?;
            println!("{name} is disabled");
        }
        HooksCommand::Check => check(places)?,
    }
    Ok(())
}

fn shipped(name: &str) -> Result<[(&'static str, &'static str); 2], HookFileError> {
    let found = SHIPPED.iter().find(|(known, _, _)| *known == name);
    let (_, pre, post) = found.ok_or_else(|| HookFileError::Unknown {
        name: name.to_owned(),
        known: SHIPPED.map(|(known, _, _)| known).join(", "),
    })?;
    Ok([("pre", pre), ("post", post)])
}

/// Writes a hook that comes with the agent. What stood there (an older one, or somebody's own) stays beside it.
pub fn enable(hooks: &Path, name: &str) -> Result<(), HookFileError> {
    let scripts = shipped(name)?;
    let folder = hooks.join(name);
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| HookFileError::Write { path, source }
    };
    fs::DirBuilder::new().recursive(true).mode(0o755).create(&folder).map_err(failed(&folder))?;
    for (script, content) in scripts {
        let path = folder.join(script);
        if fs::read_to_string(&path).is_ok_and(|found| found != content) {
            fs::rename(&path, folder.join(format!("{script}.replaced"))).map_err(failed(&path))?;
        }
        fs::write(&path, content).map_err(failed(&path))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(failed(&path))?;
    }
    Ok(())
}

fn disable(hooks: &Path, name: &str) -> Result<(), HookFileError> {
    for (script, content) in shipped(name)? {
        let path = hooks.join(name).join(script);
        match fs::read_to_string(&path) {
            Ok(found) if found == content => {
                fs::remove_file(&path).map_err(|source| HookFileError::Write { path, source })?
            }
            Ok(_) => return Err(HookFileError::Changed { path }),
            Err(_) => {}
        }
    }
    // What else is in there (settings) stays.
    _ = fs::remove_dir(hooks.join(name));
    Ok(())
}

/// Takes the hooks away that `enable` has installed, and leaves all others.
pub fn remove_unchanged(hooks: &Path) {
    for (name, _, _) in SHIPPED {
        _ = disable(hooks, name);
    }
    // Its folder too, which `enable` has made; only what is empty goes.
    if fs::remove_dir(hooks).is_ok()
        && let Some(folder) = hooks.parent().filter(|folder| folder.ends_with("lifeboat"))
    {
        _ = fs::remove_dir(folder);
    }
}

fn check(places: &HookArgs) -> Result<(), Box<dyn Error>> {
    let mut hooks = KernelHooks::new(&places.hooks_dir, &places.hooks_state)?;
    let names = hooks.installed()?;
    if names.is_empty() {
        return Err(format!("no hook is installed in {}", places.hooks_dir.display()).into());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (held, released) = runtime.block_on(async {
        let began = Instant::now();
        let held = hooks.hold(CHECK_LIMITS).await.map(|()| began.elapsed());
        let began = Instant::now();
        (held, hooks.release().await.map(|()| began.elapsed()))
    });
    let say = |script: &str, done: &Result<Duration, HookError>| match done {
        Ok(took) => println!("{script} of {}: {} ms", names.join(", "), took.as_millis()),
        Err(error) => println!("{script}: {error}"),
    };
    say("pre", &held);
    say("post", &released);
    held?;
    released?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_with_the_agent_can_be_enabled_and_taken_away_again() {
        let root = tempfile::tempdir().unwrap();
        let hooks = root.path().join("lifeboat/hooks.d");
        for name in ["postgresql", "mariadb"] {
            enable(&hooks, name).unwrap();
            let mode = fs::metadata(hooks.join(name).join("pre")).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, 0o755);
        }
        remove_unchanged(&hooks);
        assert!(!root.path().join("lifeboat").exists());
        let unknown = enable(&hooks, "oracle").unwrap_err().to_string();
        assert!(unknown.contains("postgresql, mariadb"), "{unknown}");
        assert!(!hooks.exists(), "an empty hook would make every application-consistent point fail");
    }

    #[test]
    fn a_hook_that_somebody_has_changed_stays() {
        let root = tempfile::tempdir().unwrap();
        enable(root.path(), "mariadb").unwrap();
        fs::write(root.path().join("mariadb/pre"), "#!/bin/sh\n").unwrap();
        assert!(matches!(disable(root.path(), "mariadb"), Err(HookFileError::Changed { .. })));
        assert!(root.path().join("mariadb/pre").exists());
        enable(root.path(), "mariadb").unwrap();
        let kept = fs::read_to_string(root.path().join("mariadb/pre.replaced")).unwrap();
        assert_eq!(kept, "#!/bin/sh\n");
    }
}
