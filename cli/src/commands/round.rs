//! `lockstep round`.

use clap::{Subcommand, ValueEnum};
use lockstep_client::v1;
use serde_json::json;

use super::Context;
use crate::failure::Failure;
use crate::{follow, json, view};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// A pipeline's rounds, newest first.
    #[command(after_help = LIST_HELP)]
    List {
        /// Name or UUID of the pipeline.
        pipeline: String,
        /// Only pushes or only pulls.
        #[arg(long, value_enum)]
        kind: Option<Kind>,
        /// Only those that have not ended.
        #[arg(long)]
        active: bool,
        /// At most this many.
        #[arg(long, default_value_t = 20, value_name = "N")]
        limit: usize,
    },
    /// One round with every host.
    #[command(after_help = SHOW_HELP)]
    Show {
        /// UUID of the round.
        round: String,
    },
    /// Follow a round until it has ended; the exit code says whether it succeeded.
    #[command(after_help = WATCH_HELP)]
    Watch {
        /// UUID of the round.
        round: String,
    },
    /// Ask a round to end. Too late once its decision is being written.
    #[command(after_help = CANCEL_HELP)]
    Cancel {
        /// UUID of the round.
        round: String,
        /// Why, for the audit trail.
        #[arg(long, default_value = "cancelled on the command line")]
        cause: String,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Kind {
    Push,
    Pull,
}

impl From<Kind> for v1::RoundKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Push => Self::Push,
            Kind::Pull => Self::Pull,
        }
    }
}

const LIST_HELP: &str = "\
Examples:
  lockstep round list orders
  lockstep round list orders --active
  lockstep --output json round list orders --kind push | jq -r '.rounds[] | select(.phase == \"failed\") | .id'";

const SHOW_HELP: &str = "\
Examples:
  lockstep round show 0b9f1f0e-0f39-4f2b-9b06-0d9a3b8f2c11";

const WATCH_HELP: &str = "\
Examples:
  lockstep round watch 0b9f1f0e-0f39-4f2b-9b06-0d9a3b8f2c11
  lockstep round watch $(lockstep --output json push orders | jq -r .id)";

const CANCEL_HELP: &str = "\
Examples:
  lockstep round cancel 0b9f1f0e-0f39-4f2b-9b06-0d9a3b8f2c11 --cause 'wrong step'";

pub(crate) async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::List { pipeline, kind, active, limit } => {
            let kind = kind.map_or(v1::RoundKind::Unspecified, Into::into).into();
            let filter = v1::ListRoundsRequest { pipeline, kind, active_only: active, ..Default::default() };
            let rounds = context.client.list_rounds(filter, limit).await?;
            let document = || json!({"rounds": rounds.iter().map(json::round).collect::<Vec<_>>()});
            context.format.give(document, || view::rounds(&rounds));
            Ok(())
        }
        Command::Show { round } => {
            let round = context.client.get_round(round).await?;
            context.format.give(|| json::round(&round), || view::round(&round));
            Ok(())
        }
        Command::Watch { round } => follow::to_the_end(context, &round).await,
        Command::Cancel { round, cause } => {
            let round = context.client.cancel_round(round, cause).await?;
            context.format.give(
                || json::round(&round),
                || {
                    let phase = json::phase_name(round.phase());
                    format!("{} was asked to end; it is {phase} now (round {})", view::what(&round), round.id)
                },
            );
            Ok(())
        }
    }
}
