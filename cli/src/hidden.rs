//! Subcommands that `dev` and `demo` start as child processes, and tests too. They set up telemetry and runtime themselves.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use lockstep_devkit::{S3Options, S3Server};
use tokio::signal::unix::{SignalKind, signal};

use crate::args::Hidden;
use crate::output::{note, print};
use crate::rig;

/// The embedded S3 server as a process of its own.
#[derive(Debug, Args)]
pub(crate) struct S3 {
    /// Where it listens; port 0 takes a free one. The endpoint is the one line on stdout.
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDR")]
    listen: SocketAddr,
    /// Where objects are kept; without it they go with the process.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Made if it does not exist; repeatable.
    #[arg(long = "bucket", value_name = "NAME")]
    buckets: Vec<String>,
    #[arg(long, env = "AWS_ACCESS_KEY_ID", value_name = "ID")]
    access_key_id: String,
    #[arg(long, env = "AWS_SECRET_ACCESS_KEY", hide_env_values = true, value_name = "SECRET")]
    secret_access_key: String,
}

/// Runs to the end of the process.
pub(crate) fn run(command: Hidden) -> ExitCode {
    rig::end_with_the_supervisor();
    match command {
        Hidden::Coordinator(args) => lockstep_coordinator::app::run(*args),
        Hidden::Agent(args) => lockstep_agent::args::run(args),
        Hidden::S3(args) => s3(args),
    }
}

fn s3(args: S3) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            note(&format!("error: can't start the runtime: {error}"));
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(serve_s3(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            note(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

async fn serve_s3(args: S3) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let server = S3Server::start(S3Options {
        listen: args.listen,
        root: args.root,
        buckets: args.buckets,
        credentials: vec![(args.access_key_id, args.secret_access_key)],
        ..S3Options::default()
    })
    .await?;
    print(&server.endpoint());
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    server.stop().await;
    Ok(())
}
