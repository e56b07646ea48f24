//! `lockstep status`.

use clap::Args;
use serde_json::json;

use super::Context;
use crate::failure::Failure;
use crate::{json, view};

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Status {
    /// Only this pipeline, by name or UUID.
    pipeline: Option<String>,
}

const AFTER_HELP: &str = "\
Examples:
  lockstep status
  lockstep status orders
  lockstep --output json status | jq -r '.pipelines[] | select(.fenced != null) | .name'";

pub(crate) async fn run(context: &Context, args: Status) -> Result<(), Failure> {
    let pipelines = match args.pipeline {
        Some(pipeline) => vec![context.client.get_pipeline(pipeline).await?],
        None => context.client.list_pipelines(usize::MAX).await?,
    };
    let document = || {
        let pipelines: Vec<_> = pipelines.iter().map(json::pipeline).collect();
        json!({"coordinator": context.client.address(), "pipelines": pipelines})
    };
    context.format.give(document, || {
        let mut shown = format!("coordinator {}\n\n{}", context.client.address(), view::pipelines(&pipelines));
        for round in pipelines.iter().filter_map(|pipeline| pipeline.active_round.as_ref()) {
            shown.push_str(&format!("\n\n{}", view::round(round)));
        }
        shown
    });
    Ok(())
}
