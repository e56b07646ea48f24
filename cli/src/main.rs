//! The `lockstep` command: pipelines, pushes and pulls for people and scripts, and the whole system on one machine for
//! trying it out.
//!
//! It is built on `lockstep-client`; whatever it shows, a pipeline manager can have through the same calls. Results go to
//! stdout as a table or as exactly one JSON document (`output`, `json`, `view`, `text`); progress, warnings and errors go
//! to stderr (`progress`, `failure`). A command that waits for a round follows it (`follow`) and ends with its outcome.
//!
//! `demo` and `dev` run all of Lockstep here: a `rig` of Postgres and S3 in this process and coordinator and agents as
//! children, which are this same binary with `hidden` subcommands; a small `engine` for each host gives them work.
//!
//! Modules: `args` (the command line), `commands` (one module each), `follow`, `spec` (from a file to the protocol's
//! message), `actor` (who does this), and those above.

mod actor;
mod args;
mod commands;
mod demo;
mod dev;
mod engine;
mod failure;
mod follow;
mod hidden;
mod import;
mod json;
mod output;
mod progress;
mod rig;
mod spec;
mod text;
mod view;

use std::process::ExitCode;

use clap::Parser as _;
use lockstep_telemetry::TelemetryOptions;
use tracing::Instrument as _;

use args::{Cli, Command, Global, Ours};
use commands::Context;
use failure::{Exit, Failure};
use output::{Format, note};

fn main() -> ExitCode {
    // Fails only if a provider was installed before: nobody did.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let Cli { global, command } = Cli::parse();
    let command = match command {
        Command::Hidden(hidden) => return hidden::run(*hidden),
        Command::Ours(command) => command,
    };
    let format = global.output;
    let exit = match run(global, command) {
        Ok(()) => Exit::Done,
        Err(failure) => {
            note(&failure.to_string());
            if format == Format::Json && !failure.document_given {
                format.give(|| failure.document(), String::new);
            }
            failure.exit
        }
    };
    ExitCode::from(exit as u8)
}

fn run(global: Global, command: Ours) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(2)
        .build()
        .map_err(|error| Failure::local("INTERNAL", format!("can't start the runtime: {error}")))?;
    // Last to go: it exports the spans of everything else.
    let _telemetry = telemetry(&global)?;
    let span = tracing::info_span!("lockstep", otel.kind = "internal");
    runtime.block_on(Box::pin(dispatch(global, command)).instrument(span))
}

/// Logs on stderr, warnings only unless more is asked for; and a trace that runs through to the S3 requests.
fn telemetry(global: &Global) -> Result<lockstep_telemetry::TelemetryGuard, Failure> {
    let named =
        ["LOCKSTEP_LOG", "RUST_LOG"].iter().any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()));
    let quiet = (!named).then(|| "warn".to_owned());
    let log_filter = global.log_level.clone().or(quiet);
    lockstep_telemetry::init(TelemetryOptions { log_filter, ..TelemetryOptions::new("lockstep") })
        .map_err(|error| Failure::local("TELEMETRY_INVALID", error.to_string()))
}

async fn dispatch(global: Global, command: Ours) -> Result<(), Failure> {
    match command {
        Ours::Pipeline(command) => commands::pipeline::run(&Context::new(&global)?, command).await,
        Ours::Push(args) => commands::push::run(&Context::new(&global)?, args).await,
        Ours::Pull(args) => commands::pull::run(&Context::new(&global)?, args).await,
        Ours::Round(command) => commands::round::run(&Context::new(&global)?, command).await,
        Ours::Checkpoint(command) => commands::checkpoint::run(&Context::new(&global)?, command).await,
        Ours::Standby(command) => commands::standby::run(&Context::new(&global)?, command).await,
        Ours::TakeOver(args) => commands::take_over::run(&Context::new(&global)?, args).await,
        Ours::Audit(args) => commands::audit::run(&Context::new(&global)?, args).await,
        Ours::Status(args) => commands::status::run(&Context::new(&global)?, args).await,
        Ours::Probe(args) => commands::probe::run(global.output, args).await,
        Ours::Dev(args) => dev::run(args).await,
        Ours::Demo(args) => demo::run(args).await,
    }
}
