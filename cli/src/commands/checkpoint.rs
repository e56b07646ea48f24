//! `lockstep checkpoint`.

use clap::Subcommand;
use futures::StreamExt as _;
use lockstep_client::v1;
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
    ///
    /// The result is kept and shown by `checkpoint list` and `show`. A damaged checkpoint is marked in the bucket: from then on it is neither latest nor a base, pulls of
    /// latest get the one before, and the next push sends everything again.
    Verify {
        /// Name or UUID of the pipeline.
        pipeline: String,
        /// UUID, step, or latest.
        #[arg(default_value = "latest")]
        checkpoint: String,
        /// Read its documents and look whether every object is there and long enough, but read no file: finds what is missing, not what was changed.
        #[arg(long)]
        structure_only: bool,
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
        Command::Verify { pipeline, checkpoint, structure_only } => {
            verify(context, v1::VerifyCheckpointRequest { pipeline, checkpoint, structure_only }).await
        }
    }
}

async fn verify(context: &Context, request: v1::VerifyCheckpointRequest) -> Result<(), Failure> {
    let mut verification = context.client.verify(request).await?;
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
