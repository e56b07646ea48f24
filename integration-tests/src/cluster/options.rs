//! What differs between the clusters of scenarios.

use lockstep_client::v1;

/// What coordinators behind PgBouncer have beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooled {
    /// `--direct-database-url`: a way around it to listen and migrate.
    Around,
    /// Nothing: migrated beforehand by `lockstep-coordinator migrate`; what others do is polled for.
    Alone,
}

/// What differs between scenarios.
#[derive(Debug, Clone)]
pub struct Options {
    /// Number of hosts; 0 = solo.
    pub hosts: u32,
    /// `--store` of the agents.
    pub store: &'static str,
    /// Further flags of the coordinator.
    pub coordinator_flags: Vec<&'static str>,
    /// Create the pipeline at once.
    pub create: bool,
    /// Buckets beside [`BUCKET`](super::BUCKET).
    pub buckets: Vec<&'static str>,
    /// Limits in the spec; none: the defaults.
    pub transfer: Option<v1::TransferOptions>,
    /// Whether the S3 server's ETags are MD5s, as AWS's are; without, gigabytes cost less.
    pub md5_etags: bool,
    /// Where coordinators find their database; none: a database of their own on the server that tests share.
    pub database_url: Option<String>,
    /// `--unreachable-after` of the coordinators.
    pub unreachable_after: &'static str,
    /// `--store-patience` of the coordinators; short, so that tests of outages are.
    pub store_patience: &'static str,
    /// `--lease` of the coordinators.
    pub lease: &'static str,
    /// `--renew-every` of the coordinators.
    pub renew_every: &'static str,
    /// PgBouncer in transaction mode between coordinators and Postgres.
    pub pooled: Option<Pooled>,
    /// Everything in memory instead of on a disk, if there is enough of it.
    pub in_memory: bool,
    /// How far the clock of the coordinators is off, as `FAKETIME` has it; none: it is right.
    pub coordinator_clock: Option<&'static str>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            hosts: 3,
            store: "directory",
            coordinator_flags: Vec::new(),
            create: true,
            buckets: Vec::new(),
            transfer: None,
            md5_etags: true,
            database_url: None,
            unreachable_after: "10s",
            store_patience: "2s",
            lease: "2s",
            renew_every: "500ms",
            pooled: None,
            in_memory: false,
            coordinator_clock: None,
        }
    }
}
