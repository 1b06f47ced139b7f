//! `lifeboat-agent`: the program that runs on a protected server.

use std::{
    error::Error,
    io::{self, BufRead as _, IsTerminal as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Parser as _;
use lifeboat_agent::{
    assess,
    cli::{Cli, Command, DiskArgs, EarlyArgs, Enroll, UpgradeArgs},
    enrol::{self, Invitation},
    hook_files,
    install::{self, AGENT_UNIT, Places},
    kernel::{self, Discovery, PINS, RebootPlaces, hooks, reboot, watchdog},
    machine,
    restart_files::RestartPlaces,
    run,
    state::{Secret, StateDir},
    upgrade::{self, Found, OTHER_SERVED, Outcome, Upgrade, files::Files, service::Systemd},
};
use lifeboat_replication::{env::Env, errors::chain, heap};

const TOKEN: &str = "LIFEBOAT_ENROLMENT_TOKEN";

fn main() -> ExitCode {
    heap::keep_small();
    let Cli { state_dir, command } = Cli::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("LIFEBOAT_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(io::stderr).init();
    match execute(StateDir::new(state_dir), command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lifeboat-agent: {}", chain(&*error));
            ExitCode::FAILURE
        }
    }
}

fn execute(state: StateDir, command: Command) -> Result<ExitCode, Box<dyn Error>> {
    let done: Result<(), Box<dyn Error>> = match command {
        Command::Enroll(arguments) => enroll(&state, arguments),
        Command::Upgrade(arguments) => return upgrade(state, arguments),
        Command::Run(arguments) => {
            // One worker replicates, the other encrypts and answers.
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            Ok(runtime.block_on(run::run(state, arguments))?)
        }
        Command::Install(arguments) => {
            let places =
                places(state, arguments.unit_dir, PathBuf::from(PINS), PathBuf::from(watchdog::SOCKET))?;
            let restarts = install::install(&places)?;
            println!("lifeboat-agent.service and lifeboat-thaw.service are installed and run");
            let restarts = restarts.map_err(|error| chain(&error).to_string());
            let ready = || reboot::ready(places.state.path(), Path::new("/sys"), &RebootPlaces::default());
            match restarts.and_then(|()| ready()) {
                Ok(()) => println!("an orderly restart of this server needs no comparison of its disks"),
                // Protection does not depend on it.
                Err(why) => {
                    eprintln!("each restart of this server is followed by a comparison of its disks: {why}")
                }
            }
            Ok(())
        }
        Command::Uninstall(arguments) => {
            let socket = arguments.socket.thaw_socket;
            let places = places(state, arguments.install.unit_dir, arguments.pins.pin_dir, socket)?;
            let failures = install::uninstall(&places);
            for failure in &failures {
                eprintln!("lifeboat-agent: {}", chain(failure));
            }
            match failures.is_empty() {
                true => println!("nothing of the agent is left on this machine"),
                false => {
                    return Err("some things could not be removed; mend them and run uninstall again".into());
                }
            }
            Ok(())
        }
        Command::Disks(arguments) => disks(arguments),
        Command::Assess(arguments) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(runtime.block_on(assess::run(arguments))?)
        }
        Command::ThawWatchdog(arguments) => Ok(watchdog::run(&arguments.thaw_socket)?),
        Command::ReleaseHooks(arguments) => {
            Ok(hooks::release_left(&arguments.hooks_dir, &arguments.hooks_state)?)
        }
        Command::Early(EarlyArgs { pins, without_limit }) => {
            let places = RebootPlaces::default();
            if without_limit {
                reboot::early(&Discovery::default(), &pins.pin_dir, &places)?;
                return Ok(ExitCode::SUCCESS);
            }
            let mut worker = std::process::Command::new(std::env::current_exe()?);
            worker.args(["early", "--without-limit", "--pin-dir"]).arg(&pins.pin_dir);
            Ok(reboot::early_within_limit(&mut worker, &places)?)
        }
        Command::ShutdownSave(arguments) => {
            let bytes = reboot::save(&reboot::SaveOptions {
                state: state.path().to_owned(),
                pins: arguments.pin_dir,
                places: RebootPlaces::default(),
                sysfs: PathBuf::from("/sys"),
                boot: PathBuf::from("/boot"),
                fstab: PathBuf::from("/etc/fstab"),
                disk_names: PathBuf::from(reboot::DISK_NAMES),
                wall: Env::system().wall,
            })?;
            println!("lifeboat-agent: what is dirty is saved for the next start ({bytes} bytes)");
            Ok(())
        }
        Command::Hooks(arguments) => hook_files::run(&arguments.places, &arguments.command),
    };
    done.map(|()| ExitCode::SUCCESS)
}

fn upgrade(state: StateDir, arguments: UpgradeArgs) -> Result<ExitCode, Box<dyn Error>> {
    let units = arguments.install.unit_dir;
    let program = std::env::current_exe()?;
    upgrade::installed_here(&units.join(AGENT_UNIT), &program)?;
    let mut upgrade = Upgrade {
        origin: upgrade::origin(&state.load()?)?,
        files: Files { program, state: state.path().to_owned() },
        service: Systemd { units },
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if arguments.check {
        return Ok(match runtime.block_on(upgrade.check())? {
            Found::UpToDate => {
                println!("already up to date");
                ExitCode::SUCCESS
            }
            Found::Other(digest) => {
                println!("the appliance serves another agent ({digest}): run `lifeboat-agent upgrade`");
                ExitCode::from(OTHER_SERVED)
            }
            Found::Unfinished => {
                println!("an upgrade was not finished: run `lifeboat-agent upgrade`");
                ExitCode::from(OTHER_SERVED)
            }
        });
    }
    match runtime.block_on(upgrade.run())? {
        Outcome::UpToDate => println!("already up to date"),
        Outcome::Restarted => println!("the installed agent is up to date, and runs now"),
        Outcome::Upgraded => {
            println!("upgraded; the former agent is kept as {}", upgrade.files.previous().display());
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn enroll(state: &StateDir, arguments: Enroll) -> Result<(), Box<dyn Error>> {
    let ca_pem = std::fs::read_to_string(&arguments.ca)
        .map_err(|error| format!("cannot read {}: {error}", arguments.ca.display()))?;
    let invitation =
        Invitation { management: arguments.management, ca_pem, pinned: arguments.pin, token: token()? };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let identity = runtime.block_on(enrol::enrol(&invitation, &machine::describe(Path::new("/")), state))?;
    println!("enrolled as server {}", identity.server);
    Ok(())
}

/// Never from an argument: those stand in the process list.
fn token() -> Result<Secret, Box<dyn Error>> {
    let missing = || format!("no token: set {TOKEN}, or give it on standard input");
    let token = match std::env::var(TOKEN) {
        Ok(token) => token,
        Err(_) if io::stdin().is_terminal() => return Err(missing().into()),
        Err(_) => {
            let mut line = String::new();
            io::stdin().lock().read_line(&mut line)?;
            line
        }
    };
    match token.trim() {
        "" => Err(missing().into()),
        token => Ok(Secret::new(token.to_owned())),
    }
}

fn disks(arguments: DiskArgs) -> Result<(), Box<dyn Error>> {
    let found = Discovery { include: arguments.include, ..Discovery::default() }.find()?;
    for disk in &found.disks {
        println!("{}\t{}\t{} bytes", disk.path().display(), disk.id, disk.size_bytes);
    }
    for issue in &found.issues {
        println!("{}: {}; {}", issue.code, issue.message, issue.remedy);
    }
    println!("tracking: {}", kernel::best(Path::new("/sys"), Env::system().wall, &found.disks));
    Ok(())
}

fn places(
    state: StateDir,
    units: PathBuf,
    pins: PathBuf,
    thaw_socket: PathBuf,
) -> Result<Places, Box<dyn Error>> {
    Ok(Places {
        units,
        pins,
        thaw_socket,
        hooks: PathBuf::from(hooks::HOOKS),
        hooks_state: PathBuf::from(hooks::STATE),
        restart: RestartPlaces::default(),
        run: PathBuf::from(reboot::RUN),
        binary: std::env::current_exe()?,
        state,
    })
}
