//! The `lockstep` command: pipelines, pushes and pulls for people and scripts, and the whole system on one machine for
//! trying it out.
//!
//! It is built on `lockstep-client`; whatever it shows, a pipeline manager can have through the same calls. Results go to
//! stdout as a table or as exactly one JSON document (`output`, `json`, `view`, `text`); progress, warnings and errors go
//! to stderr (`progress`, `failure`). A command that waits for a round follows it (`follow`) and ends with its outcome.
//!
//! Modules: `args` (the command line), `commands` (one module each), `follow`, `spec` (from a file to the protocol's
//! message), `actor` (who does this), and those above.

mod actor;
mod args;
mod commands;
mod failure;
mod follow;
mod json;
mod output;
mod progress;
mod spec;
mod text;
mod view;

use std::process::ExitCode;

use clap::Parser as _;
use lockstep_telemetry::TelemetryOptions;
use tracing::Instrument as _;

use args::{Cli, Command, Global};
use commands::Context;
use failure::{Exit, Failure};
use output::{Format, note};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let format = cli.global.output;
    let exit = match run(cli) {
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

fn run(cli: Cli) -> Result<(), Failure> {
    // Fails only if a provider was installed before: nobody did.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(2)
        .build()
        .map_err(|error| Failure::local("INTERNAL", format!("can't start the runtime: {error}")))?;
    // Last to go: it exports the spans of everything else.
    let _telemetry = telemetry(&cli.global)?;
    let span = tracing::info_span!("lockstep", otel.kind = "internal");
    runtime.block_on(command(cli).instrument(span))
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

async fn command(cli: Cli) -> Result<(), Failure> {
    let global = cli.global;
    match cli.command {
        Command::Pipeline(command) => commands::pipeline::run(&Context::new(&global)?, command).await,
        Command::Push(args) => commands::push::run(&Context::new(&global)?, args).await,
        Command::Pull(args) => commands::pull::run(&Context::new(&global)?, args).await,
        Command::Round(command) => commands::round::run(&Context::new(&global)?, command).await,
        Command::Checkpoint(command) => commands::checkpoint::run(&Context::new(&global)?, command).await,
        Command::Audit(args) => commands::audit::run(&Context::new(&global)?, args).await,
        Command::Status(args) => commands::status::run(&Context::new(&global)?, args).await,
        Command::Probe(args) => commands::probe::run(global.output, args).await,
    }
}
