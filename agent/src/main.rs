//! `lockstep-agent`: the sidecar. Everything is in the library.

use std::process::ExitCode;

use clap::Parser;
use lockstep_agent::args::{self, AgentArgs};

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

fn main() -> ExitCode {
    lockstep_agent::allocator::give_memory_back();
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        // Only a second provider is refused, and nothing ran before this.
        eprintln!("error: another crypto provider is installed");
        return ExitCode::FAILURE;
    }
    args::run(Cli::parse().args)
}
