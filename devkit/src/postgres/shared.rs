//! One cluster a process for tests, and a database of its own for each test.
//!
//! If `LOCKSTEP_TEST_PG_URL` is set, its server is used and nothing is started: with `cargo nextest`, which runs each test
//! as a process, starting one cluster for the whole run and naming it there saves half a second a test. Otherwise the first
//! call of a process starts a cluster without fsync, which ends with the process.

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _};
use tokio::sync::OnceCell;
use uuid::Uuid;

use super::{Postgres, PostgresError, PostgresOptions, create_database};

/// Names the server that tests use instead of starting one: `postgres://user:password@host:port/database`.
pub const TEST_PG_URL: &str = "LOCKSTEP_TEST_PG_URL";

/// The cluster that the tests of this process share.
#[derive(Debug)]
pub enum SharedPostgres {
    /// Started by us; ends with the process.
    Private(Postgres),
    /// Named by `LOCKSTEP_TEST_PG_URL`.
    Named(Box<PgConnectOptions>),
}

/// Never dropped, as statics are: the parent-death signal ends the server and the next start sweeps its directory.
static SHARED: OnceCell<SharedPostgres> = OnceCell::const_new();

impl SharedPostgres {
    /// The shared cluster; the first call starts it (or reads `LOCKSTEP_TEST_PG_URL`).
    pub async fn get() -> Result<&'static Self, PostgresError> {
        SHARED.get_or_try_init(|| Self::open(std::env::var(TEST_PG_URL).ok())).await
    }

    async fn open(url: Option<String>) -> Result<Self, PostgresError> {
        let Some(url) = url.filter(|url| !url.is_empty()) else {
            return Ok(Self::Private(Postgres::start(PostgresOptions::default()).await?));
        };
        let options: PgConnectOptions =
            url.parse().map_err(|error: sqlx::Error| PostgresError::BadTestUrl { reason: error.to_string() })?;
        Ok(Self::Named(Box::new(options)))
    }

    /// A new empty database with a name that nobody else has.
    pub async fn database(&self) -> Result<TestDatabase, PostgresError> {
        let name = format!("t_{}", Uuid::now_v7().simple());
        let admin = match self {
            Self::Private(postgres) => postgres.connect_options("postgres"),
            Self::Named(options) => (**options).clone(),
        };
        create_database(&admin, &name, None).await?;
        let url = match self {
            Self::Private(postgres) => postgres.url(&name),
            Self::Named(options) => (**options).clone().database(&name).to_url_lossy().to_string(),
        };
        Ok(TestDatabase { name, url, admin })
    }
}

/// An empty database for one test. On a private cluster it goes with the process; on a named one call [`TestDatabase::remove`].
#[derive(Debug, Clone)]
pub struct TestDatabase {
    name: String,
    url: String,
    admin: PgConnectOptions,
}

impl TestDatabase {
    /// A new database on the shared cluster.
    pub async fn create() -> Result<Self, PostgresError> {
        SharedPostgres::get().await?.database().await
    }

    /// Its name, unique on the server.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its URL, for `DATABASE_URL` and sqlx.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Drops it, cutting off whoever is still connected.
    pub async fn remove(self) -> Result<(), PostgresError> {
        let mut connection = self.admin.connect().await?;
        // Safe to build: the name is "t_" and a UUID's digits.
        let statement = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        sqlx::query(AssertSqlSafe(statement)).execute(&mut connection).await?;
        connection.close().await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_named_server_is_used_instead_of_starting_one() {
        let named = Postgres::start(PostgresOptions::default()).await.unwrap();
        let shared = SharedPostgres::open(Some(named.url("postgres"))).await.unwrap();
        assert!(matches!(shared, SharedPostgres::Named(_)));
        let database = shared.database().await.unwrap();
        assert!(database.url().contains(&format!(":{}/{}", named.port(), database.name())), "{}", database.url());

        let mut connection = sqlx::PgConnection::connect(database.url()).await.unwrap();
        let name: String = sqlx::query_scalar("SELECT current_database()").fetch_one(&mut connection).await.unwrap();
        assert_eq!(name, database.name());

        let url = database.url().to_owned();
        database.remove().await.unwrap();
        assert!(sqlx::PgConnection::connect(&url).await.is_err());
    }

    #[tokio::test]
    async fn a_malformed_named_server_is_refused() {
        let error = SharedPostgres::open(Some("not a url".to_owned())).await.unwrap_err();
        assert!(matches!(error, PostgresError::BadTestUrl { .. }), "{error}");
    }
}
