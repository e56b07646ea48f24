//! `lockstep-bench`: Lockstep beside other movers of files, on one machine, one S3 server and the same data.
//!
//! The path of a measurement: `args` says what is wanted in the words of `plan`; `workdir` finds room; `bench` starts the S3
//! server (`server`), Lockstep (`ours`) and finds the peers (`peers`), generates the files (`data`), and has each tool in turn
//! move them; `runner` measures a peer, `proc` an agent; `sample` keeps the figures, `report`, `targets` and `json` show them.
//!
//! This binary starts itself again for the S3 server, around each peer and in front of each server (`child`), by hidden first arguments.

mod args;
mod bench;
mod data;
mod json;
mod ours;
mod peers;
mod plan;
mod report;
mod runner;
mod sample;
mod server;
mod targets;
mod workdir;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};

use args::Args;
use lockstep_bench::{child, proc};

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    // The runner measures others: nothing is set up before it.
    match words.split_first() {
        Some((first, rest)) if first == child::EXEC => return child::exec(rest),
        Some((first, rest)) if first == runner::RUN => return runner::run(rest),
        Some((first, rest)) if first == server::SERVE => return server::serve(rest),
        _ => {}
    }
    let args = Args::parse();
    match measure(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all went well.
fn measure(args: &Args) -> Result<bool> {
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        // Only a second provider is refused, and nothing ran before this.
        anyhow::bail!("another crypto provider is installed");
    }
    let scope = args.scope();
    let bin_dir = match &args.bin_dir {
        Some(folder) => folder.clone(),
        None => beside_this_program()?,
    };
    let json = args.json.as_deref().map(json::Sink::create).transpose()?;
    // Outlives the runtime: what still writes when Ctrl-C comes has ended when this is removed.
    let folder = workdir::create(args.dir.as_deref(), &scope.data_sets, scope.scale)?;
    // One thread, so that the bench takes little from what it measures; children are tied to it by the kernel.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        tokio::select! {
            ended = bench::run(&scope, folder.path(), &bin_dir) => ended,
            _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted")),
            _ = terminate.recv() => Err(anyhow::anyhow!("terminated")),
        }
    });
    data::stop();
    drop(runtime);
    let outcome = ended?;
    let medians = outcome.results.medians();
    report::print(&report::render(&medians, &outcome));
    if let Some(sink) = json {
        sink.write(&medians)?;
    }
    Ok(outcome.failures.is_empty())
}

fn beside_this_program() -> Result<PathBuf> {
    let this = std::env::current_exe().context("can't find this program")?;
    Ok(this.parent().context("this program is in no folder")?.to_owned())
}
