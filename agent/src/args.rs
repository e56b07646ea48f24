//! Flags of the sidecar and what runs behind them. The CLI embeds the same as a hidden subcommand.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use clap::{Args, ValueEnum};
use lockstep_protocol::{
    host::Slot,
    location::Location,
    order::PipelineSelector,
    problem::{Problem, Reason},
};
use lockstep_telemetry::{LogFormat, TelemetryOptions};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    agent::{Agent, AgentHandle},
    durable,
    store::{CheckpointStore, directory::DirectoryStore, feldera::FelderaStore},
};

/// Which engine's local checkpoints the agent serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum StoreKind {
    /// `<dir>/checkpoints/<uuid>/` with a checkpoint.json each
    Directory,
    /// A Feldera (DBSP) storage directory
    Feldera,
}

/// How log lines look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Format {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// Examples for `--help`.
pub const EXAMPLES: &str = "\
Examples:
  host 0 of 3 of pipeline orders, a Feldera storage directory, S3 on AWS:
    lockstep-agent --insecure --pipeline orders --host-idx 0 --n-hosts 3 --store feldera --dir /var/lib/feldera \\
      --allow-location 's3://acme-ckpt/orders?region=eu-west-1'

  a solo pipeline with plain folders and an S3 server on this machine:
    AWS_ENDPOINT_URL=http://127.0.0.1:9000 lockstep-agent --insecure --pipeline orders --solo --dir ./state \\
      --allow-location 's3://acme-ckpt/orders?path_style=true'

S3 credentials come from the standard AWS chain (environment, profile, web identity, instance metadata), never from flags.
OTEL_EXPORTER_OTLP_ENDPOINT switches the export of traces on.
Exit status: 0 after SIGTERM or SIGINT, 1 if it could not start or go on, 2 for wrong usage.";

/// Flags of an agent; each has an environment variable.
#[derive(Args, Clone, Debug)]
pub struct AgentArgs {
    /// Where to serve gRPC for the coordinator; port 0 takes any free one (see --addr-file)
    #[arg(long, env = "LOCKSTEP_AGENT_LISTEN", default_value = "0.0.0.0:7402", value_name = "ADDR")]
    pub listen: SocketAddr,

    /// Name or UUID of the pipeline this host belongs to; orders for another one are refused
    #[arg(long, env = "LOCKSTEP_AGENT_PIPELINE", value_name = "NAME|UUID")]
    pub pipeline: PipelineSelector,

    /// Index of this host, from 0
    #[arg(
        long,
        env = "LOCKSTEP_AGENT_HOST_IDX",
        value_name = "N",
        requires = "n_hosts",
        required_unless_present = "solo"
    )]
    pub host_idx: Option<u32>,

    /// Number of hosts of the pipeline
    #[arg(long, env = "LOCKSTEP_AGENT_N_HOSTS", value_name = "N", requires = "host_idx")]
    pub n_hosts: Option<u32>,

    /// The pipeline has one host and no host index
    #[arg(long, env = "LOCKSTEP_AGENT_SOLO", conflicts_with_all = ["host_idx", "n_hosts"])]
    pub solo: bool,

    /// How the engine lays out its local checkpoints
    #[arg(long, env = "LOCKSTEP_AGENT_STORE", value_enum, default_value_t = StoreKind::Directory)]
    pub store: StoreKind,

    /// The engine's directory
    #[arg(long, env = "LOCKSTEP_AGENT_DIR", value_name = "PATH")]
    pub dir: PathBuf,

    /// A location that orders may name, s3://bucket/prefix?endpoint=...&region=...&path_style=true; repeatable.
    /// No endpoint means AWS_ENDPOINT_URL, else AWS
    #[arg(
        long = "allow-location",
        env = "LOCKSTEP_AGENT_ALLOW_LOCATION",
        value_delimiter = ' ',
        required = true,
        value_name = "LOCATION"
    )]
    pub allow_locations: Vec<Location>,

    /// Where the highest accepted order is kept; must outlive the process [default: a folder below --dir]
    #[arg(long, env = "LOCKSTEP_AGENT_STATE_DIR", value_name = "PATH")]
    pub state_dir: Option<PathBuf>,

    /// Serve /healthz, /readyz and /metrics here, for example 0.0.0.0:7403 [default: off]
    #[arg(long, env = "LOCKSTEP_AGENT_HTTP_LISTEN", value_name = "ADDR")]
    pub http_listen: Option<SocketAddr>,

    /// Write the gRPC address to this file once it is served, for supervisors that use port 0
    #[arg(long, env = "LOCKSTEP_AGENT_ADDR_FILE", value_name = "PATH")]
    pub addr_file: Option<PathBuf>,

    /// Run without TLS and tokens, the only mode so far: whoever reaches the port can order transfers
    #[arg(long, env = "LOCKSTEP_AGENT_INSECURE")]
    pub insecure: bool,

    /// How log lines look on stderr
    #[arg(long, env = "LOCKSTEP_AGENT_LOG_FORMAT", value_enum, default_value_t = Format::Text)]
    pub log_format: Format,
}

/// Runs an agent until SIGTERM or SIGINT. The caller has installed a rustls crypto provider.
pub fn run(args: AgentArgs) -> ExitCode {
    if !args.insecure {
        eprintln!(
            "error: this version has no TLS and no tokens yet: say --insecure to run without them, in a network where only the \
             coordinator reaches {}",
            args.listen
        );
        return ExitCode::from(2);
    }
    let slot = match slot(&args) {
        Ok(slot) => slot,
        Err(problem) => {
            eprintln!("error: {problem}");
            return ExitCode::from(2);
        }
    };
    let mut options = TelemetryOptions::new("lockstep-agent");
    options.log_format = match args.log_format {
        Format::Text => LogFormat::Text,
        Format::Json => LogFormat::Json,
    };
    let telemetry = match lockstep_telemetry::init(options) {
        Ok(telemetry) => telemetry,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    tracing::warn!("runs with --insecure: no TLS, no tokens");
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(until_signalled(args, slot, telemetry.prometheus())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn slot(args: &AgentArgs) -> Result<Slot, Problem> {
    match (args.host_idx, args.n_hosts) {
        (Some(host_idx), Some(n_hosts)) => Agent::slot(host_idx, n_hosts),
        _ if args.solo => Ok(Slot::Solo),
        _ => Err(Problem::new(Reason::HostInfoInvalid, "say --solo, or --host-idx and --n-hosts")),
    }
}

fn open_store(kind: StoreKind, dir: &Path) -> Result<Arc<dyn CheckpointStore>, Problem> {
    // Said here because a store may create what is missing: a directory that is not mounted must not become an empty one.
    std::fs::read_dir(dir).map_err(|error| durable::io_problem("read --dir", dir, &error))?;
    Ok(match kind {
        StoreKind::Directory => Arc::new(DirectoryStore::open(dir)?),
        StoreKind::Feldera => Arc::new(FelderaStore::open(dir)?),
    })
}

async fn until_signalled(
    args: AgentArgs,
    slot: Slot,
    metrics: lockstep_telemetry::PrometheusHandle,
) -> anyhow::Result<()> {
    // Before anything is served: a signal in between must not kill it half way.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    let store = open_store(args.store, &args.dir)?;
    let mut builder = Agent::builder(args.pipeline, slot, Arc::clone(&store)).listen(args.listen);
    for location in args.allow_locations {
        builder = builder.allow(location);
    }
    if let Some(state_dir) = args.state_dir {
        builder = builder.state_dir(state_dir);
    }
    let http = match args.http_listen {
        Some(addr) => Some(
            tokio::net::TcpListener::bind(addr)
                .await
                .map_err(|error| anyhow::anyhow!("cannot listen on {addr}: {error}"))?,
        ),
        None => None,
    };
    let agent = builder.start()?;
    if let Some(path) = &args.addr_file {
        durable::replace(path, agent.addr().to_string().as_bytes())
            .map_err(|error| durable::io_problem("write", path, &error))?;
    }
    let (http_stop, http_stopped) = tokio::sync::oneshot::channel::<()>();
    if let Some(listener) = http {
        tracing::info!(addr = %listener.local_addr()?, "health and metrics");
        let router = lockstep_telemetry::http_router(metrics, move || ready(Arc::clone(&store)));
        tokio::spawn(async move {
            let stopped = async {
                let _ = http_stopped.await;
            };
            if let Err(error) = lockstep_telemetry::serve_http_on(listener, router, stopped).await {
                tracing::error!(%error, "health and metrics ended");
            }
        });
    }
    let outcome = watch(&agent, &mut terminate, &mut interrupt).await;
    drop(http_stop);
    outcome
}

/// Ready: the disk that stagings go to answers.
async fn ready(store: Arc<dyn CheckpointStore>) -> Result<(), String> {
    let checked =
        tokio::task::spawn_blocking(move || store.staging_root().and_then(|root| crate::space::free_bytes(&root)));
    match checked.await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(problem)) => Err(problem.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

async fn watch(
    agent: &AgentHandle,
    terminate: &mut tokio::signal::unix::Signal,
    interrupt: &mut tokio::signal::unix::Signal,
) -> anyhow::Result<()> {
    tokio::select! {
        outcome = agent.ended() => return outcome.map_err(anyhow::Error::msg),
        _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
        _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
    }
    agent.stop();
    agent.ended().await.map_err(anyhow::Error::msg)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser, Debug)]
    struct Cli {
        #[command(flatten)]
        args: AgentArgs,
    }

    fn parse(line: &str) -> Result<AgentArgs, String> {
        Cli::try_parse_from(line.split(' ')).map(|cli| cli.args).map_err(|error| error.to_string())
    }

    const LEAST: &str = "agent --pipeline orders --dir /x --allow-location s3://acme/orders";

    #[test]
    fn a_host_needs_both_numbers_or_solo_but_not_all() {
        assert!(parse(LEAST).unwrap_err().contains("--host-idx"));
        assert!(parse(&format!("{LEAST} --host-idx 0")).unwrap_err().contains("--n-hosts"));
        assert!(
            parse(&format!("{LEAST} --solo --host-idx 0 --n-hosts 1")).unwrap_err().contains("cannot be used with")
        );
        let args = parse(&format!("{LEAST} --host-idx 1 --n-hosts 3")).unwrap();
        assert_eq!(slot(&args).unwrap(), Agent::slot(1, 3).unwrap());
    }

    #[test]
    fn a_host_outside_of_its_layout_is_refused_with_both_values() {
        let args = parse(&format!("{LEAST} --host-idx 3 --n-hosts 3")).unwrap();
        let problem = slot(&args).unwrap_err();
        assert_eq!((problem.reason, problem.metadata["host_idx"].as_str()), (Reason::HostInfoInvalid, "3"));
    }

    #[test]
    fn a_malformed_location_is_a_usage_error_that_says_why() {
        let error = parse("agent --pipeline orders --solo --dir /x --allow-location acme/orders").unwrap_err();
        assert!(error.contains("does not begin with s3://"), "{error}");
    }

    #[test]
    fn a_missing_dir_is_named() {
        let problem = open_store(StoreKind::Directory, Path::new("/no/such/dir")).unwrap_err();
        assert_eq!(problem.metadata["path"], "/no/such/dir");
    }
}
