//! What one agent is and holds, and how it runs a transfer: accepted, spawned, watched, cleaned up, and only then over.

use std::{
    future::Future,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures::FutureExt;
use lockstep_bucket::store::Connector;
use lockstep_failpoint::{Point, reached};
use lockstep_protocol::{
    id::{Attempt, RoundId},
    order::AgentIdentity,
    problem::{Problem, Reason},
    ready::Word,
};
use tokio::sync::{Mutex, Semaphore};
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::{
    digests::Digests,
    marks::Marks,
    order::{Deadline, TransferLimits},
    push::resume::LeftBehind,
    ready::Words,
    register::{Activity, Register, Staged, State},
    store::CheckpointStore,
    work::{DISK_THREADS, Work},
};

/// Everything behind the gRPC service.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) identity: AgentIdentity,
    pub(crate) store: Arc<dyn CheckpointStore>,
    pub(crate) connector: Arc<dyn Connector>,
    /// Fills in for locations that name no endpoint.
    pub(crate) default_endpoint: Option<String>,
    pub(crate) limits: TransferLimits,
    /// Also the gate: orders are admitted one at a time, under this lock.
    pub(crate) marks: Mutex<Marks>,
    /// What the engine was told. Locked after `marks`, never before.
    pub(crate) words: Mutex<Words>,
    /// Why the hook failed for the present word.
    pub(crate) hook_problem: std::sync::Mutex<Option<(Word, String)>>,
    pub(crate) register: Register,
    pub(crate) state_dir: std::path::PathBuf,
    /// What a failed push left to its next attempt.
    pub(crate) left_behind: LeftBehind,
    /// What is known of the files on this disk.
    pub(crate) digests: Arc<Digests>,
    pub(crate) disk: Arc<Semaphore>,
    /// Transfers with their clean-up, so that a shutdown can wait for them.
    pub(crate) transfers: TaskTracker,
    /// Set once, when the agent shuts down.
    leaving: AtomicBool,
}

/// What a transfer brought.
pub(crate) type Ended = (State, Option<Staged>);

impl Core {
    pub(crate) fn new(
        identity: AgentIdentity,
        store: Arc<dyn CheckpointStore>,
        connector: Arc<dyn Connector>,
        default_endpoint: Option<String>,
        limits: TransferLimits,
        (marks, words): (Marks, Words),
        state_dir: std::path::PathBuf,
    ) -> Self {
        let digests = Arc::new(Digests::load(&state_dir, store.files_are_immutable()));
        Self {
            identity,
            digests,
            store,
            connector,
            default_endpoint,
            limits,
            marks: Mutex::new(marks),
            words: Mutex::new(words),
            hook_problem: std::sync::Mutex::default(),
            register: Register::new(),
            state_dir,
            left_behind: LeftBehind::default(),
            disk: Arc::new(Semaphore::new(DISK_THREADS)),
            transfers: TaskTracker::new(),
            leaving: AtomicBool::new(false),
        }
    }

    /// Takes no more orders and asks the running transfer to stop.
    pub(crate) fn leave(&self) {
        self.leaving.store(true, Ordering::SeqCst);
        self.register.stop(shutting_down());
        self.left_behind.give_up(None);
    }

    /// An order that was admitted before [`Core::leave`] is stopped by it, one that comes after is refused here.
    pub(crate) fn refuse_when_leaving(&self) -> Result<(), Problem> {
        if self.leaving.load(Ordering::SeqCst) { Err(shutting_down()) } else { Ok(()) }
    }

    /// Blocking work outside of any transfer: listings, marks. A panic in it is an `AGENT_PANIC` of the call.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        run: impl FnOnce() -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        match tokio::task::spawn_blocking(run).await {
            Ok(outcome) => outcome,
            Err(error) => Err(match error.try_into_panic() {
                Ok(panic) => panicked("a call to the checkpoint store", panic.as_ref()),
                Err(_) => Problem::new(Reason::Cancelled, "the agent is stopping"),
            }),
        }
    }

    /// Registers a transfer and lets it run until it and its clean-up have ended. `body` is dropped when the transfer is stopped or late;
    /// `clean_up` runs after any failure, when nothing of the transfer runs any more.
    pub(crate) fn launch<B, C>(
        self: &Arc<Self>,
        activity: Activity,
        (round, attempt): (RoundId, Attempt),
        deadline: Option<Deadline>,
        limits: TransferLimits,
        body: impl FnOnce(Work) -> B,
        clean_up: impl FnOnce(Work) -> C + Send + 'static,
    ) where
        B: Future<Output = Result<Ended, Problem>> + Send + 'static,
        C: Future<Output = ()> + Send + 'static,
    {
        let work = Work::new(limits, Arc::clone(&self.disk));
        let stale = self.register.begin(activity, round, attempt, &work);
        self.left_behind.give_up(Some(round));
        if let Err(problem) = self.refuse_when_leaving() {
            work.stop.request(problem);
        }
        let running = body(work.clone());
        let core = Arc::clone(self);
        let span =
            tracing::info_span!("transfer", kind = activity.as_str(), round.id = %round, attempt = attempt.get());
        self.transfers.spawn(
            async move {
                let kind = activity.as_str();
                let started = Instant::now();
                let last_word = LastWord::new(&core, "the end of the transfer", |register, problem| {
                    register.finish(State::Failed(problem), None);
                });
                metrics::gauge!("lockstep_agent_transfers_running", "kind" => kind).increment(1.0);
                let body = async {
                    if let Some(folder) = stale {
                        remove(&work, folder).await?;
                    }
                    running.await
                };
                let outcome = drive(body, &work, deadline).await;
                if let Err(problem) = &outcome {
                    // Whatever blocking work is left ends at its next look.
                    work.stop.request(problem.clone());
                }
                work.settled().await;
                if outcome.is_err() {
                    clean_up(work.clone()).await;
                }
                record(kind, &outcome, &work, started.elapsed());
                reached(Point::TransferBeforeReport);
                match outcome {
                    Ok((state, staged)) => core.register.finish(state, staged),
                    Err(problem) => core.register.finish(State::Failed(problem), None),
                }
                drop(last_word);
                reached(Point::TransferReported);
            }
            .instrument(span),
        );
    }
}

/// Says that a transfer has failed if its task panics where nothing else hears of it: no status may say "in progress" of what is no more.
#[derive(Debug)]
pub(crate) struct LastWord {
    core: Arc<Core>,
    what: &'static str,
    say: fn(&Register, Problem),
}

impl LastWord {
    /// To be dropped once the register knows how it ended.
    pub(crate) fn new(core: &Arc<Core>, what: &'static str, say: fn(&Register, Problem)) -> Self {
        Self { core: Arc::clone(core), what, say }
    }
}

impl Drop for LastWord {
    fn drop(&mut self) {
        if std::thread::panicking() {
            (self.say)(&self.core.register, panicked(self.what, &"see the log"));
        }
    }
}

fn shutting_down() -> Problem {
    Problem::new(Reason::Cancelled, "the agent is shutting down: order again when it is back")
}

/// Removes a folder as part of a transfer.
async fn remove(work: &Work, folder: std::path::PathBuf) -> Result<(), Problem> {
    work.disk(move |_| {
        crate::durable::remove_folder(&folder).map_err(|error| crate::durable::io_problem("remove", &folder, &error))
    })
    .await
}

/// Runs a transfer to its end, stop, deadline or panic, whichever comes first.
async fn drive<T>(
    body: impl Future<Output = Result<T, Problem>> + Send,
    work: &Work,
    deadline: Option<Deadline>,
) -> Result<T, Problem> {
    let late = async {
        match deadline {
            None => std::future::pending().await,
            Some(Deadline { at, instant }) => {
                tokio::time::sleep_until(instant).await;
                Problem::new(Reason::RoundDeadline, format!("the round's deadline {at} passed during the transfer"))
                    .with("deadline", at)
            }
        }
    };
    let body = AssertUnwindSafe(body).catch_unwind();
    tokio::select! {
        biased;
        cause = work.stop.requested() => Err(cause),
        problem = late => Err(problem),
        outcome = body => outcome.unwrap_or_else(|panic| Err(panicked("the transfer", panic.as_ref()))),
    }
}

/// `AGENT_PANIC` with the panic's message.
fn panicked(what: &str, panic: &(dyn std::any::Any + Send)) -> Problem {
    let message = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned());
    Problem::new(Reason::AgentPanic, format!("{what} panicked: {message}; the engine is not affected"))
        .with("what", what)
        .with("panic", message)
}

fn record(kind: &'static str, outcome: &Result<Ended, Problem>, work: &Work, elapsed: Duration) {
    let label = match outcome {
        Ok(_) => "done",
        Err(problem) => problem.reason.as_str(),
    };
    metrics::gauge!("lockstep_agent_transfers_running", "kind" => kind).decrement(1.0);
    metrics::counter!("lockstep_agent_transfers_total", "kind" => kind, "outcome" => label).increment(1);
    metrics::counter!("lockstep_agent_transferred_bytes_total", "kind" => kind)
        .increment(work.progress.bytes_transferred());
    metrics::histogram!("lockstep_agent_transfer_duration_seconds", "kind" => kind).record(elapsed.as_secs_f64());
    match outcome {
        Ok(_) => tracing::info!(bytes = work.progress.bytes_transferred(), ms = elapsed.as_millis(), "transfer done"),
        Err(problem) => tracing::warn!(reason = %problem.reason, "transfer failed: {}", problem.message),
    }
}
