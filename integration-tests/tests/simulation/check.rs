//! The invariants of protocol.md, looked for past all faults. A violation is a sentence that begins with its number.

use std::{collections::BTreeMap, time::Duration};

use lockstep_bucket::MemoryBuckets;
use lockstep_coordinator::store::{AuditRow, RoundRecord};
use lockstep_protocol::{
    commit::{CommitDocument, DecisionObject},
    digest::Digest,
    id::RoundId,
    key::Key,
    manifest::{PartDocument, PartManifest},
    round::{Kind, Phase, Round},
};

use crate::world::{BUCKET, World, location};

mod damage;
mod fail_back;
mod fences;
mod garbage;
mod restore;
mod schedule;
mod source;

pub(crate) use damage::{damaged_and_unmarked, document, state_of};
pub(crate) use fail_back::{Fenced, newest, newest_parts};
pub(crate) use fences::{Fences, Place};
use garbage::Retired;
pub(crate) use garbage::no_orphans;

fn object(buckets: &MemoryBuckets, key: &str) -> Option<bytes::Bytes> {
    buckets.read(BUCKET, &location().full_key(key))
}

/// What must hold at any moment.
pub(crate) fn now(world: &World) -> Result<(), String> {
    let rounds = world.database.rounds();
    one_active(&rounds)?;
    let overwritten: Vec<_> = world
        .buckets
        .overwritten()
        .into_iter()
        .filter(|key| !key.ends_with("/head.json") && !key.contains("probe") && !damage::is_rotten(world, key))
        .collect();
    if !overwritten.is_empty() {
        return Err(format!("S7: these keys have held two contents: {overwritten:?}"));
    }
    let fences = Fences::of(&world.buckets);
    fences::never_goes_back(world, &fences)?;
    fail_back::stays_fenced(world, &rounds)?;
    fences::failed_for_good(world, &fences)?;
    fences::activated_with_the_base(world, &rounds)?;
    fail_back::goes_on_from_its_base(world, &rounds)?;
    for record in &rounds {
        decided_as_told(world, &fences, record)?;
        let newest = rounds.last().is_some_and(|last| last.round.id == record.round.id);
        installed_everywhere(world, record, newest)?;
        source::is_one(world, record)?;
    }
    // First of all what bears a mark, since retention counts it no more.
    damage::is_passed_over(world, &rounds)?;
    garbage::nothing_is_missing(world, &fences, &rounds)?;
    garbage::pinned_is_kept(world)?;
    restore::nothing_is_forgotten(world, &fences)?;
    schedule::in_time(world, &rounds)?;
    told_when_all_have_it(world, &rounds)?;
    who_wrote(&world.database.audit())
}

/// S12: an engine that may start does so from what every host had installed, and every host has installed nothing newer since.
fn told_when_all_have_it(world: &World, rounds: &[RoundRecord]) -> Result<(), String> {
    for (host, told) in world.agents.iter().enumerate().filter_map(|(host, agent)| Some((host, agent.told()?))) {
        if restore::is_of_before(world, told) {
            continue;
        }
        let Some(of) = rounds.iter().map(|record| &record.round).find(|round| round.id == told) else {
            return Err(format!("S12: host {host} was told of round {told}, which is in no row"));
        };
        if !matches!(of.phase, Phase::Installed | Phase::Fresh) {
            return Err(format!("S12: host {host} was told that its engine may start, round {told} is {}", of.phase));
        }
        let newer = |round: &&Round| round.round_no > of.round_no && round.phase == Phase::Installed;
        if let Some(newer) = rounds.iter().map(|record| &record.round).find(newer) {
            return Err(format!("S12: host {host} may start from round {told}, it has installed {} since", newer.id));
        }
    }
    Ok(())
}

/// S13, as the rows are now.
fn one_active(rounds: &[RoundRecord]) -> Result<(), String> {
    let active: Vec<_> =
        rounds.iter().filter(|record| record.ended_at.is_none()).map(|record| record.round.id).collect();
    if active.len() > 1 { Err(format!("S13: rounds {active:?} are active at once")) } else { Ok(()) }
}

fn decided_as_told(world: &World, fences: &Fences, record: &RoundRecord) -> Result<(), String> {
    let round = &record.round;
    let Kind::Push(push) = &round.kind else { return Ok(()) };
    let key = Key::Commit(round.generation, push.seq).to_string();
    let stands = object(&world.buckets, &key);
    let decision = stands.as_ref().map(|bytes| DecisionObject::parse(&key, bytes).unwrap());
    let counts = fences.counts((round.generation, push.seq));
    match (round.phase, decision) {
        (Phase::Committed, _) if !counts => {
            Err(format!("S15: round {} was told committed, and a take-over has lost its commit", round.id))
        }
        // S3: once swept it stands as its tombstone. One that is retired may be half gone.
        (Phase::Committed, _) if Retired::of(&world.buckets, fences, (round.generation, push.seq)) != Retired::No => {
            Ok(())
        }
        (Phase::Committed, Some(DecisionObject::Commit(document))) => {
            let digest = Digest::of(&stands.unwrap_or_default());
            if Some(digest) != push.committed.map(|commit| commit.digest) || document.round != round.id {
                return Err(format!("S4: round {} is committed, its key holds another commit", round.id));
            }
            whole(world, record, &document)
        }
        (Phase::Committed, _) => Err(format!("S4: round {} is committed, and no commit stands", round.id)),
        // S5: told so for good, so it must not count.
        (Phase::Failed | Phase::Cancelled, Some(DecisionObject::Commit(document)))
            if counts && document.round == round.id =>
        {
            Err(format!("S5: round {} is {} and its commit counts", round.id, round.phase))
        }
        // Stored before it is PUT: the row knows every byte that stands.
        // The database has lost what it knew of this place.
        (_, Some(decision)) if restore::is_of_before(world, decision.round()) => Ok(()),
        (_, Some(_)) => {
            let known = [&push.commit_bytes, &push.abort_bytes].into_iter().flatten();
            let stands = stands.unwrap_or_default();
            if known.into_iter().any(|bytes| bytes.as_bytes() == stands) {
                return Ok(());
            }
            Err(format!("S4: key {key} of round {} holds bytes that its row doesn't", round.id))
        }
        (_, None) => Ok(()),
    }
}

/// S1, S2, S8, S9.
fn whole(world: &World, record: &RoundRecord, document: &CommitDocument) -> Result<(), String> {
    let round = &record.round;
    let hosts: Vec<u32> = document.parts.iter().map(|part| part.host_idx).collect();
    let layout: Vec<u32> = (0..round.layout.len()).collect();
    if hosts != layout {
        return Err(format!("S2: the commit of round {} names hosts {hosts:?} of {layout:?}", round.id));
    }
    for (part, participant) in document.parts.iter().zip(&round.participants) {
        let bytes = object(&world.buckets, &part.manifest)
            .filter(|bytes| Digest::of(bytes) == part.manifest_blake3)
            .ok_or_else(|| format!("S1: part {} of round {} is missing or another", part.manifest, round.id))?;
        let PartDocument::Full(manifest) = PartDocument::parse(&part.manifest, &bytes).unwrap() else {
            return Err(format!("S1: part {} is a delta, which nobody writes here", part.manifest));
        };
        // A round that is known again from its commit document names no try.
        let learnt = participant.incarnation.is_none() && restore::is_of_before(world, round.id);
        let same = (Some(manifest.incarnation), manifest.attempt) == (participant.incarnation, participant.attempt);
        if !same && !learnt {
            return Err(format!(
                "S8: part {} is of another try than the row of round {} names",
                part.manifest, round.id
            ));
        }
        if manifest.step != document.step || manifest.fingerprint != document.fingerprint {
            return Err(format!(
                "S9: part {} is of step {}, the commit of {}",
                part.manifest, manifest.step, document.step
            ));
        }
        objects(world, &manifest)?;
    }
    Ok(())
}

fn objects(world: &World, part: &PartManifest) -> Result<(), String> {
    for file in &part.files {
        let key = &part.objects[file.object.unwrap() as usize].key;
        let sound = object(&world.buckets, key).is_some_and(|bytes| Digest::of(&bytes) == file.blake3);
        if !sound && !world.rotten.borrow().contains_key(key) {
            return Err(format!("S1: object {key} of round {} is missing or another", part.round));
        }
    }
    Ok(())
}

/// S12: each host's process of the row was told so by its own disk, and no step of before is left on it.
fn installed_everywhere(world: &World, record: &RoundRecord, newest: bool) -> Result<(), String> {
    let round = &record.round;
    if round.phase != Phase::Installed {
        return Ok(());
    }
    for (participant, agent) in round.participants.iter().zip(&world.agents) {
        let has = participant.incarnation.zip(participant.local_checkpoint);
        let installed = has.and_then(|(incarnation, id)| {
            Some((incarnation, id, agent.installed_at(incarnation, id, Duration::ZERO)?))
        });
        let Some((incarnation, id, at)) = installed else {
            let host = participant.host_idx;
            return Err(format!("S12: round {} is installed, host {host} never had it in that process", round.id));
        };
        if newest
            && agent.life() == Some(incarnation)
            && let Some(step) = agent.older_than(id, at)
        {
            let host = participant.host_idx;
            return Err(format!("S12: round {} is installed, host {host} still has step {step} of before", round.id));
        }
    }
    Ok(())
}

/// S6 and S13, as the audit trail tells them: each version of a round is written once, by whoever claimed its term last.
fn who_wrote(audit: &[AuditRow]) -> Result<(), String> {
    let mut terms: BTreeMap<(RoundId, u64), &str> = BTreeMap::new();
    let mut versions: BTreeMap<RoundId, (u64, u64)> = BTreeMap::new();
    let mut active: Option<RoundId> = None;
    let mut phases: BTreeMap<(RoundId, Option<u32>), &str> = BTreeMap::new();
    for (at, row) in audit.iter().enumerate() {
        let (Some(round), Some(term), Some(version)) = (row.round, row.term, row.version) else { continue };
        match row.event.as_str() {
            "round_admitted" => {
                if let Some(other) = active.replace(round) {
                    return Err(format!("S13: round {round} was admitted while {other} was active"));
                }
            }
            "round_claimed" => {
                terms.insert((round, term), &row.actor);
            }
            _ => {}
        }
        if let Some(to) = row.to.as_deref() {
            let last = phases.insert((round, row.host_idx), to);
            if last.is_some() && last != row.from.as_deref() {
                let from = row.from.as_deref();
                return Err(format!(
                    "S6: round {round}, host {:?} went on from {from:?}, it was {last:?}",
                    row.host_idx
                ));
            }
        }
        if (row.from.as_deref(), row.to.as_deref()) == (Some("installing"), Some("cancelled")) {
            return Err(format!("S12: round {round} was cancelled while its hosts installed"));
        }
        let last = versions.insert(round, (term, version)).unwrap_or_default();
        if (term, version) < last {
            return Err(format!("S6: round {round} went from term and version {last:?} to {:?}", (term, version)));
        }
        let allowed = row.cause.contains("superseded") || is_settled_by_adoption(&audit[at..]);
        // An activation asks for its pulls itself.
        let by_replica = row.actor.starts_with("replica ") && row.event != "round_admitted";
        if by_replica && !allowed && terms.get(&(round, term)) != Some(&row.actor.as_str()) {
            return Err(format!("S6: {} wrote round {round} in term {term}, which it never claimed", row.actor));
        }
        let ended = row.host_idx.is_none()
            && row.event == "round_phase"
            && row.to.as_deref().and_then(Phase::parse).is_some_and(Phase::is_terminal);
        if ended && active == Some(round) {
            active = None;
        }
    }
    Ok(())
}

/// Whether the first of these lines stands in the transaction in which a take-over adopts its generation: that ends the open round, whoever drives it.
fn is_settled_by_adoption(rows: &[AuditRow]) -> bool {
    let Some(row) = rows.first() else { return false };
    let next = rows.iter().find(|next| next.event == "take_over_phase");
    next.is_some_and(|next| next.actor == row.actor && next.from.as_deref() == Some("adopting"))
}
