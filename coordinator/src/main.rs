//! `lockstep-coordinator`; everything is in the library.

use clap::Parser as _;

fn main() -> std::process::ExitCode {
    lockstep_coordinator::app::run(lockstep_coordinator::config::CoordinatorArgs::parse())
}
