//! Building, starting and stopping an agent, in a process of its own or inside an engine.

use std::{
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    sync::Arc,
    thread,
    time::Duration,
};

use lockstep_bucket::{AwsConnector, Connector};
use lockstep_failpoint::{Point, reached};
use lockstep_proto::v1::agent_server::AgentServer;
use lockstep_protocol::{
    commit::CommitRef,
    host::{HostInfo, Slot},
    id::Incarnation,
    location::Location,
    order::{AgentIdentity, PipelineSelector},
    problem::{Problem, Reason},
    ready::Word,
    start::StartPull,
};
use lockstep_rpc::{GrpcServer, MAX_MESSAGE_BYTES, ServerOptions};
use tokio::{
    runtime::{Handle, Runtime},
    sync::watch,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    core::Core,
    durable,
    marks::Marks,
    order::TransferLimits,
    ready::{
        Words,
        hook::{self, Callback},
    },
    service::Service,
    start::{self, Started},
    store::CheckpointStore,
    sync,
    work::DISK_THREADS,
};

/// The nice value of the agent's threads, unless the process has a higher one: they yield to the engine's.
const NICENESS: i32 = 10;

/// Threads of the runtime; hashing and disk work have threads of their own.
const ASYNC_THREADS: usize = 2;

/// Beyond the disk threads: marks, listings, name lookups.
const OTHER_BLOCKING_THREADS: usize = 4;

/// What a stop gives running transfers to clean up, and calls under way to be answered.
const STOP_GRACE: Duration = Duration::from_secs(15);

/// Calls that wait by themselves, as long as their request or their work says.
const WAITING_CALLS: [&str; 4] = ["PushStatus", "PullStatus", "Install", "Sync"];

/// The way to an agent; see [`Agent::builder`].
#[derive(Debug)]
pub struct Agent;

impl Agent {
    /// An agent of `pipeline`, as `slot`, over `store`.
    pub fn builder(pipeline: PipelineSelector, slot: Slot, store: Arc<dyn CheckpointStore>) -> AgentBuilder {
        AgentBuilder {
            pipeline,
            slot,
            store,
            allowed: Vec::new(),
            state_dir: None,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            listener: None,
            limits: TransferLimits::default(),
            connector: None,
            ready: Ready::default(),
        }
    }

    /// [`Slot`] of `host_idx` in a layout of `n_hosts`; `HOST_INFO_INVALID` if there is none.
    pub fn slot(host_idx: u32, n_hosts: u32) -> Result<Slot, Problem> {
        HostInfo::new(host_idx, n_hosts).map(Slot::Host)
    }
}

/// What an agent is started with.
#[derive(Debug)]
#[must_use = "nothing runs before start"]
pub struct AgentBuilder {
    pipeline: PipelineSelector,
    slot: Slot,
    store: Arc<dyn CheckpointStore>,
    allowed: Vec<Location>,
    state_dir: Option<PathBuf>,
    listen: SocketAddr,
    listener: Option<TcpListener>,
    limits: TransferLimits,
    connector: Option<Arc<dyn Connector>>,
    ready: Ready,
}

/// Who hears of words, and how.
#[derive(Debug, Default)]
struct Ready {
    file: Option<PathBuf>,
    hook: Option<String>,
    callback: Option<Callback>,
    /// Set: what an earlier process was told is not said again.
    pull_follows: bool,
}

impl AgentBuilder {
    /// Adds a location that orders may name. Without any, every order is refused.
    pub fn allow(mut self, location: Location) -> Self {
        self.allowed.push(location);
        self
    }

    /// Where the highest accepted order is kept; the store's own folder if not said. It must outlive the process.
    pub fn state_dir(mut self, state_dir: impl Into<PathBuf>) -> Self {
        self.state_dir = Some(state_dir.into());
        self
    }

    /// Where to serve gRPC; 127.0.0.1 with any free port if not said.
    pub const fn listen(mut self, addr: SocketAddr) -> Self {
        self.listen = addr;
        self
    }

    /// Serves on a socket that is bound already.
    pub fn listener(mut self, listener: TcpListener) -> Self {
        self.listener = Some(listener);
        self
    }

    /// Defaults of orders that do not say.
    pub const fn limits(mut self, limits: TransferLimits) -> Self {
        self.limits = limits;
        self
    }

    /// How to reach a location, and the endpoint of those that name none; the AWS chain of this process and `AWS_ENDPOINT_URL` if not said.
    pub fn connector(mut self, connector: Arc<dyn Connector>) -> Self {
        self.connector = Some(connector);
        self
    }

    /// Calls this with each word of what the engine may do, see [`AgentHandle::ready`]; at start with the last one if it holds still. On a thread of the agent that may block;
    /// the next word waits for it.
    pub fn on_ready(mut self, callback: impl Fn(Word) + Send + Sync + 'static) -> Self {
        self.ready.callback = Some(Callback(Arc::new(callback)));
        self
    }

    /// A file that is there exactly while the engine may start: JSON with `checkpoint`, `step`, `fresh`, `role`, `round`. Removed by [`AgentBuilder::start`] before anything else, and
    /// before an install changes the disk.
    pub fn ready_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.ready.file = Some(path.into());
        self
    }

    /// A command for `sh -c` that is run once for each word, with what it says in `LOCKSTEP_READY_*`. What it brings changes nothing else; that it failed is logged and described.
    pub fn ready_hook(mut self, command: impl Into<String>) -> Self {
        self.ready.hook = Some(command.into());
        self
    }

    /// [`AgentHandle::pull_at_start`] will be called: what an earlier process was told is not said again before.
    pub const fn start_up_pull_follows(mut self) -> Self {
        self.ready.pull_follows = true;
        self
    }

    /// Loads the highest accepted orders, removes stagings of earlier processes, listens and serves, all on threads of its own. Blocks for the
    /// disk; may be called inside or outside of a runtime.
    pub fn start(self) -> Result<AgentHandle, Problem> {
        let limits = self.limits.checked()?;
        let incarnation = Incarnation::new(Uuid::new_v4());
        let connector = match self.connector {
            Some(connector) => connector,
            None => from_env()?,
        };
        let endpoint = connector.default_endpoint().map(str::to_owned);
        let identity = AgentIdentity {
            pipeline: self.pipeline,
            slot: self.slot,
            incarnation,
            allowed: self.allowed.into_iter().map(|location| location.or_endpoint(endpoint.as_deref())).collect(),
        };
        let state_dir = self.state_dir.unwrap_or_else(|| self.store.default_state_dir());
        std::fs::create_dir_all(&state_dir).map_err(|error| durable::io_problem("create", &state_dir, &error))?;
        let marks = Marks::load(&state_dir)?;
        reached(Point::StartMarksLoaded);
        durable::clear_drafts(&state_dir).map_err(|error| durable::io_problem("clear", &state_dir, &error))?;
        crate::pull::staging::clear(self.store.as_ref())?;
        reached(Point::StartCleared);
        let Ready { file, hook, callback, pull_follows } = self.ready;
        let words = Words::load(&state_dir, file, self.store.as_ref(), !pull_follows)?;
        let listen = |error: &std::io::Error| {
            Problem::new(Reason::LocalIo, format!("cannot listen on {}: {error}", self.listen))
                .with("address", self.listen)
        };
        let listener = match self.listener {
            Some(listener) => listener,
            None => TcpListener::bind(self.listen).map_err(|error| listen(&error))?,
        };
        listener.set_nonblocking(true).map_err(|error| listen(&error))?;
        let addr = listener.local_addr().map_err(|error| listen(&error))?;

        let core = Arc::new(Core::new(identity, self.store, connector, endpoint, limits, (marks, words), state_dir));
        let stop = CancellationToken::new();
        let (ending, ended) = watch::channel(None);
        tracing::info!(%addr, pipeline.name = %core.identity.pipeline, slot = %core.identity.slot, %incarnation, store = core.store.kind(), "agent serves");
        let (starting, started) = std::sync::mpsc::channel();
        let thread = thread::Builder::new()
            .name("lockstep-agent".to_owned())
            .spawn({
                let (core, stop) = (Arc::clone(&core), stop.clone());
                move || {
                    yield_to_the_engine();
                    let runtime = match runtime() {
                        Ok(runtime) => runtime,
                        Err(problem) => return drop(starting.send(Err(problem))),
                    };
                    // Nobody may be left who asks, here and below.
                    let _ = starting.send(Ok(runtime.handle().clone()));
                    let outcome = runtime.block_on(async {
                        if let Some(callback) = callback {
                            tokio::spawn(hook::call(callback, core.words.lock().await.subscribe()));
                        }
                        if let Some(command) = hook {
                            tokio::spawn(hook::run(Arc::clone(&core), command));
                        }
                        serve(core, listener, stop).await
                    });
                    runtime.shutdown_timeout(Duration::from_secs(1));
                    let _ = ending.send(Some(outcome));
                }
            })
            .map_err(no_threads)?;
        reached(Point::StartListening);
        let runtime =
            started.recv().unwrap_or_else(|_| Err(Problem::new(Reason::AgentPanic, "the agent's thread panicked")))?;
        Ok(AgentHandle { addr, incarnation, core, runtime, stop, ended, thread: Some(thread) })
    }
}

/// The AWS chain of this process. On a thread and in a runtime of its own, because the caller may be in async code, where none can block or be
/// dropped.
fn from_env() -> Result<Arc<dyn Connector>, Problem> {
    let load = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(no_threads)?;
        let connector: Arc<dyn Connector> = Arc::new(runtime.block_on(AwsConnector::from_env()));
        Ok(connector)
    };
    thread::scope(|scope| scope.spawn(load).join()).unwrap_or_else(|_| {
        Err(Problem::new(Reason::AgentPanic, "reading the AWS configuration of this process panicked"))
    })
}

fn no_threads(error: std::io::Error) -> Problem {
    Problem::new(Reason::LocalIo, format!("cannot start the agent's threads: {error}"))
}

fn runtime() -> Result<Runtime, Problem> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(ASYNC_THREADS)
        .max_blocking_threads(DISK_THREADS + OTHER_BLOCKING_THREADS)
        .thread_name("lockstep-agent-io")
        .on_thread_start(yield_to_the_engine)
        .enable_all()
        .build()
        .map_err(no_threads)
}

/// On Linux a nice value is a thread's own, and new threads begin with that of the thread which made them.
fn yield_to_the_engine() {
    let nice = rustix::process::getpriority_process(None)
        .and_then(|nice| if nice < NICENESS { rustix::process::setpriority_process(None, NICENESS) } else { Ok(()) });
    if let Err(error) = nice {
        // It only makes the engine's life easier.
        tracing::debug!(%error, "a thread of the agent keeps its priority");
    }
}

async fn serve(core: Arc<Core>, listener: TcpListener, stop: CancellationToken) -> Result<(), String> {
    let listener = tokio::net::TcpListener::from_std(listener).map_err(|error| format!("cannot serve: {error}"))?;
    let service = AgentServer::new(Service::new(Arc::clone(&core)))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let options = ServerOptions { shutdown_grace: STOP_GRACE, ..ServerOptions::default() };
    let server = GrpcServer::new(options)
        .add_service(service)
        .with_reflection(lockstep_proto::FILE_DESCRIPTOR_SET)
        .map_err(|error| error.to_string())?;
    let server = WAITING_CALLS
        .into_iter()
        .fold(server, |server, call| server.bounds_its_own_wait(format!("/lockstep.v1.Agent/{call}")));
    let stopping = {
        let core = Arc::clone(&core);
        async move {
            stop.cancelled().await;
            // Calls that wait for the transfer are answered while the server drains.
            core.leave();
        }
    };
    let outcome = server.serve(listener, stopping).await.map_err(|error| error.to_string());
    core.leave();
    core.transfers.close();
    if tokio::time::timeout(STOP_GRACE, core.transfers.wait()).await.is_err() {
        tracing::warn!("a transfer did not stop in time and is left as it is");
    }
    outcome
}

/// A running agent. Dropping it stops the agent without waiting.
#[derive(Debug)]
pub struct AgentHandle {
    addr: SocketAddr,
    incarnation: Incarnation,
    core: Arc<Core>,
    /// The agent's own.
    runtime: Handle,
    stop: CancellationToken,
    ended: watch::Receiver<Option<Result<(), String>>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl AgentHandle {
    /// Where it serves gRPC.
    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Drawn at this start.
    pub const fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Returns when the engine may start, with what from and in which role: every host of the pipeline has the checkpoint. At once if that was said before and the disk is as it
    /// was told then, also to an earlier process. A standby's engine waits for [`Role::Active`](lockstep_protocol::ready::Role::Active) in [`AgentHandle::words`].
    pub async fn ready(&self) -> Result<Word, Problem> {
        let mut words = self.words().await;
        let word = words.wait_for(Option::is_some).await.ok().and_then(|word| *word);
        word.ok_or_else(|| Problem::new(Reason::Cancelled, "the agent has ended"))
    }

    /// What the engine may do, as it changes; none: it must not start. It is taken back before an install changes the disk.
    pub async fn words(&self) -> watch::Receiver<Option<Word>> {
        self.core.words.lock().await.subscribe()
    }

    /// Solo only, without a coordinator: brings the disk to where the engine shall start, from the first location that was allowed. Call it before the engine starts, and
    /// start the engine only after `Ok`. An answer of the store that is not known is an error, never a fresh start; a location that a coordinator or another
    /// pipeline owns is `LOCATION_OWNED`. Runs on the agent's threads; if the caller goes away it goes on to its end.
    pub async fn pull_at_start(&self, request: StartPull) -> Result<Started, Problem> {
        self.whole(start::pull(Arc::clone(&self.core), request)).await
    }

    /// Solo only, without a coordinator: pushes the newest local checkpoint to a location that was allowed, and commits it there. What is the newest commit already is
    /// not pushed again. After an error the same call finishes what was begun.
    pub async fn sync(&self, location: Location) -> Result<CommitRef, Problem> {
        let location = location.or_endpoint(self.core.default_endpoint.as_deref());
        Ok(self.whole(sync::sync(Arc::clone(&self.core), location)).await?.commit)
    }

    async fn whole<T: Send + 'static>(
        &self,
        run: impl Future<Output = Result<T, Problem>> + Send + 'static,
    ) -> Result<T, Problem> {
        match self.runtime.spawn(run).await {
            Ok(outcome) => outcome,
            Err(error) if error.is_panic() => {
                Err(Problem::new(Reason::AgentPanic, format!("it was not carried through: {error}")))
            }
            Err(_) => Err(Problem::new(Reason::Cancelled, "the agent has ended")),
        }
    }

    /// Asks it to stop: no more orders, running transfers are cancelled and cleaned up.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Returns when it has ended, by itself or because it was asked; an error says why it could not go on.
    pub async fn ended(&self) -> Result<(), String> {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or(Ok(())),
            Err(_) => Err("the agent's thread panicked".to_owned()),
        }
    }

    /// Stops it and blocks until it has ended.
    pub fn shutdown(mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the agent's thread panicked");
        }
    }
}

impl Drop for AgentHandle {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
