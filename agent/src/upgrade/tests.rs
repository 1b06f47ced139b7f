//! Upgrades over files in a directory, an appliance and a service that are played.

use std::{fs, pin::pin};

use tokio::task::yield_now;

use super::*;
use crate::net::download::DownloadError;

const OLD: &str = "old agent";
const NEW: &str = "new agent";

/// What the appliance serves.
struct Appliance {
    serves: &'static str,
}

#[async_trait]
impl Origin for Appliance {
    async fn download(
        &mut self,
        have: &Digest,
        into: Option<&Path>,
    ) -> Result<Option<Digest>, DownloadError> {
        yield_now().await;
        let served = digest(self.serves);
        if let Some(into) = into.filter(|_| served != *have) {
            // As a download is: there in parts before it is whole.
            fs::write(into, "new").unwrap();
            yield_now().await;
            fs::write(into, self.serves).unwrap();
        }
        yield_now().await;
        Ok((served != *have).then_some(served))
    }
}

fn digest(content: &str) -> Digest {
    let mut sum = crate::digest::Sum::default();
    sum.update(content.as_bytes());
    sum.finish()
}

/// A machine's service.
#[derive(Default)]
struct Played {
    /// Programs that end soon after their start.
    broken: Vec<&'static str>,
    /// Programs that this machine cannot start.
    foreign: Vec<&'static str>,
    /// The program that was installed last, so the one that runs.
    runs: Option<String>,
    installs: usize,
}

#[async_trait]
impl Service for Played {
    async fn version(&mut self, program: &Path) -> Result<String, String> {
        yield_now().await;
        let program = fs::read_to_string(program).unwrap();
        match self.foreign.contains(&&*program) {
            true => Err("exec format error".to_owned()),
            false => Ok(program),
        }
    }

    async fn install(&mut self, program: &Path) -> Result<(), String> {
        yield_now().await;
        self.installs += 1;
        self.runs = Some(fs::read_to_string(program).unwrap());
        yield_now().await;
        Ok(())
    }

    async fn running(&mut self) -> Option<Digest> {
        self.runs.as_deref().map(digest)
    }

    async fn stays_up(&mut self, program: &Digest) -> Result<(), String> {
        yield_now().await;
        let runs = self.runs.as_deref().unwrap();
        assert_eq!(digest(runs), *program);
        if self.broken.contains(&runs) { Err(format!("{runs} ends")) } else { Ok(()) }
    }
}

/// A machine with the old agent, installed and running.
struct Machine {
    root: tempfile::TempDir,
    upgrade: Upgrade<Appliance, Played>,
}

impl Machine {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let files =
            Files { program: root.path().join("bin/lifeboat-agent"), state: root.path().join("state") };
        for folder in ["bin", "state"] {
            fs::create_dir(root.path().join(folder)).unwrap();
        }
        fs::write(&files.program, OLD).unwrap();
        let service = Played { runs: Some(OLD.to_owned()), ..Played::default() };
        Self { root, upgrade: Upgrade { files, origin: Appliance { serves: NEW }, service } }
    }

    fn files(&self) -> &Files {
        &self.upgrade.files
    }

    /// Names below the folder.
    fn names(&self, folder: &str) -> Vec<String> {
        let all = fs::read_dir(self.root.path().join(folder)).unwrap();
        let mut names: Vec<_> = all.map(|one| one.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn is_settled_with(&self, program: &str) -> bool {
        let installed = fs::read_to_string(&self.files().program).unwrap();
        installed == program
            && self.upgrade.service.runs.as_deref() == Some(program)
            && self.names("state").is_empty()
            && !self.files().partial().exists()
    }
}

#[tokio::test]
async fn another_agent_takes_the_place_is_installed_by_itself_and_the_former_one_is_kept() {
    let mut machine = Machine::new();
    assert_eq!(machine.upgrade.check().await.unwrap(), Found::Other(digest(NEW)));
    assert!(machine.is_settled_with(OLD), "a check changes nothing");
    assert_eq!(machine.upgrade.run().await.unwrap(), Outcome::Upgraded);
    assert!(machine.is_settled_with(NEW));
    assert_eq!(machine.names("bin"), ["lifeboat-agent", "lifeboat-agent.previous"]);
    assert_eq!(fs::read_to_string(machine.files().previous()).unwrap(), OLD);

    assert_eq!(machine.upgrade.check().await.unwrap(), Found::UpToDate);
    assert_eq!(machine.upgrade.run().await.unwrap(), Outcome::UpToDate);
    assert_eq!(machine.upgrade.service.installs, 1, "nothing is started again");
}

#[tokio::test]
async fn an_agent_that_does_not_run_here_replaces_nothing() {
    let mut machine = Machine::new();
    machine.upgrade.service.foreign = vec![NEW];
    let refused = machine.upgrade.run().await.unwrap_err();
    assert!(refused.to_string().contains("exec format error"), "{refused}");
    assert!(machine.is_settled_with(OLD));
    assert_eq!((machine.names("bin").len(), machine.upgrade.service.installs), (1, 0));
}

#[tokio::test]
async fn an_agent_that_does_not_stay_up_makes_way_for_the_former_one_and_that_is_a_failure() {
    let mut machine = Machine::new();
    machine.upgrade.service.broken = vec![NEW];
    for _ in 0..2 {
        let failed = machine.upgrade.run().await.unwrap_err();
        assert!(matches!(&failed, UpgradeError::PutBack { why } if why == "new agent ends"), "{failed}");
        assert!(machine.is_settled_with(OLD));
    }
    // One that is mended is taken.
    machine.upgrade.service.broken.clear();
    assert_eq!(machine.upgrade.run().await.unwrap(), Outcome::Upgraded);
    assert!(machine.is_settled_with(NEW));
}

#[tokio::test]
async fn a_former_agent_that_does_not_stay_up_either_does_not_keep_later_upgrades_away() {
    let mut machine = Machine::new();
    machine.upgrade.service.broken = vec![NEW, OLD];
    let failed = machine.upgrade.run().await.unwrap_err();
    assert!(matches!(&failed, UpgradeError::NotPutBack { then, .. } if then == "old agent ends"), "{failed}");
    assert!(machine.is_settled_with(OLD));
    machine.upgrade.origin.serves = "mended agent";
    assert_eq!(machine.upgrade.run().await.unwrap(), Outcome::Upgraded);
}

#[tokio::test]
async fn a_service_that_was_not_started_with_the_installed_agent_is() {
    let mut machine = Machine::new();
    machine.upgrade.origin.serves = OLD;
    machine.upgrade.service.runs = Some("older agent".to_owned());
    assert_eq!(machine.upgrade.check().await.unwrap(), Found::Unfinished);
    assert_eq!(machine.upgrade.run().await.unwrap(), Outcome::Restarted);
    assert!(machine.is_settled_with(OLD));
    // One that is stopped on purpose stays so.
    machine.upgrade.service.runs = None;
    assert_eq!(machine.upgrade.run().await.unwrap(), Outcome::UpToDate);
    assert_eq!(machine.upgrade.service.runs, None);
}

/// Killed at every moment at which it waits for something, and started again.
#[tokio::test]
async fn killed_anywhere_and_run_again_it_ends_with_one_agent_that_is_installed_and_runs() {
    for (broken, ends_with, moments) in [(vec![], NEW, 7), (vec![NEW], OLD, 10)] {
        let mut kills = 0;
        loop {
            let mut machine = Machine::new();
            machine.upgrade.service.broken.clone_from(&broken);
            {
                let mut run = pin!(machine.upgrade.run());
                let mut ended = false;
                for _ in 0..=kills {
                    ended = futures::poll!(run.as_mut()).is_ready();
                    if ended {
                        break;
                    }
                }
                if ended {
                    break;
                }
            }
            let whole = fs::read_to_string(&machine.files().program).unwrap();
            assert!([OLD, NEW].contains(&&*whole), "after {kills} steps: {whole}");
            let again = machine.upgrade.run().await;
            assert_eq!(again.is_ok(), ends_with == NEW, "after {kills} steps: {again:?}");
            assert!(machine.is_settled_with(ends_with), "after {kills} steps");
            kills += 1;
        }
        assert_eq!(kills, moments, "all of them");
    }
}

/// Killed between two changes of files.
#[tokio::test]
async fn whatever_part_of_the_files_was_changed_the_next_run_finishes() {
    type Change = fn(&Files);
    let replace: [Change; 4] = [
        |files| fs::write(files.partial(), NEW).unwrap(),
        |files| files.write_note(&Note { to: digest(NEW), step: Step::Replace }).unwrap(),
        |files| files.keep().unwrap(),
        |files| files.replace().unwrap(),
    ];
    for changes in 0..=replace.len() {
        let mut machine = Machine::new();
        replace.iter().take(changes).for_each(|change| change(machine.files()));
        machine.upgrade.run().await.unwrap();
        assert!(machine.is_settled_with(NEW), "after {changes} changes");
        assert_eq!(fs::read_to_string(machine.files().previous()).unwrap(), OLD);
    }
    for put_back in [false, true] {
        let mut machine = Machine::new();
        replace.iter().for_each(|change| change(machine.files()));
        machine.files().write_note(&Note { to: digest(NEW), step: Step::PutBack }).unwrap();
        if put_back {
            machine.files().put_back().unwrap();
        }
        let failed = machine.upgrade.run().await.unwrap_err();
        assert!(matches!(failed, UpgradeError::PutBack { .. }), "{failed}");
        assert!(machine.is_settled_with(OLD));
    }
}

#[tokio::test]
async fn a_former_agent_that_somebody_has_removed_is_told_and_keeps_no_later_upgrade_away() {
    let mut machine = Machine::new();
    fs::write(&machine.files().program, NEW).unwrap();
    machine.files().write_note(&Note { to: digest(NEW), step: Step::PutBack }).unwrap();
    let failed = machine.upgrade.run().await.unwrap_err().to_string();
    assert!(failed.contains("lifeboat-agent.previous is gone"), "{failed}");
    assert_eq!(machine.upgrade.run().await.unwrap(), Outcome::Restarted);
    assert!(machine.is_settled_with(NEW));
}

#[test]
fn only_the_installed_program_is_replaced() {
    let root = tempfile::tempdir().unwrap();
    let (unit, installed) = (root.path().join("unit"), root.path().join("lifeboat-agent"));
    assert!(matches!(installed_here(&unit, &installed), Err(UpgradeError::NotInstalled)));
    let text = include_str!("../../install/lifeboat-agent.service");
    fs::write(&unit, text.replace("@BINARY@", installed.to_str().unwrap())).unwrap();
    for name in ["lifeboat-agent", "copy"] {
        fs::write(root.path().join(name), OLD).unwrap();
    }
    installed_here(&unit, &installed).unwrap();
    std::os::unix::fs::symlink(&installed, root.path().join("link")).unwrap();
    installed_here(&unit, &root.path().join("link")).unwrap();
    let refused = installed_here(&unit, &root.path().join("copy")).unwrap_err().to_string();
    assert!(refused.contains(&format!("run `{} upgrade`", installed.display())), "{refused}");
}
