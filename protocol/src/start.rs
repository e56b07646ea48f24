//! What a solo engine starts from where no coordinator decides it: its own disk, a commit of its location, or nothing (pull step 1, for one host).
//!
//! Two things are known before anything here is asked: the location is the caller's own or nobody's, and the lookup of the wanted commit was answered.
//! An answer that is not known ends the start; it is never taken for "none".

use std::str::FromStr;

use crate::{
    commit::CommitDocument,
    host::Layout,
    id::{Fingerprint, LocalCheckpointId, Step},
    location::Location,
    problem::{Problem, Reason},
    selection::LocalCheckpoint,
    spec::PullSelector,
};

/// What the engine shall start from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StartPull {
    /// Which checkpoint.
    pub from: PullSelector,
    /// Fail where otherwise the engine would start fresh; not said: a `latest` may start fresh, whatever names a checkpoint may not.
    pub fail_if_none: Option<bool>,
}

impl StartPull {
    const fn may_start_fresh(&self) -> bool {
        match self.fail_if_none {
            Some(fail) => !fail,
            None => matches!(self.from, PullSelector::Latest),
        }
    }
}

/// What it starts from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StartFrom {
    /// This local checkpoint; nothing is downloaded.
    Disk(LocalCheckpointId, Step),
    /// The commit that was found.
    Commit,
    /// Nothing: there is no checkpoint anywhere.
    Fresh,
}

/// As flags and variables say it: `latest`, a step, the UUID of a checkpoint, or a time (RFC 3339).
pub fn parse_selector(text: &str) -> Result<PullSelector, Problem> {
    if text == "latest" {
        return Ok(PullSelector::Latest);
    }
    if let Ok(step) = text.parse::<u64>() {
        return Step::new(step).map(PullSelector::Step);
    }
    if let Ok(round) = text.parse() {
        return Ok(PullSelector::Checkpoint(round));
    }
    chrono::DateTime::from_str(text).map(PullSelector::Time).map_err(|_| {
        Problem::new(
            Reason::SpecInvalid,
            format!("{text} is no checkpoint: say latest, a step, the UUID of a checkpoint, or a time like 2026-01-31T12:00:00Z"),
        )
        .with("field", "from")
        .with("value", text)
    })
}

/// A commit of the location, and whether it bears a mark of damage.
#[derive(Clone, Copy, Debug)]
pub struct FoundCommit<'a> {
    /// What its key holds.
    pub document: &'a CommitDocument,
    /// Something of it was found broken.
    pub damaged: bool,
}

/// Chooses. `found` is what the location has for the selector; none: proven that it has nothing.
///
/// A disk that has neither gone on from the newest commit nor holds it (an older volume came back) is not `latest`: engines never go back by themselves (S11).
pub fn start_from(
    request: &StartPull,
    location: &Location,
    disk: &[LocalCheckpoint],
    found: Option<FoundCommit<'_>>,
) -> Result<StartFrom, Problem> {
    if let Some(local) = enough(request, disk, found) {
        return Ok(StartFrom::Disk(local.id, local.step));
    }
    match found {
        Some(found) => from_commit(location, disk, found),
        None => from_nothing(request, location, disk),
    }
}

/// The newest local checkpoint; of equal steps the last, since disks list oldest first.
fn newest(disk: &[LocalCheckpoint]) -> Option<&LocalCheckpoint> {
    disk.iter().max_by_key(|local| local.step)
}

fn enough<'a>(
    request: &StartPull,
    disk: &'a [LocalCheckpoint],
    found: Option<FoundCommit<'_>>,
) -> Option<&'a LocalCheckpoint> {
    match request.from {
        PullSelector::Latest => newest(disk).filter(|local| found.is_none_or(|found| local.step > found.document.step)),
        PullSelector::Step(step) => disk.iter().rfind(|local| local.step == step),
        // These name a commit: which local checkpoint it is made of, only the commit tells.
        PullSelector::Checkpoint(_) | PullSelector::Time(_) => None,
    }
}

fn from_commit(location: &Location, disk: &[LocalCheckpoint], found: FoundCommit<'_>) -> Result<StartFrom, Problem> {
    let document = found.document;
    let refuse = |reason, what: String| {
        Problem::new(reason, format!("checkpoint {} of step {} in {location} {what}", document.round, document.step))
            .with("checkpoint", document.round)
            .with("step", document.step)
            .with("location", location)
    };
    if found.damaged {
        return Err(refuse(
            Reason::CheckpointDamaged,
            "is marked damaged: start from another one or from latest".to_owned(),
        ));
    }
    if document.layout != Layout::Solo {
        return Err(refuse(
            Reason::LayoutMismatch,
            format!("was made by {}, this pipeline is solo: state is partitioned by host", document.layout),
        )
        .with("checkpoint_n_hosts", document.layout.n_hosts()));
    }
    let own: Option<Fingerprint> = newest(disk).and_then(|local| local.fingerprint);
    if let (Some(stored), Some(own)) = (document.fingerprint, own)
        && stored != own
    {
        return Err(refuse(
            Reason::FingerprintMismatch,
            format!(
                "was made by a program with fingerprint {stored}, the newest local checkpoint by one with {own}: if the programs are compatible, \
                 remove the local checkpoints and start again"
            ),
        )
        .with("checkpoint_fingerprint", stored)
        .with("fingerprint", own));
    }
    // Of the same step another one is another history.
    let copy = document.parts.first().and_then(|part| {
        disk.iter().find(|local| {
            local.id == part.local_checkpoint
                && local.step == document.step
                && local.fingerprint == document.fingerprint
        })
    });
    Ok(copy.map_or(StartFrom::Commit, |local| StartFrom::Disk(local.id, local.step)))
}

fn from_nothing(request: &StartPull, location: &Location, disk: &[LocalCheckpoint]) -> Result<StartFrom, Problem> {
    if !request.may_start_fresh() {
        return Err(Problem::new(
            Reason::CheckpointNotFound,
            format!("there is no checkpoint for {}; looked on this disk and in {location}", request.from),
        )
        .with("selector", request.from)
        .with("location", location));
    }
    if let Some(local) = newest(disk) {
        // A fresh start beside local checkpoints would abandon a history that somebody may still want.
        return Err(Problem::new(
            Reason::NoCommonCheckpoint,
            format!(
                "there is no checkpoint for {} on this disk or in {location}, but this disk holds step {}: start from that one, or remove the \
                 local checkpoints to start fresh",
                request.from, local.step
            ),
        )
        .with("selector", request.from)
        .with("location", location)
        .with("step", local.step));
    }
    Ok(StartFrom::Fresh)
}
