//! Everything a scenario runs on: one database, one S3 server, coordinators and agents as processes, one pipeline.

use std::{fs, path::PathBuf, process::Command};

use lockstep_client::{LockstepClient, RetryPolicy, v1};
use lockstep_devkit::{PgBouncer, PgBouncerOptions, S3Options, S3Server, TestDatabase};
use tempfile::TempDir;
use tokio_stream::StreamExt as _;

use crate::{
    clock,
    host::Host,
    process::{Process, binary},
    scratch, wait,
};

/// The bucket of every cluster.
pub const BUCKET: &str = "acme-ckpt";
/// The pipeline of every cluster, also the prefix of its location.
pub const PIPELINE: &str = "orders";

/// What coordinators behind PgBouncer have beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooled {
    /// `--direct-database-url`: a way around it to listen and migrate.
    Around,
    /// Nothing: migrated beforehand by `lockstep-coordinator migrate`; what others do is polled for.
    Alone,
}

/// What differs between scenarios.
#[derive(Debug, Clone)]
pub struct Options {
    /// Number of hosts; 0 = solo.
    pub hosts: u32,
    /// `--store` of the agents.
    pub store: &'static str,
    /// Further flags of the coordinator.
    pub coordinator_flags: Vec<&'static str>,
    /// Create the pipeline at once.
    pub create: bool,
    /// Buckets beside [`BUCKET`].
    pub buckets: Vec<&'static str>,
    /// Limits in the spec; none: the defaults.
    pub transfer: Option<v1::TransferOptions>,
    /// Whether the S3 server's ETags are MD5s, as AWS's are; without, gigabytes cost less.
    pub md5_etags: bool,
    /// Where coordinators find their database; none: a database of their own on the server that tests share.
    pub database_url: Option<String>,
    /// `--unreachable-after` of the coordinators.
    pub unreachable_after: &'static str,
    /// `--store-patience` of the coordinators; short, so that tests of outages are.
    pub store_patience: &'static str,
    /// `--lease` of the coordinators.
    pub lease: &'static str,
    /// `--renew-every` of the coordinators.
    pub renew_every: &'static str,
    /// PgBouncer in transaction mode between coordinators and Postgres.
    pub pooled: Option<Pooled>,
    /// Everything in memory instead of on a disk, if there is enough of it.
    pub in_memory: bool,
    /// How far the clock of the coordinators is off, as `FAKETIME` has it; none: it is right.
    pub coordinator_clock: Option<&'static str>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            hosts: 3,
            store: "directory",
            coordinator_flags: Vec::new(),
            create: true,
            buckets: Vec::new(),
            transfer: None,
            md5_etags: true,
            database_url: None,
            unreachable_after: "10s",
            store_patience: "2s",
            lease: "2s",
            renew_every: "500ms",
            pooled: None,
            in_memory: false,
            coordinator_clock: None,
        }
    }
}

/// One agent: its process, if it runs, and where it is.
#[derive(Debug)]
pub struct AgentSlot {
    process: Option<Process>,
    /// As the spec names it.
    pub address: String,
}

/// All of it.
#[derive(Debug)]
pub struct Cluster {
    /// The S3 server with its faults and its log.
    pub s3: S3Server,
    /// The coordinator's database.
    pub database: TestDatabase,
    pooler: Option<PgBouncer>,
    /// By host index.
    pub hosts: Vec<Host>,
    /// By host index.
    pub agents: Vec<AgentSlot>,
    /// Talks to the coordinator; never retries, so that tests see each answer.
    pub client: LockstepClient,
    coordinator: Option<Process>,
    coordinator_address: String,
    options: Options,
    failpoints: String,
    root: TempDir,
}

/// Access key of one agent; its secret is the key with `-secret` behind it.
pub fn agent_key(host_idx: u32) -> String {
    format!("agent-{host_idx}")
}

/// Access key of the coordinator.
pub const COORDINATOR_KEY: &str = "coordinator";

impl Cluster {
    /// Three hosts with directories, pipeline created.
    pub async fn start() -> Self {
        Self::with(Options::default()).await
    }

    /// As the options say.
    pub async fn with(options: Options) -> Self {
        let root =
            if options.in_memory { scratch::in_memory() } else { tempfile::tempdir().expect("a temporary directory") };
        let keys = (0..options.hosts.max(1)).map(agent_key).chain([COORDINATOR_KEY.to_owned()]);
        let s3 = S3Server::start(S3Options {
            buckets: [BUCKET].iter().chain(&options.buckets).map(|&name| name.to_owned()).collect(),
            credentials: keys.map(|key| (key.clone(), format!("{key}-secret"))).collect(),
            md5_etags: options.md5_etags,
            root: options.in_memory.then(|| root.path().join("s3")),
            ..S3Options::default()
        })
        .await
        .expect("the S3 server starts");
        let database = TestDatabase::create().await.expect("Postgres gives a database");
        let pooler = match options.pooled {
            None => None,
            Some(pooled) => {
                if pooled == Pooled::Alone {
                    migrate(database.url());
                }
                let pooler = PgBouncer::before(database.url(), PgBouncerOptions::default()).await;
                Some(pooler.expect("PgBouncer starts"))
            }
        };
        let hosts: Vec<Host> = (0..options.hosts.max(1))
            .map(|idx| {
                let dir = root.path().join(format!("host{idx}"));
                fs::create_dir(&dir).expect("a host's directory");
                Host { idx, dir }
            })
            .collect();
        let mut cluster = Self {
            s3,
            database,
            pooler,
            agents: Vec::new(),
            client: client_of("http://127.0.0.1:9"),
            coordinator: None,
            coordinator_address: String::new(),
            hosts,
            options,
            failpoints: String::new(),
            root,
        };
        for idx in 0..cluster.hosts.len() {
            cluster.agents.push(AgentSlot { process: None, address: String::new() });
            cluster.start_agent(idx).await;
        }
        cluster.start_coordinator().await;
        if cluster.options.create {
            let spec = cluster.spec(PIPELINE);
            cluster.client.create_pipeline(spec).await.expect("the pipeline is created");
        }
        cluster
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// A folder of this cluster for whatever a test needs.
    pub fn scratch(&self) -> &std::path::Path {
        self.root.path()
    }

    /// Root of the S3 server, where its journal is; only of clusters in memory.
    pub fn s3_root(&self) -> PathBuf {
        assert!(self.options.in_memory, "only a cluster in memory names the root of its S3 server");
        self.path("s3")
    }

    /// Where the S3 server is.
    pub fn endpoint(&self) -> String {
        self.s3.endpoint()
    }

    /// The location with this prefix on this cluster's S3 server.
    pub fn location(&self, prefix: &str) -> v1::Location {
        v1::Location {
            bucket: BUCKET.to_owned(),
            prefix: prefix.to_owned(),
            region: "us-east-1".to_owned(),
            endpoint: self.endpoint(),
            force_path_style: true,
        }
    }

    /// Spec of a pipeline over this cluster's agents, its prefix its name.
    pub fn spec(&self, name: &str) -> v1::PipelineSpec {
        v1::PipelineSpec {
            name: name.to_owned(),
            hosts: self.options.hosts,
            solo: self.options.hosts == 0,
            agents: self.agents.iter().map(|agent| agent.address.clone()).collect(),
            location: Some(self.location(name)),
            transfer: self.options.transfer,
            ..v1::PipelineSpec::default()
        }
    }

    /// Coordinators that are started from here on have this clock.
    pub fn set_coordinator_clock(&mut self, clock: Option<&'static str>) {
        self.options.coordinator_clock = clock;
    }

    /// Further flags of coordinators that are started from here on.
    pub fn set_coordinator_flags(&mut self, flags: Vec<&'static str>) {
        self.options.coordinator_flags = flags;
    }

    /// Processes that are started from now on do this at failpoints; empty: nothing. See `lockstep_failpoint::Plan`.
    pub fn arm(&mut self, plan: impl Into<String>) {
        self.failpoints = plan.into();
    }

    /// Flags that tell the agent of one host who it is.
    pub fn identity(&self, idx: usize) -> Vec<String> {
        match self.options.hosts {
            0 => vec!["--solo".to_owned()],
            n => vec!["--host-idx".to_owned(), idx.to_string(), "--n-hosts".to_owned(), n.to_string()],
        }
    }

    /// Starts (again) the agent of one host as what it is.
    pub async fn start_agent(&mut self, idx: usize) {
        let identity = self.identity(idx);
        let key = agent_key(u32::try_from(idx).expect("few hosts"));
        self.start_agent_as(idx, &identity, &[], &format!("{key}-secret")).await;
    }

    /// Starts the agent of one host with these identity flags, further flags and this S3 secret.
    pub async fn start_agent_as(&mut self, idx: usize, identity: &[String], flags: &[String], secret: &str) {
        let started = self.try_start_agent_as(idx, identity, flags, secret).await;
        assert!(started, "agent {idx} ended before it was ready\n{}", self.agent_log(idx));
    }

    /// As [`Self::start_agent_as`]. False: it ended before it listened.
    pub async fn try_start_agent_as(
        &mut self,
        idx: usize,
        identity: &[String],
        flags: &[String],
        secret: &str,
    ) -> bool {
        let listen = match self.agents[idx].address.strip_prefix("http://") {
            None | Some("") => "127.0.0.1:0".to_owned(),
            Some(address) => address.to_owned(),
        };
        let addr_file = self.path(&format!("agent{idx}.addr"));
        let _ = fs::remove_file(&addr_file);
        let endpoint = self.endpoint();
        let allowed = format!("s3://{BUCKET}/{PIPELINE}?endpoint={endpoint}&path_style=true");
        let mut args: Vec<String> =
            ["--insecure", "--listen", &listen, "--store", self.options.store, "--allow-location", &allowed]
                .iter()
                .map(|&arg| arg.to_owned())
                .collect();
        if !flags.iter().any(|flag| flag == "--pipeline") {
            args.extend(["--pipeline".to_owned(), PIPELINE.to_owned()]);
        }
        args.extend(["--dir".to_owned(), self.hosts[idx].dir.display().to_string()]);
        args.extend(["--addr-file".to_owned(), addr_file.display().to_string()]);
        args.extend_from_slice(identity);
        args.extend_from_slice(flags);
        let key = agent_key(u32::try_from(idx).expect("few hosts"));
        let env = [
            ("AWS_ACCESS_KEY_ID", key.as_str()),
            ("AWS_SECRET_ACCESS_KEY", secret),
            (lockstep_failpoint::VARIABLE, &self.failpoints),
        ];
        let log = self.path(&format!("agent{idx}.log"));
        let mut process = Process::start(&format!("agent {idx}"), "lockstep-agent", &args, &env, &log);
        let Ok(address) = process.try_address_file(&addr_file).await else {
            self.agents[idx].process = None;
            return false;
        };
        let address = address.strip_prefix("grpc=").unwrap_or(&address).lines().next().unwrap_or_default().to_owned();
        self.agents[idx] = AgentSlot { process: Some(process), address: format!("http://{address}") };
        true
    }

    /// Waits until one agent has killed itself at a failpoint.
    pub async fn agent_killed(&mut self, idx: usize) {
        self.agents[idx].process.as_mut().expect("the agent runs").killed().await;
        self.agents[idx].process = None;
    }

    /// kill -9 of one agent.
    pub fn kill_agent(&mut self, idx: usize) {
        self.agents[idx].process.take().expect("the agent runs").kill();
    }

    /// SIGTERM to one agent; its exit status.
    pub async fn terminate_agent(&mut self, idx: usize) -> std::process::ExitStatus {
        self.agents[idx].process.take().expect("the agent runs").terminate().await
    }

    /// What one agent has logged.
    pub fn agent_log(&self, idx: usize) -> String {
        fs::read_to_string(self.path(&format!("agent{idx}.log"))).unwrap_or_default()
    }

    /// Greatest resident memory of one agent so far, in bytes.
    pub fn agent_peak_memory(&self, idx: usize) -> u64 {
        self.agents[idx].process.as_ref().expect("the agent runs").peak_memory()
    }

    /// Bytes that one agent has read from files so far; what comes over sockets is not in it.
    pub fn agent_bytes_read(&self, idx: usize) -> u64 {
        self.agents[idx].process.as_ref().expect("the agent runs").bytes_read()
    }

    /// Loses one host's disk while its agent restarts.
    pub async fn lose_disk(&mut self, idx: usize) {
        self.kill_agent(idx);
        self.hosts[idx].wipe();
        self.start_agent(idx).await;
    }

    /// Starts (again) the coordinator on the address it had.
    pub async fn start_coordinator(&mut self) {
        self.start_coordinator_with_secret(&format!("{COORDINATOR_KEY}-secret")).await;
    }

    /// Starts the coordinator with this S3 secret.
    pub async fn start_coordinator_with_secret(&mut self, secret: &str) {
        let listen = if self.coordinator_address.is_empty() {
            "127.0.0.1:0".to_owned()
        } else {
            self.coordinator_address.clone()
        };
        let (process, address) = self.another_coordinator("coordinator", &listen, secret).await;
        self.client = client_of(&format!("http://{address}"));
        self.coordinator_address = address;
        self.coordinator = Some(process);
    }

    /// A further replica over the same database; its process and gRPC address.
    pub async fn another_coordinator(&self, name: &str, listen: &str, secret: &str) -> (Process, String) {
        let database = self.options.database_url.as_deref().unwrap_or(self.database.url());
        self.coordinator_on(database, name, listen, secret).await
    }

    async fn coordinator_on(&self, database: &str, name: &str, listen: &str, secret: &str) -> (Process, String) {
        let addr_file = self.path(&format!("{name}.addr"));
        let _ = fs::remove_file(&addr_file);
        let mut args: Vec<String> = [
            "--insecure",
            "--listen",
            listen,
            "--http-listen",
            "127.0.0.1:0",
            "--replica",
            name,
            "--lease",
            self.options.lease,
            "--renew-every",
            self.options.renew_every,
            "--long-poll",
            "2s",
            "--unreachable-after",
            self.options.unreachable_after,
            "--store-patience",
            self.options.store_patience,
            "--retry-base",
            "50ms",
            "--retry-max",
            "500ms",
        ]
        .iter()
        .map(|&arg| arg.to_owned())
        .collect();
        args.extend(self.options.coordinator_flags.iter().map(|&flag| flag.to_owned()));
        args.extend(["--addr-file".to_owned(), addr_file.display().to_string()]);
        let name_of_database = database.rsplit('/').next().and_then(|name| name.split('?').next()).unwrap_or_default();
        let pooled = self.pooler.as_ref().map(|pooler| pooler.url(name_of_database));
        let mut env = vec![
            ("DATABASE_URL", pooled.as_deref().unwrap_or(database)),
            ("AWS_ACCESS_KEY_ID", COORDINATOR_KEY),
            ("AWS_SECRET_ACCESS_KEY", secret),
            (lockstep_failpoint::VARIABLE, &self.failpoints),
        ];
        let library = self.options.coordinator_clock.map(|_| clock::library());
        if let (Some(by), Some(library)) = (self.options.coordinator_clock, &library) {
            env.extend(clock::shifted(by, library));
        }
        if self.options.pooled == Some(Pooled::Around) {
            env.push(("LOCKSTEP_DIRECT_DATABASE_URL", database));
        }
        let log = self.path(&format!("{name}.log"));
        let mut process = Process::start(name, "lockstep-coordinator", &args, &env, &log);
        let text = process.address_file(&addr_file).await;
        let address =
            text.lines().find_map(|line| line.strip_prefix("grpc=")).expect("grpc= stands in the file").to_owned();
        (process, address)
    }

    /// A replica over this cluster's S3 server but another cluster's database.
    pub async fn another_coordinator_over(&self, other: &Self, name: &str) -> (Process, String) {
        self.coordinator_on(other.database.url(), name, "127.0.0.1:0", &format!("{COORDINATOR_KEY}-secret")).await
    }

    /// Stops or continues the coordinator (SIGSTOP, SIGCONT).
    pub fn pause_coordinator(&self, paused: bool) {
        self.coordinator.as_ref().expect("the coordinator runs").pause(paused);
    }

    /// Stops or continues one agent (SIGSTOP, SIGCONT).
    pub fn pause_agent(&self, idx: usize, paused: bool) {
        self.agents[idx].process.as_ref().expect("the agent runs").pause(paused);
    }

    /// Where the coordinator serves HTTP.
    pub fn coordinator_http(&self) -> String {
        let text = fs::read_to_string(self.path("coordinator.addr")).expect("the coordinator wrote its addresses");
        text.lines().find_map(|line| line.strip_prefix("http=")).expect("http= stands in the file").to_owned()
    }

    /// Restarts one agent so that it serves HTTP; its port.
    pub async fn restart_agent_with_http(&mut self, idx: usize) -> u16 {
        let free = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a free port")
            .port();
        self.kill_agent(idx);
        let n_hosts = self.options.hosts.to_string();
        let identity: Vec<String> =
            ["--host-idx", &idx.to_string(), "--n-hosts", &n_hosts].iter().map(|&s| s.to_owned()).collect();
        let flags = ["--http-listen".to_owned(), format!("127.0.0.1:{free}")];
        self.start_agent_as(idx, &identity, &flags, &format!("agent-{idx}-secret")).await;
        free
    }

    /// Verifies one checkpoint to its end.
    pub async fn verify(&self, checkpoint: &str) -> v1::VerifyCheckpointResponse {
        let mut stream = self.client.verify_checkpoint(PIPELINE, checkpoint).await.expect("the verification starts");
        loop {
            let message = stream.next().await.expect("a verification ends with done").expect("a verification goes on");
            if message.done {
                return message;
            }
        }
    }

    /// kill -9 of the coordinator.
    pub fn kill_coordinator(&mut self) {
        self.coordinator.take().expect("the coordinator runs").kill();
    }

    /// kill -9 of the coordinator, if it runs.
    pub fn stop_coordinator(&mut self) {
        self.coordinator = None;
    }

    /// Waits until the coordinator has killed itself at a failpoint.
    pub async fn coordinator_killed(&mut self) {
        self.coordinator.as_mut().expect("the coordinator runs").killed().await;
        self.coordinator = None;
    }

    /// SIGTERM to the coordinator; its exit status.
    pub async fn terminate_coordinator(&mut self) -> std::process::ExitStatus {
        self.coordinator.take().expect("the coordinator runs").terminate().await
    }

    /// What the coordinator has logged.
    pub fn coordinator_log(&self) -> String {
        fs::read_to_string(self.path("coordinator.log")).unwrap_or_default()
    }

    /// gRPC address of the coordinator.
    pub fn coordinator_url(&self) -> String {
        format!("http://{}", self.coordinator_address)
    }

    /// Pushes the newest common step and waits for the end, whatever it is.
    pub async fn push(&self) -> v1::Round {
        let round = self.start_push().await;
        self.client.wait_round(&round.id).await.expect("the push can be waited for")
    }

    /// Admits a push.
    pub async fn start_push(&self) -> v1::Round {
        let request = v1::StartPushRequest { pipeline: PIPELINE.to_owned(), ..v1::StartPushRequest::default() };
        self.client.start_push(request).await.expect("the push is admitted")
    }

    /// Pushes and insists that it is committed.
    pub async fn pushed(&self) -> v1::Round {
        let round = self.push().await;
        assert_eq!(round.phase(), v1::RoundPhase::Committed, "{:?}", round.problem);
        round
    }

    /// A pull of this cluster's pipeline: `standby: false`, the rest as the spec says.
    pub fn pull_request() -> v1::StartPullRequest {
        v1::StartPullRequest { pipeline: PIPELINE.to_owned(), standby: Some(false), ..v1::StartPullRequest::default() }
    }

    /// Pulls as asked and waits for the end, whatever it is.
    pub async fn pull(&self, request: v1::StartPullRequest) -> v1::Round {
        let round = self.client.start_pull(request).await.expect("the pull is admitted");
        self.client.wait_round(&round.id).await.expect("the pull can be waited for")
    }

    /// Pulls the newest and insists that it is installed.
    pub async fn pulled(&self) -> v1::Round {
        let round = self.pull(Self::pull_request()).await;
        assert_eq!(round.phase(), v1::RoundPhase::Installed, "{:?}", round.problem);
        round
    }

    /// Waits until the round looks as asked; fails if it ends before that.
    pub async fn round_when(&self, id: &str, what: &str, like: impl Fn(&v1::Round) -> bool) -> v1::Round {
        wait::until(what, || async {
            let round = self.client.get_round(id).await.map_err(|error| error.to_string())?;
            if like(&round) {
                return Ok(round);
            }
            assert!(!lockstep_client::is_terminal(&round), "the round ended as {round:?} before {what}");
            Err(format!("{:?}", round.phase()))
        })
        .await
    }

    /// S3 requests made with these credentials since the log was cleared.
    pub fn requests_by(&self, access_key: &str) -> usize {
        self.s3.log().count(|request| request.access_key.as_deref() == Some(access_key))
    }
}

/// What an operator runs where coordinators reach Postgres through a pooler only.
fn migrate(database: &str) {
    let mut command = Command::new(binary("lockstep-coordinator"));
    let output = command.arg("migrate").env("DATABASE_URL", database).output().expect("the command runs");
    assert!(output.status.success(), "migrate: {}", String::from_utf8_lossy(&output.stderr));
}

/// A client that never retries: tests look at each answer themselves.
pub fn client_of(address: &str) -> LockstepClient {
    LockstepClient::builder(address).actor("scenario").retry(RetryPolicy::never()).connect().expect("a good address")
}

/// The gRPC connection is made lazily: the first call may come before the process listens, so callers wait for this.
pub async fn answers(client: &LockstepClient) {
    wait::until("the coordinator answers", || async {
        client.list_pipelines(1).await.map_err(|error| error.to_string())
    })
    .await;
}
