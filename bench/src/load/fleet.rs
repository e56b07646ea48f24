//! Agents that are only simulated: all of them behind one listener, each on a loopback address of its own, with the transfers of a tiny checkpoint.
//!
//! What a coordinator sees of them is real: one TCP connection an agent, gRPC, part manifests and objects in the bucket that pass every check. What
//! they leave out is what costs an agent: reading, hashing and sending files. A transfer takes as long as it is told to.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use lockstep_devkit::S3Admin;
use lockstep_proto::v1::{self, agent_server::AgentServer, push_status_response::State};
use lockstep_rpc::{GrpcServer, MAX_MESSAGE_BYTES, RpcProblem, ServerOptions};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Code, Request, Response, Status};
use uuid::Uuid;

use super::part::{self, Written};

/// Loopback has 2^24 addresses; the first of them belong to others.
const FIRST_ADDRESS: u32 = u32::from_be_bytes([127, 1, 0, 0]);

/// Most agents that have an address.
pub const MOST_AGENTS: u32 = 1 << 22;

/// How the agents are to be.
#[derive(Debug, Clone, Copy)]
pub struct FleetOptions {
    /// Pipelines.
    pub pipelines: u32,
    /// Agents of each.
    pub hosts: u32,
    /// What a transfer takes in the middle.
    pub transfer: Duration,
    /// How far transfers lie apart: 0 all alike, 1 between nothing and twice the middle.
    pub spread: f64,
}

/// The agents. They end with this.
#[derive(Debug)]
pub struct Fleet {
    agents: Agents,
    port: u16,
    _stop: DropGuard,
}

#[derive(Debug, Clone)]
struct Agents(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    options: FleetOptions,
    bucket: String,
    admin: S3Admin,
    /// By pipeline: the step of the newest local checkpoint on all of its hosts.
    steps: Vec<AtomicU64>,
    /// By pipeline, then host.
    hosts: Vec<Mutex<Host>>,
}

/// What one simulated agent remembers.
#[derive(Debug, Default)]
struct Host {
    running: Option<Transfer>,
    written: Option<Written>,
}

#[derive(Debug, Clone)]
struct Transfer {
    round: String,
    attempt: u32,
    ready: Instant,
    done: v1::PushDone,
}

/// Name of a pipeline, and the prefix of its location.
pub fn pipeline_name(pipeline: u32) -> String {
    format!("load-{pipeline:05}")
}

impl Fleet {
    /// Starts to listen on every loopback address.
    pub async fn start(options: FleetOptions, bucket: &str, admin: S3Admin) -> Result<Self> {
        let agents = (0..options.pipelines * options.hosts).map(|_| Mutex::default()).collect();
        let shared = Shared {
            options,
            bucket: bucket.to_owned(),
            admin,
            steps: (0..options.pipelines).map(|_| AtomicU64::new(0)).collect(),
            hosts: agents,
        };
        let agents = Agents(Arc::new(shared));
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await.context("can't listen for the agents")?;
        let port = listener.local_addr()?.port();
        // One server plays them all, so the limits of one agent don't fit it.
        let limits = ServerOptions { max_connections: 1 << 20, ..ServerOptions::default() };
        let service = AgentServer::new(agents.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let server = GrpcServer::new(limits).add_service(service);
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        tokio::spawn(async move {
            if let Err(error) = server.serve(listener, stopped.cancelled_owned()).await {
                eprintln!("error: the simulated agents ended: {error}");
            }
        });
        Ok(Self { agents, port, _stop: stop.drop_guard() })
    }

    /// Addresses of one pipeline's agents, by host.
    pub fn addresses(&self, pipeline: u32) -> Vec<String> {
        let first = pipeline * self.agents.0.options.hosts;
        let address = |agent: u32| format!("http://{}:{}", Ipv4Addr::from(FIRST_ADDRESS + first + agent), self.port);
        (0..self.agents.0.options.hosts).map(address).collect()
    }

    /// The engines of one pipeline make a checkpoint; what its transfer will take where it takes longest.
    pub fn checkpoint(&self, pipeline: u32) -> Duration {
        let shared = &self.agents.0;
        let Some(newest) = shared.steps.get(pipeline as usize) else { return Duration::ZERO };
        let step = newest.fetch_add(1, Ordering::AcqRel) + 1;
        let agents = (0..shared.options.hosts).map(|host| pipeline * shared.options.hosts + host);
        agents.map(|agent| shared.takes(agent, step)).max().unwrap_or_default()
    }
}

impl Shared {
    /// The same for the same step of the same agent.
    fn takes(&self, agent: u32, step: u64) -> Duration {
        let mixed = (u64::from(agent) << 32 | step).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        // Its highest bits are the best mixed.
        #[expect(clippy::cast_precision_loss, reason = "exact below 2^52")]
        let share = (mixed >> 32) as f64 / f64::from(u32::MAX);
        self.options.transfer.mul_f64(1.0 + self.options.spread * (2.0 * share - 1.0))
    }

    fn step_of(&self, agent: u32) -> u64 {
        let pipeline = agent / self.options.hosts;
        self.steps.get(pipeline as usize).map_or(0, |step| step.load(Ordering::Acquire))
    }

    fn host_info(&self, agent: u32) -> v1::HostInfo {
        v1::HostInfo { host_idx: agent % self.options.hosts, n_hosts: self.options.hosts }
    }

    fn host(&self, agent: u32) -> Result<MutexGuard<'_, Host>, Status> {
        let host = self.hosts.get(agent as usize).ok_or_else(|| Status::not_found("no agent is simulated here"))?;
        Ok(host.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn incarnation(agent: u32) -> String {
    Uuid::from_u64_pair(u64::MAX, u64::from(agent)).to_string()
}

fn checkpoint_id(agent: u32, step: u64) -> String {
    Uuid::from_u64_pair(step, u64::from(agent) + 1).to_string()
}

impl Agents {
    /// Who is meant: told by the address that was called.
    fn agent<T>(&self, request: &Request<T>) -> Result<u32, Status> {
        let address = match request.local_addr().map(|address| address.ip()) {
            Some(std::net::IpAddr::V4(address)) => u32::from(address),
            _ => return Err(Status::internal("called over no IPv4 connection")),
        };
        let agent = address.checked_sub(FIRST_ADDRESS).filter(|agent| (*agent as usize) < self.0.hosts.len());
        agent.ok_or_else(|| Status::not_found("no agent is simulated here"))
    }

    fn status(&self, agent: u32, header: &v1::OrderHeader) -> Result<v1::PushStatusResponse, Status> {
        let state = match self.running(agent, header)? {
            None => State::NotRequested(v1::NotRequested {}),
            Some(transfer) if transfer.ready <= Instant::now() => State::Done(transfer.done),
            Some(_) => State::InProgress(v1::Progress { bytes_total: part::BYTES, ..v1::Progress::default() }),
        };
        Ok(v1::PushStatusResponse {
            incarnation: incarnation(agent),
            round: header.round.clone(),
            attempt: header.attempt,
            state: Some(state),
            throttled: 0,
        })
    }

    fn running(&self, agent: u32, header: &v1::OrderHeader) -> Result<Option<Transfer>, Status> {
        let host = self.0.host(agent)?;
        let same = |transfer: &&Transfer| transfer.round == header.round && transfer.attempt == header.attempt;
        Ok(host.running.as_ref().filter(same).cloned())
    }
}

fn refused(code: Code, reason: &str, message: &str) -> Status {
    RpcProblem::new(code, reason, message).into_status()
}

fn unsimulated<T>() -> Result<T, Status> {
    Err(Status::unimplemented("a simulated agent only pushes"))
}

#[tonic::async_trait]
impl v1::agent_server::Agent for Agents {
    async fn describe(&self, request: Request<v1::DescribeRequest>) -> Result<Response<v1::DescribeResponse>, Status> {
        let agent = self.agent(&request)?;
        Ok(Response::new(v1::DescribeResponse {
            pipeline: pipeline_name(agent / self.0.options.hosts),
            host_info: Some(self.0.host_info(agent)),
            incarnation: incarnation(agent),
            ..v1::DescribeResponse::default()
        }))
    }

    async fn list_checkpoints(
        &self,
        request: Request<v1::ListLocalCheckpointsRequest>,
    ) -> Result<Response<v1::ListLocalCheckpointsResponse>, Status> {
        let agent = self.agent(&request)?;
        let step = self.0.step_of(agent);
        let newest = v1::LocalCheckpoint {
            uuid: checkpoint_id(agent, step),
            step,
            fingerprint: part::FINGERPRINT.to_owned(),
            bytes: part::BYTES,
            files: 1,
            ..v1::LocalCheckpoint::default()
        };
        Ok(Response::new(v1::ListLocalCheckpointsResponse {
            incarnation: incarnation(agent),
            checkpoints: if step > 0 { vec![newest] } else { Vec::new() },
        }))
    }

    async fn push(&self, request: Request<v1::PushOrder>) -> Result<Response<v1::PushStatusResponse>, Status> {
        let agent = self.agent(&request)?;
        let order = request.into_inner();
        let header = order.header.clone().ok_or_else(|| Status::invalid_argument("no header"))?;
        if header.incarnation != incarnation(agent) {
            return Err(refused(Code::FailedPrecondition, "INCARNATION_MISMATCH", "another incarnation"));
        }
        if self.running(agent, &header)?.is_none() {
            let mut host = self.0.host(agent)?;
            let (done, written) = part::write(&self.0.admin, &self.0.bucket, &order, host.written.as_ref())
                .map_err(|error| Status::internal(format!("a part was not written: {error:#}")))?;
            let ready = Instant::now() + self.0.takes(agent, order.step);
            host.written = Some(written);
            host.running = Some(Transfer { round: header.round.clone(), attempt: header.attempt, ready, done });
        }
        Ok(Response::new(self.status(agent, &header)?))
    }

    async fn push_status(
        &self,
        request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::PushStatusResponse>, Status> {
        let agent = self.agent(&request)?;
        let v1::StatusRequest { header, wait } = request.into_inner();
        let header = header.ok_or_else(|| Status::invalid_argument("no header"))?;
        let wait = wait.and_then(|wait| Duration::try_from(wait).ok()).unwrap_or_default();
        if let Some(transfer) = self.running(agent, &header)? {
            tokio::time::sleep_until(transfer.ready.min(Instant::now() + wait)).await;
        }
        Ok(Response::new(self.status(agent, &header)?))
    }

    async fn ready(&self, _: Request<v1::ReadyOrder>) -> Result<Response<v1::ReadyResponse>, Status> {
        unsimulated()
    }

    async fn cancel(&self, request: Request<v1::CancelOrder>) -> Result<Response<v1::CancelResponse>, Status> {
        let agent = self.agent(&request)?;
        self.0.host(agent)?.running = None;
        Ok(Response::new(v1::CancelResponse { stopped: true }))
    }

    async fn pull(&self, _: Request<v1::PullOrder>) -> Result<Response<v1::PullStatusResponse>, Status> {
        unsimulated()
    }

    async fn pull_status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::PullStatusResponse>, Status> {
        unsimulated()
    }

    async fn install(&self, _: Request<v1::InstallOrder>) -> Result<Response<v1::PullStatusResponse>, Status> {
        unsimulated()
    }

    async fn sync(&self, _: Request<v1::SyncRequest>) -> Result<Response<v1::SyncResponse>, Status> {
        unsimulated()
    }
}
