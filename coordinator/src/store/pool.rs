//! Connections, and the one way to use one.
//!
//! A future that is dropped between `BEGIN` and its answer leaves the connection inside a transaction, where the next writes succeed and are
//! lost (R12). So no caller ever holds a database future: [`Database::run`] spawns it, and the caller only waits. A
//! connection goes back to the pool when its body came to an end and in no other way; otherwise it is closed, and Postgres rolls back.
//!
//! That makes the customary `ROLLBACK` before each use superfluous, which would cost a round trip and count as a transaction each time.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use lockstep_protocol::problem::Problem;
use sqlx::{
    ConnectOptions, Connection, Executor, PgConnection, PgPool, Postgres,
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tracing::Instrument;

use super::sqlstate::{Fail, Place, StoreError};

/// How the store uses its database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreOptions {
    /// Connections at most, besides one that listens.
    pub max_connections: u32,
    /// How long a call waits for a connection before the database counts as unavailable.
    pub acquire_timeout: Duration,
    /// Postgres gives a statement up after this time; the store gives a whole call up after twice as long.
    pub statement_timeout: Duration,
    /// Shown in `pg_stat_activity`.
    pub application_name: String,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            max_connections: 32,
            acquire_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(15),
            application_name: "lockstep-coordinator".to_owned(),
        }
    }
}

/// A pooled connection was idle this long: it is asked whether it still lives before it is used.
const TEST_AFTER_IDLE: Duration = Duration::from_secs(1);

/// Serialization failures, deadlocks and lost races are repeated this often.
const MAX_TRIES: u32 = 5;

/// Whether a call that got no answer may have changed something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Access {
    Read,
    Write,
}

/// The pool, and where it leads to.
#[derive(Clone)]
pub(super) struct Database {
    pool: PgPool,
    connect: Arc<PgConnectOptions>,
    pub(super) place: Arc<Place>,
    call_timeout: Duration,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Database {
    /// Opens one connection to see that the server is there; the pool opens more as needed.
    pub(super) async fn connect(url: &str, options: &StoreOptions) -> Result<Self, Problem> {
        let connect: PgConnectOptions = url.parse().map_err(|_| {
            // The parser's own text may hold parts of the URL, and with them the password.
            let nowhere = Place { host: "?".to_owned(), port: 0, database: "?".to_owned() };
            nowhere
                .problem("connect", "the URL is not postgres://user:password@host:port/database")
                .retry(lockstep_protocol::problem::Retryable::AfterFix)
        })?;
        let connect = connect.application_name(&options.application_name).disable_statement_logging();
        let place = Place {
            host: connect
                .get_socket()
                .map_or_else(|| connect.get_host().to_owned(), |socket| socket.display().to_string()),
            port: connect.get_port(),
            database: connect.get_database().unwrap_or(connect.get_username()).to_owned(),
        };
        // The pool repeats refused connections until its time-out and then forgets why; here the cause is told at once.
        let first = tokio::time::timeout(options.acquire_timeout, PgConnection::connect_with(&connect)).await;
        match first {
            Ok(Ok(connection)) => {
                // It served its purpose; whether it says good-bye makes no difference.
                let _ = connection.close().await;
            }
            Ok(Err(error)) => return Err(place.driver_problem("connect", &error)),
            Err(_) => {
                let seconds = options.acquire_timeout.as_secs_f64();
                return Err(place.problem("connect", format!("no answer within {seconds} s")));
            }
        }
        let settings = settings(options.statement_timeout);
        let pool = PgPoolOptions::new()
            .max_connections(options.max_connections.max(2))
            .acquire_timeout(options.acquire_timeout)
            .test_before_acquire(false)
            .before_acquire(|connection, meta| {
                Box::pin(async move {
                    if meta.idle_for >= TEST_AFTER_IDLE {
                        connection.ping().await?;
                    }
                    Ok(true)
                })
            })
            .after_connect(move |connection, _| {
                let settings = settings.clone();
                Box::pin(async move {
                    connection.execute(sqlx::AssertSqlSafe(settings)).await?;
                    Ok(())
                })
            })
            .connect_lazy_with(connect.clone());
        Ok(Self {
            pool,
            connect: Arc::new(connect),
            place: Arc::new(place),
            call_timeout: options.statement_timeout.saturating_mul(2),
        })
    }

    /// A pool of one connection for LISTEN: it is held for ever and must not be missing elsewhere.
    pub(super) fn listener_pool(&self) -> PgPool {
        PgPoolOptions::new()
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_lazy_with((*self.connect).clone())
    }

    /// A connection of its own without time-outs, for migrations.
    pub(super) async fn own_connection(&self) -> Result<PgConnection, Problem> {
        PgConnection::connect_with(&self.connect).await.map_err(|error| self.place.driver_problem("connect", &error))
    }

    pub(super) async fn close_pool(&self) {
        self.pool.close().await;
    }

    /// Runs `body` on a connection, in a task of its own: a caller that stops waiting changes nothing.
    pub(super) async fn run<A, T, F>(
        &self,
        operation: &'static str,
        access: Access,
        arguments: A,
        body: F,
    ) -> Result<T, StoreError>
    where
        A: Send + Sync + 'static,
        T: Send + 'static,
        F: for<'c> Fn(&'c mut PgConnection, &'c A) -> BoxFuture<'c, Result<T, Fail>> + Send + Sync + 'static,
    {
        let database = self.clone();
        let work = async move {
            let begun = Instant::now();
            let result = database.repeat(operation, access, &arguments, &body).await;
            let outcome = match &result {
                Ok(_) => "ok",
                Err(StoreError::Problem(_)) => "refused",
                Err(StoreError::Unavailable(_)) => "unavailable",
                Err(StoreError::UnknownOutcome(_)) => "unknown",
            };
            metrics::histogram!("lockstep_store_seconds", "operation" => operation, "outcome" => outcome)
                .record(begun.elapsed().as_secs_f64());
            result
        };
        match tokio::spawn(work.in_current_span()).await {
            Ok(result) => result,
            Err(error) => {
                let problem = self.place.problem(operation, format!("the call ended early: {error}"));
                Err(self.lost(access, problem))
            }
        }
    }

    fn lost(&self, access: Access, problem: Problem) -> StoreError {
        match access {
            Access::Read => StoreError::Unavailable(problem),
            Access::Write => StoreError::UnknownOutcome(problem),
        }
    }

    async fn repeat<A, T, F>(
        &self,
        operation: &'static str,
        access: Access,
        arguments: &A,
        body: &F,
    ) -> Result<T, StoreError>
    where
        F: for<'c> Fn(&'c mut PgConnection, &'c A) -> BoxFuture<'c, Result<T, Fail>>,
    {
        let mut tries = 0;
        loop {
            tries += 1;
            let mut held = Held::acquire(&self.pool)
                .await
                .map_err(|error| self.place.error(operation, &Fail::Statement(error)))?;
            // Not half done: on time-out the connection is closed with the transaction in it, and the caller is told that it doesn't know.
            match tokio::time::timeout(self.call_timeout, body(&mut held.connection, arguments)).await {
                Ok(Ok(value)) => {
                    held.give_back();
                    return Ok(value);
                }
                Ok(Err(fail)) => {
                    if !fail.breaks_connection() {
                        held.give_back();
                    }
                    if fail.is_race() && tries < MAX_TRIES {
                        tracing::debug!(operation, tries, "repeated after a race");
                        continue;
                    }
                    return Err(self.place.error(operation, &fail));
                }
                Err(_) => {
                    drop(held);
                    let seconds = self.call_timeout.as_secs_f64();
                    let problem = self.place.problem(operation, format!("no answer within {seconds} s"));
                    return Err(self.lost(access, problem));
                }
            }
        }
    }
}

/// Runs once on each new connection. Notices are left out: sqlx would log them.
fn settings(statement_timeout: Duration) -> String {
    let millis = statement_timeout.as_millis().max(1);
    format!(
        "SET statement_timeout = {millis}; SET idle_in_transaction_session_timeout = {}; SET client_min_messages = warning; \
         SET default_transaction_isolation = 'read committed'; SET TIME ZONE 'UTC'",
        millis.saturating_mul(2)
    )
}

/// A connection that is closed unless its body came to an end.
struct Held {
    connection: PoolConnection<Postgres>,
    ended: bool,
}

impl Held {
    async fn acquire(pool: &PgPool) -> Result<Self, sqlx::Error> {
        Ok(Self { connection: pool.acquire().await?, ended: false })
    }

    fn give_back(mut self) {
        self.ended = true;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.ended {
            self.connection.close_on_drop();
        }
    }
}
