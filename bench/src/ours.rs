//! Lockstep itself, as released: the binaries of coordinator and agent, a Postgres that has been running for a while.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use lockstep_bench::access::{REGION, environment};
use lockstep_client::{LockstepClient, v1};
use lockstep_devkit::{Postgres, PostgresOptions};
use serde_json::json;
use tempfile::TempDir;
use uuid::Uuid;

use crate::child::Server;
use crate::data::Tree;
use crate::plan::Tool;
use crate::proc;
use crate::sample::Cost;
use crate::server::BUCKET;

/// Access key of the coordinator; the agent's is the tool's name.
pub(crate) const COORDINATOR: &str = "coordinator";

/// Written by the engine beside its files.
pub(crate) const DOCUMENT: &str = "checkpoint.json";

/// Where the released binaries are.
#[derive(Debug)]
pub(crate) struct Binaries {
    coordinator: PathBuf,
    agent: PathBuf,
    /// Holds both, and goes with this.
    _folder: TempDir,
}

impl Binaries {
    /// Copies of those in `folder`: a build in the middle of a measurement does not change what is measured. Not beside the data: nothing may be
    /// executed in many a /dev/shm.
    pub(crate) fn take(folder: &Path) -> Result<Self> {
        let place = tempfile::Builder::new().prefix("lockstep-bench-bin-").tempdir()?;
        let take = |name: &str| {
            let path = folder.join(name);
            ensure!(
                path.is_file(),
                "{} is missing: build it with `cargo build --release --workspace`, or say --bin-dir",
                path.display()
            );
            let copy = place.path().join(name);
            fs::copy(&path, &copy).with_context(|| format!("can't copy {} to {}", path.display(), copy.display()))?;
            Ok(copy)
        };
        let (coordinator, agent) = (take("lockstep-coordinator")?, take("lockstep-agent")?);
        Ok(Self { coordinator, agent, _folder: place })
    }
}

/// Coordinator and database, for all runs.
#[derive(Debug)]
pub(crate) struct Rig {
    // Fields drop in order: the caller before whom it calls.
    coordinator: Server,
    client: LockstepClient,
    postgres: Postgres,
    binaries: Binaries,
    folder: PathBuf,
    endpoint: String,
}

impl Rig {
    /// Starts Postgres and the coordinator and waits until both answer.
    pub(crate) async fn start(folder: &Path, binaries: Binaries, endpoint: &str) -> Result<Self> {
        let postgres = Postgres::start(PostgresOptions::default()).await?;
        let mut env = environment(COORDINATOR);
        env.push(("DATABASE_URL", postgres.create_database("lockstep").await?));
        let address_file = folder.join("coordinator.addr");
        let mut args: Vec<String> =
            ["--insecure", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"].map(str::to_owned).to_vec();
        args.push(format!("--addr-file={}", address_file.display()));
        let log = folder.join("coordinator.log");
        let mut coordinator = Server::start("the coordinator", &binaries.coordinator, &args, &env, &log, false)?;
        let text = coordinator.ready(&address_file).await?;
        let address = text.lines().find_map(|line| line.strip_prefix("grpc="));
        let address = address.with_context(|| format!("the coordinator wrote no grpc= but {text:?}"))?;
        let client = LockstepClient::builder(format!("http://{address}")).actor("bench").connect()?;
        Ok(Self { coordinator, client, postgres, binaries, folder: folder.to_owned(), endpoint: endpoint.to_owned() })
    }

    /// The coordinator's process.
    pub(crate) fn coordinator(&self) -> &Server {
        &self.coordinator
    }

    /// Ends it in order.
    pub(crate) async fn stop(self) -> Result<()> {
        self.coordinator.stop().await;
        Ok(self.postgres.stop().await?)
    }

    /// A new pipeline on a prefix of its own, its one agent on an empty disk.
    pub(crate) async fn pipeline(&self, name: &str) -> Result<Solo<'_>> {
        let disk = self.folder.join("disk");
        let mut solo =
            Solo { rig: self, name: name.to_owned(), agent: None, address: "127.0.0.1:0".to_owned(), disk, step: 0 };
        solo.new_machine().await?;
        let spec = v1::PipelineSpec {
            name: name.to_owned(),
            solo: true,
            agents: vec![format!("http://{}", solo.address)],
            location: Some(v1::Location {
                bucket: BUCKET.to_owned(),
                prefix: name.to_owned(),
                region: REGION.to_owned(),
                endpoint: self.endpoint.clone(),
                force_path_style: true,
            }),
            ..v1::PipelineSpec::default()
        };
        self.client.create_pipeline(spec).await?;
        Ok(solo)
    }
}

/// One pipeline with its agent. It ends with this.
#[derive(Debug)]
pub(crate) struct Solo<'a> {
    rig: &'a Rig,
    name: String,
    agent: Option<Server>,
    address: String,
    disk: PathBuf,
    step: u64,
}

impl Solo<'_> {
    /// The agent starts again, where it was but on an empty disk.
    pub(crate) async fn new_machine(&mut self) -> Result<()> {
        self.agent = None;
        empty(&self.disk)?;
        let address_file = self.rig.folder.join("agent.addr");
        if address_file.exists() {
            fs::remove_file(&address_file)?;
        }
        let args = [
            "--insecure".to_owned(),
            "--solo".to_owned(),
            format!("--listen={}", self.address),
            format!("--pipeline={}", self.name),
            "--store=directory".to_owned(),
            format!("--dir={}", self.disk.display()),
            format!("--allow-location=s3://{BUCKET}/{}?endpoint={}&path_style=true", self.name, self.rig.endpoint),
            format!("--addr-file={}", address_file.display()),
        ];
        let log = self.rig.folder.join("agent.log");
        let env = environment(Tool::Lockstep.name());
        let mut agent = Server::start("the agent", &self.rig.binaries.agent, &args, &env, &log, false)?;
        self.address = agent.ready(&address_file).await?;
        self.agent = Some(agent);
        Ok(())
    }

    /// What the engine does: a checkpoint of these files, hard links to what is there.
    pub(crate) fn checkpoint(&mut self, tree: &Tree) -> Result<u64> {
        self.step += 1;
        let id = Uuid::now_v7().to_string();
        let checkpoints = self.disk.join("checkpoints");
        let draft = self.disk.join("draft");
        fs::create_dir_all(&checkpoints)?;
        tree.link(&draft)?;
        let document = json!({ "uuid": id, "step": self.step, "created_at": chrono::Utc::now() }).to_string();
        fs::write(draft.join(DOCUMENT), &document)?;
        fs::rename(draft, checkpoints.join(id))?;
        Ok(document.len() as u64)
    }

    /// Pushes the newest checkpoint.
    pub(crate) async fn push(&self) -> Result<Cost> {
        let request = v1::StartPushRequest { pipeline: self.name.clone(), ..v1::StartPushRequest::default() };
        self.measure(async || self.rig.client.start_push(request).await).await
    }

    /// Pulls the newest; with `skip_local`, whatever the disk claims to hold.
    pub(crate) async fn pull(&self, skip_local: bool) -> Result<Cost> {
        let request = v1::StartPullRequest {
            pipeline: self.name.clone(),
            standby: Some(skip_local),
            ..v1::StartPullRequest::default()
        };
        self.measure(async || self.rig.client.start_pull(request).await).await
    }

    async fn measure(
        &self,
        start: impl AsyncFnOnce() -> Result<v1::Round, lockstep_client::ClientError>,
    ) -> Result<Cost> {
        let agent = self.agent.as_ref().context("the agent does not run")?;
        proc::forget_peak(agent.pid())?;
        let (cpu, began) = (agent.cpu()?, Instant::now());
        let admitted = start().await?;
        let round = self.rig.client.wait_round(&admitted.id).await?;
        let wall = began.elapsed();
        let cost = Cost {
            wall_s: wall.as_secs_f64(),
            cpu_s: (agent.cpu()?.saturating_sub(cpu)).as_secs_f64(),
            peak_rss: proc::peak(agent.pid())?,
        };
        if !lockstep_client::succeeded(&round) {
            let problem = round.problem.as_ref().map(|problem| format!("{problem:?}")).unwrap_or_default();
            bail!(agent.failure(&format!("round {} ended as {:?}: {problem}", round.id, round.phase())));
        }
        Ok(cost)
    }

    /// The folder of the only local checkpoint.
    pub(crate) fn pulled(&self) -> Result<PathBuf> {
        let folder = self.disk.join("checkpoints");
        let mut found: Vec<PathBuf> = Vec::new();
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            found.push(entry?.path());
        }
        match found.as_slice() {
            [one] => Ok(one.clone()),
            more => bail!("{} holds {} checkpoints instead of the one that was pulled", folder.display(), more.len()),
        }
    }

    /// Forgets the pipeline and ends the agent.
    pub(crate) async fn end(mut self) -> Result<()> {
        self.rig.client.delete_pipeline(self.name.clone(), "").await?;
        if let Some(agent) = self.agent.take() {
            agent.stop().await;
        }
        empty(&self.disk)
    }
}

/// An empty folder, whatever was there.
pub(crate) fn empty(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| folder.display().to_string());
        }
        _ => {}
    }
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())
}
