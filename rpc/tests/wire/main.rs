//! The client's and the server's stack against each other, over TCP.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "what fails here is the test; clippy only knows that of functions marked as tests"
)]

mod connections;
mod errors;
mod limits;
mod probe;
mod service;
mod silence;
mod tracing;
