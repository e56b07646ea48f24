//! Rounds, pipelines and checkpoints as text for people.

mod checkpoint;
mod pipeline;
mod round;

pub(crate) use checkpoint::{checkpoint, checkpoints, verification};
pub(crate) use pipeline::{pipeline, pipelines, spec_lines};
pub(crate) use round::{audit_trail, outcome, problem_lines, round, rounds, what};
