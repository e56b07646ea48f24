//! What a database URL leads to: a server, a server that only follows another one, or a pooler.
//!
//! A pooler is told by what is asked and answered, not by its name: the server process behind a connection that was opened *later* is older than a
//! reading of the server's own clock. Postgres itself forks a process for each connection. It works for every pooler that keeps server connections,
//! needs no rights, sends nothing that a server logs as an error, and is never wrong about a plain Postgres. It may miss a pooler that had no
//! server connection left and opened one just then, so it is asked more than once; `--database-pooler yes` says it for sure.

use std::time::Duration;

use lockstep_protocol::problem::{Problem, Retryable};
use sqlx::{ConnectOptions, Connection, Executor, PgConnection, Row, postgres::PgConnectOptions};

use super::sqlstate::{Fail, Place};

/// Whether a pooler that gives a server connection away after each transaction stands before Postgres.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Pooler {
    /// Found out when the store connects.
    #[default]
    Ask,
    /// There is one, whatever it looks like.
    Yes,
    /// There is none, or one that keeps a server connection for as long as its client's (`pool_mode = session`).
    No,
}

/// How often a new connection is looked at before it is believed that there is no pooler.
const LOOKS: u32 = 3;

/// One address, with how to get there.
#[derive(Clone)]
pub(super) struct Endpoint {
    pub(super) connect: PgConnectOptions,
    pub(super) place: Place,
    pub(super) pooled: bool,
    /// Which database of which cluster.
    identity: (String, String),
}

/// What one new connection says about its server.
struct Seen {
    now: i64,
    started: Option<i64>,
    in_recovery: bool,
    identity: (String, String),
}

impl Endpoint {
    /// Opens a few connections, one after the other, to see what is there. A standby is refused.
    pub(super) async fn look(
        url: &str,
        application_name: &str,
        pooler: Pooler,
        patience: Duration,
    ) -> Result<Self, Problem> {
        let connect: PgConnectOptions = url.parse().map_err(|_| {
            // The parser's own text may hold parts of the URL, and with them the password.
            let nowhere = Place { host: "?".to_owned(), port: 0, database: "?".to_owned() };
            nowhere
                .problem("connect", "the URL is not postgres://user:password@host:port/database")
                .retry(Retryable::AfterFix)
        })?;
        // PgBouncer refuses `extra_float_digits` unless it is told to ignore it; floats travel in binary here, which it has no say in.
        let connect = connect.application_name(application_name).extra_float_digits(None).disable_statement_logging();
        let place = Place {
            host: connect
                .get_socket()
                .map_or_else(|| connect.get_host().to_owned(), |socket| socket.display().to_string()),
            port: connect.get_port(),
            database: connect.get_database().unwrap_or(connect.get_username()).to_owned(),
        };
        // The pool repeats refused connections until its time-out and then forgets why; here the cause is told at once.
        let first = Seen::within(&connect, &place, patience).await?;
        let mut pooled = pooler == Pooler::Yes;
        let mut looks = if pooler == Pooler::Ask { LOOKS } else { 0 };
        let mut clock = LastRead(first.now);
        while looks > 0 && !pooled {
            looks -= 1;
            let later = Seen::within(&connect, &place, patience).await?;
            pooled = clock.shows_an_older_server(later.now, later.started);
        }
        Ok(Self { connect, place, pooled, identity: first.identity })
    }

    /// Whether two addresses lead to one database.
    pub(super) fn same_database(&self, other: &Self) -> bool {
        self.identity == other.identity
    }
}

/// The server's clock as the look before read it. Only the latest will do: a pooler may open another server connection after the first look, and
/// lend that one from then on.
struct LastRead(i64);

impl LastRead {
    /// Whether the server behind a connection opened after this reading was there before it.
    fn shows_an_older_server(&mut self, now: i64, started: Option<i64>) -> bool {
        let last = std::mem::replace(&mut self.0, now);
        started.is_some_and(|started| started < last)
    }
}

impl Seen {
    async fn within(connect: &PgConnectOptions, place: &Place, patience: Duration) -> Result<Self, Problem> {
        let looking = tokio::spawn({
            let connect = connect.clone();
            async move { Self::at(&connect).await }
        });
        let stop = looking.abort_handle();
        let seen = match tokio::time::timeout(patience, looking).await {
            Ok(Ok(Ok(seen))) => seen,
            Ok(Ok(Err(error))) => return Err(place.error("connect", &Fail::Statement(error)).into_problem()),
            Ok(Err(error)) => return Err(place.problem("connect", format!("the call ended early: {error}"))),
            Err(_) => {
                // Reads only, on a connection that is nobody else's and goes with it.
                stop.abort();
                return Err(place.problem("connect", format!("no answer within {} s", patience.as_secs_f64())));
            }
        };
        if seen.in_recovery { Err(place.standby("connect")) } else { Ok(seen) }
    }

    /// One message of the simple protocol: two would be two transactions, and with a pooler perhaps two servers.
    async fn at(connect: &PgConnectOptions) -> Result<Self, sqlx::Error> {
        let mut connection = PgConnection::connect_with(connect).await?;
        let row = connection
            .fetch_one(
                "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint::text AS now,
                        (extract(epoch FROM backend_start) * 1000000)::bigint::text AS started,
                        pg_is_in_recovery()::text AS in_recovery, current_database()::text AS database,
                        (SELECT system_identifier::text FROM pg_control_system()) AS system_identifier
                 FROM pg_stat_get_activity(pg_backend_pid())",
            )
            .await?;
        // It served its purpose; whether it says good-bye makes no difference.
        let _ = connection.close().await;
        let number = |column: &str| -> Result<Option<i64>, sqlx::Error> {
            Ok(row.try_get::<Option<String>, _>(column)?.and_then(|text| text.parse().ok()))
        };
        Ok(Self {
            now: number("now")?.unwrap_or(i64::MIN),
            started: number("started")?,
            in_recovery: row.try_get::<String, _>("in_recovery")? == "true",
            identity: (row.try_get("system_identifier")?, row.try_get("database")?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::LastRead;

    #[test]
    fn a_server_connection_that_a_pooler_opened_after_the_first_look_is_told_by_the_third() {
        let mut clock = LastRead(10);
        assert!(!clock.shows_an_older_server(20, Some(15)));
        assert!(clock.shows_an_older_server(30, Some(15)));
    }

    #[test]
    fn a_server_of_its_own_for_each_connection_is_never_taken_for_a_pooler() {
        let mut clock = LastRead(10);
        assert!(!clock.shows_an_older_server(20, Some(11)));
        assert!(!clock.shows_an_older_server(30, Some(20)));
        assert!(!clock.shows_an_older_server(40, None));
    }
}
