//! The one table from what Postgres and its driver say to what a caller can do about it.

use std::fmt;

use lockstep_protocol::problem::{Problem, Reason, Retryable};

/// Why a call to the store failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StoreError {
    /// The database did not answer, or not in time. Nothing was written.
    #[error("{0}")]
    Unavailable(Problem),
    /// The request was understood and refused. Nothing was written.
    #[error("{0}")]
    Problem(Problem),
    /// The answer to a write was lost: it may have happened, or may still. Reload and look, never assume.
    #[error("{0}")]
    UnknownOutcome(Problem),
}

impl StoreError {
    /// What a caller is told.
    pub const fn problem(&self) -> &Problem {
        match self {
            Self::Unavailable(problem) | Self::Problem(problem) | Self::UnknownOutcome(problem) => problem,
        }
    }

    /// What a caller is told.
    pub fn into_problem(self) -> Problem {
        match self {
            Self::Unavailable(problem) | Self::Problem(problem) | Self::UnknownOutcome(problem) => problem,
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        error.into_problem()
    }
}

/// How the body of a database call ends when it does not succeed.
#[derive(Debug)]
pub(super) enum Fail {
    /// A statement inside a transaction, or one that only reads: without its COMMIT nothing was written.
    Statement(sqlx::Error),
    /// A COMMIT, or a statement that is a transaction of its own: a lost answer is an unknown outcome.
    Settling(sqlx::Error),
    /// Understood and refused.
    Refused(Problem),
    /// A row that this version can't read.
    Unreadable(String),
    /// The connection leads to a server in recovery, which can't be written and may be behind.
    Standby,
}

impl From<sqlx::Error> for Fail {
    fn from(error: sqlx::Error) -> Self {
        Self::Statement(error)
    }
}

impl From<Problem> for Fail {
    fn from(problem: Problem) -> Self {
        Self::Refused(problem)
    }
}

/// Marks a statement whose success is the commit.
pub(super) trait Settling<T> {
    fn settling(self) -> Result<T, Fail>;
}

impl<T> Settling<T> for Result<T, sqlx::Error> {
    fn settling(self) -> Result<T, Fail> {
        self.map_err(Fail::Settling)
    }
}

/// What can be done about an error of the driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Class {
    /// No connection, or none that can write now: another try may find one.
    Unreachable,
    /// Rolled back because of what others did at the same time: the same statements may succeed at once.
    Again,
    /// Rolled back because it took too long or waited too long.
    TooSlow,
    /// Somebody must change something: rights, password, missing migration, a defect.
    Wrong,
}

/// Constraint of a lost race; the winner's row stands, so that another run of the same statements finds it and says so.
const RACES: [&str; 5] =
    ["rounds_one_active", "pipelines_name", "requests_known", "pipelines_request", "rounds_number"];

pub(super) fn classify(error: &sqlx::Error) -> Class {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::BeginFailed => Class::Unreachable,
        sqlx::Error::Database(error) => {
            let code = error.code();
            let code = code.as_deref().unwrap_or_default();
            let constraint = error.constraint().unwrap_or_default();
            class_of(code, constraint)
        }
        _ => Class::Wrong,
    }
}

/// <https://www.postgresql.org/docs/current/errcodes-appendix.html>
fn class_of(code: &str, constraint: &str) -> Class {
    match code {
        // serialization_failure, deadlock_detected
        "40001" | "40P01" => Class::Again,
        // unique_violation
        "23505" if RACES.contains(&constraint) => Class::Again,
        // query_canceled (statement_timeout), lock_not_available, idle_in_transaction_session_timeout
        "57014" | "55P03" | "25P03" => Class::TooSlow,
        // admin_shutdown, crash_shutdown, cannot_connect_now, database_dropped, idle_session_timeout; read_only_sql_transaction: a standby
        "57P01" | "57P02" | "57P03" | "57P04" | "57P05" | "25006" => Class::Unreachable,
        // connection exceptions; insufficient resources (too_many_connections, disk_full, out_of_memory); system errors
        _ if code.starts_with("08") || code.starts_with("53") || code.starts_with("58") => Class::Unreachable,
        _ => Class::Wrong,
    }
}

/// `read_only_sql_transaction`: a standby, or a primary that was told to take no writes.
const READ_ONLY: &str = "25006";

const POOLER_HINT: &str = "; a statement prepared on one server connection was looked for on another, so a pooler such as PgBouncer seems to stand \
                           before Postgres: start with --database-pooler yes";

/// `invalid_sql_statement_name`, `duplicate_prepared_statement`: what clients that share server connections get to see of each other.
fn is_of_a_pooler(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(answer) if matches!(answer.code().as_deref(), Some("26000" | "42P05")))
}

/// Whether the server has answered that nothing was written, or whether the answer is missing.
fn is_answered(error: &sqlx::Error) -> bool {
    match error {
        // 08007, 40003: the server itself does not know. 57P0x ends the connection while a COMMIT may be under way.
        sqlx::Error::Database(error) => {
            let code = error.code();
            !code.is_some_and(|code| code.starts_with("08") || code.starts_with("57P0") || code == "40003")
        }
        // Never reached the server.
        sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::Encode(_) => true,
        _ => false,
    }
}

/// Which server, for messages: never with user or password.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) database: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.host, self.port, self.database)
    }
}

impl Place {
    /// A problem that names the database and what was asked of it.
    pub(super) fn problem(&self, operation: &str, why: impl fmt::Display) -> Problem {
        Problem::new(Reason::DatabaseUnavailable, format!("database {self}, {operation}: {why}"))
            .with("host", &self.host)
            .with("port", self.port)
            .with("database", &self.database)
            .with("operation", operation)
    }

    /// Reached a server that only follows another one.
    pub(super) fn standby(&self, operation: &str) -> Problem {
        self.problem(
            operation,
            "this server is in recovery (a standby): it can't be written and may be behind; lead DATABASE_URL to the primary, or promote this \
             server if it is to be the primary",
        )
        .with("in_recovery", true)
    }

    /// The driver's error as a problem.
    pub(super) fn driver_problem(&self, operation: &str, error: &sqlx::Error) -> Problem {
        let mut problem = match error {
            sqlx::Error::Database(answer) if answer.code().as_deref() == Some(READ_ONLY) => {
                let mut problem = self.standby(operation);
                problem.message.push_str(&format!("; it said: {}", answer.message()));
                problem
            }
            _ => self.problem(operation, error),
        };
        if is_of_a_pooler(error) {
            problem.message.push_str(POOLER_HINT);
        }
        if let sqlx::Error::Database(error) = error
            && let Some(code) = error.code()
        {
            problem = problem.with("sqlstate", code);
        }
        if classify(error) == Class::Wrong {
            problem = problem.retry(Retryable::AfterFix);
        }
        problem
    }

    /// How a body's failure looks to the store's caller.
    pub(super) fn error(&self, operation: &str, fail: &Fail) -> StoreError {
        match fail {
            Fail::Refused(problem) => StoreError::Problem(problem.clone()),
            Fail::Unreadable(why) => StoreError::Problem(self.problem(operation, why).retry(Retryable::AfterFix)),
            Fail::Standby => StoreError::Unavailable(self.standby(operation)),
            Fail::Settling(error) if !is_answered(error) => {
                let mut problem = self.driver_problem(operation, error);
                problem.message.push_str("; the answer was lost, it may have happened");
                StoreError::UnknownOutcome(problem)
            }
            Fail::Statement(error) | Fail::Settling(error) => {
                let problem = self.driver_problem(operation, error);
                match classify(error) {
                    Class::Wrong => StoreError::Problem(problem),
                    Class::Unreachable | Class::Again | Class::TooSlow => StoreError::Unavailable(problem),
                }
            }
        }
    }
}

impl Fail {
    /// The same statements may succeed at once.
    pub(super) fn is_race(&self) -> bool {
        match self {
            Self::Statement(error) | Self::Settling(error) => classify(error) == Class::Again,
            Self::Refused(_) | Self::Unreadable(_) | Self::Standby => false,
        }
    }

    /// The connection is of no more use.
    pub(super) fn breaks_connection(&self) -> bool {
        match self {
            Self::Statement(error) | Self::Settling(error) => {
                classify(error) == Class::Unreachable || is_of_a_pooler(error)
            }
            Self::Standby => true,
            Self::Refused(_) | Self::Unreadable(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_connection_is_worth_another_try_and_missing_rights_are_not() {
        for code in ["08006", "57P01", "57P03", "53300", "25006"] {
            assert_eq!(class_of(code, ""), Class::Unreachable, "{code}");
        }
        for code in ["42501", "42P01", "28P01", "3D000", "23514"] {
            assert_eq!(class_of(code, ""), Class::Wrong, "{code}");
        }
    }

    #[test]
    fn only_known_constraints_are_races() {
        assert_eq!(class_of("23505", "rounds_one_active"), Class::Again);
        assert_eq!(class_of("23505", "rounds_seq_once"), Class::Wrong);
        assert_eq!(class_of("40P01", ""), Class::Again);
    }

    #[test]
    fn a_lost_answer_is_unknown_only_where_it_could_have_committed() {
        let place = Place { host: "db".to_owned(), port: 5432, database: "lockstep".to_owned() };
        let lost = || sqlx::Error::Io(std::io::Error::from(std::io::ErrorKind::ConnectionReset));
        assert!(matches!(place.error("apply", &Fail::Settling(lost())), StoreError::UnknownOutcome(_)));
        assert!(matches!(place.error("apply", &Fail::Statement(lost())), StoreError::Unavailable(_)));
        assert!(matches!(place.error("apply", &Fail::Settling(sqlx::Error::PoolTimedOut)), StoreError::Unavailable(_)));
        let problem = place.error("apply", &Fail::Statement(lost())).into_problem();
        assert_eq!(problem.metadata["host"], "db");
        assert_eq!(problem.metadata["port"], "5432");
        assert_eq!(problem.metadata["database"], "lockstep");
    }
}
