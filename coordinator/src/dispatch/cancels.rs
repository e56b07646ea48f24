//! Requests to stop rounds that are driven here. One task looks for all of them: at once where a hint says so, and every now and then for whatever no hint
//! told of.

use std::sync::Arc;

use lockstep_protocol::id::RoundId;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{Services, leases::Leases};
use crate::store::{Change, Changes};

/// Looks until it is told to stop. What was asked before a round was claimed came with the claim.
pub(super) async fn watch(services: Arc<Services>, stop: CancellationToken) {
    let mut changes = services.store.changes();
    loop {
        let hint = timeout(services.options.renew_every, hinted(&mut changes, &services.leases));
        let rounds = match stop.run_until_cancelled(hint).await {
            None => return,
            Some(Ok(rounds)) => rounds,
            Some(Err(_)) => services.leases.rounds(),
        };
        if rounds.is_empty() {
            continue;
        }
        match services.store.pending_cancels(rounds).await {
            Ok(requests) => {
                for (round, request) in requests {
                    services.leases.ask_to_stop(round, request);
                }
            }
            Err(error) => {
                let problem = error.problem();
                tracing::debug!(reason = %problem.reason, "whether to cancel is not known: {}", problem.message);
            }
        }
    }
}

/// The rounds of ours that a hint says something of.
async fn hinted(changes: &mut Changes, leases: &Leases) -> Vec<RoundId> {
    loop {
        match changes.next().await {
            Change::Cancel(round) if leases.holds(round) => return vec![round],
            Change::Anything => return leases.rounds(),
            _ => {}
        }
    }
}
