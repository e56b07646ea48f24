//! The harness of the scenario tests: a real Postgres database, a real S3 protocol server over TCP, coordinators and agents as processes of their own.
//!
//! - [`auditor`]: reads bucket, database and history with code of its own, and says which promises they break
//! - [`clock`]: another clock for a process
//! - [`cluster`]: all of it together, one pipeline, any number of hosts
//! - [`own_postgres`]: a Postgres that one test stops and starts, behind a proxy
//! - [`proxy`]: connections that are cut, stalled, delayed, and answers that are lost
//! - [`process`]: one child process: start, kill -9, stop, its log
//! - [`cli`]: the command line, as its users run it
//! - [`content`]: what checkpoints hold, from a seed, and whether it came back
//! - [`host`]: one host's disk: make checkpoints, wipe it, compare it
//! - [`http`]: the least of HTTP, for /metrics and /healthz
//! - [`feldera`]: real DBSP storage directories as hosts' disks
//! - [`scratch`]: folders in memory; [`small_disk`]: disks that are soon full
//! - [`wait`]: waiting on conditions; nothing here waits for time to pass
//! - [`orders`]: orders sent straight to an agent, as only a coordinator would
//! - [`servers`]: further real S3 servers for the conformance tests
//!
//! Binaries are those that `cargo test --workspace` builds beside the test.
#![expect(
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a harness: what fails here fails the test, with the cause"
)]

pub mod auditor;
pub mod cli;
pub mod clock;
pub mod cluster;
pub mod content;
pub mod feldera;
pub mod host;
pub mod http;
pub mod orders;
pub mod own_postgres;
pub mod process;
pub mod proxy;
pub mod scratch;
pub mod servers;
pub mod small_disk;
pub mod wait;
