//! What a failed attempt leaves to the next one of its round: files and pieces that stand in the location are not sent again. Kept in memory, so only the same
//! process goes on from it, and never for longer than the round: whoever learns that no attempt will come aborts the open uploads.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{StreamExt, stream};
use lockstep_protocol::{
    id::RoundId,
    location::Location,
    problem::{Problem, Reason, Retryable},
};
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::ledger::Ledger;
use crate::{core::Core, order::Deadline, remote::Remote, store::HeldFile, work::Work};

/// How long a request that begins an upload may take to be answered once the push is given up. Whatever it begins later it aborts itself.
const START_GRACE: Duration = Duration::from_secs(1);

/// How long uploads are tried to be aborted. What can't be reached now goes with the orphans later.
const ABORT_PATIENCE: Duration = Duration::from_secs(10);

/// Aborts at once.
const PARALLEL: usize = 8;

/// How long what is left of a round without a deadline is kept.
const LONGEST: Duration = Duration::from_secs(3600);

/// What the attempts of one push round did; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trail {
    ledger: Ledger,
    starts: TaskTracker,
}

impl Trail {
    pub(super) const fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Requests that begin uploads.
    pub(super) const fn starts(&self) -> &TaskTracker {
        &self.starts
    }

    /// Takes up what an earlier attempt left, as far as it fits these files.
    pub(super) async fn resume(&self, remote: &Remote, files: &[HeldFile]) {
        let lost = self.ledger.resume(files);
        for (key, upload) in self.ledger.uploads().iter().chain(&lost) {
            remote.work().upload_opened(key, upload);
        }
        for (key, upload) in &lost {
            match remote.abort_upload(key, upload).await {
                Ok(()) => remote.work().upload_closed(key, upload),
                // It is tried again at the end.
                Err(problem) => tracing::debug!(key, reason = %problem.reason, "not aborted: {}", problem.message),
            }
        }
    }

    /// No attempt goes on from here: leaves no multipart upload open.
    pub(crate) async fn abandon(&self, core: &Core, location: &Location, work: &Work) {
        self.starts.close();
        // Late ones find the ledger closed.
        let _ = tokio::time::timeout(START_GRACE, self.starts.wait()).await;
        let (uploads, asked) = self.ledger.close();
        let open: BTreeSet<_> = uploads.into_iter().chain(work.take_open_uploads()).collect();
        if open.is_empty() && asked.is_none() {
            return;
        }
        abort(core, location, work, open, asked).await;
    }
}

/// Aborts these uploads, and those below a prefix whose beginning was never answered.
async fn abort(
    core: &Core,
    location: &Location,
    work: &Work,
    mut open: BTreeSet<(String, String)>,
    prefix: Option<String>,
) {
    let uploads = open.len();
    let aborted = async {
        let remote = Remote::connect(core.connector.as_ref(), location, work).await?;
        if let Some(prefix) = prefix {
            match remote.bucket().list_multipart(&prefix).await {
                Ok(listed) => open.extend(listed.into_iter().map(|open| (open.key, open.upload.0))),
                // Not every store can tell.
                Err(error) => tracing::debug!(%error, "open uploads are not listed"),
            }
        }
        let outcomes = stream::iter(open)
            .map(|(key, upload)| {
                let remote = remote.clone();
                async move { remote.abort_upload(&key, &upload).await }
            })
            .buffer_unordered(PARALLEL)
            .collect::<Vec<_>>()
            .await;
        outcomes.into_iter().collect::<Result<(), Problem>>()
    };
    match tokio::time::timeout(ABORT_PATIENCE, aborted).await {
        Ok(Ok(())) => {}
        Ok(Err(problem)) => tracing::warn!(reason = %problem.reason, "open uploads are left: {}", problem.message),
        Err(_) => tracing::warn!(uploads, "open uploads are left: the store does not answer"),
    }
}

/// Whether another attempt of the same round may come after a failure like this.
fn has_successor(cause: &Problem, round: RoundId) -> bool {
    match cause.reason {
        // Stopped by an order: by one of the same round, or for good.
        Reason::Cancelled => cause.metadata.get("by_round").is_some_and(|by| *by == round.to_string()),
        Reason::RoundDeadline => false,
        _ => cause.retryable() == Retryable::Yes,
    }
}

/// Keeps what the failed attempt did for the next one, or aborts it.
pub(super) async fn after_failure(
    core: &Arc<Core>,
    (round, location, trail): (RoundId, Location, Trail),
    work: Work,
    deadline: Option<Deadline>,
) {
    let goes_on = work.stop.check().is_err_and(|cause| has_successor(&cause, round));
    if !goes_on {
        return trail.abandon(core, &location, &work).await;
    }
    // Begun by this attempt and asked for no more.
    let _ = tokio::time::timeout(START_GRACE, async {
        trail.starts.close();
        trail.starts.wait().await;
        trail.starts.reopen();
    })
    .await;
    let kept: BTreeSet<_> = trail.ledger.uploads().into_iter().collect();
    let lost: BTreeSet<_> = work.take_open_uploads().into_iter().filter(|upload| !kept.contains(upload)).collect();
    if !lost.is_empty() {
        abort(core, &location, &work, lost, None).await;
    }
    core.left_behind.keep(core, Left { round, location, trail }, deadline);
}

/// What a round left.
#[derive(Debug)]
struct Left {
    round: RoundId,
    location: Location,
    trail: Trail,
}

/// What the last push left to its next attempt, if it failed and one may come.
#[derive(Debug, Default)]
pub(crate) struct LeftBehind(Mutex<Option<(Left, CancellationToken)>>);

impl LeftBehind {
    fn take_if(&self, is_meant: impl FnOnce(&Left, &CancellationToken) -> bool) -> Option<(Left, CancellationToken)> {
        let mut left = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        left.take_if(|(left, token)| is_meant(left, token))
    }

    /// For the next attempt of this round.
    pub(super) fn take(&self, round: RoundId) -> Option<Trail> {
        let (left, token) = self.take_if(|left, _| left.round == round)?;
        token.cancel();
        Some(left.trail)
    }

    /// No attempt of any round but this one comes any more.
    pub(crate) fn give_up(&self, but: Option<RoundId>) {
        if let Some((left, token)) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner)
            && but != Some(left.round)
        {
            token.cancel();
        }
    }

    /// As [`Self::give_up`], and returns when what there is to abort has been tried.
    pub(crate) async fn clear(&self, core: &Core) {
        if let Some((left, token)) = self.take_if(|_, _| true) {
            token.cancel();
            left.abandon(core).await;
        }
    }

    /// Until the next attempt takes it, somebody gives it up, or the deadline passes.
    fn keep(&self, core: &Arc<Core>, left: Left, deadline: Option<Deadline>) {
        let token = CancellationToken::new();
        let until = deadline.map_or_else(|| Instant::now() + LONGEST, |deadline| deadline.instant);
        let place = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = place.replace((left, token.clone()));
        let keeper = Arc::clone(core);
        core.transfers.spawn(async move {
            // Given up, but its keeper was not there yet.
            if let Some((left, _)) = before {
                left.abandon(&keeper).await;
            }
            // Either way it is over.
            let _ = tokio::time::timeout_at(until, token.cancelled()).await;
            token.cancel();
            if let Some((left, _)) = keeper.left_behind.take_if(|_, kept| kept.is_cancelled()) {
                left.abandon(&keeper).await;
            }
        });
        // It may have been too late to be heard of.
        if core.refuse_when_leaving().is_err() {
            self.give_up(None);
        }
    }
}

impl Left {
    async fn abandon(&self, core: &Core) {
        let work = Work::new(core.limits, Arc::clone(&core.disk));
        self.trail.abandon(core, &self.location, &work).await;
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn only_failures_that_pass_are_followed_by_another_attempt() {
        let round = RoundId::new(Uuid::from_u128(7));
        let problem = |reason| Problem::new(reason, "it failed");
        let replaced = |by: RoundId| problem(Reason::Cancelled).with("by_round", by);
        for (cause, expected) in [
            (problem(Reason::StoreUnavailable), true),
            (problem(Reason::SourceChanged), true),
            (problem(Reason::StoreDenied), false),
            (problem(Reason::StoreDenied).retry(Retryable::Yes), true),
            (problem(Reason::RoundDeadline), false),
            (problem(Reason::Cancelled), false),
            (replaced(round), true),
            (replaced(RoundId::new(Uuid::from_u128(8))), false),
        ] {
            assert_eq!(has_successor(&cause, round), expected, "{cause}");
        }
    }
}
