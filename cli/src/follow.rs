//! Waiting for a round on the command line.

use futures::StreamExt as _;
use lockstep_client::{is_terminal, succeeded, v1};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::commands::Context;
use crate::commands::push::Admission;
use crate::failure::{Exit, Failure};
use crate::output::note;
use crate::progress::RoundProgress;
use crate::{json, view};

/// What a push or pull prints once it was admitted, and waits for if asked to.
pub(crate) async fn admitted(context: &Context, round: v1::Round, admission: &Admission) -> Result<(), Failure> {
    if !admission.dry_run && admission.request_id.is_none() && is_terminal(&round) {
        note("nothing new to do, this is what was done before; a push of the same step again takes --force");
    }
    if admission.wait {
        return to_the_end(context, &round.id).await;
    }
    if admission.dry_run {
        let document = || json!({"dry_run": true, "round": json::round(&round)});
        context.format.give(document, || format!("nothing was changed; this would happen:\n{}", view::round(&round)));
        return Ok(());
    }
    context.format.give(
        || json::round(&round),
        || {
            let id = &round.id;
            if is_terminal(&round) {
                return format!("{} (round {id})", view::outcome(&round));
            }
            format!("{} admitted as round {id}\nfollow it with: lockstep round watch {id}", view::what(&round))
        },
    );
    of_outcome(&round)
}

/// Follows a round until it has ended. Ctrl-C ends the waiting, not the round.
pub(crate) async fn to_the_end(context: &Context, id: &str) -> Result<(), Failure> {
    let mut watch = context.client.watch_round(id);
    let mut shown = RoundProgress::new(context.format.progress());
    let mut last = None;
    // One listener for all turns of the loop: one a turn would miss a Ctrl-C that comes while a line is printed.
    let mut interrupt = signal(SignalKind::interrupt())
        .map_err(|error| Failure::local("LOCAL_IO", format!("Ctrl-C can't be listened for: {error}")))?;
    loop {
        let next = tokio::select! {
            next = watch.next() => next,
            _ = interrupt.recv() => {
                shown.finish();
                return Err(interrupted(id));
            }
        };
        let Some(next) = next else { break };
        let round = match next {
            Ok(round) => round,
            Err(error) => {
                shown.finish();
                return Err(Failure::from(error).with("round.id", id));
            }
        };
        shown.update(&round);
        last = Some(round);
    }
    shown.finish();
    let Some(round) = last else {
        return Err(Failure::local("INTERNAL", format!("the watch of round {id} ended without having shown it")));
    };
    context.format.give(|| json::round(&round), || format!("{} (round {id})", view::outcome(&round)));
    of_outcome(&round)
}

/// A round that ended badly is a failure of the command that waited for it.
fn of_outcome(round: &v1::Round) -> Result<(), Failure> {
    if succeeded(round) || !is_terminal(round) {
        return Ok(());
    }
    let failure = match &round.problem {
        Some(problem) => Failure::of_problem(problem),
        None => {
            let phase = json::phase_name(round.phase());
            let message = format!("{} is {phase}", view::what(round));
            Failure { document_given: true, ..Failure::local(&phase.to_ascii_uppercase(), message) }
        }
    };
    Err(failure.with("round.id", &round.id))
}

fn interrupted(id: &str) -> Failure {
    note(&format!(
        "\nthe round goes on without this command\n  follow it: lockstep round watch {id}\n  end it:    lockstep round cancel {id}"
    ));
    let failure = Failure::local("INTERRUPTED", "waiting was interrupted, the round goes on").with("round.id", id);
    Failure { exit: Exit::Failed, retryable: "yes", ..failure }
}
