//! After the end: agents of a round that was given up are told to stop, the bucket's hint is renewed, a pin is removed. Best effort: the next order replaces
//! whatever still runs at an agent, and a reader that finds no hint lists from the beginning.

use bytes::Bytes;
use futures::{StreamExt, stream};
use lockstep_bucket::WriteOutcome;
use lockstep_failpoint::{Point, reached};
use lockstep_protocol::{
    commit::CommitRef,
    key::Key,
    problem::Reason,
    round::{Kind, Phase, Round},
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{
    drive::{Drive, order_again},
    orders::{self, Ordered},
    protect,
};
use crate::agents::AgentAnswer;

/// Calls at once.
const PARALLEL: usize = 32;

/// Says good-bye to a round that is over.
pub(super) async fn bid(drive: &Drive, round: &Round, shutdown: &CancellationToken) {
    shutdown.run_until_cancelled(protect::release(drive, round)).await;
    match (&round.kind, round.phase) {
        (Kind::Push(push), Phase::Committed) => {
            if let Some(commit) = push.committed {
                shutdown.run_until_cancelled(write_head(drive, round, commit)).await;
            }
        }
        // Nobody is ordered anything that would put an end to the transfers of what was retired.
        (Kind::Pull(pull), Phase::Fresh) if !pull.retired.is_empty() => stop(drive, round, shutdown).await,
        // The pull that superseded it sends its own orders.
        (_, Phase::Failed | Phase::Cancelled)
            if round.problem.as_ref().is_none_or(|problem| problem.reason != Reason::Superseded) =>
        {
            stop(drive, round, shutdown).await;
        }
        _ => {}
    }
}

async fn stop(drive: &Drive, round: &Round, shutdown: &CancellationToken) {
    let patience = drive.services.options.cancel_patience;
    let _ = shutdown.run_until_cancelled(timeout(patience, stop_hosts(drive, round))).await;
}

async fn stop_hosts(drive: &Drive, round: &Round) {
    // None was ordered anything before the plan.
    let ordered = (0..round.layout.len()).filter_map(|host_idx| orders::ordered(round, host_idx).ok());
    let stops: Vec<_> = ordered.map(|ordered| stop_host(drive, ordered)).collect();
    stream::iter(stops).buffer_unordered(PARALLEL).collect::<()>().await;
}

async fn stop_host(drive: &Drive, ordered: Ordered) {
    let mut pause = order_again();
    loop {
        let patience = drive.services.options.cancel_patience;
        reached(Point::CancelBeforeSent);
        match drive.services.agents.cancel(&ordered.host, &ordered.header, patience).await {
            AgentAnswer::Answer(true) => return reached(Point::CancelAnswered),
            AgentAnswer::Answer(false) | AgentAnswer::Unknown(_) => pause.pause().await,
            // It restarted, or has a newer order: nothing of this round runs there.
            AgentAnswer::Refused(problem) => {
                let host_idx = ordered.host.slot.idx();
                tracing::debug!(host.idx = host_idx, reason = %problem.reason, "cancel refused: {}", problem.message);
                return;
            }
        }
    }
}

async fn write_head(drive: &Drive, round: &Round, commit: CommitRef) {
    let hint = serde_json::json!({"generation": commit.generation, "seq": commit.seq, "round": commit.round});
    let place = match drive.own_place(round).await {
        Ok(place) => place,
        Err(problem) => {
            tracing::debug!(reason = %problem.reason, "head.json was not written: {}", problem.message);
            return;
        }
    };
    reached(Point::HeadBeforePut);
    match place.bucket().put(&Key::Head.to_string(), Bytes::from(hint.to_string()).into()).await {
        WriteOutcome::Done => {}
        WriteOutcome::Refused(error) | WriteOutcome::Unknown(error) => {
            tracing::debug!(%error, "head.json was not written");
        }
    }
    reached(Point::HeadAfterPut);
}
