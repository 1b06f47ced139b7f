//! Hooks as scripts on a real system: order, failures, time-outs, and what may be run at all.

use super::*;

const LIMITS: HookLimits = HookLimits { timeout: Duration::from_secs(5), hold: Duration::from_secs(5) };

struct Stage(tempfile::TempDir);

impl Stage {
    fn new() -> Self {
        let stage = Self(tempfile::tempdir().unwrap());
        fs::create_dir(stage.hooks()).unwrap();
        stage
    }

    fn hooks(&self) -> PathBuf {
        self.0.path().join("hooks.d")
    }

    fn state(&self) -> PathBuf {
        self.0.path().join("state")
    }

    /// Both scripts write a line to the journal; then `pre` goes on.
    fn hook(&self, name: &str, pre: &str, post: &str) -> &Self {
        let folder = self.hooks().join(name);
        fs::create_dir_all(&folder).unwrap();
        for (script, more) in [("pre", pre), ("post", post)] {
            let journal = self.0.path().join("journal");
            let text = format!("#!/bin/sh\necho {name}-{script} >>{}\n{more}\n", journal.display());
            fs::write(folder.join(script), text).unwrap();
            fs::set_permissions(folder.join(script), fs::Permissions::from_mode(0o755)).unwrap();
        }
        self
    }

    fn journal(&self) -> Vec<String> {
        let journal = fs::read_to_string(self.0.path().join("journal")).unwrap_or_default();
        journal.lines().map(str::to_owned).collect()
    }

    fn start(&self) -> KernelHooks {
        KernelHooks::new(&self.hooks(), &self.state()).unwrap()
    }
}

#[tokio::test]
async fn every_pre_runs_in_order_and_every_post_in_reverse() {
    let stage = Stage::new();
    stage.hook("20-web", "", "").hook("10-db", "", "");
    fs::write(stage.hooks().join("README"), "no hook").unwrap();
    let mut hooks = stage.start();
    assert_eq!(hooks.installed().unwrap(), ["10-db", "20-web"]);
    assert_eq!(hooks.since_last(), None);
    hooks.hold(LIMITS).await.unwrap();
    hooks.release().await.unwrap();
    assert_eq!(stage.journal(), ["10-db-pre", "20-web-pre", "20-web-post", "10-db-post"]);
    hooks.release().await.unwrap();
    assert_eq!(stage.journal().len(), 4, "released once");
    assert!(hooks.since_last().is_some());
}

#[tokio::test]
async fn a_pre_that_fails_stops_the_others_and_is_told_with_the_end_of_its_output() {
    let stage = Stage::new();
    stage.hook("a", "", "").hook("b", "echo no room left >&2; echo password=hunter2; exit 3", "");
    stage.hook("c", "", "");
    let mut hooks = stage.start();
    let error = hooks.hold(LIMITS).await.unwrap_err();
    assert_eq!(error.to_string(), "hook b: pre failed (exit status: 3): no room left; …");
    hooks.release().await.unwrap();
    assert_eq!(stage.journal(), ["a-pre", "b-pre", "b-post", "a-post"], "c was never begun");
}

#[tokio::test]
async fn a_script_that_hangs_is_killed_with_what_it_has_started() {
    let stage = Stage::new();
    let late = stage.0.path().join("late");
    stage.hook("a", &format!("sh -c 'sleep 2; touch {}'", late.display()), "");
    let mut hooks = stage.start();
    let limits = HookLimits { timeout: Duration::from_millis(300), ..LIMITS };
    let error = hooks.hold(limits).await.unwrap_err();
    assert!(error.reason.contains("took longer than 300ms"), "{error}");
    hooks.release().await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!late.exists(), "a process of the script lives on");
    assert_eq!(stage.journal(), ["a-pre", "a-post"]);
}

#[tokio::test]
async fn a_hold_that_lasts_too_long_is_released_by_itself_and_counts_for_nothing() {
    let stage = Stage::new();
    stage.hook("a", "", "");
    let mut hooks = stage.start();
    hooks.hold(HookLimits { hold: Duration::from_millis(300), ..LIMITS }).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(stage.journal(), ["a-pre", "a-post"]);
    let error = hooks.release().await.unwrap_err();
    assert!(error.reason.contains("held for as long as is allowed"), "{error}");
    hooks.hold(LIMITS).await.unwrap();
    hooks.release().await.unwrap();
}

#[tokio::test]
async fn what_a_killed_agent_has_begun_is_released_at_the_next_start_and_by_the_unit() {
    for by_the_unit in [true, false] {
        let stage = Stage::new();
        stage.hook("a", "echo $$ >$LIFEBOAT_STATE_DIR/kept", "test -s $LIFEBOAT_STATE_DIR/kept");
        let places = Places { hooks: stage.hooks(), state: stage.state() };
        // As far as an agent comes that is killed between the two.
        places.begin("a").unwrap();
        places.script("a", "pre", &LIMITS).unwrap();
        if by_the_unit {
            release_left(&stage.hooks(), &stage.state()).unwrap();
        } else {
            drop(stage.start());
        }
        for _ in 0..100 {
            if stage.journal().len() == 2 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(stage.journal(), ["a-pre", "a-post"]);
        release_left(&stage.hooks(), &stage.state()).unwrap();
        assert_eq!(stage.journal().len(), 2, "once");
    }
}

#[tokio::test]
async fn a_post_that_fails_is_told_and_the_others_run_nevertheless() {
    let stage = Stage::new();
    stage.hook("a", "", "").hook("b", "", "echo the session had ended; exit 1");
    let mut hooks = stage.start();
    hooks.hold(LIMITS).await.unwrap();
    let error = hooks.release().await.unwrap_err();
    assert_eq!(error.to_string(), "hook b: post failed (exit status: 1): the session had ended");
    assert_eq!(stage.journal().last().unwrap(), "a-post");
}

#[test]
fn what_others_can_write_is_not_run() {
    let stage = Stage::new();
    stage.hook("a", "", "");
    let script = stage.hooks().join("a/pre");
    let hooks = stage.start();
    let refused = || hooks.installed().unwrap_err().to_string();
    for path in [script.clone(), stage.hooks().join("a"), stage.hooks()] {
        let before = fs::metadata(&path).unwrap().permissions();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(refused().contains("writable for nobody else"), "{}", refused());
        fs::set_permissions(&path, before).unwrap();
    }
    // Only root can give a file away.
    if fs::metadata("/proc/self").unwrap().uid() == 0 {
        std::os::unix::fs::chown(&script, Some(65534), None).unwrap();
        assert!(refused().contains("must be root's"), "{}", refused());
        std::os::unix::fs::chown(&script, Some(0), None).unwrap();
    }
    fs::set_permissions(&script, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(refused().contains("chmod +x"), "{}", refused());
    fs::remove_file(&script).unwrap();
    assert!(refused().contains("a hook has both pre and post"), "{}", refused());
}

#[test]
fn a_machine_without_hooks_has_none() {
    let root = tempfile::tempdir().unwrap();
    let hooks = KernelHooks::new(&root.path().join("none"), &root.path().join("state")).unwrap();
    assert_eq!(hooks.installed().unwrap(), Vec::<String>::new());
}
