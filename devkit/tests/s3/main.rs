//! The embedded S3 server through the real SDK, over TCP.

#![expect(clippy::unwrap_used, reason = "a test that can not go on fails")]

mod access;
mod client;
mod control;
mod faults;
mod lies;
mod listing;
mod multipart;
mod objects;
mod restart;
mod writes;
