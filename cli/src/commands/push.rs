//! `lockstep push`.

use std::time::Duration;

use clap::Args;
use lockstep_client::v1;
use v1::start_push_request::Selector;

use super::{Context, parse_duration};
use crate::failure::Failure;
use crate::{follow, spec};

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Push {
    /// Name or UUID of the pipeline.
    pipeline: String,
    /// Push this step instead of the newest that all hosts have.
    #[arg(long, value_name = "N", conflicts_with = "checkpoint")]
    step: Option<u64>,
    /// Push the step of this local checkpoint, a UUID from any host.
    #[arg(long, value_name = "UUID")]
    checkpoint: Option<String>,
    /// Push even if this step is the newest commit already.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    admission: Admission,
}

/// What push and pull share.
#[derive(Debug, Args)]
pub(crate) struct Admission {
    /// Follow the round until it has ended; the exit code says whether it succeeded.
    #[arg(long)]
    pub(crate) wait: bool,
    /// Plan, change nothing.
    #[arg(long, conflicts_with = "wait")]
    pub(crate) dry_run: bool,
    /// When the round shall fail, from now: 30s, 10m, 1h. Default: the coordinator's, 1h.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) deadline: Option<Duration>,
    /// A UUID that makes this call safe to repeat: the same id gives the same round.
    #[arg(long, value_name = "UUID")]
    pub(crate) request_id: Option<String>,
}

impl Admission {
    pub(crate) fn deadline(&self) -> Option<prost_types::Duration> {
        self.deadline.map(spec::duration)
    }

    pub(crate) fn request_id(&self) -> String {
        self.request_id.clone().unwrap_or_default()
    }
}

const AFTER_HELP: &str = "\
Without --wait the round is admitted and printed; it goes on by itself, whatever happens to this command.

Examples:
  lockstep push orders --wait                   the newest step that all hosts have
  lockstep push orders --step 1200 --wait       this one
  lockstep push orders --dry-run                what would be pushed
  lockstep --output json push orders | jq -r .id";

pub(crate) async fn run(context: &Context, args: Push) -> Result<(), Failure> {
    let selector = match (args.step, args.checkpoint) {
        (Some(step), _) => Selector::Step(step),
        (None, Some(id)) => Selector::LocalCheckpoint(id),
        (None, None) => Selector::Latest(true),
    };
    let request = v1::StartPushRequest {
        pipeline: args.pipeline,
        selector: Some(selector),
        request_id: args.admission.request_id(),
        deadline: args.admission.deadline(),
        validate_only: args.admission.dry_run,
        force: args.force,
    };
    let round = context.client.start_push(request).await?;
    follow::admitted(context, round, &args.admission).await
}
