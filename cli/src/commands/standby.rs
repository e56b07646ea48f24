//! `lockstep standby`.

use std::time::Duration;

use clap::{Args, Subcommand};
use lockstep_client::v1;

use super::{Context, take_over};
use crate::failure::Failure;
use crate::output::note;
use crate::{json, text, view};

/// Between calls that each wait at the coordinator.
const AGAIN: Duration = Duration::from_millis(500);

#[derive(Debug, Subcommand)]
#[command(after_help = AFTER_HELP)]
pub(crate) enum Command {
    /// Follow the location's newest checkpoint, or stay on one; also of a pipeline that owned its location until another one took it over.
    #[command(after_help = START_HELP)]
    Start(Start),
    /// Become the owner of the location, with exactly its newest checkpoint on every host.
    #[command(after_help = ACTIVATE_HELP)]
    Activate(Activate),
    /// Stop an activation or a take-over before it has fenced the location; from then on it only goes forward.
    #[command(after_help = CANCEL_HELP)]
    Cancel {
        /// Name or UUID of the pipeline.
        pipeline: String,
        /// Why, for the audit trail.
        #[arg(long, default_value = "", hide_default_value = true)]
        cause: String,
    },
    /// Follow no more; the hosts keep what they have.
    #[command(after_help = STOP_HELP)]
    Stop {
        /// Name or UUID of the pipeline.
        pipeline: String,
    },
    /// What it follows, what its hosts hold, and how far that is behind.
    #[command(after_help = STATUS_HELP)]
    Status {
        /// Name or UUID of the pipeline.
        pipeline: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Start {
    /// Name or UUID of the pipeline.
    pipeline: String,
    /// Stay on this checkpoint: the UUID of the push round that made it. Without it the newest is followed.
    #[arg(long, value_name = "UUID", default_value = "", hide_default_value = true)]
    checkpoint: String,
}

#[derive(Debug, Args)]
pub(crate) struct Activate {
    /// Name or UUID of the pipeline.
    pipeline: String,
    /// Go on from this checkpoint instead of the newest, and give up what came after it: the UUID of the push round that made it.
    #[arg(long, value_name = "UUID", conflicts_with = "step")]
    checkpoint: Option<String>,
    /// The same by its step.
    #[arg(long, value_name = "N")]
    step: Option<u64>,
    /// Only say who owns the location now and what the hosts would get, or why they could not; change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Don't wait longer than one call takes; the activation goes on, and the same request id tells how it ends.
    #[arg(long)]
    no_wait: bool,
    /// Idempotency key: the same id gives the same activation.
    #[arg(long, default_value = "", value_name = "UUID", hide_default_value = true)]
    request_id: String,
}

const START_HELP: &str = "\
Examples:
  lockstep standby start orders-standby         the newest, from now on
  lockstep standby start orders-standby --checkpoint 3f0c9a52-6e0a-4a53-9b0e-1f3a4a2d7c11";

const CANCEL_HELP: &str = "\
Examples:
  lockstep standby cancel orders-standby --cause 'the primary is back'";

const STOP_HELP: &str = "\
Examples:
  lockstep standby stop orders-standby";

const STATUS_HELP: &str = "\
Examples:
  lockstep standby status orders-standby
  lockstep --output json standby status orders-standby";

const ACTIVATE_HELP: &str = "\
The hosts are brought up to the newest checkpoint while the old owner may still write; then the location is fenced, and the hosts get exactly what counts from there.
Nothing the old owner has acknowledged is lost. If the last pull fails, nothing starts: it is tried until it succeeds. When this command ends with 0, the engines
may start.

If the newest checkpoint is damaged or gone the activation ends with CHECKPOINT_DAMAGED or CHECKPOINT_NOT_FOUND. Then choose an older one with --checkpoint or --step:
the hosts go on from there, and what came after it is given up. The newest stays in the location, and the next push is newer.

Examples:
  lockstep standby activate orders-standby
  lockstep standby activate orders-standby --dry-run
  lockstep standby activate orders-standby --checkpoint 3f0c9a52-6e0a-4a53-9b0e-1f3a4a2d7c11";

const AFTER_HELP: &str = "\
A standby is a pipeline that is created with `initial: standby`. It owns nothing and runs nothing: at each pull_interval (default 10s) its hosts are brought to
the newest checkpoint of its location, else of its read_location, fetching only what is new. What fails changes nothing on the hosts.

A pipeline whose location was taken over by another one (FENCED) becomes a standby of it by `start`, and gets the location back by `activate`. Stop its engines first: what its
hosts have written since and nobody has pushed is replaced by what counts in the location. One that still owns its location is refused (LOCATION_OWNED).

Examples:
  lockstep standby status orders-standby
  lockstep standby start orders-standby --checkpoint 3f0c9a52-6e0a-4a53-9b0e-1f3a4a2d7c11
  lockstep standby activate orders-standby
  lockstep standby cancel orders-standby --cause 'the primary is back'
  lockstep standby stop orders-standby";

pub(crate) async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    let pipeline = match command {
        Command::Activate(args) => return activate(context, args).await,
        Command::Start(args) => context.client.start_standby(args.pipeline, args.checkpoint).await?,
        Command::Cancel { pipeline, cause } => return cancel(context, pipeline, cause).await,
        Command::Stop { pipeline } => context.client.stop_standby(pipeline).await?,
        Command::Status { pipeline } => context.client.get_pipeline(pipeline).await?,
    };
    let name = pipeline.spec.as_ref().map_or("", |spec| spec.name.as_str());
    let document = || {
        serde_json::json!({
            "pipeline": name,
            "id": pipeline.id,
            "generation": pipeline.generation,
            "standby": pipeline.standby.as_ref().map(json::standby),
        })
    };
    context.format.give(document, || match &pipeline.standby {
        None => match &pipeline.fenced {
            None => format!("pipeline {name} is no standby: it owns its location in generation {}", pipeline.generation),
            Some(fenced) => format!(
                "pipeline {name} is no standby: it owned its location until generation {}; `lockstep standby start {name}` makes it one\n\n{}",
                pipeline.generation,
                view::problem_lines(fenced)
            ),
        },
        Some(standby) => {
            let mut shown = text::pairs(view::standby_rows(standby));
            if let Some(problem) = &standby.activation_problem {
                shown.push_str(&format!(
                    "\n\nnot activated, and its location is fenced:\n{}",
                    view::problem_lines(problem)
                ));
            }
            if let Some(problem) = &standby.problem {
                shown.push_str(&format!("\n\nthe hosts keep what they have:\n{}", view::problem_lines(problem)));
            }
            shown
        }
    });
    Ok(())
}

async fn cancel(context: &Context, pipeline: String, cause: String) -> Result<(), Failure> {
    let done = context.client.cancel_take_over(pipeline, "", cause).await?;
    let name = done.pipeline.as_ref().and_then(|pipeline| pipeline.spec.as_ref()).map_or("", |s| s.name.as_str());
    context.format.give(
        || serde_json::json!({"take_over": done.take_over, "pipeline": done.pipeline.as_ref().map(json::pipeline)}),
        || format!("take-over {} of pipeline {name} is cancelled: nothing was fenced", done.take_over),
    );
    Ok(())
}

async fn activate(context: &Context, args: Activate) -> Result<(), Failure> {
    let request_id = if args.request_id.is_empty() { uuid::Uuid::new_v4().to_string() } else { args.request_id };
    let selector = args
        .checkpoint
        .map(v1::activate_request::Selector::Checkpoint)
        .or_else(|| args.step.map(v1::activate_request::Selector::Step));
    let request = v1::ActivateRequest {
        pipeline: args.pipeline,
        request_id: request_id.clone(),
        validate_only: args.dry_run,
        selector,
    };
    let mut told = String::new();
    let done = loop {
        match context.client.activate(request.clone()).await {
            Ok(done) => break done,
            // With a phase it is this very activation, which goes on.
            Err(error) if !args.no_wait && error.reason() == "TAKE_OVER_IN_PROGRESS" => {
                let Some(phase) = error.problem().and_then(|problem| problem.metadata.get("phase")).cloned() else {
                    return Err(error.into());
                };
                if told != phase {
                    note(&format!("{error}"));
                    told = phase;
                }
                tokio::time::sleep(AGAIN).await;
            }
            Err(error) => return Err(error.into()),
        }
    };
    context.format.give(
        || take_over::document(&done, args.dry_run),
        || match (args.dry_run, done.take_over.is_empty()) {
            (false, true) => {
                let name =
                    done.pipeline.as_ref().and_then(|pipeline| pipeline.spec.as_ref()).map_or("", |s| s.name.as_str());
                format!("pipeline {name} owns its location already, as generation {}", done.generation)
            }
            (dry_run, _) => take_over::table(&done, !dry_run),
        },
    );
    Ok(())
}
