//! What a commit reaches: the data objects of its parts, its part manifests, and the full manifests that these inherit (ADR 8).

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    commit::{CommitDocument, CommitRef},
    manifest::PartManifest,
    planted::{self, Bug},
    problem::{Problem, Reason},
};

/// Everything that one commit reaches, with sizes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CommitReach {
    /// Which commit.
    pub commit: CommitRef,
    /// Data objects.
    pub data: BTreeMap<String, u64>,
    /// Its own part manifests.
    pub manifests: BTreeMap<String, u64>,
    /// Part manifests that its own ones inherit.
    pub inherited: BTreeMap<String, u64>,
    /// False: its document or a part manifest is lost, and what that reached is not known.
    pub whole: bool,
}

impl CommitReach {
    /// Of a commit that must stay whole: every part resolved, by host. A part that could not be read is no part that reaches nothing, so it can't be left out.
    pub fn of(commit: CommitRef, document: &CommitDocument, parts: &[PartManifest]) -> Result<Self, Problem> {
        let parts: Vec<Option<&PartManifest>> = parts.iter().map(Some).collect();
        Self::collect(commit, document, &parts)
    }

    /// Of a commit that must stay, `None` for each part whose manifest, or what that inherits, is proven missing or damaged: what these may reach stays too.
    pub fn of_broken(
        commit: CommitRef,
        document: &CommitDocument,
        parts: &[Option<PartManifest>],
    ) -> Result<Self, Problem> {
        let whole = parts.iter().all(Option::is_some);
        Ok(Self { whole, ..Self::of_retired(commit, document, parts)? })
    }

    /// Of a commit of which the document can't be read: nothing of what it may reach is known.
    pub const fn of_unreadable(commit: CommitRef) -> Self {
        Self { commit, data: BTreeMap::new(), manifests: BTreeMap::new(), inherited: BTreeMap::new(), whole: false }
    }

    /// Of a retired commit. `None` for a part whose manifest, or what that inherits, was *proven* absent: an earlier sweep got that far, or it was destroyed. What it reached
    /// and is there still is an orphan.
    pub fn of_retired(
        commit: CommitRef,
        document: &CommitDocument,
        parts: &[Option<PartManifest>],
    ) -> Result<Self, Problem> {
        let parts: Vec<Option<&PartManifest>> = parts.iter().map(Option::as_ref).collect();
        Self::collect(commit, document, &parts)
    }

    fn collect(commit: CommitRef, document: &CommitDocument, parts: &[Option<&PartManifest>]) -> Result<Self, Problem> {
        if parts.len() != document.parts.len() {
            return Err(Problem::new(
                Reason::ManifestInvalid,
                format!(
                    "commit {}-{} has {} parts, {} were read",
                    commit.generation,
                    commit.seq,
                    document.parts.len(),
                    parts.len()
                ),
            )
            .with("generation", commit.generation)
            .with("seq", commit.seq));
        }
        let (data, manifests, inherited) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut reach = Self { commit, data, manifests, inherited, whole: true };
        for (named, part) in document.parts.iter().zip(parts) {
            reach.manifests.insert(named.manifest.clone(), named.manifest_length);
            let Some(part) = part else { continue };
            reach.data.extend(part.objects.iter().map(|object| (object.key.clone(), object.size)));
            if let Some(delta) = part.delta.as_ref().filter(|_| !planted::is(Bug::InheritedManifestsNotFollowed)) {
                reach.inherited.insert(delta.inherits().key.clone(), delta.inherits().length);
            }
        }
        Ok(reach)
    }

    fn keys(&self) -> impl Iterator<Item = &str> {
        [&self.data, &self.manifests, &self.inherited].into_iter().flat_map(BTreeMap::keys).map(String::as_str)
    }
}

/// Every key that some of these commits reach.
pub(super) fn reached<'r>(commits: impl IntoIterator<Item = &'r CommitReach>) -> BTreeSet<&'r str> {
    commits.into_iter().flat_map(CommitReach::keys).collect()
}

/// Refuses to go on when a commit that must be looked at was not.
pub(super) fn check_all_read(wanted: &[CommitRef], read: &[CommitReach]) -> Result<(), Problem> {
    let read: BTreeSet<CommitRef> = read.iter().map(|reach| reach.commit).collect();
    match wanted.iter().find(|commit| !read.contains(commit)) {
        None => Ok(()),
        Some(missing) => Err(Problem::new(
            Reason::CheckpointDamaged,
            format!(
                "commit {}-{} was not read, so what it reaches is not known and nothing is deleted",
                missing.generation, missing.seq
            ),
        )
        .with("generation", missing.generation)
        .with("seq", missing.seq)
        .with("checkpoint", missing.round)),
    }
}
