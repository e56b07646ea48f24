//! Rounds, pipelines and checkpoints as text for people.

mod checkpoint;
mod garbage;
mod pipeline;
mod round;
mod standby;

pub(crate) use checkpoint::{checkpoint, checkpoints, verification};
pub(crate) use garbage::{collection, would_go};
pub(crate) use pipeline::{pipeline, pipelines, spec_lines};
pub(crate) use round::{audit_trail, outcome, problem_lines, round, rounds, what};
pub(crate) use standby::rows as standby_rows;
