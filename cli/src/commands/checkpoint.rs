//! `lockstep checkpoint`.

use clap::Subcommand;
use futures::StreamExt as _;
use serde_json::json;

use super::Context;
use crate::failure::Failure;
use crate::progress::Meter;
use crate::{json, view};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The checkpoints in a pipeline's location, newest first, read from the bucket.
    List {
        /// Name or UUID of the pipeline.
        pipeline: String,
        /// At most this many.
        #[arg(long, default_value_t = 20, value_name = "N")]
        limit: usize,
    },
    /// One checkpoint with the part of every host.
    Show {
        /// Name or UUID of the pipeline.
        pipeline: String,
        /// UUID, step, or latest.
        #[arg(default_value = "latest")]
        checkpoint: String,
    },
    /// Re-read every object of a checkpoint and compare digests; exit code 1 if something does not hold.
    Verify {
        /// Name or UUID of the pipeline.
        pipeline: String,
        /// UUID, step, or latest.
        #[arg(default_value = "latest")]
        checkpoint: String,
    },
}

pub(crate) async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::List { pipeline, limit } => {
            let checkpoints = context.client.list_checkpoints(pipeline, limit).await?;
            let document = || json!({"checkpoints": checkpoints.iter().map(json::checkpoint).collect::<Vec<_>>()});
            context.format.give(document, || view::checkpoints(&checkpoints));
            Ok(())
        }
        Command::Show { pipeline, checkpoint } => {
            let checkpoint = context.client.get_checkpoint(pipeline, checkpoint).await?;
            context.format.give(|| json::checkpoint(&checkpoint), || view::checkpoint(&checkpoint));
            Ok(())
        }
        Command::Verify { pipeline, checkpoint } => verify(context, pipeline, checkpoint).await,
    }
}

async fn verify(context: &Context, pipeline: String, checkpoint: String) -> Result<(), Failure> {
    let mut verification = context.client.verify_checkpoint(pipeline, checkpoint).await?;
    let mut meter = Meter::new(context.format.progress(), "verifying");
    let last = loop {
        let Some(next) = verification.next().await else {
            return Err(Failure::local("INTERNAL", "the verification ended without a result"));
        };
        let next = next?;
        if let Some(progress) = &next.progress {
            meter.update(progress);
        }
        if next.done {
            break next;
        }
    };
    meter.finish();
    context.format.give(|| json::verification(&last), || view::verification(&last));
    match last.problems.first() {
        Some(problem) => Err(Failure::of_problem(problem)),
        None => Ok(()),
    }
}
