//! The AWS implementation against the embedded S3 server, over TCP.

// Integration tests are no `cfg(test)` modules to clippy, so their fixtures need it said.
#![expect(clippy::unwrap_used, reason = "fixtures of tests may panic")]

#[path = "server/conformance.rs"]
mod conformance;
#[path = "server/deletes.rs"]
mod deletes;
#[path = "server/faults.rs"]
mod faults;
#[path = "server/ground.rs"]
mod ground;
#[path = "server/lies.rs"]
mod lies;
#[path = "server/stalls.rs"]
mod stalls;
#[path = "server/wire.rs"]
mod wire;
