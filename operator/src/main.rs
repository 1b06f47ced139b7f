//! Starts the operator, or the check of a check Job.

use lifeboat_replication::errors::chain;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lifeboat_operator::{check, program, runtime::settings::Settings};
use tracing_subscriber::EnvFilter;

/// The Kubernetes operator of Lifeboat.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Ask a recovered service; what check Jobs run.
    Check,
}

fn main() -> ExitCode {
    let Arguments { command, settings } = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return ended(Err(Box::new(error))),
    };
    match command {
        Some(Command::Check) => runtime.block_on(async {
            let answer = async { check::run(&check::Order::from_environment()?).await };
            match answer.await {
                Ok(answer) => {
                    println!("answered: {answer}");
                    ExitCode::SUCCESS
                }
                Err(error) => {
                    eprintln!("{}", chain(&error));
                    ExitCode::FAILURE
                }
            }
        }),
        None => {
            tracing_subscriber::fmt().json().with_env_filter(EnvFilter::new(&settings.log)).init();
            ended(runtime.block_on(program::run(settings)).map_err(Into::into))
        }
    }
}

fn ended(result: Result<(), Box<dyn std::error::Error>>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = %chain(&*error), "stopped");
            ExitCode::FAILURE
        }
    }
}
