//! `lockstep pipeline`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use lockstep_client::v1;
use lockstep_protocol::spec::PipelineSpec;
use serde_json::json;

use super::Context;
use crate::failure::Failure;
use crate::import::{self, Around};
use crate::output::note;
use crate::{json, spec, view};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create the pipeline of a spec, or update it if its name exists.
    #[command(after_help = APPLY_HELP)]
    Apply(Apply),
    /// Show one pipeline with its spec and last rounds.
    #[command(after_help = GET_HELP)]
    Get {
        /// Name or UUID.
        pipeline: String,
    },
    /// Show all pipelines.
    #[command(after_help = LIST_HELP)]
    List {
        /// At most this many.
        #[arg(long, default_value_t = 1000, value_name = "N")]
        limit: usize,
    },
    /// Print the spec that a Feldera `sync` block amounts to. Nothing is created: read it, then apply it.
    #[command(after_help = IMPORT_HELP)]
    Import(Import),
    /// Give up the checkpoint that the bucket has lost (`lost` in `pipeline get`). Its push counts as never committed.
    #[command(after_help = ACCEPT_LOSS_HELP)]
    AcceptLoss(AcceptLoss),
    /// Forget a pipeline. Its checkpoints stay in the bucket.
    #[command(after_help = DELETE_HELP)]
    Delete {
        /// Name or UUID.
        pipeline: String,
        /// Only if it is still the version with this etag (see `pipeline get`).
        #[arg(long, default_value = "")]
        etag: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Apply {
    /// The spec, in YAML or JSON; - is stdin.
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    file: PathBuf,
    /// Update this pipeline (name or UUID) instead of the one that the spec names; that is how one is renamed.
    #[arg(long, value_name = "PIPELINE")]
    pipeline: Option<String>,
    /// Check everything, change nothing.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct AcceptLoss {
    /// Name or UUID.
    pipeline: String,
    /// Only if this is the checkpoint that is lost: the UUID of the push round that made it.
    #[arg(long, value_name = "UUID", default_value = "", hide_default_value = true)]
    checkpoint: String,
    /// Every checkpoint that is lost, one after the other.
    #[arg(long, conflicts_with_all = ["checkpoint", "request_id"])]
    all: bool,
    /// Why, for the audit trail.
    #[arg(long, default_value = "", hide_default_value = true)]
    cause: String,
    /// Idempotency key: the same id gives the same answer.
    #[arg(long, default_value = "", value_name = "UUID", hide_default_value = true)]
    request_id: String,
}

const ACCEPT_LOSS_HELP: &str = "\
While a checkpoint is lost nothing of the pipeline is collected: its objects are all that brings it back. If its commit is put back as it was, for example from a version of
the bucket, the next collection (`lockstep gc`) or coordinator that starts notices. Otherwise give it up: collections go on, its step can be pushed again, and it is not reported any more.
One that is lost is shown at a time, the newest, and it names the others: once it is given up or back, the next one is. With --all you give them all up (in JSON they stand in `accepted`, one after the other).

Examples:
  lockstep pipeline accept-loss orders --cause 'deleted by a lifecycle rule, which is gone'
  lockstep pipeline accept-loss orders --checkpoint 3f0c9a52-6e0a-4a53-9b0e-1f3a4a2d7c11
  lockstep pipeline accept-loss orders --all --cause 'the bucket was emptied by hand'";

#[derive(Debug, Args)]
pub(crate) struct Import {
    /// The block, alone or in the pipeline's configuration, in JSON or YAML; - is stdin.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Name of the pipeline.
    #[arg(long)]
    name: String,
    /// Number of hosts; without it the pipeline is solo.
    #[arg(long, value_name = "N")]
    hosts: Option<u32>,
    /// Address of the agents, with {host} for the host's index; or once for each host, in order.
    #[arg(long = "agent", value_name = "URL", required = true)]
    agents: Vec<String>,
}

const IMPORT_HELP: &str = "\
Every field of the block is mapped, ignored with a word why (on stderr), or refused with the way to do it.

Examples:
  lockstep pipeline import sync.json --name orders --hosts 3 --agent 'http://orders-{host}.orders:7402' > orders.yaml
  lockstep pipeline apply -f orders.yaml --dry-run";

const GET_HELP: &str = "\
Examples:
  lockstep pipeline get orders
  lockstep --output json pipeline get orders | jq .spec > orders.json     a spec that apply and resync take with -f";

const LIST_HELP: &str = "\
Examples:
  lockstep pipeline list
  lockstep --output json pipeline list | jq -r '.pipelines[].name'";

const DELETE_HELP: &str = "\
Refused while a round or a take-over of it is under way. Nothing in the bucket changes: the location stays owned, by a pipeline that nobody drives. Another pipeline with `initial: standby`
there may take it over (`lockstep take-over`) and go on from the newest checkpoint.

Examples:
  lockstep pipeline delete orders
  lockstep pipeline delete orders --etag $(lockstep --output json pipeline get orders | jq -r .etag)";

const APPLY_HELP: &str = "\
A spec (only name, hosts or solo, agents and location must be there; unknown fields are errors):
  name: orders
  initial: running                        # or: standby; it owns nothing, and pulls from the location until it takes it over
  hosts: 3                                # or: solo: true
  agents: \"http://orders-{host}.orders.default.svc:7402\"   # or a list, one a host
  location: {bucket: acme-ckpt, prefix: orders, region: eu-west-1}
  read_location: null                     # read-only fallback for pulls
  start: {from: latest, fail_if_none: false}   # from: latest, {step: N}, {checkpoint: UUID} or {time: T}
  push_interval: 2m                       # pushed by itself, so long after the end of the last push; left out: never
  pull_interval: 10s                      # of a standby: how often it looks for a newer checkpoint
  retention: {min_count: 10, min_age: 30d}     # what stays of the checkpoints: the newest 10, and all that are younger than 30 days
  transfer: {concurrency: 16, part_size: 16MiB, memory: 64MiB, bandwidth_limit: null}

Durations and sizes have units. Credentials never stand in a spec: coordinator and agents find theirs by the standard AWS chain.

Examples:
  lockstep pipeline apply -f orders.yaml
  lockstep pipeline apply -f orders.yaml --dry-run
  sed s/orders/orders-eu/ orders.yaml | lockstep pipeline apply -f - --pipeline orders";

/// What apply did, or would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Applied {
    Created,
    Updated,
    Unchanged,
}

impl Applied {
    fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Unchanged => "unchanged",
        }
    }
}

pub(crate) async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::Apply(args) => apply(context, args).await,
        Command::Get { pipeline } => {
            let pipeline = context.client.get_pipeline(pipeline).await?;
            warn(&pipeline);
            context.format.give(|| json::pipeline(&pipeline), || view::pipeline(&pipeline));
            Ok(())
        }
        Command::List { limit } => {
            let pipelines = context.client.list_pipelines(limit).await?;
            let document = || json!({"pipelines": pipelines.iter().map(json::pipeline).collect::<Vec<_>>()});
            context.format.give(document, || view::pipelines(&pipelines));
            Ok(())
        }
        Command::Import(args) => import(context, args),
        Command::AcceptLoss(args) => accept_loss(context, args).await,
        Command::Delete { pipeline, etag } => {
            context.client.delete_pipeline(&pipeline, etag).await?;
            context.format.give(
                || json!({"pipeline": pipeline, "result": "deleted"}),
                || format!("pipeline {pipeline} deleted; its checkpoints are still in the bucket"),
            );
            Ok(())
        }
    }
}

async fn apply(context: &Context, args: Apply) -> Result<(), Failure> {
    let wanted = spec::read(&args.file)?;
    let target = args.pipeline.as_ref().unwrap_or(&wanted.name);
    let existing = match context.client.get_pipeline(target).await {
        Ok(pipeline) => Some(pipeline),
        Err(error) if error.is_not_found() && args.pipeline.is_none() => None,
        Err(error) => return Err(error.into()),
    };
    let (applied, pipeline) = match existing {
        None => {
            let request =
                v1::CreatePipelineRequest { spec: Some(wanted), validate_only: args.dry_run, ..Default::default() };
            (Applied::Created, context.client.create_pipeline_with(request).await?)
        }
        Some(existing) if existing.spec.as_ref().is_some_and(|spec| json::spec(spec) == json::spec(&wanted)) => {
            (Applied::Unchanged, existing)
        }
        Some(existing) => {
            let request = v1::UpdatePipelineRequest {
                pipeline: existing.id,
                spec: Some(wanted),
                update_mask: None,
                etag: existing.etag,
                validate_only: args.dry_run,
            };
            (Applied::Updated, context.client.update_pipeline(request).await?)
        }
    };
    warn(&pipeline);
    let document = || json!({"result": applied.name(), "dry_run": args.dry_run, "pipeline": json::pipeline(&pipeline)});
    context.format.give(document, || {
        let name = pipeline.spec.as_ref().map_or("", |spec| &spec.name);
        let would_be = if args.dry_run && applied != Applied::Unchanged { "would be " } else { "" };
        let id = if pipeline.id.is_empty() { String::new() } else { format!(" ({})", pipeline.id) };
        format!("pipeline {name}{id} {would_be}{}", applied.name())
    });
    Ok(())
}

async fn accept_loss(context: &Context, args: AcceptLoss) -> Result<(), Failure> {
    let AcceptLoss { pipeline, checkpoint, all, cause, request_id } = args;
    let request = v1::AcceptLossRequest { pipeline: pipeline.clone(), checkpoint, cause, request_id };
    let mut accepted: Vec<v1::AcceptLossResponse> = Vec::new();
    let checkpoint =
        |done: &v1::AcceptLossResponse| done.commit.as_ref().map(|commit| commit.round.clone()).unwrap_or_default();
    let line = |done: &v1::AcceptLossResponse| {
        format!("checkpoint {} of pipeline {pipeline} is given up: it counts as never committed", checkpoint(done))
    };
    let left = loop {
        let mut done = match context.client.accept_loss(request.clone()).await {
            Ok(done) => done,
            // Somebody has put the last one back, or accepted it.
            Err(error) if !accepted.is_empty() && error.reason() == "CHECKPOINT_NOT_FOUND" => break None,
            Err(error) => {
                accepted.iter().for_each(|done| note(&line(done)));
                return Err(error.into());
            }
        };
        let pipeline = done.pipeline.take();
        accepted.push(done);
        if !(all && pipeline.as_ref().is_some_and(|pipeline| pipeline.lost.is_some())) {
            break pipeline;
        }
    };
    let document = || {
        let mut losses = accepted.iter().map(|done| {
            json!({
                "checkpoint": checkpoint(done),
                "lost": done.lost.as_ref().map(json::problem),
                "accept_time": json::time(done.accept_time.as_ref()),
            })
        });
        let mut document = if all { json!({"accepted": losses.collect::<Vec<_>>()}) } else { losses.next().into() };
        document["pipeline"] = left.as_ref().map(json::pipeline).into();
        document
    };
    context.format.give(document, || accepted.iter().map(line).collect::<Vec<_>>().join("\n"));
    if let Some(next) = left.as_ref().and_then(|pipeline| pipeline.lost.as_ref()) {
        note(&format!("another one is lost, --all gives up every one: {}", next.message));
    }
    Ok(())
}

fn import(context: &Context, args: Import) -> Result<(), Failure> {
    let around = Around { name: args.name, hosts: args.hosts, agents: args.agents };
    let file = args.file.display().to_string();
    let imported =
        import::import(&spec::document(&args.file)?, &around).map_err(|failure| failure.with("file", &file))?;
    // Refused here, not when it is applied.
    let checked =
        PipelineSpec::from_value(imported.spec).map_err(|problem| Failure::from(problem).with("file", &file))?;
    for line in &imported.notes {
        note(&format!("note: {line}"));
    }
    let spec = checked.to_value();
    context.format.give(|| json!({"spec": spec, "notes": imported.notes}), || view::spec_lines(&spec));
    Ok(())
}

/// Warnings go to stderr: they are part of the document, but not of the table.
fn warn(pipeline: &v1::Pipeline) {
    for warning in &pipeline.warnings {
        note(&format!("warning: {warning}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spec_in_the_help_is_a_good_one_and_shows_every_field() {
        let lines = APPLY_HELP.lines().skip(1).take_while(|line| line.starts_with("  "));
        let text: Vec<&str> = lines.map(|line| &line[2..]).collect();
        let value = serde_saphyr::from_str(&text.join("\n")).unwrap();
        let shown = PipelineSpec::from_value(value).unwrap().to_value();
        for field in shown.as_object().unwrap().keys() {
            assert!(text.iter().any(|line| line.starts_with(&format!("{field}: "))), "{field} is not in the help");
        }
    }
}
