//! The documents of a location as the auditor reads them, and which commits count (F1).

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use uuid::Uuid;

use super::Audit;

/// Place of a commit: generation and seq.
pub(super) type Place = (u64, u64);

/// One host's part as a commit names it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct CommitPart {
    pub(super) host_idx: u32,
    pub(super) local_checkpoint: Uuid,
    pub(super) manifest: String,
    pub(super) manifest_length: u64,
    pub(super) manifest_blake3: String,
    pub(super) files: u64,
    pub(super) bytes: u64,
}

/// A commit document.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Commit {
    pub(super) pipeline: Uuid,
    pub(super) generation: u64,
    pub(super) seq: u64,
    pub(super) round: Uuid,
    pub(super) step: u64,
    pub(super) fingerprint: Option<String>,
    pub(super) n_hosts: u32,
    pub(super) parts: Vec<CommitPart>,
    pub(super) root: String,
}

/// An abort record.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Abort {
    pub(super) pipeline: Uuid,
    pub(super) generation: u64,
    pub(super) seq: u64,
    pub(super) round: Uuid,
}

#[derive(Deserialize)]
struct Reference {
    generation: u64,
    seq: u64,
}

#[derive(Deserialize)]
struct Base {
    newest: Option<Reference>,
    #[serde(default)]
    tombstones: Vec<Reference>,
}

#[derive(Deserialize)]
struct Tombstone {
    retired_in: u64,
}

#[derive(Clone, Debug)]
pub(super) enum Decision {
    Commit(Box<Commit>),
    Abort(Abort),
}

impl Decision {
    pub(super) fn round(&self) -> Uuid {
        match self {
            Self::Commit(commit) => commit.round,
            Self::Abort(abort) => abort.round,
        }
    }

    /// Who wrote it.
    pub(super) fn pipeline(&self) -> Uuid {
        match self {
            Self::Commit(commit) => commit.pipeline,
            Self::Abort(abort) => abort.pipeline,
        }
    }
}

/// What stands in one location.
#[derive(Debug, Default)]
pub(super) struct LocationView {
    pub(super) prefix: String,
    fences: BTreeSet<u64>,
    /// By generation; the value is what the base names.
    bases: BTreeMap<u64, Option<Place>>,
    /// By generation; the tombstones that its base lists.
    listed: BTreeMap<u64, BTreeSet<Place>>,
    pub(super) decisions: BTreeMap<Place, Decision>,
    pub(super) retired: BTreeSet<Place>,
}

fn place(stem: &str) -> Option<Place> {
    let (generation, seq) = stem.split_once('-')?;
    let wide = |text: &str| (text.len() == 20).then(|| text.parse::<u64>().ok()).flatten();
    wide(generation).zip(wide(seq))
}

/// Key of a decision in its location.
pub(super) fn decision_key((generation, seq): Place) -> String {
    format!("commits/{generation:020}-{seq:020}.json")
}

impl LocationView {
    pub(super) fn read(prefix: &str, objects: &BTreeMap<String, Vec<u8>>, audit: &mut Audit) -> Self {
        let mut view = Self { prefix: prefix.to_owned(), ..Self::default() };
        let mut tombstones = Vec::new();
        let from = objects.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
        for (full, bytes) in from {
            let key = &full[prefix.len()..];
            let Some((folder, rest)) = key.split_once('/') else { continue };
            let stem = rest.strip_suffix(".json");
            let known = match (folder, stem) {
                ("fences", Some(stem)) => view.fence(stem, bytes),
                ("commits", Some(stem)) => view.decision(stem, bytes, full, audit),
                ("retired", Some(stem)) => place(stem).and_then(|place| {
                    let tombstone: Tombstone = serde_json::from_slice(bytes).ok()?;
                    tombstones.push((place, tombstone.retired_in));
                    Some(())
                }),
                ("fences" | "commits" | "retired", None) => None,
                _ => continue,
            };
            if known.is_none() {
                audit.found("layout", format!("{full} is not what stands under {folder}/"));
            }
        }
        // One that an older owner put after the base was made counts for nobody (R17).
        let owner = view.highest_with_base();
        let listed = view.listed.get(&owner).cloned().unwrap_or_default();
        let counting = |(place, retired_in): &(Place, u64)| *retired_in == owner || listed.contains(place);
        view.retired = tombstones.into_iter().filter(counting).map(|(place, _)| place).collect();
        for generation in 2..=view.fences.last().copied().unwrap_or(0) {
            if !view.fences.contains(&generation) {
                audit.found("layout", format!("{prefix}fences/ has no generation {generation}: fences are contiguous"));
            }
        }
        view
    }

    fn fence(&mut self, stem: &str, bytes: &[u8]) -> Option<()> {
        match stem.strip_suffix(".base") {
            Some(generation) => {
                let base: Base = serde_json::from_slice(bytes).ok()?;
                let generation = generation.parse().ok()?;
                let of = |reference: Reference| (reference.generation, reference.seq);
                self.listed.insert(generation, base.tombstones.into_iter().map(of).collect());
                self.bases.insert(generation, base.newest.map(of));
            }
            None => {
                self.fences.insert(stem.parse().ok()?);
            }
        }
        Some(())
    }

    fn decision(&mut self, stem: &str, bytes: &[u8], full: &str, audit: &mut Audit) -> Option<()> {
        #[derive(Deserialize)]
        struct Kind {
            kind: String,
        }
        let place = place(stem)?;
        let kind: Kind = serde_json::from_slice(bytes).ok()?;
        let (decision, says) = match kind.kind.as_str() {
            "commit" => {
                let commit: Commit = serde_json::from_slice(bytes).ok()?;
                let says = (commit.generation, commit.seq);
                (Decision::Commit(Box::new(commit)), says)
            }
            "abort" => {
                let abort: Abort = serde_json::from_slice(bytes).ok()?;
                let says = (abort.generation, abort.seq);
                (Decision::Abort(abort), says)
            }
            _ => return None,
        };
        if says != place {
            audit.found("S3", format!("{full} says that it decides {says:?}"));
        }
        self.decisions.insert(place, decision);
        Some(())
    }

    /// Of the pipeline that owns the location.
    pub(super) fn highest_fence(&self) -> u64 {
        self.fences.last().copied().unwrap_or(0)
    }

    fn highest_with_base(&self) -> u64 {
        self.bases.keys().copied().filter(|base| self.fences.contains(base)).max().unwrap_or(1)
    }

    /// F1: of the highest generation that has a base (or 1) every commit counts, of an older one those that the next one's base includes.
    pub(super) fn counts(&self, (generation, seq): Place) -> bool {
        if generation == self.highest_with_base() {
            return true;
        }
        let base = self.bases.get(&(generation + 1)).copied().flatten();
        base.is_some_and(|(base_generation, newest)| base_generation == generation && seq <= newest)
    }

    /// Commits that count and are not retired.
    pub(super) fn standing(&self) -> impl Iterator<Item = (Place, &Commit)> {
        self.decisions.iter().filter_map(|(&place, decision)| match decision {
            Decision::Commit(commit) if self.counts(place) && !self.retired.contains(&place) => {
                Some((place, commit.as_ref()))
            }
            Decision::Commit(_) | Decision::Abort(_) => None,
        })
    }

    /// The commit at a place, if it counts, retired or not.
    pub(super) fn counted(&self, place: Place) -> Option<&Commit> {
        match self.decisions.get(&place)? {
            Decision::Commit(commit) if self.counts(place) => Some(commit),
            Decision::Commit(_) | Decision::Abort(_) => None,
        }
    }
}
