//! What all kinds of rows that replicas share have in common: they are looked for again and again, and one replica at a time holds each by a lease.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use tokio::{
    sync::{Mutex, MutexGuard, Notify},
    time::Instant,
};
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

/// A row's writers take turns: who drives it and who renews its lease. Otherwise a renewal could see the end that the driver has just stored, before the
/// driver has its answer, and take the row for somebody else's.
#[derive(Clone, Debug, Default)]
pub(super) struct Turns(Arc<Mutex<()>>);

impl Turns {
    /// Until it is dropped, no lease is renewed.
    pub(super) async fn mine(&self) -> MutexGuard<'_, ()> {
        self.0.lock().await
    }
}

/// Renews a lease until `over`, and cancels that when somebody else holds the row. What the database doesn't answer is tried again: the lease may still be good.
pub(super) async fn renewed(
    every: Duration,
    turns: Turns,
    over: CancellationToken,
    mut renew: impl FnMut() -> BoxFuture<'static, Result<bool, StoreError>>,
) {
    while over.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
        let Some(_turn) = over.run_until_cancelled(turns.mine()).await else { return };
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

#[cfg(test)]
#[cfg(debug_assertions)]
mod ends_tests;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures::FutureExt as _;

    use super::*;

    const EVERY: Duration = Duration::from_secs(1);

    /// As a database does in which the row has ended: nobody holds it.
    fn ended_row(asked: &Arc<AtomicU32>) -> impl FnMut() -> BoxFuture<'static, Result<bool, StoreError>> + use<> {
        let asked = Arc::clone(asked);
        move || {
            asked.fetch_add(1, Ordering::SeqCst);
            async { Ok(false) }.boxed()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_row_is_not_given_up_while_its_own_end_is_stored() {
        let (turns, over, asked) = (Turns::default(), CancellationToken::new(), Arc::default());
        let renewal = tokio::spawn(renewed(EVERY, turns.clone(), over.clone(), ended_row(&asked)));
        let storing = turns.mine().await;
        tokio::time::sleep(EVERY * 10).await;
        assert!(!over.is_cancelled(), "the answer is still on its way");
        over.cancel();
        renewal.await.unwrap();
        assert_eq!(asked.load(Ordering::SeqCst), 0);
        drop(storing);
    }

    #[tokio::test(start_paused = true)]
    async fn a_row_that_is_somebody_elses_is_given_up() {
        let (over, asked) = (CancellationToken::new(), Arc::default());
        renewed(EVERY, Turns::default(), over.clone(), ended_row(&asked)).await;
        assert!(over.is_cancelled());
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }
}
