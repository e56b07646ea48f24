//! A connection while one call uses it: its transactions, and what differs where a pooler such as PgBouncer stands in between.
//!
//! - **Directly**, settings are made once when the connection opens (`pool`), statements stay prepared, and a single statement is a transaction of
//!   its own: one round trip.
//! - **Pooled**, each transaction may run on another server connection. Nothing may outlive a transaction: settings are made by `SET LOCAL` in the very
//!   message that says `BEGIN`, statements have no name, and every call is one transaction, a single statement too. The same message asks whether the
//!   server is a standby, since the pooler may have been led to one at any moment.
//!
//! A session goes back to the pool in one way only, [`Session::give_back`]; dropped in any other, its connection is closed, and Postgres rolls back.

use std::{
    ops::{Deref, DerefMut},
    sync::Arc,
    time::Duration,
};

use futures::{future::BoxFuture, stream::BoxStream};
use sqlx::{
    AssertSqlSafe, Either, Execute, Executor, PgConnection, Postgres, Row, SqlStr,
    pool::PoolConnection,
    postgres::{PgArguments, PgQueryResult, PgRow, PgStatement, PgTypeInfo},
};

use super::sqlstate::Fail;

/// What every connection or transaction is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Limits {
    pub(super) statement: Duration,
    pub(super) lock: Duration,
    pub(super) idle_in_transaction: Duration,
}

impl Limits {
    fn settings(&self) -> [(&'static str, String); 5] {
        let millis = |limit: Duration| limit.as_millis().max(1).to_string();
        [
            ("statement_timeout", millis(self.statement)),
            ("lock_timeout", millis(self.lock)),
            ("idle_in_transaction_session_timeout", millis(self.idle_in_transaction)),
            // Notices are left out: the driver would log them.
            ("client_min_messages", "warning".to_owned()),
            ("timezone", "'UTC'".to_owned()),
        ]
    }

    fn set(&self, scope: &str) -> String {
        self.settings().map(|(name, value)| format!("{scope} {name} = {value}; ")).concat()
    }

    /// For a connection of our own, once; the answer's `in_recovery` tells a standby.
    pub(super) fn of_session(&self) -> String {
        format!("{}SET default_transaction_isolation = 'read committed'; {IN_RECOVERY}", self.set("SET"))
    }

    /// Opens a transaction on a connection that is ours no longer than that. One message, so one round trip.
    fn of_transaction(&self) -> String {
        format!("BEGIN ISOLATION LEVEL READ COMMITTED; {}{IN_RECOVERY}", self.set("SET LOCAL"))
    }
}

/// Whether this server is a standby.
const IN_RECOVERY: &str = "SELECT pg_is_in_recovery() AS in_recovery";

/// How transactions of a session begin.
#[derive(Clone, Debug)]
pub(super) enum Route {
    /// The connection is a server's own.
    Direct,
    /// Some server's for one transaction at a time; the message that opens it.
    Pooled(Arc<str>),
}

impl Route {
    pub(super) fn new(pooled: bool, limits: &Limits) -> Self {
        if pooled { Self::Pooled(limits.of_transaction().into()) } else { Self::Direct }
    }
}

/// See the module's documentation.
pub(super) struct Session {
    connection: PoolConnection<Postgres>,
    route: Route,
    open: bool,
    /// The body speaks of transactions itself.
    explicit: bool,
    ended: bool,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("open", &self.open).finish_non_exhaustive()
    }
}

impl Session {
    pub(super) const fn new(connection: PoolConnection<Postgres>, route: Route) -> Self {
        Self { connection, route, open: false, explicit: false, ended: false }
    }

    /// Before a call's body. `ask`: whether to make sure that a connection of our own doesn't lead to a standby; a pooled one is always asked.
    pub(super) async fn prepare(&mut self, ask: bool) -> Result<(), Fail> {
        let connection: &mut PgConnection = &mut self.connection;
        let answer = match &self.route {
            Route::Direct if !ask => return Ok(()),
            Route::Direct => connection.fetch_one(IN_RECOVERY).await?,
            Route::Pooled(begin) => {
                // Also if the answer is lost or an error: what half of the message did is for the end of the call to undo.
                self.open = true;
                connection.fetch_one(AssertSqlSafe(begin.to_string())).await?
            }
        };
        if answer.try_get("in_recovery")? { Err(Fail::Standby) } else { Ok(()) }
    }

    /// A transaction; the one that is open already, where a call is one.
    pub(super) async fn begin(&mut self) -> Result<Transaction<'_>, sqlx::Error> {
        self.explicit = true;
        if !self.open {
            let connection: &mut PgConnection = &mut self.connection;
            self.open = true;
            connection.execute("BEGIN").await?;
        }
        Ok(Transaction { session: self })
    }

    /// Whether a transaction is still to be ended.
    pub(super) const fn is_open(&self) -> bool {
        self.open
    }

    /// Whether the open transaction is one only because every call through a pooler is: then its statements count as they would by themselves.
    pub(super) const fn is_implicit(&self) -> bool {
        !self.explicit
    }

    pub(super) async fn commit(&mut self) -> Result<(), sqlx::Error> {
        self.end("COMMIT").await
    }

    pub(super) async fn rollback(&mut self) -> Result<(), sqlx::Error> {
        self.end("ROLLBACK").await
    }

    async fn end(&mut self, how: &'static str) -> Result<(), sqlx::Error> {
        let connection: &mut PgConnection = &mut self.connection;
        connection.execute(how).await?;
        self.open = false;
        Ok(())
    }

    /// To the pool, for the next call. One whose transaction has not ended is closed instead.
    pub(super) fn give_back(mut self) {
        self.ended = !self.open;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.ended {
            self.connection.close_on_drop();
        }
    }
}

/// Ends with [`Transaction::commit`] or [`Transaction::rollback`]; one that is dropped is rolled back by whoever runs the call.
pub(super) struct Transaction<'s> {
    session: &'s mut Session,
}

impl Transaction<'_> {
    pub(super) async fn commit(self) -> Result<(), sqlx::Error> {
        self.session.commit().await
    }

    pub(super) async fn rollback(self) -> Result<(), sqlx::Error> {
        self.session.rollback().await
    }
}

impl Deref for Transaction<'_> {
    type Target = Session;

    fn deref(&self) -> &Session {
        self.session
    }
}

impl DerefMut for Transaction<'_> {
    fn deref_mut(&mut self) -> &mut Session {
        self.session
    }
}

/// A statement that is prepared under a name, to be used again, or under none. The driver's `statement_cache_capacity(0)` does not do it: it still
/// names each statement, which collides where clients share server connections.
struct Statement<E> {
    query: E,
    named: bool,
}

impl<'q, E: Execute<'q, Postgres>> Execute<'q, Postgres> for Statement<E> {
    fn sql(self) -> SqlStr {
        self.query.sql()
    }

    fn statement(&self) -> Option<&PgStatement> {
        self.query.statement()
    }

    fn take_arguments(&mut self) -> Result<Option<PgArguments>, sqlx::error::BoxDynError> {
        self.query.take_arguments()
    }

    fn persistent(&self) -> bool {
        self.named && self.query.persistent()
    }
}

impl<'c> Session {
    fn split<E>(&'c mut self, query: E) -> (&'c mut PgConnection, Statement<E>) {
        let named = matches!(self.route, Route::Direct);
        (&mut self.connection, Statement { query, named })
    }
}

impl<'c> Executor<'c> for &'c mut Session {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let (connection, statement) = self.split(query);
        connection.fetch_many(statement)
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let (connection, statement) = self.split(query);
        connection.fetch_optional(statement)
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, sqlx::Error>>
    where
        'c: 'e,
    {
        let connection: &mut PgConnection = &mut self.connection;
        connection.prepare_with(sql, parameters)
    }
    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<sqlx::Describe<Postgres>, sqlx::Error>>
    where
        'c: 'e,
    {
        let connection: &mut PgConnection = &mut self.connection;
        connection.describe(sql)
    }
}
