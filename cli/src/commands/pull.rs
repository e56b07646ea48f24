//! `lockstep pull`.

use chrono::{DateTime, Utc};
use clap::{ArgAction, Args};
use lockstep_client::v1;
use v1::start_pull_request::Selector;

use super::Context;
use super::push::Admission;
use crate::failure::Failure;
use crate::{follow, spec};

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Pull {
    /// Name or UUID of the pipeline.
    pipeline: String,
    /// Pull the newest checkpoint of this step.
    #[arg(long, value_name = "N", conflicts_with_all = ["checkpoint", "at"])]
    step: Option<u64>,
    /// Pull this checkpoint: the UUID of the push round that made it.
    #[arg(long, value_name = "UUID", conflicts_with = "at")]
    checkpoint: Option<String>,
    /// Pull the newest checkpoint made at or before this time, such as 2026-11-23T04:00:00Z.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    at: Option<DateTime<Utc>>,
    /// Must be said: true pulls for a standby (local checkpoints are not considered, and a missing checkpoint is an error),
    /// false for a pipeline that is to run.
    #[arg(long, value_name = "BOOL", required = true, action = ArgAction::Set)]
    standby: bool,
    /// Fail if there is no checkpoint; with =false every host then starts fresh. Default: the spec's for latest, true for a
    /// named one.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    fail_if_none: Option<bool>,
    /// Accept a checkpoint of another program.
    #[arg(long)]
    allow_fingerprint: bool,
    /// Ignore local checkpoints, and remove them.
    #[arg(long)]
    discard_local: bool,
    #[command(flatten)]
    admission: Admission,
}

const AFTER_HELP: &str = "\
The engines must be stopped. What is pulled is verified file by file and becomes visible on every host or on none.

Examples:
  lockstep pull orders --standby=false --wait                          what the spec's start policy says
  lockstep pull orders --standby=false --step 1200 --wait              this step
  lockstep pull orders --standby=false --at 2026-11-23T04:00:00Z --wait
  lockstep pull orders --standby=false --discard-local --wait          from S3 even where local checkpoints exist";

fn parse_time(text: &str) -> Result<DateTime<Utc>, String> {
    DateTime::parse_from_rfc3339(text)
        .map(|time| time.with_timezone(&Utc))
        .map_err(|error| format!("{error}; write RFC 3339, for example 2026-11-23T04:00:00Z"))
}

pub(crate) async fn run(context: &Context, args: Pull) -> Result<(), Failure> {
    let selector = match (args.step, args.checkpoint, args.at) {
        (Some(step), ..) => Some(Selector::Step(step)),
        (None, Some(id), _) => Some(Selector::Checkpoint(id)),
        (None, None, Some(time)) => Some(Selector::Time(spec::timestamp(time))),
        (None, None, None) => None,
    };
    let request = v1::StartPullRequest {
        pipeline: args.pipeline,
        selector,
        standby: Some(args.standby),
        fail_if_none: args.fail_if_none,
        allow_fingerprint: args.allow_fingerprint,
        discard_local: args.discard_local,
        request_id: args.admission.request_id(),
        deadline: args.admission.deadline(),
        validate_only: args.admission.dry_run,
    };
    let round = context.client.start_pull(request).await?;
    follow::admitted(context, round, &args.admission).await
}
