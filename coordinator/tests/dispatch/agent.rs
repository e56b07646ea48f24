//! An agent that follows a script: it writes real part manifests into the bucket in memory, or misbehaves as it was told.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use lockstep_bucket::MemoryBuckets;
use lockstep_devkit::s3::S3Admin;
use lockstep_proto::v1::{
    self, agent_server::AgentServer, pull_status_response::State as PullState, push_status_response::State as PushState,
};
use lockstep_protocol::{
    digest::Digest,
    host::Layout,
    id::{Attempt, Fingerprint, Generation, Step},
    location::Location,
    manifest::{FileEntry, Inherited, ObjectEntry, PartDocument, PartManifest, RelativePath},
    problem::Reason,
};
use lockstep_rpc::{GrpcServer, RpcProblem, ServerOptions};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Code, Request, Response, Status};

use crate::rig::uuid;

/// What an agent does with the next order of a new attempt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Play {
    /// What it should.
    Well,
    /// `TRANSFER_IN_PROGRESS` this many times first.
    BusyFor(u32),
    /// It runs until [`Agent::release`].
    Hold,
    /// It runs and never moves.
    Stand,
    /// It accepts the order and is another process right after.
    Restart,
    /// It reports a part that is of another step in S3.
    Lie,
    /// It reports a sound part that inherits a manifest which the base does not reach.
    Stray,
    /// It fails for this reason.
    Fail(Reason),
    /// It forgets the order once.
    Forget,
}

/// Where agents write their parts: past whatever counts or loses requests.
#[derive(Clone)]
pub(crate) enum Behind {
    Memory(MemoryBuckets),
    Server(S3Admin),
}

impl Behind {
    fn write(&self, location: &Location, key: &str, bytes: &[u8]) {
        let (bucket, key) = (location.bucket(), location.full_key(key));
        match self {
            Self::Memory(buckets) => buckets.tamper(bucket, &key, Some(Bytes::copy_from_slice(bytes))),
            Self::Server(admin) => admin.put_raw(bucket, &key, bytes).unwrap(),
        }
    }

    fn read(&self, location: &Location, key: &str) -> Vec<u8> {
        let (bucket, key) = (location.bucket(), location.full_key(key));
        match self {
            Self::Memory(buckets) => buckets.read(bucket, &key).unwrap().to_vec(),
            Self::Server(admin) => admin.read(bucket, &key).unwrap(),
        }
    }
}

#[derive(Clone, Debug)]
enum Transfer {
    Running,
    Pushed(v1::PushDone),
    Pulled(v1::PullDone),
    Failed(v1::Problem),
}

struct State {
    incarnation: String,
    checkpoints: Vec<v1::LocalCheckpoint>,
    plays: VecDeque<Play>,
    busy: u32,
    transfers: HashMap<(String, u32), Transfer>,
    held: Option<v1::PushOrder>,
    /// Grows with each look while something is held: it moves.
    moved: u64,
    staged: Option<(String, u64)>,
    /// Every call but describe, list and status: name and attempt.
    calls: Vec<(&'static str, u32)>,
    /// Highest term that was seen.
    term: u64,
    /// Each word that was accepted, in order.
    told: Vec<Told>,
    /// No word is answered.
    deaf: bool,
}

/// What it was told that its engine may do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Told {
    pub(crate) round: String,
    pub(crate) round_no: u64,
    pub(crate) term: u64,
    pub(crate) step: u64,
    pub(crate) fresh: bool,
    pub(crate) role: v1::Role,
}

#[derive(Clone)]
struct Scripted {
    host_idx: u32,
    n_hosts: u32,
    /// In each part.
    files: u32,
    behind: Behind,
    state: Arc<Mutex<State>>,
    changed: watch::Sender<()>,
}

/// Ends with the value.
pub(crate) struct Agent {
    pub(crate) address: String,
    scripted: Scripted,
    _stop: DropGuard,
}

fn refuse<T>(code: Code, reason: Reason, why: &str) -> Result<T, Status> {
    Err(RpcProblem::new(code, reason.as_str(), why).into_status())
}

pub(crate) fn local(step: u64) -> v1::LocalCheckpoint {
    v1::LocalCheckpoint {
        uuid: uuid(),
        step,
        fingerprint: "18446744073709551615".to_owned(),
        bytes: 5,
        files: 1,
        processed_records: Some(10),
        created_at: None,
    }
}

impl Agent {
    pub(crate) async fn start(host_idx: u32, n_hosts: u32, steps: &[u64], buckets: &MemoryBuckets) -> Self {
        Self::with_files(host_idx, n_hosts, steps, 1, Behind::Memory(buckets.clone())).await
    }

    /// One that reuses what its part of the base has.
    pub(crate) async fn with_files(host_idx: u32, n_hosts: u32, steps: &[u64], files: u32, behind: Behind) -> Self {
        let state = State {
            incarnation: uuid(),
            checkpoints: steps.iter().map(|step| local(*step)).collect(),
            plays: VecDeque::new(),
            busy: 0,
            transfers: HashMap::new(),
            held: None,
            moved: 0,
            staged: None,
            calls: Vec::new(),
            term: 0,
            told: Vec::new(),
            deaf: false,
        };
        let scripted = Scripted {
            host_idx,
            n_hosts,
            files,
            behind,
            state: Arc::new(Mutex::new(state)),
            changed: watch::Sender::new(()),
        };
        let stop = CancellationToken::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let server = GrpcServer::new(ServerOptions::default()).add_service(AgentServer::new(scripted.clone()));
        let stopped = stop.clone();
        tokio::spawn(async move { server.serve(listener, stopped.cancelled_owned()).await.unwrap() });
        Self { address, scripted, _stop: stop.drop_guard() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.scripted.lock()
    }

    /// For the next attempts, one each; afterwards it plays well.
    pub(crate) fn plays(&self, plays: impl IntoIterator<Item = Play>) {
        self.state().plays.extend(plays);
    }

    /// What was held ends well.
    pub(crate) fn release(&self) {
        let held = self.state().held.take();
        if let Some(order) = held {
            let header = order.header.clone().unwrap_or_default();
            let done = self.scripted.write_part(&order, order.step, false);
            self.state().transfers.insert((header.round, header.attempt), Transfer::Pushed(done));
        }
        self.scripted.changed.send_replace(());
    }

    /// Another process on the same disk: what was staged is gone.
    pub(crate) fn restart(&self) {
        self.scripted.restart(&mut self.state());
    }

    pub(crate) fn wipe(&self) {
        let mut state = self.state();
        state.checkpoints.clear();
        state.staged = None;
    }

    pub(crate) fn steps(&self) -> Vec<u64> {
        self.state().checkpoints.iter().map(|checkpoint| checkpoint.step).collect()
    }

    pub(crate) fn calls(&self, name: &str) -> Vec<u32> {
        self.state().calls.iter().filter(|(call, _)| *call == name).map(|(_, attempt)| *attempt).collect()
    }

    pub(crate) fn told(&self) -> Vec<Told> {
        self.state().told.clone()
    }

    /// Whether words find nobody there.
    pub(crate) fn deaf(&self, deaf: bool) {
        self.state().deaf = deaf;
    }

    /// Until the newest word that it was told is like this.
    pub(crate) async fn until_told(&self, like: impl Fn(&Told) -> bool) -> Told {
        let mut changed = self.scripted.changed.subscribe();
        loop {
            if let Some(told) = self.told().pop().filter(&like) {
                return told;
            }
            changed.changed().await.unwrap();
        }
    }

    pub(crate) fn term(&self) -> u64 {
        self.state().term
    }

    /// Until it was called so.
    pub(crate) async fn called(&self, name: &str) {
        let mut changed = self.scripted.changed.subscribe();
        while self.calls(name).is_empty() {
            changed.changed().await.unwrap();
        }
    }
}

impl Scripted {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn restart(&self, state: &mut State) {
        state.incarnation = uuid();
        state.transfers.clear();
        state.held = None;
        state.staged = None;
        self.changed.send_replace(());
    }

    /// The checks that every order passes.
    fn check(&self, state: &mut State, header: Option<v1::OrderHeader>) -> Result<v1::OrderHeader, Status> {
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
    fn play(&self, state: &mut State, header: &v1::OrderHeader) -> Result<Option<Transfer>, Status> {
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
            Play::Fail(reason) => Ok(Some(Transfer::Failed(v1::Problem {
                code: reason.code() as i32,
                reason: reason.as_str().to_owned(),
                message: "as the script says".to_owned(),
                ..v1::Problem::default()
            }))),
        }
    }

    /// Writes the part as an agent would: one data object, the manifest last.
    fn write_part(&self, order: &v1::PushOrder, step: u64, strays: bool) -> v1::PushDone {
        let header = order.header.clone().unwrap_or_default();
        let slot = Layout::from_n_hosts(self.n_hosts).unwrap().slot(self.host_idx).unwrap();
        let mut part = PartManifest {
            pipeline: header.pipeline_id.parse().unwrap(),
            slot,
            generation: Generation::new(header.generation).unwrap(),
            round: header.round.parse().unwrap(),
            incarnation: header.incarnation.parse().unwrap(),
            attempt: Attempt::new(header.attempt).unwrap(),
            local_checkpoint: order.local_checkpoint.parse().unwrap(),
            step: Step::new(step).unwrap(),
            fingerprint: Some(order.fingerprint.parse::<Fingerprint>().unwrap()),
            processed_records: Some(10),
            store_meta: String::new(),
            objects: Vec::new(),
            files: Vec::new(),
            delta: None,
        };
        let own = header.own_location.unwrap_or_default();
        let location: Location = format!("s3://{}/{}", own.bucket, own.prefix).parse().unwrap();
        let key = part.attempt_path().data(0).to_string();
        part.objects = vec![ObjectEntry { key: key.clone(), size: 5 }];
        let file = |number| FileEntry {
            path: RelativePath::new(format!("state-{number:05}")).unwrap(),
            size: 5,
            blake3: Digest::of(b"state"),
            head: None,
            object: Some(0),
            offset: 0,
            length: 5,
        };
        part.files = (0..self.files).map(file).collect();
        match order.base_parts.iter().find(|base| base.host_idx == self.host_idx) {
            Some(base) if self.files > 1 && !strays => {
                let read = |key: &str| self.behind.read(&location, key);
                let document = PartDocument::parse(&base.key, &read(&base.key)).unwrap();
                let whole = document.resolve(|full| Ok(read(&full.key))).unwrap();
                part.objects.clone_from(&whole.objects);
                let name =
                    Inherited { key: base.key.clone(), length: base.length, blake3: base.blake3.parse().unwrap() };
                part.relate(&whole, name);
            }
            _ => self.behind.write(&location, &key, b"state"),
        }
        if strays {
            let other = PartManifest { round: uuid().parse().unwrap(), ..part.clone() };
            let (key, bytes) = (other.attempt_path().manifest().to_string(), other.encode());
            self.behind.write(&location, &key, &bytes);
            part.relate(&other, Inherited { key, length: bytes.len() as u64, blake3: Digest::of(&bytes) });
            assert!(part.delta.is_some());
        }
        let bytes = part.encode();
        let manifest = part.attempt_path().manifest().to_string();
        self.behind.write(&location, &manifest, &bytes);
        v1::PushDone {
            part: Some(v1::PartRef {
                host_idx: self.host_idx,
                key: manifest,
                length: bytes.len() as u64,
                blake3: Digest::of(&bytes).to_string(),
            }),
            local_checkpoint: order.local_checkpoint.clone(),
            step: order.step,
            fingerprint: order.fingerprint.clone(),
            files: self.files.into(),
            bytes: part.bytes(),
            bytes_uploaded: 5,
            processed_records: Some(10),
            elapsed: None,
        }
    }

    fn push_status(&self, state: &mut State, header: &v1::OrderHeader) -> v1::PushStatusResponse {
        state.moved += u64::from(state.held.is_some());
        let moved = v1::Progress { bytes_total: 5, bytes_transferred: state.moved, ..v1::Progress::default() };
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

    fn pull_status(&self, state: &State, header: &v1::OrderHeader) -> v1::PullStatusResponse {
        let known = state.transfers.get(&(header.round.clone(), header.attempt));
        let answer = match known {
            Some(Transfer::Running) => PullState::InProgress(v1::Progress { bytes_total: 5, ..Default::default() }),
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

    fn call(&self, state: &mut State, name: &'static str, header: &v1::OrderHeader) {
        state.calls.push((name, header.attempt));
        self.changed.send_replace(());
    }

    /// A long poll: answered when something changed, or after its wait.
    async fn wait(&self, wait: Option<prost_types::Duration>, running: impl Fn() -> bool) {
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

    fn is_running(&self, header: &v1::OrderHeader) -> bool {
        let key = (header.round.clone(), header.attempt);
        let state = self.lock();
        state.incarnation == header.incarnation && matches!(state.transfers.get(&key), Some(Transfer::Running))
    }
}

#[tonic::async_trait]
impl v1::agent_server::Agent for Scripted {
    async fn describe(&self, _: Request<v1::DescribeRequest>) -> Result<Response<v1::DescribeResponse>, Status> {
        Ok(Response::new(v1::DescribeResponse {
            pipeline: "orders".to_owned(),
            host_info: Some(v1::HostInfo { host_idx: self.host_idx, n_hosts: self.n_hosts }),
            incarnation: self.lock().incarnation.clone(),
            ..v1::DescribeResponse::default()
        }))
    }

    async fn list_checkpoints(
        &self,
        _: Request<v1::ListLocalCheckpointsRequest>,
    ) -> Result<Response<v1::ListLocalCheckpointsResponse>, Status> {
        let state = self.lock();
        Ok(Response::new(v1::ListLocalCheckpointsResponse {
            incarnation: state.incarnation.clone(),
            checkpoints: state.checkpoints.clone(),
        }))
    }

    async fn push(&self, request: Request<v1::PushOrder>) -> Result<Response<v1::PushStatusResponse>, Status> {
        let order = request.into_inner();
        let mut state = self.lock();
        let header = self.check(&mut state, order.header.clone())?;
        self.call(&mut state, "push", &header);
        let key = (header.round.clone(), header.attempt);
        if !state.transfers.contains_key(&key) {
            let lies = state.plays.front() == Some(&Play::Lie);
            let strays = state.plays.front() == Some(&Play::Stray);
            let holds = state.plays.front() == Some(&Play::Hold);
            let forgets = state.plays.front() == Some(&Play::Forget);
            let transfer = match self.play(&mut state, &header)? {
                Some(transfer) => transfer,
                None => Transfer::Pushed(self.write_part(&order, order.step + u64::from(lies), strays)),
            };
            if holds {
                state.held = Some(order);
            }
            if state.incarnation == header.incarnation {
                state.transfers.insert(key.clone(), transfer);
            }
            let answer = self.push_status(&mut state, &header);
            if forgets {
                state.transfers.remove(&key);
            }
            return Ok(Response::new(answer));
        }
        Ok(Response::new(self.push_status(&mut state, &header)))
    }

    async fn pull(&self, request: Request<v1::PullOrder>) -> Result<Response<v1::PullStatusResponse>, Status> {
        let order = request.into_inner();
        let mut state = self.lock();
        let header = self.check(&mut state, order.header.clone())?;
        self.call(&mut state, "pull", &header);
        let key = (header.round.clone(), header.attempt);
        if !state.transfers.contains_key(&key) {
            let transfer = match self.play(&mut state, &header)? {
                Some(transfer) => transfer,
                None => {
                    state.staged = Some((order.local_checkpoint.clone(), order.step));
                    Transfer::Pulled(v1::PullDone {
                        reach: v1::PullReach::Staged.into(),
                        local_checkpoint: order.local_checkpoint,
                        step: order.step,
                        files: 1,
                        bytes: 5,
                        bytes_downloaded: 5,
                        ..v1::PullDone::default()
                    })
                }
            };
            if state.incarnation == header.incarnation {
                state.transfers.insert(key, transfer);
            }
        }
        Ok(Response::new(self.pull_status(&state, &header)))
    }

    async fn push_status(
        &self,
        request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::PushStatusResponse>, Status> {
        let request = request.into_inner();
        let header = self.check(&mut self.lock(), request.header)?;
        self.wait(request.wait, || self.is_running(&header)).await;
        let mut state = self.lock();
        Ok(Response::new(self.push_status(&mut state, &header)))
    }

    async fn pull_status(
        &self,
        request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::PullStatusResponse>, Status> {
        let request = request.into_inner();
        let header = self.check(&mut self.lock(), request.header)?;
        self.wait(request.wait, || self.is_running(&header)).await;
        let state = self.lock();
        Ok(Response::new(self.pull_status(&state, &header)))
    }

    async fn install(&self, request: Request<v1::InstallOrder>) -> Result<Response<v1::PullStatusResponse>, Status> {
        let order = request.into_inner();
        let mut state = self.lock();
        let header = self.check(&mut state, order.header)?;
        self.call(&mut state, "install", &header);
        let mut done = v1::PullDone {
            reach: v1::PullReach::Installed.into(),
            local_checkpoint: order.local_checkpoint.clone(),
            step: order.step,
            ..v1::PullDone::default()
        };
        let staged = state.staged.take().filter(|(id, _)| *id == order.local_checkpoint);
        let kept = state.checkpoints.iter().find(|checkpoint| checkpoint.uuid == order.local_checkpoint).cloned();
        state.checkpoints = match (order.fresh, staged, kept) {
            (true, ..) => Vec::new(),
            (false, Some((id, step)), _) => {
                (done.files, done.bytes) = (1, 5);
                vec![v1::LocalCheckpoint { uuid: id, ..local(step) }]
            }
            (false, None, Some(kept)) => vec![kept],
            (false, None, None) => {
                return refuse(Code::NotFound, Reason::CheckpointNotFound, "neither staged nor local here");
            }
        };
        state.transfers.insert((header.round.clone(), header.attempt), Transfer::Pulled(done));
        Ok(Response::new(self.pull_status(&state, &header)))
    }

    async fn ready(&self, request: Request<v1::ReadyOrder>) -> Result<Response<v1::ReadyResponse>, Status> {
        let order = request.into_inner();
        let header = order.header.clone().unwrap_or_default();
        let mut state = self.lock();
        if header.incarnation != state.incarnation {
            return refuse(Code::FailedPrecondition, Reason::IncarnationMismatch, "another incarnation");
        }
        self.call(&mut state, "ready", &header);
        if state.deaf {
            return Err(Status::unavailable("as the script says"));
        }
        let told = Told {
            round: header.round,
            round_no: header.round_no,
            term: header.term,
            step: order.step,
            fresh: order.fresh,
            role: order.role(),
        };
        let last = state.told.last().map_or((0, 0), |last| (last.round_no, last.term));
        if (told.round_no, told.term) < last {
            return refuse(Code::FailedPrecondition, Reason::StaleTerm, "an older word");
        }
        state.told.push(told);
        self.changed.send_replace(());
        Ok(Response::new(v1::ReadyResponse { incarnation: state.incarnation.clone() }))
    }

    async fn cancel(&self, request: Request<v1::CancelOrder>) -> Result<Response<v1::CancelResponse>, Status> {
        let mut state = self.lock();
        let header = self.check(&mut state, request.into_inner().header)?;
        self.call(&mut state, "cancel", &header);
        state.transfers.retain(|(round, _), _| *round != header.round);
        state.held = None;
        Ok(Response::new(v1::CancelResponse { stopped: true }))
    }

    async fn sync(&self, _: Request<v1::SyncRequest>) -> Result<Response<v1::SyncResponse>, Status> {
        refuse(Code::FailedPrecondition, Reason::MultihostRequiresCoordinator, "three hosts")
    }
}
