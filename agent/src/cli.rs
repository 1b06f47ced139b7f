//! The command line.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{assess, install, kernel, state};

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
    /// Replace this agent by the one that the appliance serves, if that is another one.
    ///
    /// The new one is downloaded and tried before anything is replaced. It then installs itself as `install` does, which
    /// starts the service anew: replication pauses for seconds. If the service does not stay up, the former agent is put
    /// back. Run it again if it was interrupted: it goes on where it was. The former agent is kept as NAME.previous.
    Upgrade(UpgradeArgs),
    /// Replicate this server's disks until stopped.
    Run(Run),
    /// Stop the agent and remove everything of it: units, tracker, state and this program.
    Uninstall(UninstallArgs),
    /// List the disks that can be protected, why others cannot, and how changes would be found here.
    Disks(DiskArgs),
    /// Measure how much of this server's disks changes, and say what uplink, spool and storage it will need.
    ///
    /// Needs neither an appliance nor an enrolment, only root. Changes are tracked as `run` does it, beside a running
    /// agent if there is one; samples of the disks are read and compressed to learn what would be sent. Nothing is
    /// written, and nothing stays in the kernel when it ends, however it ends. Run it for a day or longer, with the
    /// server at its usual work. Ctrl-C prints the figures up to then.
    Assess(Assess),
    /// Thaw frozen file systems when the agent does not (lifeboat-thaw.service).
    ThawWatchdog(SocketArg),
    /// Let applications go on that the agent had prepared for a point when it ended (lifeboat-agent.service).
    ReleaseHooks(HookArgs),
    /// Track all disks from the initramfs on, until the agent runs (the script that `install` puts there).
    #[command(hide = true)]
    Early(EarlyArgs),
    /// Save what is dirty when nothing writes any more (the program in systemd's system-shutdown directory).
    #[command(hide = true)]
    ShutdownSave(PinArg),
    /// Hooks that prepare applications for application-consistent points.
    Hooks(HooksArgs),
}

#[derive(Debug, Args)]
pub struct EarlyArgs {
    #[command(flatten)]
    pub pins: PinArg,
    /// Do the work in this process, however long the disks take.
    #[arg(long)]
    pub without_limit: bool,
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
pub struct UpgradeArgs {
    /// Change nothing; only say whether the appliance serves another agent. The exit code is 10 if it does (or if an
    /// upgrade was interrupted), 0 if this one is up to date, 1 if that cannot be said.
    #[arg(long)]
    pub check: bool,
    #[command(flatten)]
    pub install: InstallArgs,
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
    /// How changes are found. Another one than before makes all disks be compared with the vault.
    #[arg(long, value_enum, default_value_t, env = "LIFEBOAT_TRACKING")]
    pub tracking: kernel::Tracking,
    /// The appliance may not shut this server down (spec.requestShutdown of its ProtectedServer).
    #[arg(long, env = "LIFEBOAT_NO_SHUTDOWN")]
    pub no_shutdown: bool,
    /// Beginning of the names of units that such a shutdown does not stop, since the agent reaches the appliance through
    /// them (a VPN, a tunnel); may be given several times.
    #[arg(long, value_name = "UNIT", env = "LIFEBOAT_SHUTDOWN_KEEPS", value_delimiter = ',')]
    pub shutdown_keeps: Vec<String>,
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
pub struct Assess {
    #[command(flatten)]
    pub disks: DiskArgs,
    /// How long to measure.
    #[arg(long = "for", default_value = "24h", value_name = "TIME", value_parser = assess::parse_length)]
    pub length: Duration,
    /// Time between rounds, as `roundInterval` of the ReplicationPolicy to be used: 1s to 5m. Longer rounds carry less
    /// of what is written again and again; the report compares.
    #[arg(long, default_value = "15s", value_name = "TIME", value_parser = assess::parse_length)]
    pub interval: Duration,
    /// The RPO for which the uplink is sized, besides 1m, 5m and 15m.
    #[arg(long, default_value = "5m", value_name = "TIME", value_parser = assess::parse_length)]
    pub rpo: Duration,
    /// Share of one processor's time, in percent, for reading and compressing samples. 0 reads nothing: then all is
    /// taken to be full and not to compress.
    #[arg(long, default_value_t = 2, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub sample: u8,
    /// How to print the report, on standard output.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
    /// Time between two lines of progress on standard error; 0s: none.
    #[arg(long, default_value = "30s", value_name = "TIME", value_parser = assess::parse_length)]
    pub progress: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Text,
    /// For programs; the book's page "Plan capacity" explains the fields.
    Json,
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
