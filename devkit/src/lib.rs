//! What Lockstep runs against when nobody brings a database and a bucket: `lockstep dev`, `lockstep demo` and the tests.
//!
//! **This crate is in no production path.** `lockstep-coordinator` and `lockstep-agent` do not depend on it; only the CLI
//! (for `dev` and `demo`) and the tests do. Neither half is hardened for strangers: the Postgres cluster trusts
//! everybody on loopback, and the S3 server does what its unauthenticated control path tells it.
//!
//! - [`postgres`] starts a private Postgres cluster from binaries found on the machine, never the system's own cluster:
//!   [`Postgres::start`]. [`SharedPostgres`] gives each test a database of its own on one cluster a process, or on the
//!   server that `LOCKSTEP_TEST_PG_URL` names.
//! - [`pgbouncer`] puts PgBouncer before it, for tests of what works through a pooler: [`PgBouncer::start`].
//! - [`s3`] is an S3 server in this process, kept in a directory: [`S3Server::start`]. It exists because stock `s3s-fs` can't
//!   test a commit: there a race of create-only writes has several winners, an object is visible before its checksum is
//!   checked, and a write into a missing bucket creates it. Here publishing is atomic, and faults
//!   ([`Faults`]), denials ([`Denials`]) and a request log ([`RequestLog`]) come with it.
//!
//! [`dbsp`] generates storage directories as the `dbsp` engine leaves them, of any size, for tests and measurements.
//!
//! Database and S3 server keep running while their handle lives, stop when it is dropped, and keep their data if they were given a directory.

pub mod dbsp;
pub mod pgbouncer;
pub mod postgres;
pub mod s3;

pub use pgbouncer::{PgBouncer, PgBouncerOptions, PoolMode};
pub use postgres::{Postgres, PostgresError, PostgresOptions, SharedPostgres, TestDatabase};
pub use s3::{
    Denials, DenyRule, FaultAction, FaultRule, Faults, RequestLog, RequestRecord, RequestTotals, S3Admin, S3Options,
    S3Server, S3ServerError,
};
