//! `lockstep-agent`: the sidecar. Everything is in the library.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lockstep_agent::{
    args::{self, AgentArgs},
    wait::{self, WaitReady},
};

/// Pushes and pulls the checkpoints of one host, as a coordinator orders
///
/// Runs beside an engine, on the same file system as its state. It does nothing by itself: a coordinator orders a push or pull of one
/// checkpoint over all hosts of the pipeline. What an order may ask is fixed by the flags: pipeline, host and locations.
#[derive(Parser)]
#[command(
    name = "lockstep-agent",
    version,
    after_long_help = args::EXAMPLES,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    args: Option<AgentArgs>,
}

#[derive(Subcommand)]
enum Command {
    WaitReady(WaitReady),
}

fn main() -> ExitCode {
    lockstep_agent::allocator::give_memory_back();
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        // Only a second provider is refused, and nothing ran before this.
        eprintln!("error: another crypto provider is installed");
        return ExitCode::FAILURE;
    }
    match Cli::parse() {
        Cli { command: Some(Command::WaitReady(wait)), .. } => wait::run(&wait),
        Cli { args: Some(args), .. } => args::run(args),
        // Unless there is a command the flags are required.
        Cli { command: None, args: None } => {
            eprintln!("error: say how the agent is to run, see --help");
            ExitCode::from(2)
        }
    }
}
