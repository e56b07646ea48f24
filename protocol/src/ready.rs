//! What hosts are told when a pull has ended well: that every host has the checkpoint, so that engines may start (protocol.md, "Pull" step 5), and in which role.
//!
//! An agent alone can't know it: its own install says nothing about the other hosts. So the end of a pull and the word that is owed because of it are one write, and
//! the word is owed until every host has answered. An install of a newer pull takes it back, before the first host is changed.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{
    id::{LocalCheckpointId, PipelineId, RoundId, Step, Term},
    problem::{Problem, Reason},
    round::{Kind, Phase, RetryPolicy, Round, Source, later},
};

/// What an engine may do.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Start and write.
    Active,
    /// Only wait: its pipeline owns nothing yet.
    Standby,
}

impl Role {
    /// As rows, files and variables carry it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Standby => "standby",
        }
    }

    /// Back from [`Role::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Active, Self::Standby].into_iter().find(|role| role.as_str() == text)
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What one host is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Word {
    /// The pull that every host has ended; none: a start-up pull without a coordinator.
    pub round: Option<RoundId>,
    /// This host's only local checkpoint, at the step of all; none: the engine starts from nothing.
    pub checkpoint: Option<(LocalCheckpointId, Step)>,
    /// What the engine may do then.
    pub role: Role,
}

/// Whether hosts of this round may be changed by installs from now on: what they were told before holds no more.
pub fn takes_back(round: &Round) -> bool {
    matches!(round.phase, Phase::Installing) || (round.phase == Phase::Resolving && crate::round::discarding(round))
}

/// Whether the end of this round is what engines wait for.
pub const fn gives_word(round: &Round) -> bool {
    matches!((&round.kind, round.phase), (Kind::Pull(_), Phase::Installed | Phase::Fresh))
}

/// What one host of an ended pull is told. `ROUND_NOT_FOUND` if the round gives no word: rows are written so that this can't be.
pub fn word(round: &Round, host_idx: u32, role: Role) -> Result<Word, Problem> {
    let none = || {
        Problem::new(
            Reason::RoundNotFound,
            format!("round {} in phase {} has nothing to tell host {host_idx}", round.id, round.phase),
        )
        .with("round", round.id)
        .with("host_idx", host_idx)
    };
    let (Kind::Pull(pull), true) = (&round.kind, gives_word(round)) else { return Err(none()) };
    let resolved = pull.resolved.as_ref().ok_or_else(none)?;
    let checkpoint = match resolved.source {
        Source::Fresh => None,
        Source::Local | Source::Location | Source::ReadLocation => {
            let host = usize::try_from(host_idx).ok().and_then(|idx| round.participants.get(idx)).ok_or_else(none)?;
            Some(host.local_checkpoint.zip(resolved.step).ok_or_else(none)?)
        }
    };
    Ok(Word { round: Some(round.id), checkpoint, role })
}

/// Whom a word is still owed: one row a pipeline, that of its newest pull which ended well.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Telling {
    /// Whose hosts.
    pub pipeline: PipelineId,
    /// The pull they have ended.
    pub round: RoundId,
    /// What they may do.
    pub role: Role,
    /// Rises by one with each stored change.
    pub version: u64,
    /// Above that of the round; rises each time a replica tells.
    pub term: Term,
    /// One a host, in order.
    pub hosts: Vec<HostTold>,
    /// Goes round in which not every host has answered.
    pub tries: u32,
    /// The next one is not before this.
    pub retry_at: Option<DateTime<Utc>>,
    /// When every host had answered.
    pub told_at: Option<DateTime<Utc>>,
}

/// How far one host is told.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HostTold {
    /// It has answered.
    pub told: bool,
    /// Why it has not, the last time.
    pub problem: Option<Problem>,
}

/// Not for ever less often: a host that is away for an hour is told within half a minute of its return.
const AGAIN: RetryPolicy = RetryPolicy {
    max_attempts: u32::MAX,
    base: std::time::Duration::from_millis(500),
    max: std::time::Duration::from_secs(15),
};

impl Telling {
    /// Hosts that have not answered yet.
    pub fn owed(&self) -> impl Iterator<Item = u32> {
        (0..).zip(&self.hosts).filter(|(_, host)| !host.told).map(|(host_idx, _)| host_idx)
    }

    /// After one go at all that are owed.
    pub fn after(&self, answers: &BTreeMap<u32, Result<(), Problem>>, now: DateTime<Utc>, jitter: u32) -> Self {
        let mut next = self.clone();
        for (host_idx, host) in (0..).zip(&mut next.hosts) {
            match answers.get(&host_idx) {
                Some(Ok(())) => *host = HostTold { told: true, problem: None },
                Some(Err(problem)) if !host.told => host.problem = Some(problem.clone()),
                _ => {}
            }
        }
        if next.owed().next().is_none() {
            next.told_at = Some(now);
            next.retry_at = None;
        } else {
            next.tries = self.tries.saturating_add(1);
            next.retry_at = Some(later(now, AGAIN.delay(next.tries, jitter)));
        }
        next
    }
}
