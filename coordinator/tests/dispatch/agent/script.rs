//! What an agent knows, and how it follows its script: the checks of an order, the next play, what a transfer has come to.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lockstep_proto::v1::{self, pull_status_response::State as PullState, push_status_response::State as PushState};
use lockstep_protocol::problem::Reason;
use lockstep_rpc::RpcProblem;
use tokio::sync::watch;
use tonic::{Code, Status};

use super::{Behind, Play, Told};
use crate::rig::uuid;

#[derive(Clone, Debug)]
pub(super) enum Transfer {
    Running,
    Pushed(v1::PushDone),
    Pulled(v1::PullDone),
    Failed(v1::Problem),
}

/// An order whose end is the test's to say.
pub(super) enum Held {
    Push(v1::PushOrder),
    Pull(v1::PullOrder),
}

pub(super) struct State {
    pub(super) incarnation: String,
    pub(super) checkpoints: Vec<v1::LocalCheckpoint>,
    pub(super) plays: VecDeque<Play>,
    pub(super) busy: u32,
    pub(super) transfers: HashMap<(String, u32), Transfer>,
    pub(super) held: Option<Held>,
    /// Grows with each look while something is held: it moves.
    pub(super) moved: u64,
    pub(super) staged: Option<(String, u64)>,
    /// Every call but describe, list and status: name and attempt.
    pub(super) calls: Vec<(&'static str, u32)>,
    /// Highest term that was seen.
    pub(super) term: u64,
    /// Each word that was accepted, in order.
    pub(super) told: Vec<Told>,
    /// No word is answered.
    pub(super) deaf: bool,
}

#[derive(Clone)]
pub(super) struct Scripted {
    pub(super) host_idx: u32,
    pub(super) n_hosts: u32,
    /// In each part.
    pub(super) files: u32,
    pub(super) behind: Behind,
    pub(super) state: Arc<Mutex<State>>,
    pub(super) changed: watch::Sender<()>,
}

pub(super) fn refuse<T>(code: Code, reason: Reason, why: &str) -> Result<T, Status> {
    Err(RpcProblem::new(code, reason.as_str(), why).into_status())
}

pub(super) fn failed(reason: Reason) -> Transfer {
    Transfer::Failed(v1::Problem {
        code: reason.code() as i32,
        reason: reason.as_str().to_owned(),
        message: "as the script says".to_owned(),
        ..v1::Problem::default()
    })
}

impl State {
    pub(super) fn stage(&mut self, order: &v1::PullOrder) -> v1::PullDone {
        self.staged = Some((order.local_checkpoint.clone(), order.step));
        v1::PullDone {
            reach: v1::PullReach::Staged.into(),
            local_checkpoint: order.local_checkpoint.clone(),
            step: order.step,
            files: 1,
            bytes: 5,
            bytes_downloaded: 5,
            ..v1::PullDone::default()
        }
    }

    /// What a transfer that runs says of itself.
    fn progress(&mut self) -> v1::Progress {
        self.moved += u64::from(self.held.is_some());
        v1::Progress { bytes_total: 5, bytes_transferred: self.moved, ..v1::Progress::default() }
    }
}

impl Scripted {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn restart(&self, state: &mut State) {
        state.incarnation = uuid();
        state.transfers.clear();
        state.held = None;
        state.staged = None;
        self.changed.send_replace(());
    }

    /// The checks that every order passes.
    pub(super) fn check(&self, state: &mut State, header: Option<v1::OrderHeader>) -> Result<v1::OrderHeader, Status> {
        let Some(header) = header else { return refuse(Code::InvalidArgument, Reason::SpecInvalid, "no header") };
        if header.incarnation != state.incarnation {
            return refuse(Code::FailedPrecondition, Reason::IncarnationMismatch, "another incarnation");
        }
        if header.term < state.term {
            return refuse(Code::FailedPrecondition, Reason::StaleTerm, "an older term");
        }
        state.term = header.term;
        Ok(header)
    }

    /// Some(..): answered; None: the play is to do it well.
    pub(super) fn play(&self, state: &mut State, header: &v1::OrderHeader) -> Result<Option<Transfer>, Status> {
        if state.busy > 0 {
            state.busy -= 1;
            return refuse(Code::Aborted, Reason::TransferInProgress, "busy");
        }
        let running = Ok(Some(Transfer::Running));
        match state.plays.pop_front().unwrap_or(Play::Well) {
            Play::Well | Play::Lie | Play::Stray => Ok(None),
            Play::BusyFor(times) => {
                state.busy = times - 1;
                refuse(Code::Aborted, Reason::TransferInProgress, "busy")
            }
            Play::Hold | Play::Stand => running,
            Play::Forget => {
                state.transfers.remove(&(header.round.clone(), header.attempt));
                running
            }
            Play::Restart => {
                self.restart(state);
                running
            }
            Play::Fail(reason) => Ok(Some(failed(reason))),
        }
    }

    pub(super) fn push_status(&self, state: &mut State, header: &v1::OrderHeader) -> v1::PushStatusResponse {
        let moved = state.progress();
        let known = state.transfers.get(&(header.round.clone(), header.attempt));
        let answer = match known {
            Some(Transfer::Running) => PushState::InProgress(moved),
            Some(Transfer::Pushed(done)) => PushState::Done(done.clone()),
            Some(Transfer::Failed(problem)) => PushState::Failed(problem.clone()),
            Some(Transfer::Pulled(_)) | None => PushState::NotRequested(v1::NotRequested {}),
        };
        v1::PushStatusResponse {
            incarnation: state.incarnation.clone(),
            round: header.round.clone(),
            attempt: header.attempt,
            state: Some(answer),
            throttled: 0,
        }
    }

    pub(super) fn pull_status(&self, state: &mut State, header: &v1::OrderHeader) -> v1::PullStatusResponse {
        let moved = state.progress();
        let known = state.transfers.get(&(header.round.clone(), header.attempt));
        let answer = match known {
            Some(Transfer::Running) => PullState::InProgress(moved),
            Some(Transfer::Pulled(done)) => PullState::Done(done.clone()),
            Some(Transfer::Failed(problem)) => PullState::Failed(problem.clone()),
            Some(Transfer::Pushed(_)) | None => PullState::NotRequested(v1::NotRequested {}),
        };
        v1::PullStatusResponse {
            incarnation: state.incarnation.clone(),
            round: header.round.clone(),
            attempt: header.attempt,
            state: Some(answer),
            throttled: 0,
        }
    }

    pub(super) fn call(&self, state: &mut State, name: &'static str, header: &v1::OrderHeader) {
        state.calls.push((name, header.attempt));
        self.changed.send_replace(());
    }

    /// A long poll: answered when something changed, or after its wait.
    pub(super) async fn wait(&self, wait: Option<prost_types::Duration>, running: impl Fn() -> bool) {
        let wait = wait.and_then(|wait| Duration::try_from(wait).ok()).unwrap_or_default();
        let mut changed = self.changed.subscribe();
        let over = async {
            while running() {
                changed.changed().await.unwrap();
            }
        };
        // Half a second while bytes move, as agents do.
        let _ = tokio::time::timeout(wait.min(Duration::from_millis(500)), over).await;
    }

    pub(super) fn is_running(&self, header: &v1::OrderHeader) -> bool {
        let key = (header.round.clone(), header.attempt);
        let state = self.lock();
        state.incarnation == header.incarnation && matches!(state.transfers.get(&key), Some(Transfer::Running))
    }
}
