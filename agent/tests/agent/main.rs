//! A real agent over gRPC and TCP, against the embedded S3 server.

mod harness;
mod install;
mod orders;
mod pull;
mod push;
mod sync;
