//! A Postgres of one test's own, with fsync on, behind a proxy: it is stopped and started, and its clients keep their address.

use std::{fs, net::SocketAddr, os::unix::fs::PermissionsExt as _, path::Path};

use lockstep_devkit::{Postgres, PostgresOptions};
use sqlx::{Connection as _, Executor as _, PgConnection};
use tempfile::TempDir;

use crate::proxy::FaultProxy;

/// How it is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Clients are cut off, a checkpoint is written.
    Fast,
    /// It just ends; the next start recovers.
    Immediate,
    /// kill -9 of the postmaster.
    Crash,
}

/// The server, whether or not it runs.
#[derive(Debug)]
pub struct OwnPostgres {
    running: Option<Postgres>,
    /// In front of it.
    pub proxy: FaultProxy,
    user: String,
    data: TempDir,
}

const DATABASE: &str = "lockstep";

impl OwnPostgres {
    /// Starts it with an empty database.
    pub async fn start(seed: u64) -> Self {
        let data = tempfile::tempdir().expect("a temporary directory");
        // Postgres runs as another user than root.
        fs::set_permissions(data.path(), fs::Permissions::from_mode(0o755)).expect("our own directory");
        let running = run(&data).await;
        running.create_database(DATABASE).await.expect("a database");
        let proxy = FaultProxy::start(address(&running), seed).await.expect("a proxy");
        let user = running.url(DATABASE).split(['/', '@']).nth(2).expect("the URL names a user").to_owned();
        Self { running: Some(running), proxy, user, data }
    }

    /// For clients: through the proxy.
    pub fn url(&self) -> String {
        format!("postgres://{}@{}/{DATABASE}?sslmode=disable", self.user, self.proxy.address())
    }

    /// Past the proxy; none while it is stopped.
    pub fn direct_url(&self) -> Option<String> {
        self.running.as_ref().map(|postgres| postgres.url(DATABASE))
    }

    /// A connection past the proxy. It must run.
    pub async fn connect(&self) -> PgConnection {
        let url = self.direct_url().expect("Postgres runs");
        PgConnection::connect(&url).await.expect("Postgres answers")
    }

    /// Stops it, if it runs.
    pub async fn stop(&mut self, how: Stop) {
        let Some(postgres) = self.running.take() else { return };
        match how {
            Stop::Fast => postgres.stop().await.expect("a fast stop"),
            Stop::Immediate => drop(postgres),
            Stop::Crash => postgres.crash().await.expect("a crash"),
        }
    }

    /// Starts it again on the data it had.
    pub async fn restart(&mut self) {
        if self.running.is_none() {
            let postgres = run(&self.data).await;
            self.proxy.set_upstream(address(&postgres));
            self.running = Some(postgres);
        }
    }

    /// A hot standby that streams from it, with data of its own in this folder.
    pub async fn standby(&self, data: &Path) -> Postgres {
        self.running.as_ref().expect("Postgres runs").standby(data).await.expect("a standby")
    }

    /// The address leads to this one from now on: what was its standby.
    pub fn fail_over(&mut self, to: Postgres) {
        self.proxy.set_upstream(address(&to));
        self.proxy.cut();
        self.running = Some(to);
    }

    /// Ends backends that are in `pg_sleep`; how many.
    pub async fn terminate_asleep(&self) -> u64 {
        let statement = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        let ended = sqlx::query(statement).fetch_all(&mut self.connect().await).await;
        ended.expect("backends can be ended").len() as u64
    }

    /// Runs statements, past the proxy.
    pub async fn execute(&self, statements: &'static str) {
        self.connect().await.execute(statements).await.expect("the statements run");
    }
}

/// Ends backends that run a statement or a COMMIT right now, at most this many; how many.
pub async fn terminate_active(connection: &mut PgConnection, at_most: i64) -> u64 {
    let statement = "SELECT pg_terminate_backend(pid) FROM
                         (SELECT pid FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid()
                          AND backend_type = 'client backend' LIMIT $1) AS active";
    let ended = sqlx::query(statement).bind(at_most).fetch_all(connection).await;
    ended.expect("backends can be ended").len() as u64
}

async fn run(data: &TempDir) -> Postgres {
    let options =
        PostgresOptions { data_dir: Some(data.path().join("data")), durable: true, ..PostgresOptions::default() };
    Postgres::start(options).await.expect("Postgres starts")
}

fn address(postgres: &Postgres) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], postgres.port()))
}
