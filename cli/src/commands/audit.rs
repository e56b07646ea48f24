//! `lockstep audit`.

use clap::Args;
use lockstep_client::v1;
use serde_json::json;

use super::Context;
use crate::failure::Failure;
use crate::{json, view};

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Audit {
    /// Name or UUID of the pipeline; may be left out with --round.
    #[arg(required_unless_present = "round")]
    pipeline: Option<String>,
    /// Only this round.
    #[arg(long, value_name = "UUID")]
    round: Option<String>,
    /// At most this many.
    #[arg(long, default_value_t = 1000, value_name = "N")]
    limit: usize,
}

const AFTER_HELP: &str = "\
Oldest first. Nothing in the audit trail is ever changed or removed; its tables can also be read with SQL.

Examples:
  lockstep audit orders
  lockstep audit --round 0b9f1f0e-0f39-4f2b-9b06-0d9a3b8f2c11
  lockstep --output json audit orders | jq '.events[] | select(.actor | startswith(\"ada@\"))'";

pub(crate) async fn run(context: &Context, args: Audit) -> Result<(), Failure> {
    let filter = v1::ListAuditEventsRequest {
        pipeline: args.pipeline.unwrap_or_default(),
        round: args.round.unwrap_or_default(),
        ..Default::default()
    };
    let events = context.client.list_audit_events(filter, args.limit).await?;
    let document = || json!({"events": events.iter().map(json::audit_event).collect::<Vec<_>>()});
    context.format.give(document, || view::audit_trail(&events));
    Ok(())
}
