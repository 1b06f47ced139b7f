//! `kubectl lifeboat`: what a person types at 3 a.m.
//!
//! One file a command; `cluster` talks to the API server, `text` makes columns and durations readable. Everything a
//! command shows can also be seen with plain kubectl: the plugin only puts it on one screen.

mod approve;
mod cluster;
mod enroll;
mod failover;
mod point;
mod recovery_key;
mod shutdown;
mod status;
mod text;
mod vault;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::cluster::{Cluster, PluginError};

#[derive(Parser)]
#[command(
    name = "kubectl lifeboat",
    version,
    about = "Disaster recovery of servers: enrol, watch, fail over, approve"
)]
struct Arguments {
    /// Namespace; the kubeconfig's own when absent.
    #[arg(short, long, global = true)]
    namespace: Option<String>,
    /// Context of the kubeconfig; the current one when absent.
    #[arg(long, global = true)]
    context: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one in a process")]
enum Command {
    /// Prints the one command to run on a server that is to be protected.
    Enroll(enroll::Enroll),
    /// Shows on one screen whether all is well, and if not, what to do.
    Status(status::Status),
    /// Starts a run of a plan and follows it.
    Failover(failover::Failover),
    /// Asks a server for a point of this moment, and waits for it.
    Point(point::Point),
    /// Takes a server out of service: stopped, replicated to its last write, switched off.
    Shutdown(shutdown::Shutdown),
    /// Answers a step that waits for people.
    Approve(approve::Approve),
    /// Recovery keys, which open the vault when the cluster is gone.
    #[command(subcommand)]
    RecoveryKey(recovery_key::RecoveryKey),
    /// What a vault holds and whether it is whole; needs no cluster.
    #[command(subcommand)]
    Vault(vault::Vault),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = match runtime {
        Ok(runtime) => match arguments.command {
            Command::Vault(command) => return runtime.block_on(command.run()),
            _ => runtime.block_on(run(arguments)),
        },
        Err(source) => Err(PluginError::Io { what: "start", source }),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", text::chain(&error));
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), PluginError> {
    let Arguments { namespace, context, command } = arguments;
    if let Command::RecoveryKey(command) = command {
        return command.run();
    }
    let cluster = Cluster::connect(context, namespace).await?;
    match command {
        Command::Enroll(command) => command.run(&cluster).await,
        Command::Status(command) => command.run(&cluster).await,
        Command::Failover(command) => command.run(&cluster).await,
        Command::Point(command) => command.run(&cluster).await,
        Command::Shutdown(command) => command.run(&cluster).await,
        Command::Approve(command) => command.run(&cluster).await,
        Command::RecoveryKey(_) | Command::Vault(_) => Ok(()),
    }
}
