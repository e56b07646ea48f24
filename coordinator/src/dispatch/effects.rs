//! What each effect does. Its outcome is an event; none means that there is nothing to say yet, and the effect is run again if it is still wanted.

use std::sync::Arc;

use lockstep_failpoint::{Point, reached};
use lockstep_protocol::round::{Effect, Event, Round};

use super::{drive::Drive, hosts, parts, protect, settle, transfer};
use crate::plan::plan_push;

/// Carries one effect out.
pub(super) async fn run(drive: Arc<Drive>, round: Arc<Round>, effect: Effect) -> Option<Event> {
    let (drive, round) = (&*drive, &*round);
    match effect {
        // Boxed where they are big: a round may have thousands of the others under way.
        Effect::Plan => Some(Box::pin(plan(drive, round)).await),
        Effect::Resolve => Some(Box::pin(resolve(drive, round)).await),
        Effect::Transfer { host_idx, attempt } => Some(transfer::run(drive, round, host_idx, attempt).await),
        Effect::Install { host_idx, attempt } => Some(hosts::install(drive, round, host_idx, attempt).await),
        Effect::Describe { host_idx, attempt } => Some(hosts::describe(drive, round, host_idx, attempt).await),
        Effect::CheckParts => Box::pin(parts::check(drive, round)).await,
        Effect::SettleCommit => Box::pin(settle::run(drive, round, settle::Which::Commit)).await,
        Effect::SettleAbort => Box::pin(settle::run(drive, round, settle::Which::Abort)).await,
        Effect::Confirm => Some(hosts::confirm(drive, round).await),
    }
}

async fn plan(drive: &Drive, round: &Round) -> Event {
    reached(Point::PlanBefore);
    match plan_push(&drive.services.plan_context(), round).await {
        Ok(plan) => {
            reached(Point::PlanChosen);
            drive.planned(round, plan.base.clone()).await;
            plan.into_event()
        }
        Err(problem) => Event::Refused(problem),
    }
}

async fn resolve(drive: &Drive, round: &Round) -> Event {
    reached(Point::ResolveBefore);
    match protect::resolve(drive, round).await {
        Ok(plan) => {
            reached(Point::ResolveChosen);
            plan.into_event()
        }
        Err(problem) => Event::Refused(problem),
    }
}

/// For spans and logs.
pub(super) const fn name(effect: &Effect) -> &'static str {
    match effect {
        Effect::Plan => "plan",
        Effect::Resolve => "resolve",
        Effect::Transfer { .. } => "transfer",
        Effect::Install { .. } => "install",
        Effect::Describe { .. } => "describe",
        Effect::CheckParts => "check parts",
        Effect::SettleCommit => "settle commit",
        Effect::SettleAbort => "settle abort",
        Effect::Confirm => "confirm",
    }
}

/// For spans.
pub(super) const fn host_idx(effect: &Effect) -> Option<u32> {
    match effect {
        Effect::Transfer { host_idx, .. } | Effect::Install { host_idx, .. } | Effect::Describe { host_idx, .. } => {
            Some(*host_idx)
        }
        Effect::Plan
        | Effect::Resolve
        | Effect::CheckParts
        | Effect::SettleCommit
        | Effect::SettleAbort
        | Effect::Confirm => None,
    }
}
