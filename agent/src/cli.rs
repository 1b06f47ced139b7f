//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::{install, kernel, state};

/// The mobility agent of Lifeboat: tracks and replicates the disks of this server.
#[derive(Debug, Parser)]
#[command(name = "lifeboat-agent", version)]
pub struct Cli {
    /// Where the agent keeps its key and certificates.
    #[arg(long, global = true, default_value = state::STATE_DIR)]
    pub state_dir: PathBuf,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Exchange a one-time token for this server's certificate (`kubectl lifeboat enroll` prints the whole command).
    ///
    /// The token is read from LIFEBOAT_ENROLMENT_TOKEN or, without it, from the first line of standard input.
    Enroll(Enroll),
    /// Write the systemd units for this program and start them.
    Install(InstallArgs),
    /// Replicate this server's disks until stopped.
    Run(Run),
    /// Stop the agent and remove everything of it: units, tracker, state and this program.
    Uninstall(UninstallArgs),
    /// List the disks that can be protected, and why others cannot.
    Disks(DiskArgs),
    /// Thaw frozen file systems when the agent does not (lifeboat-thaw.service).
    ThawWatchdog(SocketArg),
    /// Let applications go on that the agent had prepared for a point when it ended (lifeboat-agent.service).
    ReleaseHooks(HookArgs),
    /// Hooks that prepare applications for application-consistent points.
    Hooks(HooksArgs),
}

#[derive(Debug, Args)]
pub struct HooksArgs {
    #[command(flatten)]
    pub places: HookArgs,
    #[command(subcommand)]
    pub command: HooksCommand,
}

#[derive(Debug, Subcommand)]
pub enum HooksCommand {
    /// Install a hook that comes with the agent: postgresql or mariadb.
    Enable { name: String },
    /// Take a hook away that `enable` has installed and nobody has changed.
    Disable { name: String },
    /// Run every pre and post once, without a point, and say how long that took.
    Check,
}

#[derive(Debug, Args)]
pub struct HookArgs {
    /// Directory with a directory for each hook, with the programs pre and post.
    #[arg(long, global = true, default_value = kernel::hooks::HOOKS)]
    pub hooks_dir: PathBuf,
    /// Directory in memory for what is under way.
    #[arg(long, global = true, default_value = kernel::hooks::STATE)]
    pub hooks_state: PathBuf,
}

#[derive(Debug, Args)]
pub struct Enroll {
    /// host:port of the appliance's management endpoint; may be given several times.
    #[arg(long, required = true, value_name = "HOST:PORT")]
    pub management: Vec<String>,
    /// File with the appliance's CA certificate.
    #[arg(long, value_name = "FILE")]
    pub ca: PathBuf,
    /// `sha256//…` of the management endpoint's public key.
    #[arg(long, value_name = "sha256//HASH")]
    pub pin: Option<String>,
}

#[derive(Debug, Args)]
pub struct InstallArgs {
    /// Where the units go.
    #[arg(long, default_value = install::UNIT_DIR)]
    pub unit_dir: PathBuf,
}

#[derive(Debug, Args)]
pub struct UninstallArgs {
    #[command(flatten)]
    pub install: InstallArgs,
    #[command(flatten)]
    pub pins: PinArg,
    #[command(flatten)]
    pub socket: SocketArg,
}

#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    pub disks: DiskArgs,
    #[command(flatten)]
    pub pins: PinArg,
    #[command(flatten)]
    pub socket: SocketArg,
    #[command(flatten)]
    pub hooks: HookArgs,
}

#[derive(Debug, Args)]
pub struct DiskArgs {
    /// Protect only this disk; may be given several times. Loop devices are protected only when named.
    #[arg(long = "include-disk", value_name = "PATH")]
    pub include: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub struct PinArg {
    /// Directory in a bpf file system that holds the tracker while no agent runs.
    #[arg(long, default_value = kernel::PINS)]
    pub pin_dir: PathBuf,
}

#[derive(Debug, Args)]
pub struct SocketArg {
    /// Socket on which the watchdog listens.
    #[arg(long, default_value = kernel::watchdog::SOCKET)]
    pub thaw_socket: PathBuf,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_token_cannot_be_given_as_an_argument() {
        let refused = Cli::try_parse_from(["lifeboat-agent", "enroll", "--token", "x"]);
        assert!(refused.is_err());
    }
}
