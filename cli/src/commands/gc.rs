//! `lockstep gc`.

use clap::Args;
use lockstep_client::v1;
use serde_json::json;
use uuid::Uuid;

use super::Context;
use crate::failure::Failure;
use crate::{json, view};

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Gc {
    /// Name or UUID of the pipeline.
    pipeline: String,
    /// Say exactly what would go, key by key, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Don't wait for the end; `pipeline get` shows how the last collection went.
    #[arg(long, conflicts_with = "dry_run")]
    no_wait: bool,
}

const AFTER_HELP: &str = "\
Three things are done, each may be interrupted and is gone on with by the next collection:
  retire   checkpoints that are older than min_age, not among the newest min_count, not pinned and not in use get a tombstone
  sweep    after the grace period (--gc-grace of the coordinator, 24 h) the objects go that only retired checkpoints need
  orphans  what dead attempts, failed pushes and vanished hosts have left goes at once, open multipart uploads too

The coordinator does this by itself too, every --gc-interval. What the store won't let go of (object lock, missing rights) is put off.

Examples:
  lockstep gc orders --dry-run
  lockstep gc orders
  lockstep --output json gc orders --dry-run | jq '.objects[].key'";

pub(crate) async fn run(context: &Context, args: Gc) -> Result<(), Failure> {
    let request = v1::CollectGarbageRequest {
        pipeline: args.pipeline,
        validate_only: args.dry_run,
        request_id: Uuid::new_v4().to_string(),
    };
    let mut answer = context.client.collect_garbage(request.clone()).await?;
    if args.dry_run {
        context.format.give(|| json::would_go(&answer), || view::would_go(&answer));
        return Ok(());
    }
    // Each call waits for a while at the coordinator.
    while !args.no_wait && answer.collection.as_ref().is_some_and(|collection| collection.phase == "waiting") {
        answer = context.client.collect_garbage(request.clone()).await?;
    }
    let collection = answer.collection.unwrap_or_default();
    context.format.give(|| json!({"collection": json::collection(&collection)}), || view::collection(&collection));
    match &collection.problem {
        Some(problem) if collection.phase == "failed" => Err(Failure::of_problem(problem)),
        _ => Ok(()),
    }
}
