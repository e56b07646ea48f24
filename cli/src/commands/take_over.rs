//! `lockstep take-over`.

use clap::Args;
use lockstep_client::v1;
use serde_json::json;

use super::Context;
use crate::failure::Failure;
use crate::json;

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct TakeOver {
    /// Name or UUID of the pipeline that shall own its location.
    pipeline: String,
    /// Do it. Without this flag it is only said who owns the location now.
    #[arg(long)]
    yes: bool,
    /// Idempotency key: the same id gives the same take-over.
    #[arg(long, default_value = "", value_name = "UUID", hide_default_value = true)]
    request_id: String,
}

const AFTER_HELP: &str = "\
Whoever owns the location is fenced by one create-only object: nothing it pushes from then on counts, and its next push fails with FENCED. Everything
it has acknowledged before stays, and the pipeline goes on from the newest of it.

Examples:
  lockstep take-over orders-standby          who owns the location, and what would happen
  lockstep take-over orders-standby --yes";

pub(crate) async fn run(context: &Context, args: TakeOver) -> Result<(), Failure> {
    let request =
        v1::TakeOverRequest { pipeline: args.pipeline, request_id: args.request_id, validate_only: !args.yes };
    let done = context.client.take_over(request).await?;
    context.format.give(|| document(&done, !args.yes), || table(&done, args.yes));
    Ok(())
}

pub(super) fn document(done: &v1::TakeOverResponse, dry_run: bool) -> serde_json::Value {
    json!({
            "dry_run": dry_run,
            "take_over": json::optional(&done.take_over),
            "generation": done.generation,
            "previous_generation": done.previous_generation,
            "previous_owner": json::optional(&done.previous_owner),
            "previous_owner_name": json::optional(&done.previous_owner_name),
            "newest": done.newest.as_ref().map(json::commit),
            "pulled": done.pulled.as_ref().map(json::commit),
            "pipeline": done.pipeline.as_ref().map(json::pipeline),
    })
}

pub(super) fn table(done: &v1::TakeOverResponse, yes: bool) -> String {
    let name = done.pipeline.as_ref().and_then(|pipeline| pipeline.spec.as_ref()).map_or("", |spec| spec.name.as_str());
    let owner = if done.previous_owner.is_empty() {
        "nobody".to_owned()
    } else {
        format!("{} ({})", done.previous_owner_name, done.previous_owner)
    };
    if !yes {
        let pulled = done
            .pulled
            .as_ref()
            .map_or_else(String::new, |pulled| format!(" and go on from checkpoint {}", pulled.round));
        return format!(
            "the location of {name} is owned by {owner}, generation {}; {name} would take it over as generation {}{pulled}",
            done.previous_generation, done.generation
        );
    }
    let newest = match (&done.newest, &done.pulled) {
        (Some(newest), Some(pulled)) if pulled != newest => {
            format!("it goes on from checkpoint {}, as chosen, not from {}, the newest", pulled.round, newest.round)
        }
        (None, Some(pulled)) => format!("it goes on from checkpoint {}, as chosen", pulled.round),
        (Some(newest), _) => format!("it goes on from checkpoint {}", newest.round),
        (None, None) => "no checkpoint was there".to_owned(),
    };
    format!("pipeline {name} owns its location as generation {}; before it did {owner}; {newest}", done.generation)
}
