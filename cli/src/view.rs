//! Rounds, pipelines and checkpoints as text for people.

mod checkpoint;
mod pipeline;
mod round;
mod standby;

pub(crate) use checkpoint::{checkpoint, checkpoints, verification};
pub(crate) use pipeline::{pipeline, pipelines, spec_lines};
pub(crate) use round::{audit_trail, outcome, problem_lines, round, rounds, what};
pub(crate) use standby::rows as standby_rows;
