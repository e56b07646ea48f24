//! `lockstep-agent`: the sidecar. Everything is in the library.

use std::process::ExitCode;

use clap::Parser;
use lockstep_agent::{
    args::{self, AgentArgs},
    wait::{self, WaitReady},
};

/// Pushes and pulls the checkpoints of one host, as a coordinator orders
///
/// Runs beside an engine, on the same file system as its state. It does nothing by itself: a coordinator orders a push or pull of one
/// checkpoint over all hosts of the pipeline. What an order may ask is fixed by the flags: pipeline, host and locations.
#[derive(Parser)]
#[command(name = "lockstep-agent", version, after_long_help = args::EXAMPLES)]
struct Cli {
    #[command(flatten)]
    args: AgentArgs,
}

// No subcommand of the above: what an agent needs may stand in the environment of its pod, and is neither needed nor in the way here.
#[derive(Parser)]
#[command(name = "lockstep-agent-wait-ready", bin_name = "lockstep-agent wait-ready", version)]
struct Wait {
    #[command(flatten)]
    wait: WaitReady,
}

fn main() -> ExitCode {
    lockstep_agent::allocator::give_memory_back();
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        // Only a second provider is refused, and nothing ran before this.
        eprintln!("error: another crypto provider is installed");
        return ExitCode::FAILURE;
    }
    let mut arguments = std::env::args_os().skip(1).peekable();
    if arguments.peek().is_some_and(|first| first == "wait-ready") {
        return wait::run(&Wait::parse_from(arguments).wait);
    }
    args::run(Cli::parse().args)
}
