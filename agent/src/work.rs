//! What surrounds one transfer: its counters, how it is told to stop, the memory, requests and bandwidth it may use, and the blocking work that
//! must have ended before it counts as stopped.

use std::{
    collections::BTreeSet,
    panic::resume_unwind,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use lockstep_bucket::Pace;
use lockstep_protocol::problem::{Problem, Reason};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{blocks::Blocks, order::TransferLimits, progress::Progress, remote::Budget, window::Window};

/// Asks a transfer to stop and remembers why; the first cause wins.
#[derive(Debug, Default)]
pub(crate) struct Stop {
    token: CancellationToken,
    cause: OnceLock<Problem>,
}

impl Stop {
    pub(crate) fn request(&self, cause: Problem) {
        // A later cause is dropped on purpose: the first one is what made it stop.
        let _ = self.cause.set(cause);
        self.token.cancel();
    }

    /// For loops on blocking threads, which nothing else can interrupt.
    pub(crate) fn check(&self) -> Result<(), Problem> {
        if self.token.is_cancelled() { Err(self.cause()) } else { Ok(()) }
    }

    pub(crate) async fn requested(&self) -> Problem {
        self.token.cancelled().await;
        self.cause()
    }

    fn cause(&self) -> Problem {
        self.cause.get().cloned().unwrap_or_else(|| Problem::new(Reason::Cancelled, "the transfer was cancelled"))
    }
}

/// Blocking file and hash work of one agent that runs at a time: more would only fight for the disk.
pub(crate) const DISK_THREADS: usize = 4;

/// One transfer's surroundings; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    pub(crate) progress: Arc<Progress>,
    pub(crate) stop: Arc<Stop>,
    pub(crate) limits: TransferLimits,
    /// Where bytes of files are kept while they are under way.
    pub(crate) blocks: Blocks,
    disk: Arc<Semaphore>,
    /// Places among the requests in flight.
    pub(crate) window: Arc<Window>,
    /// The bandwidth limit.
    pub(crate) pace: Option<Arc<Pace>>,
    /// Repetitions that are left.
    pub(crate) budget: Arc<Budget>,
    tracker: TaskTracker,
    uploads: Arc<Mutex<BTreeSet<(String, String)>>>,
}

fn closed(_: tokio::sync::AcquireError) -> Problem {
    // No semaphore here is ever closed; if one were, the transfer is over.
    Problem::new(Reason::Cancelled, "the agent is stopping")
}

impl Work {
    /// `disk` is shared by all that the agent does.
    pub(crate) fn new(limits: TransferLimits, disk: Arc<Semaphore>) -> Self {
        Self {
            progress: Arc::new(Progress::new()),
            stop: Arc::new(Stop::default()),
            limits,
            blocks: Blocks::new(limits.memory),
            disk,
            window: Window::new(limits.concurrency),
            pace: limits.bandwidth.map(|rate| Arc::new(Pace::new(rate))),
            budget: Budget::new(),
            tracker: TaskTracker::new(),
            uploads: Arc::default(),
        }
    }

    /// Runs blocking file or hash work. A panic in it goes on in the caller. If the caller is dropped the work still ends by itself, which
    /// [`Work::settled`] waits for.
    pub(crate) async fn disk<T: Send + 'static>(
        &self,
        run: impl FnOnce(&Stop) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let permit = Arc::clone(&self.disk).acquire_owned().await.map_err(closed)?;
        let stop = Arc::clone(&self.stop);
        let span = tracing::Span::current();
        let running = self.tracker.spawn_blocking(move || {
            let _permit = permit;
            let _entered = span.enter();
            stop.check()?;
            run(&stop)
        });
        match running.await {
            Ok(outcome) => outcome,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                Err(_) => Err(Problem::new(Reason::Cancelled, "the agent is stopping")),
            },
        }
    }

    /// Returns when no blocking work of this transfer runs any more.
    pub(crate) async fn settled(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// Remembers a multipart upload that must not stay open.
    pub(crate) fn upload_opened(&self, key: &str, upload: &str) {
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner).insert((key.to_owned(), upload.to_owned()));
    }

    /// The upload is completed or aborted.
    pub(crate) fn upload_closed(&self, key: &str, upload: &str) {
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner).remove(&(key.to_owned(), upload.to_owned()));
    }

    /// Uploads that are still open, which from now on are the caller's to abort.
    pub(crate) fn take_open_uploads(&self) -> Vec<(String, String)> {
        std::mem::take(&mut *self.uploads.lock().unwrap_or_else(PoisonError::into_inner)).into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(limits: TransferLimits) -> Work {
        Work::new(limits, Arc::new(Semaphore::new(DISK_THREADS)))
    }

    #[tokio::test]
    async fn the_first_cause_of_a_stop_is_the_one_that_is_told() {
        let stop = Stop::default();
        stop.check().unwrap();
        stop.request(Problem::new(Reason::RoundDeadline, "late"));
        stop.request(Problem::new(Reason::Cancelled, "cancelled"));
        assert_eq!(stop.requested().await.reason, Reason::RoundDeadline);
        assert_eq!(stop.check().unwrap_err().reason, Reason::RoundDeadline);
    }

    #[tokio::test]
    async fn blocking_work_of_a_dropped_caller_is_waited_for() {
        let work = work(TransferLimits::default());
        let (started, on_start) = std::sync::mpsc::channel();
        let (finish, on_finish) = std::sync::mpsc::channel::<()>();
        let caller = tokio::spawn({
            let work = work.clone();
            async move {
                work.disk(move |_| {
                    started.send(()).unwrap();
                    on_finish.recv().unwrap();
                    Ok(())
                })
                .await
            }
        });
        tokio::task::spawn_blocking(move || on_start.recv().unwrap()).await.unwrap();
        caller.abort();
        let settled = work.settled();
        tokio::pin!(settled);
        assert!(futures::poll!(&mut settled).is_pending());
        finish.send(()).unwrap();
        settled.await;
    }
}
