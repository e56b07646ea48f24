//! What an agent does without an order, because nobody coordinates it: as its one transfer, and no order is admitted meanwhile.

use std::{future::Future, sync::Arc, time::Duration};

use lockstep_protocol::{
    host::Slot,
    id::{Attempt, PipelineId, PipelineName, RoundId},
    order::PipelineSelector,
    problem::{Problem, Reason},
};

use crate::{
    core::{Core, Ended},
    register::{Activity, Family, State, ViewState},
    work::Work,
};

/// How long the clean-up of a transfer that has ended is waited for.
const CLEAN_UP: Duration = Duration::from_secs(60);

/// Before anything else, the location included.
pub(crate) fn refuse_multihost(slot: Slot) -> Result<(), Problem> {
    match slot {
        Slot::Solo => Ok(()),
        Slot::Host(info) => Err(Problem::new(
            Reason::MultihostRequiresCoordinator,
            format!(
                "this agent runs as {info}: hosts of one pipeline commit and restore together, push and pull through the coordinator"
            ),
        )
        .with("host_idx", info.host_idx())
        .with("n_hosts", info.n_hosts())),
    }
}

/// Who an agent writes as that nobody coordinates.
#[derive(Clone, Debug)]
pub(crate) struct Owner {
    pub(crate) pipeline: PipelineId,
    pub(crate) name: PipelineName,
}

impl Owner {
    /// Only a UUID names a pipeline for good; its name is the coordinator's to give, so it gets one that follows from the UUID.
    pub(crate) fn of(selector: &PipelineSelector) -> Result<Self, Problem> {
        match selector {
            PipelineSelector::Id(pipeline) => {
                let name = format!("direct-{}", pipeline.uuid().simple());
                Ok(Self { pipeline: *pipeline, name: PipelineName::new(name)? })
            }
            PipelineSelector::Name(name) => Err(Problem::new(
                Reason::SpecInvalid,
                format!(
                    "this agent runs for pipeline {name}: without a coordinator it needs --pipeline to be a UUID, names may change"
                ),
            )
            .with("field", "pipeline")
            .with("value", name)),
        }
    }
}

/// Runs `body` as the transfer of this agent, under a round of its own, until it and after a failure `clean_up` have ended. To be run to its end once called: see
/// [`Core::whole`].
pub(crate) async fn run<T, B, C>(
    core: &Arc<Core>,
    activity: Activity,
    (round, attempt): (RoundId, Attempt),
    body: impl FnOnce(Work) -> B,
    clean_up: impl FnOnce(Work) -> C + Send + 'static,
) -> Result<T, Problem>
where
    T: Send + 'static,
    B: Future<Output = Result<(State, T), Problem>> + Send + 'static,
    C: Future<Output = ()> + Send + 'static,
{
    let (sender, receiver) = tokio::sync::oneshot::channel();
    {
        // The gate: no order is admitted between the look and the start.
        let _gate = core.marks.lock().await;
        core.refuse_when_leaving()?;
        if let Some(running) = core.register.running() {
            return Err(Problem::new(
                Reason::TransferInProgress,
                format!("a {} of round {} runs here", running.activity.as_str(), running.round),
            )
            .with("kind", running.activity.as_str())
            .with("round", running.round));
        }
        core.launch(
            activity,
            (round, attempt),
            None,
            core.limits,
            |work| {
                let body = body(work);
                async move {
                    let (state, told) = body.await?;
                    // Nobody waits any more: what was done stands all the same.
                    let _ = sender.send(told);
                    Ok::<Ended, Problem>((state, None))
                }
            },
            clean_up,
        );
    }
    let told = receiver.await;
    core.until_idle(CLEAN_UP).await;
    match (told, core.register.view(Family::Sync, round, attempt).state) {
        (Ok(told), _) => Ok(told),
        (Err(_), ViewState::Failed(problem)) => Err(problem),
        (Err(_), _) => Err(Problem::new(
            Reason::Cancelled,
            format!("the {} was replaced before its end was told", activity.as_str()),
        )
        .with("round", round)),
    }
}
