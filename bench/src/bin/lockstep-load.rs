//! `lockstep-load`: see `lockstep_bench::load`. Starts itself again in front of each coordinator, by a hidden first argument.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser as _;
use lockstep_bench::{child, load};
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    if let Some((first, rest)) = words.split_first()
        && first == child::EXEC
    {
        return child::exec(rest);
    }
    let args = load::Args::parse();
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every round was committed.
fn run(args: &load::Args) -> anyhow::Result<bool> {
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        // Only a second provider is refused, and nothing ran before this.
        anyhow::bail!("another crypto provider is installed");
    }
    // Its main future runs on this thread, to which the kernel ties the children.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        tokio::select! {
            ended = load::measure(args) => ended,
            _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted")),
            _ = terminate.recv() => Err(anyhow::anyhow!("terminated")),
        }
    })
}
