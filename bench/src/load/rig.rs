//! What the measurement runs on: Postgres, the S3 server and the agents in this process or its own, the coordinators as processes under test.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use lockstep_client::{LockstepClient, v1};
use lockstep_devkit::{Postgres, PostgresOptions, S3Options, S3Server};

use super::args::{Args, Scope};
use super::fleet::{Fleet, FleetOptions, pipeline_name};
use crate::access::{REGION, environment, secret};
use crate::child::Server;

/// The one bucket.
const BUCKET: &str = "load";

/// Access key of the coordinators; the agents write past all counting.
pub(super) const COORDINATOR: &str = "coordinator";

/// How far transfers lie apart.
const SPREAD: f64 = 0.5;

/// Connections of callers to each coordinator: one holds 256 calls at a time, watches counted.
const CALLERS: usize = 4;

/// Everything that runs. Ends with this.
#[derive(Debug)]
pub(super) struct Rig {
    // Fields drop in order: the caller before whom it calls.
    pub(super) replicas: Vec<Replica>,
    pub(super) fleet: Fleet,
    pub(super) s3: S3Server,
    pub(super) database_url: String,
    postgres: Postgres,
}

/// One coordinator.
#[derive(Debug)]
pub(super) struct Replica {
    pub(super) process: Server,
    /// Where it serves metrics.
    pub(super) http: String,
    callers: Vec<LockstepClient>,
}

impl Rig {
    /// Starts all of it below `folder`.
    pub(super) async fn start(args: &Args, scope: &Scope, folder: &Path, bin_dir: &Path) -> Result<Self> {
        let s3 = S3Server::start(S3Options {
            root: Some(folder.join("s3")),
            buckets: vec![BUCKET.to_owned()],
            credentials: vec![(COORDINATOR.to_owned(), secret(COORDINATOR))],
            md5_etags: false,
            ..S3Options::default()
        })
        .await?;
        let options =
            FleetOptions { pipelines: scope.pipelines, hosts: scope.hosts, transfer: scope.transfer, spread: SPREAD };
        let fleet = Fleet::start(options, BUCKET, s3.admin()).await?;
        let postgres = Postgres::start(PostgresOptions::default()).await?;
        let database_url = postgres.create_database("lockstep").await?;
        let program = binary(bin_dir, folder)?;
        let mut replicas = Vec::new();
        for number in 0..scope.replicas {
            replicas.push(Replica::start(args, number, folder, &program, &database_url).await?);
        }
        Ok(Self { replicas, fleet, s3, database_url, postgres })
    }

    /// The caller of one pipeline, who always asks the same coordinator over the same connection.
    pub(super) fn caller(&self, pipeline: u32) -> Result<LockstepClient> {
        let pipeline = pipeline as usize;
        let replica = self.replicas.get(pipeline % self.replicas.len()).context("no coordinator")?;
        let caller = replica.callers.get(pipeline / self.replicas.len() % CALLERS);
        Ok(caller.context("no connection to the coordinator")?.clone())
    }

    /// What one pipeline is created from.
    pub(super) fn spec(&self, pipeline: u32, hosts: u32) -> v1::PipelineSpec {
        let name = pipeline_name(pipeline);
        v1::PipelineSpec {
            name: name.clone(),
            hosts,
            agents: self.fleet.addresses(pipeline),
            location: Some(v1::Location {
                bucket: BUCKET.to_owned(),
                prefix: name,
                region: REGION.to_owned(),
                endpoint: self.s3.endpoint(),
                force_path_style: true,
            }),
            ..v1::PipelineSpec::default()
        }
    }

    /// Ends the coordinators in order, then what they ran on.
    pub(super) async fn stop(self) -> Result<()> {
        for replica in self.replicas {
            replica.process.stop().await;
        }
        drop(self.fleet);
        self.s3.stop().await;
        Ok(self.postgres.stop().await?)
    }
}

/// A copy: a build in the middle of a measurement does not change what is measured.
fn binary(bin_dir: &Path, folder: &Path) -> Result<PathBuf> {
    let path = bin_dir.join("lockstep-coordinator");
    ensure!(
        path.is_file(),
        "{} is missing: build it with `cargo build --release -p lockstep-bench -p lockstep-coordinator`, or say --bin-dir",
        path.display()
    );
    let copy = folder.join("lockstep-coordinator");
    fs::copy(&path, &copy).with_context(|| format!("can't copy {} to {}", path.display(), copy.display()))?;
    Ok(copy)
}

impl Replica {
    async fn start(args: &Args, number: u32, folder: &Path, program: &Path, database_url: &str) -> Result<Self> {
        let name = format!("replica-{number}");
        let mut env = environment(COORDINATOR);
        env.push(("DATABASE_URL", database_url.to_owned()));
        let address_file = folder.join(format!("{name}.addr"));
        let mut words: Vec<String> = Vec::new();
        let program = match &args.coordinator_cpus {
            Some(cpus) => {
                words.extend(["-c".to_owned(), cpus.clone(), program.display().to_string()]);
                Path::new("taskset")
            }
            None => program,
        };
        words.extend(["--insecure", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"].map(str::to_owned));
        words.push(format!("--replica={name}"));
        words.push(format!("--addr-file={}", address_file.display()));
        words.extend(args.coordinator.iter().map(|word| word.to_string_lossy().into_owned()));
        let log = folder.join(format!("{name}.log"));
        let mut process = Server::start(&name, program, &words, &env, &log, false)?;
        let text = process.ready(&address_file).await?;
        let line = |name: &str| {
            let found = text.lines().find_map(|line| line.strip_prefix(name));
            found.map(str::to_owned).with_context(|| format!("the coordinator wrote no {name} but {text:?}"))
        };
        let (grpc, http) = (format!("http://{}", line("grpc=")?), line("http=")?);
        let callers = (0..CALLERS).map(|_| LockstepClient::builder(grpc.as_str()).actor("load").connect());
        Ok(Self { process, http, callers: callers.collect::<Result<_, _>>()? })
    }
}
