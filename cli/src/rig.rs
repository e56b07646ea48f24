//! Lockstep on one machine: Postgres, S3, a coordinator and agents, each as in production but for where they come from.
//!
//! Postgres and the S3 server belong to this process (see `lockstep-devkit`), coordinator and agents are child processes
//! of the same binary ([`process`]). All listen on loopback only. When this process ends, whatever the way, all of it ends.

mod credentials;
mod process;
mod supervised;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::future::try_join_all;
use lockstep_client::{LockstepClient, v1};
use lockstep_devkit::{Postgres, PostgresOptions, S3Options, S3Server, s3};
use lockstep_protocol::spec::Transfer;

use crate::failure::Failure;
use crate::{actor, spec};

pub(crate) use credentials::Credentials;
pub(crate) use process::Process;
pub(crate) use supervised::end_with_the_supervisor;

/// The database in the cluster.
const DATABASE: &str = "lockstep";

/// How it is to be.
#[derive(Debug, Clone)]
pub(crate) struct RigOptions {
    /// Everything lies here. It is made if missing; who gave it removes it.
    pub(crate) dir: PathBuf,
    pub(crate) hosts: u32,
    /// First of the ports; none takes free ones.
    pub(crate) first_port: Option<u16>,
    /// Whether Postgres and S3 outlive the machine's power, not only this process.
    pub(crate) durable: bool,
    /// Name of the pipeline and of the bucket.
    pub(crate) name: &'static str,
    /// After how long a killed coordinator's rounds are driven again.
    pub(crate) lease: Duration,
}

/// All of it, running. Dropping it kills the children and cuts the rest off; [`Rig::stop`] ends it in order.
#[derive(Debug)]
pub(crate) struct Rig {
    options: RigOptions,
    credentials: Credentials,
    // Fields drop in order: the children first.
    pub(crate) coordinator: Coordinator,
    pub(crate) agents: Vec<Agent>,
    pub(crate) s3: S3Server,
    pub(crate) postgres: Postgres,
    database_url: String,
}

#[derive(Debug)]
pub(crate) struct Coordinator {
    process: Process,
    pub(crate) grpc: SocketAddr,
    pub(crate) http: SocketAddr,
}

#[derive(Debug)]
pub(crate) struct Agent {
    process: Process,
    pub(crate) host: u32,
    pub(crate) addr: SocketAddr,
    /// What the engine and the agent share: the disk of the host.
    pub(crate) disk: PathBuf,
}

impl Coordinator {
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub(crate) fn address(&self) -> String {
        format!("http://{}", self.grpc)
    }
}

impl Agent {
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }
}

/// `host:port` on loopback: the `offset`th after the first port, or any.
fn listen(first_port: Option<u16>, offset: u16) -> SocketAddr {
    let port = first_port.map_or(0, |first| first.saturating_add(offset));
    SocketAddr::from(([127, 0, 0, 1], port))
}

impl Rig {
    /// Starts everything and waits until all of it answers.
    pub(crate) async fn start(options: RigOptions) -> Result<Self, Failure> {
        let dir = std::path::absolute(&options.dir).map_err(|error| io(&options.dir, &error))?;
        let options = RigOptions { dir, ..options };
        for folder in ["logs", "run"] {
            let folder = options.dir.join(folder);
            std::fs::create_dir_all(&folder).map_err(|error| io(&folder, &error))?;
        }
        let credentials = Credentials::load_or_draw(&options.dir.join("credentials.json"))?;
        let (postgres, database_url) = start_postgres(&options).await?;
        let s3 = S3Server::start(S3Options {
            listen: listen(options.first_port, 90),
            root: Some(options.dir.join("s3")),
            buckets: vec![options.name.to_owned()],
            credentials: vec![(credentials.access_key_id.clone(), credentials.secret_access_key.clone())],
            sync: options.durable,
            ..S3Options::default()
        })
        .await
        .map_err(|error| Failure::local("S3_SERVER", error.to_string()))?;
        let environment = environment(&credentials, &s3);
        let (grpc, http) = (listen(options.first_port, 0), listen(options.first_port, 1));
        let coordinator = start_coordinator(&options, &environment, &database_url, grpc, http);
        let agents = (0..options.hosts).map(|host| {
            // Few enough to fit below the port of S3, by the command line.
            let offset = 10 + u16::try_from(host).unwrap_or(u16::MAX);
            start_agent(&options, &environment, host, listen(options.first_port, offset))
        });
        let (coordinator, agents) = futures::future::try_join(coordinator, try_join_all(agents)).await?;
        Ok(Self { options, credentials, coordinator, agents, s3, postgres, database_url })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.options.dir
    }

    pub(crate) fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// For psql.
    pub(crate) fn database_url(&self) -> &str {
        &self.database_url
    }

    pub(crate) fn client(&self) -> Result<LockstepClient, Failure> {
        Ok(LockstepClient::builder(self.coordinator.address()).actor(actor::default_name()).connect()?)
    }

    /// The spec of the one pipeline: all hosts, and a prefix of the bucket.
    pub(crate) fn spec(&self) -> v1::PipelineSpec {
        v1::PipelineSpec {
            name: self.options.name.to_owned(),
            initial: v1::Initial::Running.into(),
            hosts: self.options.hosts,
            agents: self.agents.iter().map(|agent| format!("http://{}", agent.addr)).collect(),
            location: Some(v1::Location {
                bucket: self.options.name.to_owned(),
                prefix: self.options.name.to_owned(),
                region: s3::REGION.to_owned(),
                // That of AWS_ENDPOINT_URL: its port may be another one in the next run, and it would be another location then.
                endpoint: String::new(),
                force_path_style: true,
            }),
            start: Some(v1::StartPolicy { from: Some(v1::start_policy::From::Latest(true)), fail_if_none: false }),
            transfer: Some(spec::transfer(&Transfer::default())),
            ..Default::default()
        }
    }

    /// `kill -9`: no goodbye, no cleaning up.
    pub(crate) fn kill_coordinator(&mut self) {
        self.coordinator.process.kill();
    }

    /// Starts the coordinator again, where it was.
    pub(crate) async fn restart_coordinator(&mut self) -> Result<(), Failure> {
        let environment = environment(&self.credentials, &self.s3);
        let (grpc, http) = (self.coordinator.grpc, self.coordinator.http);
        self.coordinator = start_coordinator(&self.options, &environment, &self.database_url, grpc, http).await?;
        Ok(())
    }

    /// Every host loses its machine: agents are killed and all they had on disk is removed.
    pub(crate) fn lose_hosts(&mut self) -> Result<(), Failure> {
        for agent in &mut self.agents {
            agent.process.kill();
        }
        for agent in &self.agents {
            std::fs::remove_dir_all(&agent.disk).map_err(|error| io(&agent.disk, &error))?;
        }
        Ok(())
    }

    /// Starts all agents again, each where it was, on whatever its disk holds.
    pub(crate) async fn restart_agents(&mut self) -> Result<(), Failure> {
        let environment = environment(&self.credentials, &self.s3);
        let starting = self.agents.iter().map(|agent| start_agent(&self.options, &environment, agent.host, agent.addr));
        self.agents = try_join_all(starting).await?;
        Ok(())
    }

    /// A failure if one of the children has ended by itself.
    pub(crate) fn check(&mut self) -> Result<(), Failure> {
        self.coordinator.process.check()?;
        self.agents.iter_mut().try_for_each(|agent| agent.process.check())
    }

    /// Ends everything in order: callers before those they call.
    pub(crate) async fn stop(self) -> Result<(), Failure> {
        let Self { coordinator, agents, s3, postgres, .. } = self;
        coordinator.process.stop().await;
        for agent in agents {
            agent.process.stop().await;
        }
        s3.stop().await;
        postgres.stop().await.map_err(|error| Failure::local("POSTGRES", error.to_string()))
    }
}

async fn start_postgres(options: &RigOptions) -> Result<(Postgres, String), Failure> {
    let wrong = |error: lockstep_devkit::PostgresError| Failure::local("POSTGRES", error.to_string());
    let data_dir = options.durable.then(|| options.dir.join("postgres"));
    let postgres =
        Postgres::start(PostgresOptions { data_dir, durable: options.durable, ..PostgresOptions::default() });
    let postgres = postgres.await.map_err(wrong)?;
    match postgres.create_database(DATABASE).await {
        Ok(url) => Ok((postgres, url)),
        // Kept from an earlier run. The cluster's messages are English: it is made with locale C.
        Err(error) if error.to_string().contains("already exists") => {
            let url = postgres.url(DATABASE);
            Ok((postgres, url))
        }
        Err(error) => Err(wrong(error)),
    }
}

/// What coordinator and agents find S3 and its credentials by: the standard AWS chain, closed to all else.
fn environment(credentials: &Credentials, s3: &S3Server) -> Vec<(&'static str, String)> {
    vec![
        ("AWS_ACCESS_KEY_ID", credentials.access_key_id.clone()),
        ("AWS_SECRET_ACCESS_KEY", credentials.secret_access_key.clone()),
        ("AWS_REGION", s3::REGION.to_owned()),
        ("AWS_ENDPOINT_URL", s3.endpoint()),
        ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
        ("AWS_CONFIG_FILE", "/dev/null".to_owned()),
        ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null".to_owned()),
    ]
}

async fn start_coordinator(
    options: &RigOptions,
    environment: &[(&'static str, String)],
    database_url: &str,
    grpc: SocketAddr,
    http: SocketAddr,
) -> Result<Coordinator, Failure> {
    let addr_file = options.dir.join("run/coordinator.addr");
    let show = |duration: Duration| humantime::format_duration(duration).to_string();
    let args = [
        "__coordinator".to_owned(),
        "--insecure".to_owned(),
        format!("--listen={grpc}"),
        format!("--http-listen={http}"),
        format!("--lease={}", show(options.lease)),
        format!("--renew-every={}", show(options.lease / 4)),
        format!("--addr-file={}", addr_file.display()),
    ];
    let mut environment = environment.to_vec();
    environment.push(("DATABASE_URL", database_url.to_owned()));
    let mut process =
        Process::spawn("coordinator", &options.dir.join("logs/coordinator.log"), &args, &environment, &addr_file)?;
    let (grpc, http) = process
        .until_ready(&addr_file, |text| {
            let value =
                |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')?.parse().ok());
            Some((value("grpc")?, value("http")?))
        })
        .await?;
    Ok(Coordinator { process, grpc, http })
}

async fn start_agent(
    options: &RigOptions,
    environment: &[(&'static str, String)],
    host: u32,
    listen: SocketAddr,
) -> Result<Agent, Failure> {
    let disk = options.dir.join(format!("host{host}"));
    std::fs::create_dir_all(&disk).map_err(|error| io(&disk, &error))?;
    let addr_file = options.dir.join(format!("run/agent{host}.addr"));
    let args = [
        "__agent".to_owned(),
        "--insecure".to_owned(),
        format!("--listen={listen}"),
        format!("--pipeline={}", options.name),
        format!("--host-idx={host}"),
        format!("--n-hosts={}", options.hosts),
        "--store=directory".to_owned(),
        format!("--dir={}", disk.display()),
        // No endpoint: it is that of AWS_ENDPOINT_URL.
        format!("--allow-location=s3://{0}/{0}", options.name),
        format!("--addr-file={}", addr_file.display()),
    ];
    let log = options.dir.join(format!("logs/agent{host}.log"));
    let mut process = Process::spawn(&format!("agent {host}"), &log, &args, environment, &addr_file)?;
    let addr = process.until_ready(&addr_file, |text| text.trim().parse().ok()).await?;
    Ok(Agent { process, host, addr, disk })
}

fn io(path: &Path, error: &std::io::Error) -> Failure {
    Failure::local("LOCAL_IO", format!("{}: {error}", path.display())).with("path", path.display())
}
