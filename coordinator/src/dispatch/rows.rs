//! What all kinds of rows that replicas share have in common: they are looked for again and again, and one replica at a time holds each by a lease.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use tokio::{sync::Notify, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::Services;
use crate::{
    plan::BackOff,
    store::{Change, Changes, StoreError},
};

/// One look at the database, with when the next one is due if that is known. Boxed, because the compiler can't prove that what an async closure borrows is `Send`.
pub(super) type Look = BoxFuture<'static, Result<Option<Duration>, StoreError>>;

/// What is waited for between two looks.
pub(super) enum Pause {
    /// A hint that a row waits for somebody, or the next poll.
    Hint,
    /// The next row that is due, a change of a pipeline, or that a look was stored: then it is known when the next one is due.
    Due {
        /// Without any row, or with hints that were lost.
        idle: Duration,
        /// Changes that come closer together share one look.
        burst: Duration,
        stored: Arc<Notify>,
    },
}

impl Pause {
    async fn after(&self, services: &Services, changes: &mut Changes, looked: Instant, next: Option<Duration>) {
        match self {
            Self::Hint => next_look(services, changes, Change::ClaimWaits, looked).await,
            Self::Due { idle, burst, stored } => {
                let next = next.unwrap_or(*idle).clamp(Duration::from_millis(10), *idle);
                tokio::select! {
                    () = until_pipelines_change(changes, next, *burst) => {}
                    () = stored.notified() => {}
                }
            }
        }
    }
}

/// Looks until it is told to stop, less and less often while looks fail; then waits for the tasks that looks have begun.
pub(super) async fn until_stopped(
    services: &Services,
    shutdown: &CancellationToken,
    tasks: TaskTracker,
    failed: &'static str,
    pause: Pause,
    mut look: impl FnMut() -> Look,
) {
    let mut changes = services.store.changes();
    let mut back_off = BackOff::of_calls();
    while !shutdown.is_cancelled() {
        let looked = Instant::now();
        match look().await {
            Ok(next) => {
                back_off = BackOff::of_calls();
                shutdown.run_until_cancelled(pause.after(services, &mut changes, looked, next)).await;
            }
            Err(error) => {
                let problem = error.problem();
                tracing::warn!(reason = %problem.reason, "{failed}: {}", problem.message);
                shutdown.run_until_cancelled(back_off.pause()).await;
            }
        }
    }
    tasks.close();
    tasks.wait().await;
}

/// Renews a lease until `over`, and cancels that when somebody else holds the row. What the database doesn't answer is tried again: the lease may still be good.
pub(super) async fn renewed(
    every: Duration,
    over: CancellationToken,
    mut renew: impl FnMut() -> BoxFuture<'static, Result<bool, StoreError>>,
) {
    while over.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
        match renew().await {
            Ok(true) => {}
            Ok(false) => return over.cancel(),
            Err(error) => {
                let problem = error.problem();
                tracing::debug!(reason = %problem.reason, "a lease was not renewed: {}", problem.message);
            }
        }
    }
}

/// Until a hint says that something waits, or the next poll. Hints come in bursts: the first is followed at once, and one look serves all that
/// come shortly after it.
pub(super) async fn next_look(services: &Services, changes: &mut Changes, waits: Change, last: Instant) {
    const BURST: Duration = Duration::from_millis(20);
    let hinted = async {
        loop {
            let change = changes.next().await;
            if change == waits || change == Change::Anything {
                return;
            }
        }
    };
    if tokio::time::timeout(services.options.poll_every, hinted).await.is_ok() {
        tokio::time::sleep_until(last + BURST).await;
    }
}

/// Until something about a pipeline has changed, and a burst of such changes is over.
async fn until_pipelines_change(changes: &mut Changes, at_most: Duration, burst: Duration) {
    let changed = async { while !matches!(changes.next().await, Change::Pipeline(_) | Change::Anything) {} };
    if tokio::time::timeout(at_most, changed).await.is_ok() {
        tokio::time::sleep(burst.min(at_most)).await;
    }
}
