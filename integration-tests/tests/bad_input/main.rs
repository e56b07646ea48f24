//! Bad input on every RPC of coordinator and agent, field by field from the descriptors that reflection serves, and bad manners below the RPCs: each gets its reason, and
//! meanwhile and afterwards other calls and rounds go on. docs/reliability/fuzz.md says what is tried.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test ends where its set-up does not hold")]

mod agent;
mod answer;
mod call;
mod cases;
mod coordinator;
mod fields;
mod manners;
mod raw_http2;
mod steady;
