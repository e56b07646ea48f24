//! A simulated host: an agent that obeys the protocol's rules of orders, on a disk that outlives its process.
//!
//! It takes virtual time for what a real one takes time for, writes real part manifests through a bucket that fails, and is restarted, cut off and
//! robbed of its disk by the story.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lockstep_bucket::ObjectStore;
use lockstep_coordinator::convert::status::{problem as message_of, status};
use lockstep_proto::v1::{self, pull_status_response::State as PullState, push_status_response::State as PushState};
use lockstep_protocol::{
    host::Slot,
    id::{Attempt, Incarnation, LocalCheckpointId, PipelineName, RoundId, Step},
    location::Location,
    order::{
        Admission, AgentIdentity, KnownTransfer, OrderHeader, OrderMark, PipelineSelector, admit, check_identity,
        check_mark, check_ready,
    },
    planted::{self, Bug},
    problem::{Problem, Reason},
};
use tokio::sync::Notify;
use tonic::{Request, Response, Status};

use crate::{log, weather::Weather};

mod transfer;

use transfer::FINGERPRINT;

/// One local checkpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Local {
    pub(crate) id: LocalCheckpointId,
    pub(crate) step: Step,
    /// When the engine made it; none: it came from the bucket.
    made: Option<Duration>,
}

#[derive(Clone, Debug)]
enum Stage {
    Running { moved: u64 },
    Stopping,
    Pushed(v1::PushDone),
    Pulled(v1::PullDone),
    Failed(Problem),
}

#[derive(Clone, Debug)]
struct Transfer {
    round: RoundId,
    attempt: Attempt,
    stage: Stage,
}

struct State {
    incarnation: Incarnation,
    up: bool,
    /// On disk, so it outlives the process.
    highest: Option<OrderMark>,
    /// Of installs and words; on disk too.
    installing: Option<OrderMark>,
    /// The pull of the word that holds; on disk too.
    ready: Option<RoundId>,
    disk: Vec<Local>,
    staged: Option<Local>,
    transfer: Option<Transfer>,
    /// Which process was told to have what, for S12.
    installed: Vec<(Incarnation, LocalCheckpointId, Duration)>,
}

/// Clones are the same host.
#[derive(Clone)]
pub(crate) struct Agent(Arc<Shared>);

struct Shared {
    slot: Slot,
    pipeline: PipelineName,
    location: Location,
    bucket: Arc<dyn ObjectStore>,
    weather: Weather,
    state: Mutex<State>,
    /// Wakes those who wait in the order they came, so that a seed is one history.
    changed: Notify,
}

impl Agent {
    pub(crate) fn new(
        slot: Slot,
        pipeline: PipelineName,
        location: Location,
        bucket: Arc<dyn ObjectStore>,
        weather: Weather,
    ) -> Self {
        let state = State {
            incarnation: Incarnation::new(weather.uuid()),
            up: true,
            highest: None,
            installing: None,
            ready: None,
            disk: Vec::new(),
            staged: None,
            transfer: None,
            installed: Vec::new(),
        };
        let (state, changed) = (Mutex::new(state), Notify::new());
        Self(Arc::new(Shared { slot, pipeline, location, bucket, weather, state, changed }))
    }

    pub(crate) fn address(&self) -> String {
        format!("http://{}:7402", self.host_name())
    }

    pub(crate) fn host_name(&self) -> String {
        format!("{}-{}", self.0.pipeline, self.0.slot.idx())
    }

    pub(crate) fn slot(&self) -> Slot {
        self.0.slot
    }

    /// None: solo.
    pub(crate) fn host_info(&self) -> Option<lockstep_protocol::host::HostInfo> {
        self.0.slot.host_info()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self) {
        self.0.changed.notify_waiters();
    }

    // ---- what happens to the host

    /// Its present process; none: it is down.
    pub(crate) fn life(&self) -> Option<Incarnation> {
        let state = self.state();
        state.up.then_some(state.incarnation)
    }

    /// The process ends; `start` begins another.
    pub(crate) fn crash(&self) {
        let mut state = self.state();
        state.up = false;
        (state.transfer, state.staged) = (None, None);
        drop(state);
        self.tell();
    }

    pub(crate) fn start(&self) {
        let mut state = self.state();
        if !state.up {
            state.up = true;
            state.incarnation = Incarnation::new(self.0.weather.uuid());
        }
        drop(state);
        self.tell();
    }

    /// The disk is gone and with it what was remembered of orders.
    pub(crate) fn lose_disk(&self) {
        let mut state = self.state();
        state.disk.clear();
        (state.highest, state.installing, state.ready) = (None, None, None);
    }

    /// The engine makes a checkpoint and keeps the newest three.
    pub(crate) fn checkpoint(&self, step: u64) {
        let id = LocalCheckpointId::new(self.0.weather.uuid());
        let local = Local { id, step: Step::new(step).unwrap(), made: Some(log::elapsed()) };
        let mut state = self.state();
        if state.up {
            state.disk.push(local);
            let old = state.disk.len().saturating_sub(3);
            state.disk.drain(..old);
        }
    }

    pub(crate) fn disk(&self) -> Vec<Local> {
        self.state().disk.clone()
    }

    /// When this process first answered, at that time or later, that it has this checkpoint and nothing else.
    pub(crate) fn installed_at(&self, life: Incarnation, id: LocalCheckpointId, since: Duration) -> Option<Duration> {
        let state = self.state();
        let mut installed = state.installed.iter();
        let found = installed.find(|(process, local, at)| (*process, *local) == (life, id) && *at >= since);
        found.map(|(_, _, at)| *at)
    }

    /// A step of before an install that is still there.
    pub(crate) fn older_than(&self, installed: LocalCheckpointId, at: Duration) -> Option<Step> {
        let state = self.state();
        let older = |local: &&Local| local.id != installed && local.made.is_none_or(|made| made < at);
        state.disk.iter().find(older).map(|local| local.step)
    }

    // ---- orders

    fn header(&self, header: Option<v1::OrderHeader>) -> Result<OrderHeader, Problem> {
        let header = header.ok_or_else(|| Problem::new(Reason::SpecInvalid, "no header"))?;
        let identity = |text: &str| Problem::new(Reason::SpecInvalid, format!("{text} is no id"));
        let layout = header.host_info.map_or(0, |info| info.n_hosts);
        let layout = lockstep_protocol::host::Layout::from_n_hosts(layout)?;
        Ok(OrderHeader {
            pipeline: header.pipeline_id.parse().map_err(|_| identity("pipeline"))?,
            pipeline_name: PipelineName::new(header.pipeline_name)?,
            slot: layout.slot(header.host_info.map_or(0, |info| info.host_idx))?,
            incarnation: header.incarnation.parse().map_err(|_| identity("incarnation"))?,
            generation: header.generation.try_into().unwrap_or(lockstep_protocol::id::Generation::NONE),
            round_no: header.round_no.try_into()?,
            term: header.term.try_into()?,
            round: header.round.parse().map_err(|_| identity("round"))?,
            attempt: Attempt::new(header.attempt)?,
            own_location: self.0.location.clone(),
        })
    }

    fn identity(&self, state: &State) -> AgentIdentity {
        AgentIdentity {
            pipeline: PipelineSelector::Name(self.0.pipeline.clone()),
            slot: self.0.slot,
            incarnation: state.incarnation,
            allowed: vec![self.0.location.clone()],
        }
    }

    /// The checks that every order passes.
    fn check(&self, header: Option<v1::OrderHeader>) -> Result<OrderHeader, Problem> {
        let header = self.header(header)?;
        let state = self.state();
        check_identity(&header, &self.identity(&state), &[&header.own_location])?;
        check_mark(&header, state.highest)?;
        Ok(header)
    }

    /// True: a new transfer is to be started.
    fn admit(&self, header: &OrderHeader) -> Result<bool, Problem> {
        let mut state = self.state();
        let known = state.transfer.as_ref().map(|transfer| KnownTransfer {
            round: transfer.round,
            attempt: transfer.attempt,
            running: matches!(transfer.stage, Stage::Running { .. } | Stage::Stopping),
        });
        let admission = admit(header, known);
        if !matches!(admission, Admission::Refuse(_)) {
            state.highest = state.highest.max(Some(header.mark()));
        }
        match admission {
            Admission::Start => {
                let stage = Stage::Running { moved: 0 };
                state.transfer = Some(Transfer { round: header.round, attempt: header.attempt, stage });
                state.staged = None;
                Ok(true)
            }
            Admission::Known => Ok(false),
            Admission::CancelRunning(problem) => {
                stop(&mut state);
                drop(state);
                self.tell();
                Err(problem)
            }
            Admission::Refuse(problem) => Err(problem),
        }
    }

    /// Whether an attempt still is to run in this process.
    fn goes_on(&self, header: &OrderHeader) -> bool {
        let state = self.state();
        state.up
            && state.incarnation == header.incarnation
            && state.transfer.as_ref().is_some_and(|transfer| {
                (transfer.round, transfer.attempt) == (header.round, header.attempt)
                    && matches!(transfer.stage, Stage::Running { .. })
            })
    }

    /// An attempt ends; one that was stopped leaves nothing.
    fn end(&self, header: &OrderHeader, stage: Stage, staged: Option<Local>) {
        let mut state = self.state();
        if state.incarnation == header.incarnation
            && let Some(transfer) = &mut state.transfer
            && (transfer.round, transfer.attempt) == (header.round, header.attempt)
        {
            if matches!(transfer.stage, Stage::Stopping) {
                state.transfer = None;
            } else {
                transfer.stage = stage;
                state.staged = staged;
            }
        }
        drop(state);
        self.tell();
    }

    fn stage(&self, header: &OrderHeader) -> Option<Stage> {
        let state = self.state();
        let known = |transfer: &&Transfer| (transfer.round, transfer.attempt) == (header.round, header.attempt);
        state.transfer.as_ref().filter(known).map(|transfer| transfer.stage.clone())
    }

    fn push_status(&self, header: &OrderHeader) -> v1::PushStatusResponse {
        let state = match self.stage(header) {
            Some(Stage::Running { moved }) => PushState::InProgress(progress(moved)),
            Some(Stage::Stopping) => PushState::InProgress(progress(0)),
            Some(Stage::Pushed(done)) => PushState::Done(done),
            Some(Stage::Failed(problem)) => PushState::Failed(message_of(&problem)),
            Some(Stage::Pulled(_)) | None => PushState::NotRequested(v1::NotRequested {}),
        };
        v1::PushStatusResponse {
            incarnation: self.state().incarnation.to_string(),
            round: header.round.to_string(),
            attempt: header.attempt.get(),
            state: Some(state),
            throttled: 0,
        }
    }

    fn pull_status(&self, header: &OrderHeader) -> v1::PullStatusResponse {
        let state = match self.stage(header) {
            Some(Stage::Running { moved }) => PullState::InProgress(progress(moved)),
            Some(Stage::Stopping) => PullState::InProgress(progress(0)),
            Some(Stage::Pulled(done)) => PullState::Done(done),
            Some(Stage::Failed(problem)) => PullState::Failed(message_of(&problem)),
            Some(Stage::Pushed(_)) | None => PullState::NotRequested(v1::NotRequested {}),
        };
        v1::PullStatusResponse {
            incarnation: self.state().incarnation.to_string(),
            round: header.round.to_string(),
            attempt: header.attempt.get(),
            state: Some(state),
            throttled: 0,
        }
    }

    async fn until(&self, done: impl Fn(&Self) -> bool) {
        loop {
            let changed = self.0.changed.notified();
            if done(self) {
                return;
            }
            changed.await;
        }
    }

    /// A long poll: until something changes, half a second at most, as agents do while bytes move.
    async fn wait(&self, header: &OrderHeader) {
        let running = |stage| matches!(stage, Some(Stage::Running { .. } | Stage::Stopping));
        let ended = self.until(|agent| !running(agent.stage(header)));
        let _ = tokio::time::timeout(Duration::from_millis(500), ended).await;
    }

    /// What the engine may do.
    fn ready(&self, order: &v1::ReadyOrder) -> Result<(), Problem> {
        let header = self.header(order.header.clone())?;
        let mut state = self.state();
        check_identity(&header, &self.identity(&state), &[&header.own_location])?;
        check_ready(&header, state.highest, state.installing)?;
        let local = state.disk.iter().find(|local| local.id.to_string() == order.local_checkpoint);
        if !order.fresh && local.is_none() && state.ready != Some(header.round) {
            return Err(Problem::new(Reason::CheckpointNotFound, "not local here"));
        }
        state.highest = state.highest.max(Some(header.mark()));
        state.installing = state.installing.max(Some(header.mark()));
        state.ready = Some(header.round);
        Ok(())
    }

    /// The pull after which its engine was told that it may start; none: it must not.
    pub(crate) fn told(&self) -> Option<RoundId> {
        self.state().ready
    }

    /// Makes one checkpoint the only one.
    fn install(&self, header: &OrderHeader, order: &v1::InstallOrder) -> Result<v1::PullDone, Problem> {
        let mut state = self.state();
        // Persisted before it takes effect, as every order.
        state.highest = state.highest.max(Some(header.mark()));
        state.installing = state.installing.max(Some(header.mark()));
        state.ready = None;
        if order.fresh {
            state.disk.clear();
        } else {
            let id: LocalCheckpointId = order.local_checkpoint.parse().unwrap();
            let staged = state.staged.take().filter(|local| local.id == id);
            let kept = state.disk.iter().find(|local| local.id == id).copied();
            let Some(local) = staged.or(kept) else {
                return Err(Problem::new(Reason::CheckpointNotFound, "neither staged nor local here"));
            };
            if !planted::is(Bug::OtherCheckpointsStay) {
                state.disk.clear();
            }
            state.disk.retain(|other| other.id != id);
            state.disk.push(local);
            let incarnation = state.incarnation;
            state.installed.push((incarnation, id, log::elapsed()));
        }
        let done = v1::PullDone {
            reach: v1::PullReach::Installed.into(),
            local_checkpoint: order.local_checkpoint.clone(),
            step: order.step,
            ..v1::PullDone::default()
        };
        let stage = Stage::Pulled(done.clone());
        state.transfer = Some(Transfer { round: header.round, attempt: header.attempt, stage });
        Ok(done)
    }
}

fn stop(state: &mut State) {
    if let Some(transfer) = &mut state.transfer
        && matches!(transfer.stage, Stage::Running { .. })
    {
        transfer.stage = Stage::Stopping;
    }
}

fn progress(moved: u64) -> v1::Progress {
    v1::Progress { bytes_total: 10, bytes_transferred: moved, ..v1::Progress::default() }
}

#[tonic::async_trait]
impl v1::agent_server::Agent for Agent {
    async fn describe(&self, _: Request<v1::DescribeRequest>) -> Result<Response<v1::DescribeResponse>, Status> {
        let host_info = self.0.slot.host_info();
        Ok(Response::new(v1::DescribeResponse {
            pipeline: self.0.pipeline.to_string(),
            host_info: host_info.map(|info| v1::HostInfo { host_idx: info.host_idx(), n_hosts: info.n_hosts() }),
            incarnation: self.state().incarnation.to_string(),
            ..v1::DescribeResponse::default()
        }))
    }

    async fn list_checkpoints(
        &self,
        _: Request<v1::ListLocalCheckpointsRequest>,
    ) -> Result<Response<v1::ListLocalCheckpointsResponse>, Status> {
        let state = self.state();
        let checkpoints = state.disk.iter().map(|local| v1::LocalCheckpoint {
            uuid: local.id.to_string(),
            step: local.step.get(),
            fingerprint: FINGERPRINT.to_string(),
            bytes: 10,
            files: 2,
            processed_records: None,
            created_at: None,
        });
        Ok(Response::new(v1::ListLocalCheckpointsResponse {
            incarnation: state.incarnation.to_string(),
            checkpoints: checkpoints.collect(),
        }))
    }

    async fn push(&self, request: Request<v1::PushOrder>) -> Result<Response<v1::PushStatusResponse>, Status> {
        let order = request.into_inner();
        let header = self.check(order.header.clone()).map_err(status)?;
        if self.admit(&header).map_err(status)? {
            tokio::spawn(self.clone().upload(header.clone(), order));
        }
        Ok(Response::new(self.push_status(&header)))
    }

    async fn pull(&self, request: Request<v1::PullOrder>) -> Result<Response<v1::PullStatusResponse>, Status> {
        let order = request.into_inner();
        let header = self.check(order.header.clone()).map_err(status)?;
        if self.admit(&header).map_err(status)? {
            tokio::spawn(self.clone().download(header.clone(), order));
        }
        Ok(Response::new(self.pull_status(&header)))
    }

    async fn push_status(
        &self,
        request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::PushStatusResponse>, Status> {
        let header = self.check(request.into_inner().header).map_err(status)?;
        self.wait(&header).await;
        Ok(Response::new(self.push_status(&header)))
    }

    async fn pull_status(
        &self,
        request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::PullStatusResponse>, Status> {
        let header = self.check(request.into_inner().header).map_err(status)?;
        self.wait(&header).await;
        Ok(Response::new(self.pull_status(&header)))
    }

    async fn install(&self, request: Request<v1::InstallOrder>) -> Result<Response<v1::PullStatusResponse>, Status> {
        let order = request.into_inner();
        self.check(order.header.clone()).map_err(status)?;
        tokio::time::sleep(self.0.weather.millis(5..300)).await;
        // Whatever came meanwhile came first.
        let header = self.check(order.header.clone()).map_err(status)?;
        self.install(&header, &order).map_err(status)?;
        self.tell();
        Ok(Response::new(self.pull_status(&header)))
    }

    async fn ready(&self, request: Request<v1::ReadyOrder>) -> Result<Response<v1::ReadyResponse>, Status> {
        let order = request.into_inner();
        self.ready(&order).map_err(status)?;
        Ok(Response::new(v1::ReadyResponse { incarnation: self.state().incarnation.to_string() }))
    }

    async fn cancel(&self, request: Request<v1::CancelOrder>) -> Result<Response<v1::CancelResponse>, Status> {
        let header = self.check(request.into_inner().header).map_err(status)?;
        let of_round = |agent: &Self| {
            agent.state().transfer.as_ref().is_some_and(|transfer| {
                transfer.round == header.round && matches!(transfer.stage, Stage::Running { .. } | Stage::Stopping)
            })
        };
        if of_round(self) {
            stop(&mut self.state());
            self.tell();
        }
        let stopped = self.until(|agent| !of_round(agent));
        let _ = tokio::time::timeout(Duration::from_secs(5), stopped).await;
        Ok(Response::new(v1::CancelResponse { stopped: !of_round(self) }))
    }

    async fn sync(&self, _: Request<v1::SyncRequest>) -> Result<Response<v1::SyncResponse>, Status> {
        Err(status(Problem::new(Reason::MultihostRequiresCoordinator, "simulated agents don't sync")))
    }
}
