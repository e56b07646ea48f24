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
    #[command(after_help = LIST_HELP)]
    List {
        /// Name or UUID of the pipeline.
        pipeline: String,
        /// At most this many.
        #[arg(long, default_value_t = 20, value_name = "N")]
        limit: usize,
    },
    /// One checkpoint with the part of every host.
    #[command(after_help = SHOW_HELP)]
    Show {
        /// Name or UUID of the pipeline.
        pipeline: String,
        /// UUID, step, latest, or place GENERATION-SEQ.
        #[arg(default_value = "latest")]
        checkpoint: String,
    },
    /// Re-read every object of a checkpoint and compare digests; exit code 1 if something does not hold.
    ///
    /// The result is kept and shown by `checkpoint list` and `show`. A damaged checkpoint is marked in the bucket: from then on it is neither latest nor a base, pulls of
    /// latest get the one before, and the next push sends everything again.
    #[command(after_help = VERIFY_HELP)]
    Verify {
        /// Name or UUID of the pipeline.
        pipeline: String,
        /// UUID, step, latest, or place GENERATION-SEQ.
        #[arg(default_value = "latest")]
        checkpoint: String,
        /// Read its documents and look whether every object is there and long enough, but read no file: finds what is missing, not what was changed.
        #[arg(long)]
        structure_only: bool,
    },
    /// Keep a checkpoint, whatever the pipeline's retention says, until it is unpinned.
    #[command(after_help = PIN_HELP)]
    Pin {
        /// Name or UUID of the pipeline.
        pipeline: String,
        /// UUID, step, latest, or place GENERATION-SEQ; not one that can't be read.
        checkpoint: String,
        /// What the pin is called: letters, digits, - and _.
        #[arg(long, default_value = "pin", value_name = "NAME")]
        name: String,
    },
    /// Take a pin away; retention may retire the checkpoint from then on.
    #[command(after_help = UNPIN_HELP)]
    Unpin {
        /// Name or UUID of the pipeline.
        pipeline: String,
        /// UUID of one pin, or the name of pins: all that bear it go. `checkpoint show` lists them.
        pin: String,
    },
    /// Retire a checkpoint now, past min_age and min_count: nobody can pull it any more, and its objects go after the grace period.
    ///
    /// Refused for the newest checkpoint, one that is pinned, and the base or source of a round that runs.
    #[command(after_help = DELETE_HELP)]
    Delete {
        /// Name or UUID of the pipeline.
        pipeline: String,
        /// UUID, step, or place GENERATION-SEQ.
        checkpoint: String,
        /// Say whether it may go, change nothing.
        #[arg(long)]
        dry_run: bool,
    },
}

const LIST_HELP: &str = "\
One whose commit document can't be read is listed as unreadable, by its place GENERATION-SEQ; show, verify and delete take that as its name.

Examples:
  lockstep checkpoint list orders
  lockstep --output json checkpoint list orders --limit 1000 | jq -r '.checkpoints[].id'";

const SHOW_HELP: &str = "\
Examples:
  lockstep checkpoint show orders                     the newest
  lockstep checkpoint show orders 1200                that of step 1200
  lockstep checkpoint show orders 1-17                the push with seq 17 of generation 1, readable or not";

const VERIFY_HELP: &str = "\
Examples:
  lockstep checkpoint verify orders                   the newest
  lockstep checkpoint verify orders 1200 --structure-only
  lockstep checkpoint verify orders 1-17              one that checkpoint list shows as unreadable: marked damaged if the same bytes are found";

const PIN_HELP: &str = "\
Examples:
  lockstep checkpoint pin orders 1200 --name before-the-migration
  lockstep checkpoint pin orders latest";

const UNPIN_HELP: &str = "\
Examples:
  lockstep checkpoint unpin orders before-the-migration
  lockstep checkpoint unpin orders 3f0c9a52-6e0a-4a53-9b0e-1f3a4a2d7c11";

const DELETE_HELP: &str = "\
Examples:
  lockstep checkpoint delete orders 1200 --dry-run
  lockstep checkpoint delete orders 1200
  lockstep checkpoint delete orders 1-17              one that can't be read, once verify has marked it";

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
        Command::Pin { pipeline, checkpoint, name } => {
            let request = v1::PinCheckpointRequest { pipeline, checkpoint, name, ..Default::default() };
            let pin = context.client.pin_checkpoint(request).await?;
            let table = || format!("checkpoint {} is kept by pin {} ({})", pin.checkpoint, pin.name, pin.id);
            context.format.give(|| json::pin(&pin), table);
            Ok(())
        }
        Command::Unpin { pipeline, pin } => {
            let request = v1::UnpinCheckpointRequest { pipeline, pin, ..Default::default() };
            let gone = context.client.unpin_checkpoint(request).await?.pins;
            let line =
                |pin: &v1::Pin| format!("pin {} ({}) of checkpoint {} is gone", pin.name, pin.id, pin.checkpoint);
            context.format.give(
                || json!({"pins": gone.iter().map(json::pin).collect::<Vec<_>>()}),
                || gone.iter().map(line).collect::<Vec<_>>().join("\n"),
            );
            Ok(())
        }
        Command::Delete { pipeline, checkpoint, dry_run } => {
            let request =
                v1::DeleteCheckpointRequest { pipeline, checkpoint, validate_only: dry_run, ..Default::default() };
            let checkpoint = context.client.delete_checkpoint(request).await?.checkpoint.unwrap_or_default();
            let table = || {
                let done = if dry_run { "may be retired" } else { "is retired; its objects go after the grace period" };
                format!("checkpoint {} (step {}) {done}", checkpoint.id, checkpoint.step)
            };
            context.format.give(|| json!({"dry_run": dry_run, "checkpoint": json::checkpoint(&checkpoint)}), table);
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
