//! The newest step that every host has with one fingerprint (push step 2, pull step 1).

use chrono::{DateTime, Utc};

use crate::{
    id::{Fingerprint, LocalCheckpointId, Step},
    problem::{Problem, Reason},
};

/// One host's own checkpoint, as its agent lists it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalCheckpoint {
    /// Its own id, other on each host.
    pub id: LocalCheckpointId,
    /// The position all hosts share.
    pub step: Step,
    /// Of the program, if the engine has one.
    pub fingerprint: Option<Fingerprint>,
    /// Records this host has processed, if known.
    pub processed_records: Option<u64>,
    /// Bytes of its files.
    pub bytes: u64,
    /// Number of its files.
    pub files: u64,
    /// When it was made, if known.
    pub created_at: Option<DateTime<Utc>>,
}

/// Which local checkpoints are wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// The newest common step.
    Newest,
    /// Exactly this step.
    Step(Step),
    /// The step of the local checkpoint that has this id on any host.
    Local(LocalCheckpointId),
}

/// One consistent cut of local checkpoints.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cut {
    /// One for all hosts.
    pub step: Step,
    /// One for all hosts.
    pub fingerprint: Option<Fingerprint>,
    /// By host index.
    pub checkpoints: Vec<LocalCheckpoint>,
}

/// Chooses the greatest wanted step that every host has with one fingerprint; among several local checkpoints of one host with the same step and
/// fingerprint the last listed (agents list oldest first).
pub fn common_cut(hosts: &[Vec<LocalCheckpoint>], wanted: Wanted) -> Result<Cut, Problem> {
    let exact = match wanted {
        Wanted::Newest => None,
        Wanted::Step(step) => Some((step, None)),
        Wanted::Local(id) => {
            let found = hosts.iter().flatten().find(|checkpoint| checkpoint.id == id);
            let Some(found) = found else { return Err(none_common(hosts, wanted)) };
            Some((found.step, Some(id)))
        }
    };
    let mut candidates: Vec<(Step, Option<Fingerprint>)> =
        hosts.first().into_iter().flatten().map(|checkpoint| (checkpoint.step, checkpoint.fingerprint)).collect();
    candidates.sort_unstable();
    candidates.dedup();
    for (step, fingerprint) in candidates.into_iter().rev() {
        if exact.is_some_and(|(wanted, _)| wanted != step) {
            continue;
        }
        let fits = |checkpoint: &&LocalCheckpoint| checkpoint.step == step && checkpoint.fingerprint == fingerprint;
        let chosen: Option<Vec<LocalCheckpoint>> = hosts
            .iter()
            .map(|host| {
                // An id names one host's checkpoint: there that very one is meant.
                let named = exact.and_then(|(_, id)| id).and_then(|id| host.iter().filter(fits).find(|c| c.id == id));
                named.or_else(|| host.iter().rfind(|c| fits(c))).cloned()
            })
            .collect();
        if let Some(checkpoints) = chosen
            && exact.and_then(|(_, id)| id).is_none_or(|id| checkpoints.iter().any(|c| c.id == id))
        {
            return Ok(Cut { step, fingerprint, checkpoints });
        }
    }
    Err(none_common(hosts, wanted))
}

/// `NO_COMMON_CHECKPOINT` with each host's newest steps.
fn none_common(hosts: &[Vec<LocalCheckpoint>], wanted: Wanted) -> Problem {
    /// Enough to see where hosts part; a host may hold hundreds.
    const SHOWN: usize = 5;
    let asked = match wanted {
        Wanted::Newest => "no step that every host has with one fingerprint".to_owned(),
        Wanted::Step(step) => format!("step {step} is not on every host with one fingerprint"),
        Wanted::Local(id) => {
            format!("local checkpoint {id} is on no host, or its step not on every host with one fingerprint")
        }
    };
    let steps: Vec<String> = hosts
        .iter()
        .map(|host| {
            let mut steps: Vec<Step> = host.iter().map(|checkpoint| checkpoint.step).collect();
            steps.sort_unstable();
            steps.dedup();
            let shown: Vec<String> = steps.iter().rev().take(SHOWN).map(ToString::to_string).collect();
            if shown.is_empty() { "none".to_owned() } else { shown.join(",") }
        })
        .collect();
    let list =
        steps.iter().enumerate().map(|(idx, steps)| format!("host {idx}: {steps}")).collect::<Vec<_>>().join("; ");
    let mut problem = Problem::new(
        Reason::NoCommonCheckpoint,
        format!("{asked}; newest steps: {list}; make a checkpoint on all hosts at one step and try again"),
    );
    for (idx, steps) in steps.into_iter().enumerate() {
        problem = problem.with(format!("host{idx}_steps"), steps);
    }
    problem
}
