//! What runs go over one after the other: a coordinator with its database and an S3 server, alive from run to run unless a run kills them; and the hosts
//! of one run.

use std::{fs, path::PathBuf, time::Duration};

use lockstep_client::{LockstepClient, v1};
use lockstep_devkit::{S3Options, S3Server, TestDatabase};
use lockstep_integration_tests::{
    cluster::{BUCKET, COORDINATOR_KEY, agent_key},
    host::Host,
    process::Process,
    scratch,
};
use tempfile::TempDir;

use crate::plan::Plan;

/// The longest that a round may take here.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) s3: S3Server,
    pub(crate) client: LockstepClient,
    database: TestDatabase,
    coordinator: Option<Process>,
    address: String,
    root: TempDir,
}

const MOST_HOSTS: u32 = 3;

fn secret(key: &str) -> String {
    format!("{key}-secret")
}

impl Lane {
    pub(crate) async fn open() -> Self {
        let root = scratch::in_memory();
        let keys = (0..MOST_HOSTS).map(agent_key).chain([COORDINATOR_KEY.to_owned()]);
        let s3 = S3Server::start(S3Options {
            root: Some(root.path().join("s3")),
            buckets: vec![BUCKET.to_owned()],
            credentials: keys.map(|key| (key.clone(), secret(&key))).collect(),
            // What a body costs counts: hundreds of runs.
            md5_etags: false,
            ..S3Options::default()
        })
        .await
        .expect("the S3 server starts");
        let mut lane = Self {
            s3,
            client: client_of("http://127.0.0.1:9"),
            database: TestDatabase::create().await.expect("Postgres gives a database"),
            coordinator: None,
            address: "127.0.0.1:0".to_owned(),
            root,
        };
        lane.start_coordinator().await;
        lane.client = client_of(&format!("http://{}", lane.address));
        lane
    }

    pub(crate) async fn start_coordinator(&mut self) {
        let addr_file = self.root.path().join("coordinator.addr");
        let _ = fs::remove_file(&addr_file);
        let listen = self.address.clone();
        let (addr, log) = (addr_file.display().to_string(), self.root.path().join("coordinator.log"));
        let args = [
            ["--listen", &listen],
            ["--http-listen", "127.0.0.1:0"],
            ["--replica", "lane"],
            ["--lease", "600ms"],
            ["--renew-every", "150ms"],
            ["--long-poll", "1s"],
            ["--unreachable-after", "15s"],
            ["--store-patience", "10s"],
            ["--retry-base", "20ms"],
            ["--retry-max", "200ms"],
            ["--addr-file", &addr],
        ];
        let args = std::iter::once("--insecure").chain(args.iter().flatten().copied());
        let secret = secret(COORDINATOR_KEY);
        let env = [
            ("DATABASE_URL", self.database.url()),
            ("AWS_ACCESS_KEY_ID", COORDINATOR_KEY),
            ("AWS_SECRET_ACCESS_KEY", &secret),
        ];
        let mut process = Process::start("coordinator", "lockstep-coordinator", args, &env, &log);
        let text = process.address_file(&addr_file).await;
        self.address = text.lines().find_map(|line| line.strip_prefix("grpc=")).expect("grpc= stands in it").to_owned();
        self.coordinator = Some(process);
    }

    pub(crate) fn kill_coordinator(&mut self) {
        self.coordinator.take().expect("the coordinator runs").kill();
    }

    /// Waits for a round that may outlive its coordinator.
    pub(crate) async fn ended(&self, round: &str) -> v1::Round {
        let ended = tokio::time::timeout(PATIENCE, self.client.wait_round(round)).await;
        ended
            .unwrap_or_else(|_| panic!("round {round} has not ended in {PATIENCE:?}"))
            .expect("a round can be waited for")
    }

    /// Everything that was logged, for a run that failed.
    pub(crate) fn logs(&self) -> String {
        const LINES: usize = 50;
        let mut shown = String::new();
        for name in ["coordinator".to_owned(), agent_name(0), agent_name(1), agent_name(2)] {
            let text = fs::read_to_string(self.root.path().join(format!("{name}.log"))).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            shown.push_str(&format!("---- {name}\n{}\n", lines[lines.len().saturating_sub(LINES)..].join("\n")));
        }
        shown
    }
}

fn agent_name(idx: usize) -> String {
    format!("agent{idx}")
}

/// Goes on asking while a coordinator is away.
fn client_of(address: &str) -> LockstepClient {
    LockstepClient::builder(address).actor("kill").reconnect_for(PATIENCE).connect().expect("a good address")
}

/// The hosts of one run.
#[derive(Debug)]
pub(crate) struct Crew {
    pub(crate) pipeline: String,
    pub(crate) hosts: Vec<Host>,
    n_hosts: u32,
    agents: Vec<Option<Process>>,
    addresses: Vec<String>,
    root: PathBuf,
}

impl Crew {
    pub(crate) fn new(lane: &Lane, plan: &Plan) -> Self {
        let pipeline = format!("k{}", plan.seed);
        let root = lane.root.path().join(&pipeline);
        let hosts = (0..plan.hosts.max(1))
            .map(|idx| {
                let dir = root.join(format!("host{idx}"));
                fs::create_dir_all(&dir).expect("a host's directory");
                let _ = fs::remove_file(lane.root.path().join(format!("{}.log", agent_name(idx as usize))));
                Host { idx, dir }
            })
            .collect::<Vec<_>>();
        Self {
            pipeline,
            n_hosts: plan.hosts,
            agents: hosts.iter().map(|_| None).collect(),
            addresses: hosts.iter().map(|_| "127.0.0.1:0".to_owned()).collect(),
            hosts,
            root,
        }
    }

    pub(crate) fn spec(&self, lane: &Lane, plan: &Plan) -> v1::PipelineSpec {
        v1::PipelineSpec {
            name: self.pipeline.clone(),
            hosts: self.n_hosts,
            solo: self.n_hosts == 0,
            agents: self.addresses.iter().map(|address| format!("http://{address}")).collect(),
            location: Some(v1::Location {
                bucket: BUCKET.to_owned(),
                prefix: self.pipeline.clone(),
                region: "us-east-1".to_owned(),
                endpoint: lane.s3.endpoint(),
                force_path_style: true,
            }),
            transfer: Some(v1::TransferOptions {
                concurrency: plan.concurrency,
                part_size: 5 << 20,
                memory: 16 << 20,
                bandwidth_limit: 0,
            }),
            ..v1::PipelineSpec::default()
        }
    }

    pub(crate) async fn start(&mut self, lane: &Lane, idx: usize) {
        let name = agent_name(idx);
        let addr_file = self.root.join(format!("{name}.addr"));
        let _ = fs::remove_file(&addr_file);
        let dir = self.hosts[idx].dir.display().to_string();
        let (addr, log) = (addr_file.display().to_string(), lane.root.path().join(format!("{name}.log")));
        let allowed = format!("s3://{BUCKET}/{}?endpoint={}&path_style=true", self.pipeline, lane.s3.endpoint());
        let mut args: Vec<&str> = vec!["--insecure", "--listen", &self.addresses[idx], "--allow-location", &allowed];
        args.extend(["--pipeline", &self.pipeline, "--dir", &dir, "--addr-file", &addr]);
        let (own, all) = (idx.to_string(), self.n_hosts.to_string());
        match self.n_hosts {
            0 => args.push("--solo"),
            _ => args.extend(["--host-idx", &own, "--n-hosts", &all]),
        }
        let key = agent_key(self.hosts[idx].idx);
        let secret = secret(&key);
        let env = [("AWS_ACCESS_KEY_ID", key.as_str()), ("AWS_SECRET_ACCESS_KEY", secret.as_str())];
        let mut process = Process::start(&name, "lockstep-agent", args, &env, &log);
        let text = process.address_file(&addr_file).await;
        self.addresses[idx] = text.lines().next().unwrap_or_default().trim_start_matches("grpc=").to_owned();
        self.agents[idx] = Some(process);
    }

    pub(crate) fn kill(&mut self, idx: usize) {
        self.agents[idx].take().expect("the agent runs").kill();
    }

    /// Loses every disk.
    pub(crate) async fn lose_disks(&mut self, lane: &Lane) {
        for idx in 0..self.hosts.len() {
            self.kill(idx);
            self.hosts[idx].wipe();
            self.start(lane, idx).await;
        }
    }

    /// Leaves nothing behind, so that hundreds of runs fit on a disk.
    pub(crate) fn clear(mut self, lane: &Lane) {
        self.agents.clear();
        fs::remove_dir_all(&self.root).expect("the run's folder can be removed");
        let admin = lane.s3.admin();
        for key in admin.keys(BUCKET, &format!("{}/", self.pipeline)).expect("keys") {
            admin.remove(BUCKET, &key).expect("an object can be removed");
        }
    }
}
