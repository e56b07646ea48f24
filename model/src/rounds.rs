//! Worlds of rounds, around the production `round::decide`, `round::effects`, `order::{check_identity, check_mark, admit}`, `fence::counts` and the documents'
//! bytes.
//!
//! - [`push`]: push rounds up to their decision
//! - `cast`: who appears; `told`: events; `book`: distinct rounds, numbered, with what production makes of them
//! - `row`: the guarded row and its drivers; `agent`: a host's agent

#[expect(dead_code, reason = "for the world of pull rounds, which comes next")]
mod agent;
mod book;
#[expect(dead_code, reason = "for the world of pull rounds, which comes next")]
mod cast;
pub mod push;
mod row;
#[expect(dead_code, reason = "for the world of pull rounds, which comes next")]
mod told;
