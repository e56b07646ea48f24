//! What may be deleted, in words of its own: G1 to G5 and S10, past all faults; and what must not be left over (L3).

use std::collections::BTreeSet;

use lockstep_bucket::MemoryBuckets;
use lockstep_coordinator::store::RoundRecord;
use lockstep_protocol::{
    commit::{CommitDocument, CommitRef, DecisionObject},
    digest::Digest,
    id::Generation,
    key::Key,
    manifest::PartDocument,
    pin::Pin,
    round::{Kind, Source},
    tombstone::Tombstone,
    upkeep::{Phase, Work},
};

use super::{Fences, Place, object};
use crate::world::{BUCKET, World, location};

/// What the key of a commit's tombstone says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Retired {
    No,
    Yes,
    /// The highest fence has no base yet, which will say whether it counts.
    Undecided,
}

impl Retired {
    /// Take-over, step 4: one of an earlier owner counts if the base lists it.
    pub(super) fn of(buckets: &MemoryBuckets, fences: &Fences, (generation, seq): Place) -> Self {
        let key = Key::Retired(generation, seq).to_string();
        let Some(bytes) = object(buckets, &key) else { return Self::No };
        let tombstone = Tombstone::parse(&key, &bytes).unwrap();
        let Some((highest, base)) = fences.highest() else { return Self::No };
        if tombstone.retired_in == highest {
            return Self::Yes;
        }
        let Some(base) = base else { return Self::Undecided };
        let lists = base.tombstones.iter().any(|listed| (listed.generation, listed.seq) == (generation, seq));
        if lists { Self::Yes } else { Self::No }
    }
}

/// A commit that counts, whether it is retired or not, as long as its object is there.
pub(super) struct Counted {
    place: Place,
    pub(super) commit: CommitRef,
    pub(super) document: Box<CommitDocument>,
    pub(super) retired: Retired,
}

pub(super) fn below(buckets: &MemoryBuckets, folder: &str) -> Vec<String> {
    let prefix = location().full_key("");
    let keys = buckets.keys(BUCKET, &location().full_key(folder));
    keys.into_iter().map(|key| key[prefix.len()..].to_owned()).collect()
}

/// The oldest first.
pub(super) fn counted(buckets: &MemoryBuckets, fences: &Fences) -> Vec<Counted> {
    let mut found = Vec::new();
    for key in below(buckets, "commits/") {
        let Some(bytes) = object(buckets, &key) else { continue };
        let DecisionObject::Commit(document) = DecisionObject::parse(&key, &bytes).unwrap() else { continue };
        let (generation, seq) = (document.generation, document.seq);
        if fences.counts((generation, seq)) {
            let commit = CommitRef { generation, seq, round: document.round, digest: Digest::of(&bytes) };
            let retired = Retired::of(buckets, fences, (generation, seq));
            found.push(Counted { place: (generation, seq), commit, document, retired });
        }
    }
    found.sort_by_key(|counted| counted.place);
    found
}

/// Keys of part manifests and data; an error names what is missing, but for what has rotted.
pub(super) fn reached(world: &World, document: &CommitDocument) -> Result<BTreeSet<String>, String> {
    let (buckets, rotten) = (&world.buckets, world.rotten.borrow());
    let mut keys = BTreeSet::new();
    for part in &document.parts {
        let bytes = object(buckets, &part.manifest).ok_or_else(|| part.manifest.clone())?;
        keys.insert(part.manifest.clone());
        let PartDocument::Full(manifest) = PartDocument::parse(&part.manifest, &bytes).unwrap() else { continue };
        for entry in manifest.objects {
            if object(buckets, &entry.key).is_none() && !rotten.contains_key(&entry.key) {
                return Err(entry.key);
            }
            keys.insert(entry.key);
        }
    }
    Ok(keys)
}

/// G1, G2 and S10, wherever garbage is collected.
pub(super) fn nothing_is_missing(world: &World, fences: &Fences, rounds: &[RoundRecord]) -> Result<(), String> {
    let Some(garbage) = &world.garbage else { return Ok(()) };
    let buckets = &world.buckets;
    let counted = counted(buckets, fences);
    let min_count = usize::try_from(garbage.min_count).unwrap();
    for (at, one) in counted.iter().enumerate() {
        let newer = counted.len() - at - 1;
        // What is marked damaged is not one of those that retention counts.
        let marked = world.marked.borrow().contains_key(&one.commit.round);
        let least = if marked || world.deleted.borrow().contains(&one.place) { 1 } else { min_count.max(1) };
        if one.retired == Retired::Yes && newer < least {
            return Err(format!("G1: {:?} is retired, and {newer} commits are newer", one.place));
        }
        if one.retired == Retired::No {
            reached(world, &one.document)
                .map_err(|key| format!("S1: {key} of {:?}, which counts and is not retired, is gone", one.place))?;
        }
    }
    for commit in world.database.retired() {
        let key = Key::Retired(commit.generation, commit.seq).to_string();
        if object(buckets, &key).is_none() {
            return Err(format!("S4: {key} has landed, as the database has it, and does not stand"));
        }
    }
    // What is open in a database that came back nobody drives (R13): the lost one may have ended it, and collected what it had used.
    let is_driven = world.row().is_none_or(|row| row.database == world.database.identity());
    for record in rounds.iter().filter(|record| is_driven && record.ended_at.is_none()) {
        still_used(world, fences, record)?;
    }
    Ok(())
}

/// G5: what was pinned while it stood stays as it is, retired or not, until somebody asks to take the pin away.
pub(super) fn pinned_is_kept(world: &World) -> Result<(), String> {
    for upkeep in world.database.upkeep().iter().filter(|upkeep| upkeep.phase == Phase::Done) {
        if let Work::Pin { commit, key, .. } = &upkeep.work
            && !world.unpinned.borrow().contains(key)
        {
            world.pinned.borrow_mut().insert(key.clone(), *commit);
        }
    }
    for (pin, commit) in world.pinned.borrow().iter() {
        let key = Key::Commit(commit.generation, commit.seq).to_string();
        let gone = |what: &str| format!("G5: {what} is gone, {pin} keeps {key}");
        object(&world.buckets, pin).ok_or_else(|| gone("the pin"))?;
        let bytes = object(&world.buckets, &key).ok_or_else(|| gone("the object"))?;
        let DecisionObject::Commit(document) = DecisionObject::parse(&key, &bytes).unwrap() else {
            return Err(gone("the commit"));
        };
        reached(world, &document).map_err(|key| gone(&key))?;
    }
    Ok(())
}

/// What an active round builds on or reads, unless somebody else owns the location by now.
fn still_used(world: &World, fences: &Fences, record: &RoundRecord) -> Result<(), String> {
    let round = &record.round;
    let used = match &round.kind {
        Kind::Push(push) => push.base,
        Kind::Pull(pull) => {
            pull.resolved.as_ref().filter(|from| from.source == Source::Location).and_then(|from| from.commit)
        }
    };
    let highest = fences.highest().map_or(Generation::NONE, |(highest, _)| highest);
    let Some(used) = used.filter(|_| round.generation == highest) else { return Ok(()) };
    let key = Key::Commit(used.generation, used.seq).to_string();
    let gone = |what: &str| format!("S10: {what} of {key} is gone, which round {} uses", round.id);
    let bytes = object(&world.buckets, &key).ok_or_else(|| gone("the object"))?;
    let DecisionObject::Commit(document) = DecisionObject::parse(&key, &bytes).unwrap() else {
        return Err(gone("the commit"));
    };
    reached(world, &document).map(|_| ()).map_err(|key| gone(&key))
}

/// L3, after the second collection in calm weather, with all grace over: hosts' keys are those that commits reach which are kept or pinned.
pub(crate) fn no_orphans(world: &World) -> Result<(), String> {
    let buckets = &world.buckets;
    let pinned: BTreeSet<CommitRef> = below(buckets, "pins/")
        .iter()
        .filter_map(|key| Some(Pin::parse(key, &object(buckets, key)?).unwrap().commit))
        .collect();
    let mut kept = BTreeSet::new();
    for one in counted(buckets, &Fences::of(buckets)) {
        if one.retired == Retired::No || pinned.contains(&one.commit) {
            kept.extend(reached(world, &one.document).map_err(|key| format!("S1: {key} is gone"))?);
        }
    }
    let data = |key: &&String| matches!(Key::parse(key), Some(Key::PartManifest(_) | Key::Data(..)));
    let keys = below(buckets, "");
    let orphans: Vec<_> = keys.iter().filter(data).filter(|key| !kept.contains(*key)).collect();
    if orphans.is_empty() { Ok(()) } else { Err(format!("L3: after two collections nothing reaches {orphans:?}")) }
}
