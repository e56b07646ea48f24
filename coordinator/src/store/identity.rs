//! Which database this is, and which rows another one wrote (R13).
//!
//! A pipeline that owns its location names the database that wrote its fence. Where that is another one than the statement runs in, its rounds and its upkeep are as an older
//! database had them, and what became of them nobody here knows: they are neither claimed nor written until a take-over has settled them. Each statement finds out by itself,
//! since a server may be promoted or replaced, and a pooler may lead elsewhere, at any moment. Who owns nothing only pulls, which counts nowhere.

use lockstep_protocol::{
    id::DatabaseId,
    problem::{Problem, Reason},
};
use sqlx::{Row, postgres::PgRow};

use super::{ClaimState, PipelineRow, session::Session, sqlstate::Fail};

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

/// The one row that says which database a statement runs in. The timeline is that of the WAL being written: the control file's lags behind a promotion until the next checkpoint.
macro_rules! this_database {
    () => {
        "(SELECT database_id AS this_database, (SELECT system_identifier::text FROM pg_control_system()) AS this_server,
                 ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::bigint AS this_timeline
          FROM database_identity)"
    };
}
pub(super) use this_database;

/// Whether this row of `pipelines` owns no location, or names the very database that the statement runs in. Found out once a statement.
macro_rules! written_here {
    ($pipelines:literal) => {
        concat!(
            "(",
            $pipelines,
            ".claim <> 'owned' OR (",
            $pipelines,
            ".database_id, ",
            $pipelines,
            ".system_identifier, ",
            $pipelines,
            ".timeline) = ",
            $crate::store::identity::this_database!(),
            ")"
        )
    };
}
pub(super) use written_here;

/// The same of the pipeline that a row with a `pipeline_id` belongs to.
macro_rules! belongs_here {
    ($rows:literal) => {
        concat!(
            "EXISTS (SELECT 1 FROM pipelines home WHERE home.id = ",
            $rows,
            ".pipeline_id AND ",
            $crate::store::identity::written_here!("home"),
            ")"
        )
    };
}
pub(super) use belongs_here;

pub(super) async fn read(connection: &mut Session) -> Result<DatabaseIdentity, Fail> {
    let row = sqlx::query(concat!("SELECT * FROM ", this_database!(), " AS this")).fetch_one(connection).await?;
    this(&row)
}

/// Out of the columns of [`this_database`].
pub(super) fn this(row: &PgRow) -> Result<DatabaseIdentity, Fail> {
    let timeline: i64 = row.try_get("this_timeline")?;
    Ok(DatabaseIdentity {
        database: DatabaseId::new(row.try_get("this_database")?),
        system_identifier: row.try_get("this_server")?,
        timeline: u32::try_from(timeline)
            .map_err(|_| Fail::Unreadable(format!("timeline {timeline} is out of range")))?,
    })
}

/// What a pipeline reads as in this database: behind, from the first look on, if another one wrote its fence. Not once it is fenced: the location is another pipeline's then,
/// and a take-over, which ends being behind, would take it back.
pub(super) fn seen_from(this: &DatabaseIdentity, mut row: PipelineRow) -> PipelineRow {
    if row.behind.is_none() && row.fenced.is_none() && is_foreign(&row, this) {
        row.behind = Some(another_database(&row, this));
    }
    row
}

/// Whether another database than this one wrote the pipeline's fence.
pub fn is_foreign(row: &PipelineRow, this: &DatabaseIdentity) -> bool {
    row.claim == ClaimState::Owned && row.database != *this
}

/// `DATABASE_BEHIND`, with both.
pub fn another_database(row: &PipelineRow, this: &DatabaseIdentity) -> Problem {
    let name = |identity: &DatabaseIdentity| {
        format!("{} (server {}, timeline {})", identity.database, identity.system_identifier, identity.timeline)
    };
    let (wrote, this) = (name(&row.database), name(this));
    Problem::new(
        Reason::DatabaseBehind,
        format!(
            "its fence was written by database {wrote}, this is {this}: a backup or a replica, which may lack rows"
        ),
    )
    .with("pipeline", &row.spec.name)
    .with("wrote", wrote)
    .with("database", this)
}
