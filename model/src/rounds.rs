//! Worlds of rounds, around the production `round::decide`, `round::effects`, `order::{check_identity, check_mark, admit}`, `fence::counts` and the documents'
//! bytes.
//!
//! - [`push`]: push rounds up to their decision; [`pull`]: pull rounds up to `Installed`
//! - `cast`: who appears; `told`: events; `book`: distinct rounds, numbered, with what production makes of them; `met`: outcomes
//! - `row`: the guarded row and its drivers; `agent`: a host's agent

mod agent;
mod book;
mod cast;
mod met;
pub mod pull;
pub mod push;
mod row;
mod told;

pub use row::WriteFault;
