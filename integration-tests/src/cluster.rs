//! Everything a scenario runs on: one database, one S3 server, coordinators and agents as processes, one pipeline.

mod agents;
mod coordinators;
mod options;
mod rounds;

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU8, Ordering},
};

use lockstep_client::{LockstepClient, v1};
use lockstep_devkit::{PgBouncer, PgBouncerOptions, S3Options, S3Server, TestDatabase};
use tempfile::TempDir;

pub use agents::{AgentSlot, agent_key};
pub use coordinators::{COORDINATOR_KEY, answers, client_of};
pub use options::{Options, Pooled};

use crate::{host::Host, process::Process, scratch};
use coordinators::migrate;

/// The bucket of every cluster.
pub const BUCKET: &str = "acme-ckpt";
/// The pipeline of every cluster, also the prefix of its location.
pub const PIPELINE: &str = "orders";

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
    loopback: Ipv4Addr,
    options: Options,
    failpoints: String,
    root: TempDir,
}

/// A loopback address of a cluster's own: whoever is started again finds its port as it left it, as others take theirs on other addresses.
fn loopback() -> Ipv4Addr {
    static NEXT: AtomicU8 = AtomicU8::new(0);
    let [.., a, b] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, a, b, 2 + NEXT.fetch_add(1, Ordering::Relaxed) % 250)
}

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
            loopback: loopback(),
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

    /// Where a process of this cluster may listen, on any free port.
    pub fn listen(&self) -> String {
        format!("{}:0", self.loopback)
    }

    /// An address of this cluster on which nobody listens.
    pub fn free_address(&self) -> String {
        let bound = TcpListener::bind((self.loopback, 0)).and_then(|listener| listener.local_addr());
        bound.expect("a free port").to_string()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// A folder of this cluster for whatever a test needs.
    pub fn scratch(&self) -> &Path {
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

    /// S3 requests made with these credentials since the log was cleared.
    pub fn requests_by(&self, access_key: &str) -> usize {
        self.s3.log().count(|request| request.access_key.as_deref() == Some(access_key))
    }
}
