//! The process: flags in, an exit code out. Connects and migrates, starts the dispatcher, gRPC and the HTTP side port, and stops them in order.

use std::{io::Write as _, net::SocketAddr, path::Path, process::ExitCode, sync::Arc, time::Duration};

use lockstep_bucket::{AwsConnector, Connector, Insisting};
use lockstep_proto::v1::coordinator_server::{self, CoordinatorServer};
use lockstep_protocol::problem::{Problem, Retryable};
use lockstep_rpc::{GrpcServer, MAX_MESSAGE_BYTES, ServerOptions};
use lockstep_telemetry::{PrometheusHandle, TelemetryOptions};
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    agents::{AgentPool, AgentPoolOptions},
    api::{Api, ApiOptions, OWN_WAIT},
    config::{Command, CoordinatorArgs, DatabaseUrl},
    dispatch::{DispatchOptions, Dispatcher},
    store::{Store, StoreOptions},
};

/// Wrong flags, as clap itself exits.
const USAGE: u8 = 2;

/// How often the database is asked for the health check.
const HEALTH_EVERY: Duration = Duration::from_secs(2);

/// How long to wait for database calls that outlived everything else.
const CLOSE: Duration = Duration::from_secs(2);

/// Why the process ends other than by a signal.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Problem(#[from] Problem),
    #[error("{0}")]
    Serve(#[from] lockstep_rpc::ServeError),
    #[error("{0}")]
    Http(#[from] lockstep_telemetry::HttpError),
    #[error("cannot {what}: {source}")]
    System { what: String, source: std::io::Error },
    #[error("{0} ended unexpectedly")]
    Ended(&'static str),
}

/// Runs a coordinator until SIGTERM or SIGINT. Builds its own runtime: call it outside of any.
pub fn run(args: CoordinatorArgs) -> ExitCode {
    // First of all: with more than one provider compiled in, rustls can't choose by itself. An embedder's earlier choice stands.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let refuse = |why: &str| {
        complain(why);
        ExitCode::from(USAGE)
    };
    let checked = match args.command {
        None => args.check(),
        Some(Command::Migrate) => args.check_database(),
    };
    if let Err(why) = checked {
        return refuse(&why);
    }
    let Some(url) = args.database_url.clone() else {
        return refuse(
            "no database: set DATABASE_URL=postgres://user:password@host:port/database; rounds are kept in Postgres and nowhere else. To try \
             Lockstep without an own Postgres run `lockstep dev`, which starts one together with an S3 server and agents",
        );
    };
    let telemetry = lockstep_telemetry::init(TelemetryOptions {
        service_name: "lockstep-coordinator",
        log_format: args.log_format,
        log_filter: args.log.clone(),
    });
    let telemetry = match telemetry {
        Ok(telemetry) => telemetry,
        Err(error) => return refuse(&error.to_string()),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("coordinator").build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("cannot start threads: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let outcome = match args.command {
        None => runtime.block_on(Box::pin(serve(args, url, telemetry.prometheus()))),
        Some(Command::Migrate) => runtime.block_on(Box::pin(migrate(args, url))),
    };
    // What still runs only waits: everything with an effect was handed back or is somebody else's after its lease.
    runtime.shutdown_timeout(Duration::from_secs(1));
    telemetry.shutdown();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            complain(&failure.to_string());
            ExitCode::FAILURE
        }
    }
}

/// For the person or supervisor that started us, whatever the log filter says.
fn complain(why: &str) {
    // Nobody is left to tell if stderr is closed.
    let _ = writeln!(std::io::stderr(), "lockstep-coordinator: {why}");
}

async fn serve(args: CoordinatorArgs, url: DatabaseUrl, prometheus: PrometheusHandle) -> Result<(), Failure> {
    let stopping = stop_on_signal()?;
    let replica = args.replica_name();
    tracing::warn!(replica, "running insecure: no TLS and no tokens, everybody who reaches the ports is believed");

    let Some(store) = connect(&args, &url, &stopping).await? else { return Ok(()) };
    store.migrate().await?;
    let listener = lockstep_rpc::listen(args.listen).await?;
    let http = lockstep_rpc::listen(args.http_listen).await?;
    let (addr, http_addr) = (bound(&listener)?, bound(&http)?);

    let connector: Arc<dyn Connector> = Arc::new(Insisting(AwsConnector::from_env().await));
    let agents = AgentPool::new(AgentPoolOptions::default());
    let options = ApiOptions {
        push_deadline: args.push_deadline,
        pull_deadline: args.pull_deadline,
        retry: args.retry(),
        gc_grace: args.gc_grace,
        ..ApiOptions::default()
    };
    let api = Api::new(store.clone(), Arc::new(agents.clone()), connector.clone(), options, stopping.clone());
    let server = grpc_server(api, args.shutdown_grace)?;
    let health = server.health();
    let router = lockstep_telemetry::http_router(prometheus, {
        let store = store.clone();
        move || {
            let store = store.clone();
            async move { store.now().await.map(|_| ()).map_err(|error| error.problem().to_string()) }
        }
    });
    let dispatcher = Dispatcher::new(
        store.clone(),
        connector,
        agents,
        DispatchOptions {
            replica: replica.clone(),
            lease: args.lease,
            renew_every: args.renew_every,
            long_poll: args.long_poll,
            unreachable_after: args.unreachable_after,
            stall_after: args.stall_after,
            store_patience: args.store_patience,
            max_rounds: args.max_rounds,
            push_deadline: args.push_deadline,
            pull_deadline: args.pull_deadline,
            retry: args.retry(),
            garbage: args.garbage(),
            verify_bytes_per_day: args.verify_bytes_per_day,
            ..DispatchOptions::default()
        },
    );

    let mut parts: JoinSet<Result<&'static str, Failure>> = JoinSet::new();
    parts.spawn({
        let stopping = stopping.clone();
        async move {
            dispatcher.run(stopping).await;
            Ok("the dispatcher")
        }
    });
    parts.spawn({
        let stopping = stopping.clone();
        async move {
            server.serve(listener, stopping.cancelled_owned()).await?;
            Ok("the gRPC server")
        }
    });
    parts.spawn({
        let stopping = stopping.clone();
        async move {
            lockstep_telemetry::serve_http_on(http, router, stopping.cancelled_owned()).await?;
            Ok("the HTTP server")
        }
    });
    parts.spawn({
        let (store, stopping) = (store.clone(), stopping.clone());
        async move {
            report_health(health, &store, &stopping).await;
            Ok("the health report")
        }
    });
    if let Some(path) = &args.addr_file {
        write_addresses(path, addr, http_addr)?;
    }
    tracing::info!(replica, %addr, http.addr = %http_addr, version = env!("CARGO_PKG_VERSION"), "serving");
    let outcome = end(parts, &stopping, args.shutdown_grace).await;
    // Calls of the store that are under way end by themselves; one that hangs is not waited for.
    let closing = tokio::spawn(async move { store.close().await });
    let _ = tokio::time::timeout(CLOSE, closing).await;
    tracing::info!(replica, "stopped");
    outcome
}

/// Waits until something ends, then lets the others end too, at the longest for `grace`.
async fn end(
    mut parts: JoinSet<Result<&'static str, Failure>>,
    stopping: &CancellationToken,
    grace: Duration,
) -> Result<(), Failure> {
    let mut failure = None;
    let mut until = None;
    loop {
        let next = match until {
            None => tokio::select! {
                next = parts.join_next() => next,
                () = stopping.cancelled() => {
                    tracing::info!(grace = ?grace, "stopping");
                    until = Some(Instant::now() + grace);
                    continue;
                }
            },
            Some(until) => match tokio::time::timeout_at(until, parts.join_next()).await {
                Ok(next) => next,
                Err(_) => {
                    tracing::warn!(
                        left = parts.len(),
                        "the grace period is over; leases that were not handed back run out by themselves"
                    );
                    None
                }
            },
        };
        let ended = match next {
            None => return failure.map_or(Ok(()), Err),
            Some(Ok(ended)) => ended,
            Some(Err(_)) => Err(Failure::Ended("a part that panicked")),
        };
        match ended {
            Ok(_) if stopping.is_cancelled() => {}
            Ok(name) => {
                failure.get_or_insert(Failure::Ended(name));
                stopping.cancel();
            }
            Err(error) => {
                failure.get_or_insert(error);
                stopping.cancel();
            }
        }
    }
}

fn bound(listener: &tokio::net::TcpListener) -> Result<SocketAddr, Failure> {
    listener
        .local_addr()
        .map_err(|source| Failure::System { what: "tell which address is listened on".to_owned(), source })
}

/// The service with reflection and health, on the limits that all of our servers have.
pub fn grpc_server(api: Api, shutdown_grace: Duration) -> Result<GrpcServer, lockstep_rpc::ServeError> {
    let options = ServerOptions::default();
    // The dispatcher and the process need a moment of the grace period too.
    let options = ServerOptions { shutdown_grace: options.shutdown_grace.min(shutdown_grace / 2), ..options };
    let service = CoordinatorServer::new(api)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let server = GrpcServer::new(options).add_service(service).with_reflection(lockstep_proto::FILE_DESCRIPTOR_SET)?;
    Ok(OWN_WAIT.into_iter().fold(server, GrpcServer::bounds_its_own_wait))
}

/// Connects. A database that may still be starting is tried for `--database-wait`. None: told to stop meanwhile.
async fn connect(
    args: &CoordinatorArgs,
    url: &DatabaseUrl,
    stopping: &CancellationToken,
) -> Result<Option<Store>, Failure> {
    let until = Instant::now() + args.database_wait;
    let mut pause = Duration::from_millis(250);
    let options = StoreOptions {
        max_connections: args.db_connections,
        statement_timeout: args.db_statement_timeout,
        lock_timeout: args.db_lock_timeout,
        idle_in_transaction_timeout: args.db_idle_in_transaction_timeout,
        pooler: args.database_pooler.into(),
        ..StoreOptions::default()
    };
    let direct = args.direct_database_url.as_ref().map(DatabaseUrl::expose);
    loop {
        let problem = match Store::connect_around(url.expose(), direct, options.clone()).await {
            Ok(store) => {
                if store.is_pooled() {
                    tracing::info!(
                        direct = direct.is_some(),
                        "a pooler stands before Postgres: each call is one transaction, and without a direct URL other replicas' changes are polled for"
                    );
                }
                return Ok(Some(store));
            }
            Err(problem) => problem,
        };
        if problem.retryable() != Retryable::Yes || Instant::now() + pause > until {
            return Err(problem.into());
        }
        tracing::warn!(%problem, again_in = ?pause, "no database yet");
        if stopping.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return Ok(None);
        }
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}

/// `lockstep-coordinator migrate`.
async fn migrate(args: CoordinatorArgs, url: DatabaseUrl) -> Result<(), Failure> {
    let stopping = stop_on_signal()?;
    let Some(store) = connect(&args, &url, &stopping).await? else { return Ok(()) };
    let before = store.schema().await.map_err(Problem::from)?;
    let after = store.migrate().await?;
    let said = match before.missing {
        0 => format!("the schema is at migration {}, nothing to do", after.newest),
        _ => format!("the schema was at migration {} and is at {}", before.newest, after.newest),
    };
    // Whoever closed stdout doesn't want to know.
    let _ = writeln!(
        std::io::stdout(),
        "{said}; coordinators that know migration {} can work with it",
        after.oldest_reader
    );
    Ok(())
}

/// Says NOT_SERVING while the database does not answer: a replica that can't write can't help anybody.
async fn report_health(health: HealthReporter, store: &Store, stopping: &CancellationToken) {
    let mut serving = true;
    while stopping.run_until_cancelled(tokio::time::sleep(HEALTH_EVERY)).await.is_some() {
        let answer = store.now().await;
        if answer.is_ok() == serving || stopping.is_cancelled() {
            continue;
        }
        serving = answer.is_ok();
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in [coordinator_server::SERVICE_NAME, ""] {
            health.set_service_status(service, status).await;
        }
        match answer {
            Ok(_) => tracing::info!("the database answers again"),
            Err(error) => tracing::warn!(problem = %error.problem(), "not serving: the database does not answer"),
        }
    }
}

fn stop_on_signal() -> Result<CancellationToken, Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let listen = |kind: SignalKind, name: &str| {
        signal(kind).map_err(|source| Failure::System { what: format!("listen for {name}"), source })
    };
    let mut terminate = listen(SignalKind::terminate(), "SIGTERM")?;
    let mut interrupt = listen(SignalKind::interrupt(), "SIGINT")?;
    let stopping = CancellationToken::new();
    let token = stopping.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        token.cancel();
    });
    Ok(stopping)
}

/// Under another name first: who reads the file never sees half of it.
fn write_addresses(path: &Path, grpc: SocketAddr, http: SocketAddr) -> Result<(), Failure> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    std::fs::write(&part, format!("grpc={grpc}\nhttp={http}\n"))
        .and_then(|()| std::fs::rename(&part, path))
        .map_err(|source| Failure::System { what: format!("write addresses to {}", path.display()), source })
}
