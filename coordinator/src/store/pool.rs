//! Connections, and the one way to use one.
//!
//! A future that is dropped between `BEGIN` and its answer leaves the connection inside a transaction, where the next writes succeed and are
//! lost (R12). So no caller ever holds a database future: [`Database::run`] spawns it, and the caller only waits. A
//! connection goes back to the pool when its body came to an end and in no other way; otherwise it is closed, and Postgres rolls back.
//!
//! That makes the customary `ROLLBACK` before each use superfluous, which would cost a round trip and count as a transaction each time.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use lockstep_protocol::problem::{Problem, Retryable};
use sqlx::{
    AssertSqlSafe, Connection, Executor, PgConnection, PgPool, Row,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tracing::Instrument;

use super::{
    endpoint::{Endpoint, Pooler},
    session::{Limits, Route, Session},
    sqlstate::{Fail, Place, StoreError},
};

/// How the store uses its database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreOptions {
    /// Connections at most, besides one that listens.
    pub max_connections: u32,
    /// How long a call waits for a connection before the database counts as unavailable.
    pub acquire_timeout: Duration,
    /// Postgres gives a statement up after this time; the store gives a whole call up after twice as long.
    pub statement_timeout: Duration,
    /// Postgres gives a statement up that waits this long for a lock. No call holds one for longer than a few round trips.
    pub lock_timeout: Duration,
    /// Postgres ends a connection whose transaction has heard nothing for this long, and with it the locks of a replica that was paused or cut off.
    pub idle_in_transaction_timeout: Duration,
    /// Whether a pooler stands before Postgres.
    pub pooler: Pooler,
    /// Shown in `pg_stat_activity`.
    pub application_name: String,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            max_connections: 32,
            acquire_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(15),
            lock_timeout: Duration::from_secs(5),
            idle_in_transaction_timeout: Duration::from_secs(10),
            pooler: Pooler::Ask,
            application_name: "lockstep-coordinator".to_owned(),
        }
    }
}

/// A pooled connection was idle this long: it is asked whether it still lives before it is used.
const TEST_AFTER_IDLE: Duration = Duration::from_secs(1);

/// The pool keeps no connection for longer.
const MAX_LIFETIME: Duration = Duration::from_secs(30 * 60);

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
    route: Route,
    /// A server's own connections, for LISTEN and migrations. None: there is a pooler and no way around it is known.
    direct: Option<Arc<PgConnectOptions>>,
    pub(super) place: Arc<Place>,
    call_timeout: Duration,
    standby: Arc<StandbySeen>,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database").field("place", &self.place).finish_non_exhaustive()
    }
}

/// A new connection led to a standby: after a fail-over, say, or because of a name that has both addresses. From then on every connection is asked
/// before each use, until the pool has none left that was opened by then.
#[derive(Default)]
struct StandbySeen(Mutex<Option<Instant>>);

impl StandbySeen {
    fn now(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn lately(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|at| at.elapsed() <= MAX_LIFETIME)
    }
}

impl Database {
    /// Looks what the URLs lead to; the pool opens connections as needed. `direct` leads around a pooler to the same database.
    pub(super) async fn connect(url: &str, direct: Option<&str>, options: &StoreOptions) -> Result<Self, Problem> {
        let (name, patience) = (&options.application_name, options.acquire_timeout);
        let main = Endpoint::look(url, name, options.pooler, patience).await?;
        let direct = match direct {
            None => None,
            Some(direct) => Some(Self::direct(&main, direct, name, patience).await?),
        };
        let limits = Limits {
            statement: options.statement_timeout,
            lock: options.lock_timeout,
            idle_in_transaction: options.idle_in_transaction_timeout,
        };
        let standby = Arc::new(StandbySeen::default());
        let pool = PgPoolOptions::new()
            .max_connections(options.max_connections.max(2))
            .acquire_timeout(options.acquire_timeout)
            .max_lifetime(MAX_LIFETIME)
            .test_before_acquire(false)
            .before_acquire(|connection, meta| {
                Box::pin(async move {
                    if meta.idle_for >= TEST_AFTER_IDLE {
                        connection.ping().await?;
                    }
                    Ok(true)
                })
            });
        let pool = if main.pooled {
            pool
        } else {
            let (settings, standby) = (limits.of_session(), Arc::clone(&standby));
            pool.after_connect(move |connection, _| {
                let (settings, standby) = (settings.clone(), Arc::clone(&standby));
                Box::pin(async move {
                    let row = connection.fetch_one(AssertSqlSafe(settings)).await?;
                    if row.try_get("in_recovery")? {
                        standby.now();
                    }
                    Ok(())
                })
            })
        };
        Ok(Self {
            pool: pool.connect_lazy_with(main.connect.clone()),
            route: Route::new(main.pooled, &limits),
            direct: direct.or_else(|| (!main.pooled).then(|| main.connect.clone())).map(Arc::new),
            place: Arc::new(main.place),
            call_timeout: options.statement_timeout.saturating_mul(2),
            standby,
        })
    }

    async fn direct(
        main: &Endpoint,
        url: &str,
        application_name: &str,
        patience: Duration,
    ) -> Result<PgConnectOptions, Problem> {
        let direct = Endpoint::look(url, application_name, Pooler::Ask, patience).await?;
        let refuse = |why: &str| {
            let problem = direct.place.problem("connect", format!("the direct database URL {why}"));
            Err(problem.retry(Retryable::AfterFix))
        };
        if direct.pooled {
            return refuse("leads to a pooler too: it must lead to Postgres itself");
        }
        if !main.same_database(&direct) {
            return refuse(&format!("leads to another database than {}: both must lead to the same", main.place));
        }
        Ok(direct.connect)
    }

    /// Whether a pooler stands before Postgres.
    pub(super) const fn is_pooled(&self) -> bool {
        matches!(self.route, Route::Pooled(_))
    }

    /// A pool of one connection for LISTEN: it is held for ever and must not be missing elsewhere. None: there is only a pooler, which gives the
    /// connection to somebody else after LISTEN.
    pub(super) fn listener_pool(&self) -> Option<PgPool> {
        let direct = self.direct.as_deref()?;
        let pool = PgPoolOptions::new().max_connections(1).idle_timeout(None).max_lifetime(None);
        Some(pool.connect_lazy_with(direct.clone()))
    }

    /// A connection of its own without time-outs, for migrations. None: there is only a pooler, which can't hold the lock that they need.
    pub(super) async fn own_connection(&self) -> Option<Result<PgConnection, Problem>> {
        let direct = self.direct.as_deref()?;
        let connection = PgConnection::connect_with(direct).await;
        Some(connection.map_err(|error| self.place.driver_problem("connect", &error)))
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
        F: for<'c> Fn(&'c mut Session, &'c A) -> BoxFuture<'c, Result<T, Fail>> + Send + Sync + 'static,
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
        F: for<'c> Fn(&'c mut Session, &'c A) -> BoxFuture<'c, Result<T, Fail>>,
    {
        let mut tries = 0;
        loop {
            tries += 1;
            let connection =
                self.pool.acquire().await.map_err(|error| self.place.error(operation, &Fail::Statement(error)))?;
            let mut session = Session::new(connection, self.route.clone());
            // Not half done: on time-out the connection is closed with the transaction in it, and the caller is told that it doesn't know.
            let call = whole(&mut session, self.standby.lately(), access, arguments, body);
            match tokio::time::timeout(self.call_timeout, call).await {
                Ok(Ok(value)) => {
                    session.give_back();
                    return Ok(value);
                }
                Ok(Err(fail)) => {
                    if !fail.breaks_connection() {
                        session.give_back();
                    }
                    if fail.is_race() && tries < MAX_TRIES {
                        tracing::debug!(operation, tries, "repeated after a race");
                        continue;
                    }
                    return Err(self.place.error(operation, &fail));
                }
                Err(_) => {
                    drop(session);
                    let seconds = self.call_timeout.as_secs_f64();
                    let problem = self.place.problem(operation, format!("no answer within {seconds} s"));
                    return Err(self.lost(access, problem));
                }
            }
        }
    }
}

/// A call's body with what belongs around it: the transaction that it is where there is a pooler, and the end of one that the body left open.
async fn whole<A, T, F>(session: &mut Session, ask: bool, access: Access, arguments: &A, body: &F) -> Result<T, Fail>
where
    F: for<'c> Fn(&'c mut Session, &'c A) -> BoxFuture<'c, Result<T, Fail>>,
{
    session.prepare(ask).await?;
    match body(session, arguments).await {
        Ok(value) if session.is_open() && session.is_implicit() => match session.commit().await {
            Ok(()) => Ok(value),
            Err(error) if access == Access::Write => Err(Fail::Settling(error)),
            Err(error) => Err(Fail::Statement(error)),
        },
        ended => {
            let broken = ended.as_ref().err().is_some_and(Fail::breaks_connection);
            if session.is_open() && !broken {
                // It changes nothing about what the call came to: a connection that can't do it is closed.
                let _ = session.rollback().await;
            }
            ended
        }
    }
}
