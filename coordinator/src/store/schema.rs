//! The schema: what this version needs, what stands in the database, and how the one becomes the other.
//!
//! Replicas are upgraded one after the other, so a schema may be newer than a coordinator that works with it. Whether it can says the schema itself:
//! `schema_compatibility.oldest_reader` is the number of the newest migration that a coordinator must know. A migration that older versions can't live
//! with raises it.

use sqlx::{Connection, Row, migrate::Migrator};

use lockstep_protocol::problem::{Problem, Reason, Retryable};

use super::{Store, StoreError, pool::Database, session::Session, sqlstate::Fail};

/// Compiled in, so that a binary brings its own schema.
static MIGRATIONS: Migrator = sqlx::migrate!("../migrations");

/// What stands in the database.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Schema {
    /// Its newest migration; 0: none.
    pub newest: i64,
    /// A coordinator must know this migration.
    pub oldest_reader: i64,
    /// Migrations of this version that are still to be made.
    pub missing: usize,
}

impl Schema {
    /// The newest migration that this version brings.
    pub fn known() -> i64 {
        MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or_default()
    }

    /// As this version leaves it.
    pub(super) fn present() -> Self {
        Self { newest: Self::known(), oldest_reader: 0, missing: 0 }
    }
}

pub(super) async fn read(connection: &mut Session) -> Result<Schema, Fail> {
    let row = sqlx::query(
        "SELECT to_regclass('_sqlx_migrations') IS NOT NULL AS any, to_regclass('schema_compatibility') IS NOT NULL AS compatibility",
    )
    .fetch_one(&mut *connection)
    .await?;
    let none = Schema { newest: 0, oldest_reader: 0, missing: MIGRATIONS.iter().count() };
    if !row.try_get::<bool, _>("any")? {
        return Ok(none);
    }
    let made: Vec<i64> = sqlx::query_scalar("SELECT version FROM _sqlx_migrations WHERE success ORDER BY version")
        .fetch_all(&mut *connection)
        .await?;
    let oldest_reader = match row.try_get("compatibility")? {
        false => 0,
        true => sqlx::query_scalar("SELECT oldest_reader FROM schema_compatibility").fetch_one(connection).await?,
    };
    let missing = MIGRATIONS.iter().filter(|migration| !made.contains(&migration.version)).count();
    Ok(Schema { newest: made.last().copied().unwrap_or_default(), oldest_reader, missing })
}

impl Store {
    /// Whether a pooler stands before Postgres, as far as was found out or said.
    pub fn is_pooled(&self) -> bool {
        self.database.is_pooled()
    }

    /// What stands in the database.
    pub async fn schema(&self) -> Result<Schema, StoreError> {
        self.database.schema().await
    }

    /// Makes sure that this version can work with the schema, and brings it up to this version if it is older. Replicas may do so at the same time: an
    /// advisory lock lets one work and the others wait. A newer schema is left alone; one that this version can't work with is refused, and so is an
    /// older one where there is only a pooler to reach Postgres by.
    pub async fn migrate(&self) -> Result<Schema, Problem> {
        let before = self.readable_schema().await?;
        if before.missing == 0 {
            return Ok(before);
        }
        self.database.migrate(before).await?;
        self.readable_schema().await
    }

    async fn readable_schema(&self) -> Result<Schema, Problem> {
        let schema = self.schema().await?;
        if schema.oldest_reader <= Schema::known() {
            return Ok(schema);
        }
        let why = format!(
            "the database's schema, at migration {}, is only for coordinators that know migration {}, and this version knows {}: upgrade this replica",
            schema.newest,
            schema.oldest_reader,
            Schema::known()
        );
        Err(Problem::new(Reason::DatabaseUnavailable, why).with("schema", schema.newest).retry(Retryable::AfterFix))
    }
}

pub(super) async fn migrate(database: &Database, before: Schema) -> Result<(), Problem> {
    // A connection of its own: closing it frees the advisory lock, however the migration ends.
    let Some(connection) = database.own_connection().await else {
        let why = format!(
            "its schema is at migration {} and this version needs {}, but a pooler stands before Postgres, and migrations need a connection of their \
             own: run `lockstep-coordinator migrate` with DATABASE_URL leading to Postgres itself, or start with --direct-database-url \
             (LOCKSTEP_DIRECT_DATABASE_URL)",
            before.newest,
            Schema::known()
        );
        return Err(database.place.problem("migrate", why).retry(Retryable::AfterFix));
    };
    let mut connection = connection?;
    let mut migrations = Migrator::with_migrations(MIGRATIONS.iter().cloned().collect());
    migrations.set_ignore_missing(true);
    let done = migrations.run_direct(None, &mut connection, false).await;
    // The outcome is known already.
    let _ = connection.close().await;
    done.map_err(|error| database.place.problem("migrate", error).retry(Retryable::AfterFix))
}
