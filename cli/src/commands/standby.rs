//! `lockstep standby`.

use clap::{Args, Subcommand};

use super::Context;
use crate::failure::Failure;
use crate::{json, text, view};

#[derive(Debug, Subcommand)]
#[command(after_help = AFTER_HELP)]
pub(crate) enum Command {
    /// Follow the location's newest checkpoint, or stay on one.
    Start(Start),
    /// Follow no more; the hosts keep what they have.
    Stop {
        /// Name or UUID of the pipeline.
        pipeline: String,
    },
    /// What it follows, what its hosts hold, and how far that is behind.
    Status {
        /// Name or UUID of the pipeline.
        pipeline: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Start {
    /// Name or UUID of the pipeline.
    pipeline: String,
    /// Stay on this checkpoint: the UUID of the push round that made it. Without it the newest is followed.
    #[arg(long, value_name = "UUID", default_value = "", hide_default_value = true)]
    checkpoint: String,
}

const AFTER_HELP: &str = "\
A standby is a pipeline that is created with `initial: standby`. It owns nothing and runs nothing: at each pull_interval (default 10s) its hosts are brought to
the newest checkpoint of its location, else of its read_location, fetching only what is new. What fails changes nothing on the hosts.

Examples:
  lockstep standby status orders-standby
  lockstep standby start orders-standby --checkpoint 3f0c9a52-6e0a-4a53-9b0e-1f3a4a2d7c11
  lockstep standby stop orders-standby";

pub(crate) async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    let pipeline = match command {
        Command::Start(args) => context.client.start_standby(args.pipeline, args.checkpoint).await?,
        Command::Stop { pipeline } => context.client.stop_standby(pipeline).await?,
        Command::Status { pipeline } => context.client.get_pipeline(pipeline).await?,
    };
    let name = pipeline.spec.as_ref().map_or("", |spec| spec.name.as_str());
    let document = || {
        serde_json::json!({
            "pipeline": name,
            "id": pipeline.id,
            "generation": pipeline.generation,
            "standby": pipeline.standby.as_ref().map(json::standby),
        })
    };
    context.format.give(document, || match &pipeline.standby {
        None => format!("pipeline {name} is no standby: it owns its location in generation {}", pipeline.generation),
        Some(standby) => {
            let mut shown = text::pairs(view::standby_rows(standby));
            if let Some(problem) = &standby.problem {
                shown.push_str(&format!("\n\nthe hosts keep what they have:\n{}", view::problem_lines(problem)));
            }
            shown
        }
    });
    Ok(())
}
