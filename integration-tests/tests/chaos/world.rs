//! The processes and servers of a run: two coordinators, a pipeline of three hosts and a solo one, Postgres with fsync, an S3 server, and a proxy in front of each.

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use lockstep_client::{LockstepClient, RetryPolicy, v1};
use lockstep_devkit::{FaultAction, FaultRule, S3Options, S3Server};
use lockstep_integration_tests::{
    auditor::{
        Evidence,
        collect::{self, Sources},
        witness::Witness,
    },
    cluster::{BUCKET, COORDINATOR_KEY, agent_key},
    host::Host,
    own_postgres::OwnPostgres,
    proxy::FaultProxy,
    scratch,
    servers::Account,
    small_disk::SmallDisk,
};
use tempfile::TempDir;

use crate::{
    keeper::{Keeper, Program},
    schedule::COORDINATORS,
};

/// A pipeline of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Member {
    pub(crate) name: &'static str,
    /// 0 is solo.
    pub(crate) n_hosts: u32,
    /// The first of its agents.
    pub(crate) first: usize,
    pub(crate) location: &'static str,
}

impl Member {
    const fn of(name: &'static str, n_hosts: u32, first: usize) -> Self {
        Self { name, n_hosts, first, location: name }
    }

    pub(crate) fn agents(&self) -> Range<usize> {
        self.first..self.first + self.n_hosts.max(1) as usize
    }
}

/// Whom faults strike.
pub(crate) const ORDERS: Member = Member::of("orders", 3, 0);
pub(crate) const SOLO: Member = Member::of("solo", 0, 3);

/// Of the longer story: spared by faults that are meant for one agent, not by those of everybody.
pub(crate) const STOCK: Member = Member::of("stock", 1, 4);
pub(crate) const STANDBY: Member = Member { location: ORDERS.name, ..Member::of("standby", 3, 5) };

/// The agent whose disk is small.
pub(crate) const SMALL: usize = 2;
const SMALL_MIB: usize = 24;

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) coordinators: Vec<Keeper>,
    pub(crate) agents: Vec<Keeper>,
    pub(crate) hosts: Vec<Host>,
    pub(crate) s3: S3Server,
    pub(crate) s3_proxy: FaultProxy,
    pub(crate) postgres: tokio::sync::Mutex<OwnPostgres>,
    /// None where nobody may mount.
    pub(crate) small: Option<SmallDisk>,
    pub(crate) witness: Witness,
    stopping: AtomicBool,
    root: PathBuf,
    folder: Mutex<TempDir>,
}

fn secret(key: &str) -> String {
    format!("{key}-secret")
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

impl World {
    pub(crate) async fn start(seed: u64, members: &[Member], coordinator_args: &str) -> Self {
        let folder = scratch::in_memory();
        let root = folder.path().to_owned();
        let agents = members.iter().map(|member| member.agents().end).max().unwrap_or(0);
        let keys = (0..agents as u32).map(agent_key).chain([COORDINATOR_KEY.to_owned()]);
        let s3 = S3Server::start(S3Options {
            root: Some(root.join("s3")),
            buckets: vec![BUCKET.to_owned()],
            credentials: keys.map(|key| (key.clone(), secret(&key))).collect(),
            ..S3Options::default()
        })
        .await
        .expect("the S3 server starts");
        s3.faults().seed(seed);
        // As over a network; a store beside us makes rounds so short that few faults meet one.
        s3.faults().add(FaultRule::new(FaultAction::Delay { ms: 40 }));
        let s3_proxy = FaultProxy::start(s3.addr(), seed).await.expect("a proxy");
        let postgres = OwnPostgres::start(seed).await;

        let mut world = Self {
            coordinators: Vec::new(),
            agents: Vec::new(),
            hosts: Vec::new(),
            s3,
            s3_proxy,
            postgres: tokio::sync::Mutex::new(postgres),
            small: None,
            witness: Witness::default(),
            stopping: AtomicBool::new(false),
            root,
            folder: Mutex::new(folder),
        };
        for member in members {
            for (idx, agent) in (0..).zip(member.agents()) {
                world.add_agent(member, idx, agent, seed).await;
            }
        }
        for which in 0..COORDINATORS {
            world.add_coordinator(which, coordinator_args, seed).await;
        }
        world
    }

    async fn add_agent(&mut self, member: &Member, idx: u32, agent: usize, seed: u64) {
        let Member { name: pipeline, location, .. } = member;
        let name = format!("agent{agent}");
        let dir = self.root.join(format!("{pipeline}-{idx}"));
        fs::create_dir(&dir).expect("a host's directory");
        if agent == SMALL {
            self.small = SmallDisk::mount(&dir, SMALL_MIB);
        }
        let endpoint = self.s3_proxy.url();
        let mut args = words("--insecure --pipeline");
        args.push((*pipeline).to_owned());
        args.extend(["--dir".to_owned(), dir.display().to_string(), "--allow-location".to_owned()]);
        args.push(format!("s3://{BUCKET}/{location}?endpoint={endpoint}&path_style=true"));
        args.extend(match member.n_hosts {
            0 => words("--solo"),
            n => words(&format!("--host-idx {idx} --n-hosts {n}")),
        });
        let key = agent_key(agent as u32);
        let env = vec![("AWS_SECRET_ACCESS_KEY", secret(&key)), ("AWS_ACCESS_KEY_ID", key)];
        let program = self.program(name, "lockstep-agent", args, env);
        self.hosts.push(Host { idx, dir });
        self.agents.push(Keeper::start(program, seed).await);
    }

    async fn add_coordinator(&mut self, which: usize, more: &str, seed: u64) {
        let name = format!("coordinator{which}");
        let mut args = words(
            "--insecure --http-listen 127.0.0.1:0 --lease 1500ms --renew-every 400ms --long-poll 2s --unreachable-after 4s
             --stall-after 8s --store-patience 5s --retry-base 50ms --retry-max 1s --database-wait 3s",
        );
        args.extend(words(more));
        // Each write that was looked up after its answer was lost leaves a line.
        args.extend(words("--log info,lockstep_coordinator::store::apply=debug --replica"));
        args.push(name.clone());
        let env = vec![
            ("DATABASE_URL", self.postgres.get_mut().url()),
            ("AWS_ACCESS_KEY_ID", COORDINATOR_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", secret(COORDINATOR_KEY)),
        ];
        let program = self.program(name, "lockstep-coordinator", args, env);
        self.coordinators.push(Keeper::start(program, seed).await);
    }

    fn program(
        &self,
        name: String,
        program: &'static str,
        args: Vec<String>,
        env: Vec<(&'static str, String)>,
    ) -> Program {
        let file = |suffix: &str| self.root.join(format!("{name}.{suffix}"));
        Program { program, args, env, log: file("log"), addr_file: file("addr"), name }
    }

    pub(crate) fn hosts_of(&self, member: &Member) -> &[Host] {
        &self.hosts[member.agents()]
    }

    pub(crate) fn spec(&self, member: &Member) -> v1::PipelineSpec {
        v1::PipelineSpec {
            name: member.name.to_owned(),
            hosts: member.n_hosts,
            solo: member.n_hosts == 0,
            agents: self.agents[member.agents()].iter().map(Keeper::url).collect(),
            location: Some(v1::Location {
                bucket: BUCKET.to_owned(),
                prefix: member.location.to_owned(),
                region: "us-east-1".to_owned(),
                endpoint: self.s3_proxy.url(),
                force_path_style: true,
            }),
            ..v1::PipelineSpec::default()
        }
    }

    /// One client a coordinator, impatient: who asks tries the other one next.
    pub(crate) fn clients(&self, actor: &str) -> Vec<LockstepClient> {
        let impatient = RetryPolicy { tries: 2, budget: Duration::from_secs(2), ..RetryPolicy::default() };
        let client = |keeper: &Keeper| {
            LockstepClient::builder(keeper.url())
                .actor(actor)
                .deadline(Duration::from_secs(4))
                .connect_timeout(Duration::from_secs(1))
                .reconnect_for(Duration::from_secs(2))
                .retry(impatient.clone())
                .connect()
                .expect("a good address")
        };
        self.coordinators.iter().map(client).collect()
    }

    /// Good weather everywhere and everybody up. Faults that are under way end by themselves.
    pub(crate) fn clear(&self) {
        self.s3.faults().clear();
        self.s3_proxy.clear();
        for keeper in self.coordinators.iter().chain(&self.agents) {
            keeper.proxy().clear();
        }
    }

    /// No new rounds are begun any more.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Everything an audit needs, past every proxy.
    pub(crate) async fn collect(&self) -> Evidence {
        let database = self.postgres.lock().await.direct_url().expect("Postgres runs");
        let sources = Sources {
            endpoint: &self.s3.endpoint(),
            account: Account { key: COORDINATOR_KEY, secret: &secret(COORDINATOR_KEY) },
            bucket: BUCKET,
            journal_root: &self.root.join("s3"),
            database: &database,
        };
        collect::collect(sources, self.witness.history()).await
    }

    /// What was logged with any of these words in it.
    pub(crate) fn logged(&self, words: &[&str]) -> Vec<String> {
        let keepers = self.coordinators.iter().chain(&self.agents);
        let logs = keepers.map(|keeper| self.root.join(format!("{}.log", keeper.name())));
        let lines = logs.flat_map(|log| {
            let text = fs::read_to_string(log).unwrap_or_default();
            text.lines().map(str::to_owned).collect::<Vec<_>>()
        });
        lines.filter(|line| words.iter().any(|word| line.contains(word))).collect()
    }

    /// Leaves everything on the disk; where.
    pub(crate) fn keep(&self) -> &Path {
        self.folder.lock().expect("nobody panics with it").disable_cleanup(true);
        &self.root
    }
}
