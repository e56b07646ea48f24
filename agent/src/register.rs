//! The one transfer an agent knows of, running or finished, and what lies staged. Kept until a newer order replaces it.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use lockstep_protocol::{
    id::{Attempt, RoundId},
    order::KnownTransfer,
    problem::Problem,
};
use tokio::sync::watch;

use crate::{
    order::{PullDone, PushDone},
    progress::{Progress, Snapshot},
    store::StagedCheckpoint,
    work::{Stop, Work},
};

/// Which status call may ask for a transfer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Family {
    Push,
    /// Pull and install.
    Pull,
    /// No round at all.
    Sync,
}

/// What runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Activity {
    Push,
    Pull,
    Install,
    Sync,
    Start,
}

impl Activity {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Push => "push",
            Self::Pull => "pull",
            Self::Install => "install",
            Self::Sync => "sync",
            Self::Start => "start-up pull",
        }
    }

    const fn family(self) -> Family {
        match self {
            Self::Push => Family::Push,
            Self::Pull | Self::Install => Family::Pull,
            Self::Sync | Self::Start => Family::Sync,
        }
    }
}

/// Where the known transfer stands.
#[derive(Clone, Debug)]
pub(crate) enum State {
    /// It runs, or has ended and still cleans up. Remains until nothing of it runs any more.
    Running(Activity),
    /// The part stands in the location. Remains until a newer order.
    Pushed(PushDone),
    /// Staged or installed. Staged remains until install, cancel or a newer order; installed until a newer order.
    Pulled(PullDone),
    /// Over, its staging gone. Remains until a newer order.
    Failed(Problem),
}

/// A checkpoint in staging and the report that announced it.
#[derive(Clone, Debug)]
pub(crate) struct Staged {
    pub(crate) round: RoundId,
    pub(crate) checkpoint: StagedCheckpoint,
    pub(crate) done: PullDone,
}

#[derive(Debug)]
struct Entry {
    family: Family,
    round: RoundId,
    attempt: Attempt,
    state: State,
    progress: Arc<Progress>,
    stop: Arc<Stop>,
    /// Why the last install of it did not succeed, while it is still staged.
    install_problem: Option<Problem>,
}

#[derive(Debug, Default)]
struct Inner {
    entry: Option<Entry>,
    staged: Option<Staged>,
}

/// What a status call shows.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) round: RoundId,
    pub(crate) attempt: Attempt,
    pub(crate) state: ViewState,
}

/// See [`View`].
#[derive(Clone, Debug)]
pub(crate) enum ViewState {
    NotRequested,
    InProgress(Snapshot),
    Pushed(PushDone),
    Pulled(PullDone),
    Failed(Problem),
}

impl ViewState {
    /// How often the store asked a running transfer to slow down.
    pub(crate) const fn throttled(&self) -> u64 {
        match self {
            Self::InProgress(snapshot) => snapshot.throttled,
            _ => 0,
        }
    }
}

/// What runs now.
#[derive(Clone, Debug)]
pub(crate) struct Running {
    pub(crate) activity: Activity,
    pub(crate) round: RoundId,
    pub(crate) attempt: Attempt,
    pub(crate) progress: Snapshot,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Register {
    inner: Mutex<Inner>,
    changed: watch::Sender<()>,
}

impl Register {
    pub(crate) fn new() -> Self {
        Self { inner: Mutex::default(), changed: watch::Sender::new(()) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes on each change of state; progress does not wake.
    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// What admission compares an order with.
    pub(crate) fn known(&self) -> Option<KnownTransfer> {
        self.lock().entry.as_ref().map(|entry| KnownTransfer {
            round: entry.round,
            attempt: entry.attempt,
            running: matches!(entry.state, State::Running(_)),
        })
    }

    pub(crate) fn family(&self) -> Option<Family> {
        self.lock().entry.as_ref().map(|entry| entry.family)
    }

    pub(crate) fn running(&self) -> Option<Running> {
        let inner = self.lock();
        let entry = inner.entry.as_ref()?;
        let State::Running(activity) = entry.state else { return None };
        Some(Running { activity, round: entry.round, attempt: entry.attempt, progress: entry.progress.snapshot() })
    }

    pub(crate) fn is_running(&self) -> bool {
        self.lock().entry.as_ref().is_some_and(|entry| matches!(entry.state, State::Running(_)))
    }

    /// Asks whatever runs to stop. An install does not listen: it is half done only if it is interrupted.
    pub(crate) fn stop(&self, cause: Problem) {
        if let Some(entry) = &self.lock().entry
            && matches!(entry.state, State::Running(activity) if activity != Activity::Install)
        {
            entry.stop.request(cause);
        }
    }

    /// A new transfer replaces the known one, which must not run any more. What lay staged comes back: it is the new one's to remove.
    pub(crate) fn begin(&self, activity: Activity, round: RoundId, attempt: Attempt, work: &Work) -> Option<PathBuf> {
        let mut inner = self.lock();
        inner.entry = Some(Entry {
            family: activity.family(),
            round,
            attempt,
            state: State::Running(activity),
            progress: Arc::clone(&work.progress),
            stop: Arc::clone(&work.stop),
            install_problem: None,
        });
        let stale = match (activity, &inner.staged) {
            // What a later attempt of the same round installs may have been staged by an earlier one.
            (Activity::Install, Some(staged)) if staged.round == round => None,
            _ => inner.staged.take().map(|staged| staged.checkpoint.folder),
        };
        drop(inner);
        self.changed.send_replace(());
        stale
    }

    /// The known transfer is over. Staged checkpoints are remembered with their folder.
    pub(crate) fn finish(&self, state: State, staged: Option<Staged>) {
        let mut inner = self.lock();
        if let Some(entry) = &mut inner.entry {
            entry.state = state;
        }
        inner.staged = staged;
        drop(inner);
        self.changed.send_replace(());
    }

    /// The known, finished transfer goes on with an install. False: something runs.
    pub(crate) fn resume_install(&self) -> bool {
        let mut inner = self.lock();
        let Some(entry) = &mut inner.entry else { return false };
        if matches!(entry.state, State::Running(_)) {
            return false;
        }
        entry.state = State::Running(Activity::Install);
        entry.install_problem = None;
        drop(inner);
        self.changed.send_replace(());
        true
    }

    /// The install did not succeed: what was staged still is, and else the transfer has failed.
    pub(crate) fn install_failed(&self, problem: Problem) {
        let mut inner = self.lock();
        let staged = inner.staged.as_ref().map(|staged| (staged.round, staged.done.clone()));
        if let Some(entry) = &mut inner.entry {
            entry.state = match staged {
                Some((round, done)) if round == entry.round => State::Pulled(done),
                _ => State::Failed(problem.clone()),
            };
            entry.install_problem = Some(problem);
        }
        drop(inner);
        self.changed.send_replace(());
    }

    /// Why the last install of the known transfer failed.
    pub(crate) fn install_problem(&self) -> Option<Problem> {
        self.lock().entry.as_ref().and_then(|entry| entry.install_problem.clone())
    }

    /// What lies staged for a round.
    pub(crate) fn staged(&self, round: RoundId) -> Option<Staged> {
        self.lock().staged.clone().filter(|staged| staged.round == round)
    }

    pub(crate) fn view(&self, family: Family, round: RoundId, attempt: Attempt) -> View {
        let inner = self.lock();
        let state = match &inner.entry {
            Some(entry) if entry.family == family && entry.round == round && entry.attempt == attempt => {
                match &entry.state {
                    State::Running(_) => ViewState::InProgress(entry.progress.snapshot()),
                    State::Pushed(done) => ViewState::Pushed(done.clone()),
                    State::Pulled(done) => ViewState::Pulled(done.clone()),
                    State::Failed(problem) => ViewState::Failed(problem.clone()),
                }
            }
            _ => ViewState::NotRequested,
        };
        View { round, attempt, state }
    }
}
