//! The invariants, checked whenever something changes. The auditor sees the truth, not what anybody was told; its rules for what counts are written
//! down here once more, so that a mistake in the production ones shows.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_protocol::{
    commit::{CommitDocument, CommitRef, DecisionObject},
    digest::Digest,
    fence::FenceBase,
    id::{Generation, Incarnation, LocalCheckpointId, RoundId, RoundNo, Seq, Term},
    key::Key,
    manifest::PartManifest,
    problem::Reason,
    round::{Kind, Phase, PushState, Round, Source},
};

use super::{
    bucket::{Bucket, Bytes},
    database::Database,
    timeline::Instant,
    world::Sim,
};

/// Place in the chain.
type Place = (Generation, Seq);

#[derive(Default, Debug)]
pub(super) struct Audit {
    /// The first that was found.
    pub(super) violation: Option<String>,
    /// Rounds that ended without a commit.
    given_up: BTreeMap<RoundId, Phase>,
    acknowledged: Vec<CommitRef>,
    /// Commits that stand.
    standing: BTreeMap<Place, (RoundId, Digest)>,
    installed: BTreeSet<(Incarnation, LocalCheckpointId)>,
    /// When each process ended.
    gone: BTreeMap<Incarnation, Instant>,
    confirming: BTreeMap<RoundId, Instant>,
    newest_installed: Option<RoundNo>,
    newest_read: Option<Place>,
    pub(super) resolved_from_unknown: u32,
}

/// Records a violation of a numbered rule.
pub(super) fn broken(sim: &Sim, rule: &str, what: impl FnOnce() -> String) {
    let mut audit = sim.audit.borrow_mut();
    if audit.violation.is_none() {
        let found = format!("{rule}: {}", what());
        sim.log(|| format!("VIOLATION {found}"));
        audit.violation = Some(found);
    }
}

/// Whether the commit at a place counts (F1), in the auditor's own words. None: undecided.
fn counts(bucket: &Bucket, (generation, seq): Place) -> Option<bool> {
    let next = generation.next();
    let base = Key::FenceBase(next).to_string();
    match bucket.objects.get(&base) {
        Some(bytes) => {
            let newest = FenceBase::parse(&base, bytes).ok().and_then(|base| base.newest);
            Some(newest.is_some_and(|newest| newest.generation == generation && seq <= newest.seq))
        }
        None if bucket.objects.contains_key(&Key::Fence(next).to_string()) => None,
        None => Some(true),
    }
}

/// An object was stored.
pub(super) fn written(sim: &Sim, key: &str, before: Option<&Bytes>, bytes: &Bytes) {
    if let Some(before) = before
        && before != bytes
    {
        broken(sim, "S7", || format!("{key} was written over with something else"));
    }
    match Key::parse(key) {
        Some(Key::Commit(generation, seq)) => {
            sim.audit.borrow_mut().standing.remove(&(generation, seq));
            if let Ok(DecisionObject::Commit(document)) = DecisionObject::parse(key, bytes) {
                landed(sim, key, &document, bytes);
            }
            what_counts(sim);
        }
        Some(Key::Fence(_) | Key::FenceBase(_)) => what_counts(sim),
        None => broken(sim, "S7", || format!("{key} is no key")),
        _ => {}
    }
}

/// A commit document stands now.
fn landed(sim: &Sim, key: &str, document: &CommitDocument, bytes: &Bytes) {
    let place = (document.generation, document.seq);
    sim.audit.borrow_mut().standing.insert(place, (document.round, Digest::of(bytes)));
    let known = sim.sites.iter().any(|site| {
        let database = site.database.borrow();
        database.rounds.get(&document.round).is_some_and(|row| match &row.round.kind {
            Kind::Push(push) => push.commit_bytes.as_ref().is_some_and(|stored| stored.as_bytes() == &**bytes),
            Kind::Pull(_) => false,
        })
    });
    if !known {
        broken(sim, "S4", || format!("{key} stands, but no row holds its bytes"));
    }
    if let Err(what) = reaches(&sim.bucket.borrow(), document) {
        broken(sim, "S1", || format!("{key}: {what}"));
    }
}

/// S1, S2 and S9 of one commit.
fn reaches(bucket: &Bucket, document: &CommitDocument) -> Result<(), String> {
    if document.parts.len() != document.layout.len() as usize {
        return Err("S2: it doesn't name every host".to_owned());
    }
    for part in &document.parts {
        let bytes = bucket.objects.get(&part.manifest).ok_or_else(|| format!("{} is missing", part.manifest))?;
        if Digest::of(bytes) != part.manifest_blake3 {
            return Err(format!("{} has other content", part.manifest));
        }
        let manifest = PartManifest::parse(&part.manifest, bytes).map_err(|problem| problem.message)?;
        if (manifest.step, manifest.fingerprint) != (document.step, document.fingerprint) {
            return Err(format!("S9: {} is of step {}", part.manifest, manifest.step));
        }
        for object in &manifest.objects {
            let size = bucket.objects.get(&object.key).map(|bytes| bytes.len() as u64);
            if size != Some(object.size) {
                return Err(format!("{} has {size:?} bytes, not {}", object.key, object.size));
            }
        }
    }
    Ok(())
}

/// S5 and S15, over everything that stands.
fn what_counts(sim: &Sim) {
    let found = {
        let (bucket, audit) = (sim.bucket.borrow(), sim.audit.borrow());
        let risen = audit.standing.iter().find_map(|(place, (round, _))| {
            let phase = audit.given_up.get(round)?;
            (counts(&bucket, *place) == Some(true)).then(|| {
                ("S5", format!("round {round} was told {phase}, and its commit {}-{} counts", place.0, place.1))
            })
        });
        let lost = || {
            audit.acknowledged.iter().find_map(|commit| {
                let place = (commit.generation, commit.seq);
                let stands = audit.standing.get(&place).map(|(_, digest)| *digest);
                let well = stands == Some(commit.digest) && counts(&bucket, place) != Some(false);
                (!well).then(|| ("S15", format!("commit {}-{} was acknowledged and doesn't count", place.0, place.1)))
            })
        };
        risen.or_else(lost)
    };
    if let Some((rule, what)) = found {
        broken(sim, rule, || what);
    }
}

/// A round was admitted.
pub(super) fn admitted(sim: &Sim, database: &Database, round: &Round) {
    let active = database.rounds.values().filter(|row| !row.round.phase.is_terminal()).count();
    if active > 1 {
        broken(sim, "S13", || format!("{active} active rounds after round {} was admitted", round.round_no));
    }
}

/// A row was written: what its writer saw, what stood there, and what stands now.
pub(super) fn changed(sim: &Sim, database: &Database, (writer, seen): (Term, &Round), replaced: &Round, next: &Round) {
    if writer != replaced.term {
        broken(sim, "S6", || {
            format!("round {} of term {} changed under a writer of term {writer}", next.round_no, replaced.term)
        });
    }
    if (seen.version, seen.term) != (replaced.version, replaced.term) {
        broken(sim, "S6", || {
            format!(
                "round {} changed from version {} under a writer of {}",
                next.round_no, replaced.version, seen.version
            )
        });
    }
    if replaced.phase.is_terminal() {
        broken(sim, "S5", || format!("round {} was {} and became {}", next.round_no, replaced.phase, next.phase));
    }
    if is_fresh(next) && !is_fresh(replaced) {
        fresh(sim, next);
    }
    match (&next.kind, next.phase) {
        (Kind::Push(push), Phase::Committing) if replaced.phase != Phase::Committing => committing(sim, next, push),
        (Kind::Push(push), Phase::Committed) => committed(sim, database, next, push),
        (Kind::Push(_), Phase::Failed | Phase::Cancelled) => {
            sim.audit.borrow_mut().given_up.insert(next.id, next.phase);
            what_counts(sim);
        }
        (Kind::Pull(_), Phase::Installed) => {
            everywhere(sim, next);
            let mut audit = sim.audit.borrow_mut();
            audit.newest_installed = audit.newest_installed.max(Some(next.round_no));
        }
        (Kind::Pull(_), phase) if replaced.phase == Phase::Installing && phase != Phase::Installing => {
            let superseded = next.problem.as_ref().is_some_and(|problem| problem.reason == Reason::Superseded);
            if phase != Phase::Failed || !superseded {
                broken(sim, "S12", || format!("round {} went from installing to {phase}", next.round_no));
            }
        }
        _ => {}
    }
}

/// S8: only what the present attempt and process of each host reported.
fn committing(sim: &Sim, round: &Round, push: &PushState) {
    for participant in &round.participants {
        let path = participant.part.as_ref().and_then(|part| match Key::parse(&part.manifest) {
            Some(Key::PartManifest(path)) => Some(path),
            _ => None,
        });
        let good = path.is_some_and(|path| {
            path.attempt == participant.attempt
                && Some(path.incarnation) == participant.incarnation
                && path.round == round.id
        });
        if !good {
            let named = participant.part.as_ref().map(|part| part.manifest.clone());
            broken(sim, "S8", || {
                format!("host {} of {}-{}: {named:?}", participant.host_idx, round.generation, push.seq)
            });
        }
    }
}

/// S4: never ahead of the bucket.
fn committed(sim: &Sim, database: &Database, round: &Round, push: &PushState) {
    let Some(commit) = push.committed else {
        return broken(sim, "S4", || format!("round {} is committed without a commit", round.round_no));
    };
    let found = {
        let bucket = sim.bucket.borrow();
        let stands = bucket.objects.get(&commit.key().to_string()).map(|bytes| Digest::of(bytes));
        (stands == Some(commit.digest), counts(&bucket, (commit.generation, commit.seq)))
    };
    match found {
        (false, _) => broken(sim, "S4", || format!("round {} is committed, its commit doesn't stand", round.round_no)),
        (true, Some(false)) => broken(sim, "S5", || format!("round {} is committed and doesn't count", round.round_no)),
        (true, _) => {}
    }
    let mut audit = sim.audit.borrow_mut();
    audit.acknowledged.push(commit);
    if database.rounds.get(&round.id).is_some_and(|row| row.was_unknown) {
        audit.resolved_from_unknown += 1;
    }
}

/// A host made a checkpoint the one that its engine sees, as a round ordered.
pub(super) fn installed(sim: &Sim, incarnation: Incarnation, checkpoint: LocalCheckpointId, round: RoundNo) {
    let newest = sim.audit.borrow().newest_installed;
    if let Some(newest) = newest.filter(|newest| *newest > round) {
        // The engines run on the newer one's checkpoint.
        broken(sim, "S12", || format!("a host obeyed an install of round {round} after round {newest} was installed"));
    }
    sim.audit.borrow_mut().installed.insert((incarnation, checkpoint));
}

/// A process ended.
pub(super) fn gone(sim: &Sim, incarnation: Incarnation) {
    let now = sim.now();
    sim.audit.borrow_mut().gone.insert(incarnation, now);
}

/// The last look at every host begins.
pub(super) fn confirming(sim: &Sim, round: &Round) {
    let now = sim.now();
    sim.audit.borrow_mut().confirming.insert(round.id, now);
}

/// S12: every host's process of the last look has this checkpoint, and no other.
fn everywhere(sim: &Sim, round: &Round) {
    let Some(site) = sim.sites.iter().find(|site| site.database.try_borrow_mut().is_err() || sim.sites.len() == 1)
    else {
        return;
    };
    for participant in &round.participants {
        let (Some(incarnation), Some(checkpoint)) = (participant.incarnation, participant.local_checkpoint) else {
            return broken(sim, "S12", || format!("host {} was never asked", participant.host_idx));
        };
        let (has, since, gone) = {
            let audit = sim.audit.borrow();
            let has = audit.installed.contains(&(incarnation, checkpoint));
            (has, audit.confirming.get(&round.id).copied(), audit.gone.get(&incarnation).copied())
        };
        let host = participant.host_idx;
        if !has {
            broken(sim, "S12", || format!("installed, but host {host} hasn't got it"));
        }
        if gone.is_some_and(|gone| since.is_none_or(|since| gone < since)) {
            broken(sim, "S12", || format!("installed, but host {host} restarted before the last look at it"));
        }
        if let Some(agent) = site.agents.get(host as usize) {
            let agent = agent.borrow();
            if agent.incarnation == incarnation && agent.up && agent.disk.checkpoints != [checkpoint] {
                broken(sim, "S12", || format!("installed, but host {host} has {:?}", agent.disk.checkpoints));
            }
        }
    }
}

/// Whether a pull was resolved to nothing at all.
fn is_fresh(round: &Round) -> bool {
    matches!(&round.kind, Kind::Pull(pull) if pull.resolved.as_ref().is_some_and(|r| r.source == Source::Fresh))
}

/// A fresh start was decided on; no push of this pipeline can be under way.
fn fresh(sim: &Sim, round: &Round) {
    let kept = sim.audit.borrow().acknowledged.last().copied();
    if let Some(commit) = kept {
        let (no, generation, seq) = (round.round_no, commit.generation, commit.seq);
        broken(sim, "S11", || format!("round {no} starts fresh, though commit {generation}-{seq} was acknowledged"));
    }
}

/// What a reader that begins now must see at least.
pub(super) fn reading(sim: &Sim) -> Option<Place> {
    let audit = sim.audit.borrow();
    let acknowledged = audit.acknowledged.iter().map(|commit| (commit.generation, commit.seq)).max();
    acknowledged.max(audit.newest_read)
}

/// S11: a reader saw this for the newest.
pub(super) fn read_latest(sim: &Sim, at_least: Option<Place>, newest: Option<CommitRef>) {
    let newest = newest.map(|commit| (commit.generation, commit.seq));
    if newest < at_least {
        broken(sim, "S11", || format!("latest went back from {at_least:?} to {newest:?}"));
    }
    let mut audit = sim.audit.borrow_mut();
    audit.newest_read = audit.newest_read.max(newest);
}
