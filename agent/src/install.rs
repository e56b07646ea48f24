//! Install: makes a staged or local checkpoint the only one the engine sees (protocol.md, "Pull" step 5). Never interrupted: it runs to its end.

use std::{path::PathBuf, sync::Arc, time::Instant};

use lockstep_failpoint::{Point, reached};
use lockstep_protocol::{
    id::{Attempt, RoundId},
    problem::{Problem, Reason},
};
use tracing::Instrument;

use crate::{
    core::{Core, LastWord},
    durable,
    order::{InstallWhat, PullDone, Reach},
    register::{Activity, Register, Staged, State, View, ViewState},
    store::CheckpointStore,
    work::Work,
};

/// Whether the very same install has succeeded before in this round.
pub(crate) fn is_in_place(view: &View, what: InstallWhat) -> bool {
    let ViewState::Pulled(done) = &view.state else { return false };
    let wanted = match what {
        InstallWhat::Fresh => None,
        InstallWhat::Checkpoint(id, _) => Some(id),
    };
    done.reach == Reach::Installed && done.local_checkpoint == wanted
}

/// An install that no pull of this round and attempt went before.
pub(crate) fn begin(core: &Arc<Core>, round: RoundId, attempt: Attempt, what: InstallWhat) {
    let work = Work::new(core.limits, Arc::clone(&core.disk));
    let stale = core.register.begin(Activity::Install, round, attempt, &work);
    run(core, round, what, stale);
}

/// An install after the known pull; the register already says that it runs.
pub(crate) fn start(core: &Arc<Core>, round: RoundId, what: InstallWhat) {
    run(core, round, what, None);
}

fn run(core: &Arc<Core>, round: RoundId, what: InstallWhat, stale: Option<PathBuf>) {
    let staged = core.register.staged(round);
    let store = Arc::clone(&core.store);
    let core = Arc::clone(core);
    let span = tracing::info_span!("install", round.id = %round);
    core.transfers.clone().spawn(
        async move {
            let last_word = LastWord::new(&core, "the end of the install", Register::install_failed);
            let outcome = core.blocking(move || place(store.as_ref(), staged.as_ref(), what, stale)).await;
            let label = outcome.as_ref().map_or_else(|problem| problem.reason.as_str(), |_| "done");
            metrics::counter!("lockstep_agent_transfers_total", "kind" => "install", "outcome" => label).increment(1);
            reached(Point::InstallBeforeReport);
            match outcome {
                Ok(done) => {
                    tracing::info!(checkpoint = ?done.local_checkpoint, "installed");
                    core.register.finish(State::Pulled(done), None);
                }
                Err(problem) => {
                    tracing::warn!(reason = %problem.reason, "install failed: {}", problem.message);
                    core.register.install_failed(problem);
                }
            }
            drop(last_word);
            reached(Point::InstallReported);
        }
        .instrument(span),
    );
}

/// Blocks. Idempotent: what a crash or a lost answer left half done, the same order finishes.
pub(crate) fn place(
    store: &dyn CheckpointStore,
    staged: Option<&Staged>,
    what: InstallWhat,
    stale: Option<PathBuf>,
) -> Result<PullDone, Problem> {
    let started = Instant::now();
    store.check_installable()?;
    reached(Point::InstallBegun);
    let mut done = match what {
        InstallWhat::Fresh => {
            store.retain_only(None)?;
            empty()
        }
        InstallWhat::Checkpoint(id, step) => {
            match staged.filter(|staged| staged.checkpoint.id == id) {
                Some(staged) => {
                    store.install(&staged.checkpoint)?;
                    staged.done.clone()
                }
                None => {
                    let local = store.list()?.into_iter().find(|local| local.id == id && local.step == step);
                    let Some(local) = local else {
                        return Err(Problem::new(
                        Reason::CheckpointNotFound,
                        format!("local checkpoint {id} of step {step} is neither staged nor local here: order Pull again"),
                    )
                    .with("local_checkpoint", id)
                    .with("step", step));
                    };
                    store.retain_only(Some(id))?;
                    PullDone {
                        local_checkpoint: Some(id),
                        step: Some(step),
                        files: local.files,
                        bytes: local.bytes,
                        ..empty()
                    }
                }
            }
        }
    };
    reached(Point::InstallPlaced);
    for folder in staged.map(|staged| staged.checkpoint.folder.clone()).into_iter().chain(stale) {
        if let Err(error) = durable::remove_folder(&folder) {
            // The checkpoint is in place; a left-over folder goes with the next transfer or start.
            tracing::warn!(folder = %folder.display(), %error, "staging was not removed");
        }
    }
    done.reach = Reach::Installed;
    done.elapsed += started.elapsed();
    Ok(done)
}

fn empty() -> PullDone {
    PullDone {
        reach: Reach::Installed,
        local_checkpoint: None,
        step: None,
        files: 0,
        bytes: 0,
        bytes_downloaded: 0,
        bytes_reused: 0,
        elapsed: std::time::Duration::ZERO,
    }
}
