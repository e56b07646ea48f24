//! Flags of the sidecar and what runs behind them. The CLI embeds the same as a hidden subcommand.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use clap::{Args, ValueEnum};
use lockstep_protocol::{
    host::Slot,
    location::Location,
    order::PipelineSelector,
    problem::{Problem, Reason},
    spec::PullSelector,
    start::{self, StartPull},
};
use lockstep_telemetry::{LogFormat, TelemetryOptions};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    agent::{Agent, AgentHandle},
    alone, durable,
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

  the same without any coordinator: before the engine starts its disk is brought to the newest checkpoint of the location; Sync pushes:
    lockstep-agent --insecure --pipeline 7d4f0a52-9c1e-4b7a-8f6e-2a1b3c4d5e6f --solo --dir ./state --pull-at-start latest \
      --allow-location 's3://acme-ckpt/orders?path_style=true' --addr-file ./started

  an engine may start when every host has ended its pull; what waits for that, an init container for one, runs:
    lockstep-agent wait-ready --agent http://127.0.0.1:7402 --timeout 10m

S3 credentials come from the standard AWS chain (environment, profile, web identity, instance metadata), never from flags.
OTEL_EXPORTER_OTLP_ENDPOINT switches the export of traces on.
Exit status: 0 after SIGTERM or SIGINT, 1 if it could not start or go on (a start-up pull that failed included), 2 for wrong usage.";

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

    /// Solo without a coordinator: before anything else bring the disk to this checkpoint of the first --allow-location: latest, a step, the UUID of a
    /// checkpoint, or a time (RFC 3339). Needs --pipeline to be a UUID. Start the engine when /readyz answers 200 or --addr-file is there: until then it must
    /// not run. If the store gives no certain answer the agent exits with 1 and the disk stays as it is
    #[arg(long, env = "LOCKSTEP_AGENT_PULL_AT_START", value_name = "CHECKPOINT", value_parser = start::parse_selector)]
    pub pull_at_start: Option<PullSelector>,

    /// Exit with 1 where --pull-at-start would let the engine start fresh, because there is no checkpoint anywhere [default: false for latest, true for whatever
    /// names a checkpoint]
    #[arg(
        long,
        env = "LOCKSTEP_AGENT_FAIL_IF_NONE",
        requires = "pull_at_start",
        num_args = 0..=1,
        default_missing_value = "true",
        require_equals = true,
        value_name = "BOOL"
    )]
    pub fail_if_none: Option<bool>,

    /// Write what the engine may do to this file once every host of the pipeline has ended the pull, and again once a standby was activated: JSON with checkpoint, step,
    /// fresh, role (active or standby), round. Replaced as a whole; removed at the start of the agent and before an install changes the disk. Put it where it does not
    /// outlive the pod
    #[arg(long, env = "LOCKSTEP_AGENT_READY_FILE", value_name = "PATH")]
    pub ready_file: Option<PathBuf>,

    /// Run this by `sh -c` once for each such word, with LOCKSTEP_READY_ROLE, _CHECKPOINT, _STEP, _FRESH and _ROUND. Its failure is logged, counted and described, and changes
    /// nothing else
    #[arg(long, env = "LOCKSTEP_AGENT_READY_HOOK", value_name = "COMMAND")]
    pub ready_hook: Option<String>,

    /// Write the gRPC address to this file once it is served and the start-up pull is done, for supervisors that use port 0
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
    if let Err(problem) = start_pull(&args, slot) {
        eprintln!("error: {problem}");
        return ExitCode::from(2);
    }
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

/// None: the disk is left as it is, and a coordinator orders what is pulled.
fn start_pull(args: &AgentArgs, slot: Slot) -> Result<Option<StartPull>, Problem> {
    let Some(from) = args.pull_at_start else { return Ok(None) };
    alone::refuse_multihost(slot)?;
    alone::Owner::of(&args.pipeline)?;
    Ok(Some(StartPull { from, fail_if_none: args.fail_if_none }))
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

    let start = start_pull(&args, slot)?;
    let store = open_store(args.store, &args.dir)?;
    let mut builder = Agent::builder(args.pipeline, slot, Arc::clone(&store)).listen(args.listen);
    for location in args.allow_locations {
        builder = builder.allow(location);
    }
    if let Some(state_dir) = args.state_dir {
        builder = builder.state_dir(state_dir);
    }
    if let Some(ready_file) = args.ready_file {
        builder = builder.ready_file(ready_file);
    }
    if let Some(ready_hook) = args.ready_hook {
        builder = builder.ready_hook(ready_hook);
    }
    if start.is_some() {
        builder = builder.start_up_pull_follows();
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
    let started = Arc::new(AtomicBool::new(start.is_none()));
    let (http_stop, http_stopped) = tokio::sync::oneshot::channel::<()>();
    if let Some(listener) = http {
        tracing::info!(addr = %listener.local_addr()?, "health and metrics");
        let started = Arc::clone(&started);
        let router = lockstep_telemetry::http_router(metrics, move || ready(Arc::clone(&store), Arc::clone(&started)));
        tokio::spawn(async move {
            let stopped = async {
                let _ = http_stopped.await;
            };
            if let Err(error) = lockstep_telemetry::serve_http_on(listener, router, stopped).await {
                tracing::error!(%error, "health and metrics ended");
            }
        });
    }
    let begin = async {
        if let Some(request) = start {
            agent.pull_at_start(request).await?;
            started.store(true, Ordering::SeqCst);
        }
        if let Some(path) = &args.addr_file {
            durable::replace(path, agent.addr().to_string().as_bytes())
                .map_err(|error| durable::io_problem("write", path, &error))?;
        }
        // From now on only a signal or its own end.
        std::future::pending::<Result<(), Problem>>().await
    };
    let outcome = watch(&agent, begin, &mut terminate, &mut interrupt).await;
    drop(http_stop);
    outcome
}

/// Ready: the engine may start, and the disk that stagings go to answers.
async fn ready(store: Arc<dyn CheckpointStore>, started: Arc<AtomicBool>) -> Result<(), String> {
    if !started.load(Ordering::SeqCst) {
        return Err("the start-up pull is not done: the engine must not start yet".to_owned());
    }
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
    begin: impl Future<Output = Result<(), Problem>>,
    terminate: &mut tokio::signal::unix::Signal,
    interrupt: &mut tokio::signal::unix::Signal,
) -> anyhow::Result<()> {
    tokio::select! {
        outcome = agent.ended() => return outcome.map_err(anyhow::Error::msg),
        outcome = begin => return outcome.map_err(anyhow::Error::from),
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
    fn a_start_up_pull_is_for_solo_agents_with_a_uuid_and_says_which_checkpoint() {
        let solo =
            "agent --pipeline 7d4f0a52-9c1e-4b7a-8f6e-2a1b3c4d5e6f --dir /x --allow-location s3://acme/orders --solo";
        let args = parse(&format!("{solo} --pull-at-start 12 --fail-if-none=false")).unwrap();
        let start = start_pull(&args, Slot::Solo).unwrap().unwrap();
        assert_eq!((start.from.to_string().as_str(), start.fail_if_none), ("step 12", Some(false)));
        let args = parse(&format!("{solo} --pull-at-start latest --fail-if-none")).unwrap();
        assert_eq!(start_pull(&args, Slot::Solo).unwrap().unwrap().fail_if_none, Some(true));
        assert!(parse(&format!("{solo} --fail-if-none")).unwrap_err().contains("--pull-at-start"));
        assert!(parse(&format!("{solo} --pull-at-start newest")).unwrap_err().contains("a step"));
        let reason = |line: &str, slot| start_pull(&parse(line).unwrap(), slot).unwrap_err().reason;
        let named = format!("{LEAST} --solo --pull-at-start latest");
        assert_eq!(reason(&named, Slot::Solo), Reason::SpecInvalid);
        let hosts = Agent::slot(0, 3).unwrap();
        assert_eq!(reason(&named, hosts), Reason::MultihostRequiresCoordinator);
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
