//! Which database this is (R13).

use lockstep_protocol::id::DatabaseId;
use sqlx::Row;

use super::{session::Session, sqlstate::Fail};

/// Tells this database from a restored, promoted, copied or recreated one.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct DatabaseIdentity {
    /// Minted by the first migration.
    pub database: DatabaseId,
    /// Postgres' own, given by initdb.
    pub system_identifier: String,
    /// Rises with each promotion or point-in-time recovery.
    pub timeline: u32,
}

/// The timeline is that of the WAL being written: the control file's lags behind a promotion until the next checkpoint.
pub(super) async fn read(connection: &mut Session) -> Result<DatabaseIdentity, Fail> {
    let row = sqlx::query(
        "SELECT database_id, (SELECT system_identifier::text FROM pg_control_system()) AS system_identifier,
                substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) AS timeline
         FROM database_identity",
    )
    .fetch_one(connection)
    .await?;
    let timeline: String = row.try_get("timeline")?;
    Ok(DatabaseIdentity {
        database: DatabaseId::new(row.try_get("database_id")?),
        system_identifier: row.try_get("system_identifier")?,
        timeline: u32::from_str_radix(&timeline, 16)
            .map_err(|error| Fail::Unreadable(format!("timeline {timeline:?} is no number: {error}")))?,
    })
}
