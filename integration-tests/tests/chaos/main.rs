//! Chaos: real processes, real servers, random faults from a seed, and an auditor with code of its own that looks at what is left.
//!
//! - `auditor`: the auditor finds nothing in a sound system, and finds each thing that is broken on purpose
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "tests: what fails here fails the test, with the cause")]

mod auditor;
