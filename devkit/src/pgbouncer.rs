//! Debian's PgBouncer in front of a Postgres of ours, for tests: on a free loopback port, with a configuration of its own, never the system's.
//!
//! It refuses root as Postgres does, so it runs as the same user; it dies with us like the server does. Everybody on loopback may connect as anybody.

use std::fmt::Write as _;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use crate::postgres::account::Account;
use crate::postgres::process::{Server, StopMode};
use crate::postgres::scratch::Scratch;
use crate::postgres::{PostgresError, SUPERUSER, free_port};

/// How long it may take to accept connections.
const PATIENCE: Duration = Duration::from_secs(10);

/// For how long a server connection belongs to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMode {
    /// One transaction.
    Transaction,
    /// As long as the client's own connection.
    Session,
}

/// How it pools.
#[derive(Debug, Clone)]
pub struct PgBouncerOptions {
    /// `pool_mode`.
    pub pool_mode: PoolMode,
    /// `default_pool_size`: server connections of one database.
    pub pool_size: u16,
    /// Further lines of the section `[pgbouncer]`.
    pub settings: Vec<String>,
}

impl Default for PgBouncerOptions {
    fn default() -> Self {
        Self { pool_mode: PoolMode::Transaction, pool_size: 8, settings: Vec::new() }
    }
}

/// A running PgBouncer; dropping it ends it.
#[derive(Debug)]
pub struct PgBouncer {
    server: Server,
    port: u16,
    options: PgBouncerOptions,
    scratch: Scratch,
}

impl PgBouncer {
    /// Starts one before the Postgres on this loopback port, for all of its databases.
    pub async fn start(postgres_port: u16, options: PgBouncerOptions) -> Result<Self, PostgresError> {
        let program = find()?;
        let account = Account::choose()?;
        let scratch = Scratch::create(&account)?;
        let users = scratch.path().join("users.txt");
        std::fs::write(&users, format!("\"{SUPERUSER}\" \"\"\n")).map_err(PostgresError::io(&users))?;
        account.give(&users)?;
        let port = free_port()?;
        let ini = write_configuration(scratch.path(), port, postgres_port, &options)?;
        account.give(&ini)?;
        let command = account.dying_command(&program, vec![ini.into()], StopMode::Kill);
        let server = Server::spawn(command, scratch.path()).await?;
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let failed =
                |status: String| PostgresError::Failed { program: program.clone(), status, output: server.log_tail() };
            if let Some(status) = server.wait_exit(Duration::from_millis(10)).await {
                return Err(failed(status));
            }
            if Instant::now() > deadline {
                return Err(failed(format!("no port after {} s", PATIENCE.as_secs())));
            }
        }
        Ok(Self { server, port, options, scratch })
    }

    /// A URL of `database` through it.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{SUPERUSER}@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }

    /// Leads clients to another Postgres from their next transaction on, as after a fail-over. `RECONNECT` closes the server connections that are idle
    /// or become so.
    pub async fn lead_to(&self, postgres_port: u16) -> Result<(), PostgresError> {
        use sqlx::{ConnectOptions as _, Connection as _, Executor as _};
        write_configuration(self.scratch.path(), self.port, postgres_port, &self.options)?;
        let admin: sqlx::postgres::PgConnectOptions = self.url("pgbouncer").parse()?;
        let mut admin = admin.extra_float_digits(None).disable_statement_logging().connect().await?;
        for command in ["RELOAD", "RECONNECT"] {
            admin.execute(command).await?;
        }
        admin.close().await?;
        Ok(())
    }

    /// What it has logged lately.
    pub fn log_tail(&self) -> String {
        self.server.log_tail()
    }
}

fn write_configuration(
    directory: &Path,
    port: u16,
    postgres_port: u16,
    options: &PgBouncerOptions,
) -> Result<PathBuf, PostgresError> {
    let mode = match options.pool_mode {
        PoolMode::Transaction => "transaction",
        PoolMode::Session => "session",
    };
    let mut text = format!(
        "[databases]\n* = host=127.0.0.1 port={postgres_port}\n\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
         auth_type = trust\nauth_file = {}\nadmin_users = {SUPERUSER}\npool_mode = {mode}\ndefault_pool_size = {}\nmax_client_conn = 2000\n\
         server_idle_timeout = 2\n",
        directory.join("users.txt").display(),
        options.pool_size,
    );
    for setting in &options.settings {
        // Writing to a string can't fail.
        let _ = writeln!(text, "{setting}");
    }
    let ini = directory.join("pgbouncer.ini");
    std::fs::write(&ini, text).map_err(PostgresError::io(&ini))?;
    Ok(ini)
}

/// `LOCKSTEP_PGBOUNCER`, PATH, and where Debian installs it, which is not in everybody's PATH.
fn find() -> Result<PathBuf, PostgresError> {
    if let Some(named) = std::env::var_os("LOCKSTEP_PGBOUNCER").filter(|named| !named.is_empty()) {
        return Ok(named.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|directory| directory.join("pgbouncer"))
        .find(|program| program.is_file())
        .ok_or(PostgresError::NoPgBouncer)
}
