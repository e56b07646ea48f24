//! `lockstep resync`.

use std::path::PathBuf;

use clap::Args;
use lockstep_client::v1;
use serde_json::json;

use super::Context;
use crate::{failure::Failure, json, spec, text, view::problem_lines};

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Resync {
    /// Name or UUID of the pipeline.
    pipeline: String,
    /// Its spec, where the database does not know the pipeline any more.
    #[arg(short, long, value_name = "SPEC.yaml")]
    file: Option<PathBuf>,
    /// Say what would be done and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Idempotency key: the same id gives the same take-over.
    #[arg(long, default_value = "", value_name = "UUID", hide_default_value = true)]
    request_id: String,
}

const AFTER_HELP: &str = "\
Checkpoints live in the bucket alone, so nothing that was acknowledged is lost with a database. A resync reads the bucket, makes the pipeline anew where its row is
gone, and takes its own location over: what still writes for the old database is fenced, and the pipeline goes on from the newest checkpoint.

It is needed after the database was lost or restored from a backup; calls then fail with DATABASE_BEHIND (or PIPELINE_NOT_FOUND) until it was done.

Examples:
  lockstep resync orders --dry-run            what the bucket holds and the database does not, and the reverse
  lockstep resync orders
  lockstep resync orders -f orders.yaml       the database was made anew and knows no pipeline orders";

pub(crate) async fn run(context: &Context, args: Resync) -> Result<(), Failure> {
    let spec = args.file.as_deref().map(spec::read).transpose()?;
    let request = v1::ResyncRequest {
        pipeline: args.pipeline.clone(),
        spec,
        request_id: args.request_id,
        validate_only: args.dry_run,
    };
    let done = context.client.resync(request).await?;
    let document = || {
        json!({
            "dry_run": args.dry_run,
            "pipeline_id": done.pipeline_id,
            "created": done.created,
            "take_over": json::optional(&done.take_over),
            "generation": done.generation,
            "previous_generation": done.previous_generation,
            "checkpoints": done.checkpoints,
            "newest": done.newest.as_ref().map(json::checkpoint),
            "learnt": done.learnt,
            "lost": done.lost,
            "pipeline": done.pipeline.as_ref().map(json::pipeline),
        })
    };
    context.format.give(document, || table(&args.pipeline, &done, args.dry_run));
    Ok(())
}

fn table(name: &str, done: &v1::ResyncResponse, dry_run: bool) -> String {
    let newest = done.newest.as_ref().map_or_else(
        || "none".to_owned(),
        |newest| format!("{} (step {}, {})", newest.id, newest.step, text::time(newest.create_time.as_ref())),
    );
    let mut rows = vec![
        ("pipeline", format!("{name} ({})", done.pipeline_id)),
        ("in the bucket", format!("{} checkpoints, newest {newest}", done.checkpoints)),
        ("new to the database", done.learnt.len().to_string()),
        ("lost by the bucket", done.lost.len().to_string()),
    ];
    rows.extend(done.lost.iter().map(|id| ("lost", id.clone())));
    let owns = if dry_run { "would own the location" } else { "owns the location" };
    let made = if done.created { ", made anew" } else { "" };
    rows.push((owns, format!("as generation {}, after {}{made}", done.generation, done.previous_generation)));
    for problem in done.pipeline.iter().filter(|_| dry_run).filter_map(|pipeline| pipeline.behind.as_ref()) {
        rows.push(("because", problem_lines(problem)));
    }
    text::pairs(rows)
}
