//! Putting a staged checkpoint in its place and taking all others away.

use std::{collections::BTreeSet, path::Path};

use lockstep_protocol::{
    id::{Fingerprint, LocalCheckpointId},
    problem::{Problem, Reason},
};

use super::{CheckpointDocument, DirectoryStore, FILE_NAME};
use crate::store::{
    StagedCheckpoint, durable,
    local_io::{Trouble, exists},
    walk,
};

impl DirectoryStore {
    /// Renames the staged folder to its place. What was there under the same id goes to the trash first: between the two renames the checkpoint is
    /// still whole in staging, and the same call puts it in place.
    pub(super) fn put_in_place(&self, staged: &StagedCheckpoint) -> Result<(), Problem> {
        let place = self.folder(staged.id);
        if !exists(&staged.folder)? {
            // An earlier call got this far, unless staging was lost.
            return check_complete(&place, staged);
        }
        check_complete(&staged.folder, staged)?;
        let checkpoints = self.checkpoints();
        durable::create_folder(&checkpoints)?;
        self.trash().discard(&place)?;
        durable::rename(&staged.folder, &place)?;
        durable::sync_folder(&checkpoints)?;
        // The folder's own name became durable only if the root knows it.
        durable::sync_folder(&self.root)
    }

    /// Everything that is named as a checkpoint goes, broken ones too.
    pub(super) fn discard_all_but(&self, keep: Option<LocalCheckpointId>) -> Result<(), Problem> {
        let mut others: Vec<_> = self.candidates()?.into_iter().filter(|(id, _)| Some(*id) != keep).collect();
        others.sort_by_key(|(id, _)| *id);
        others.iter().try_for_each(|(_, folder)| self.trash().discard(folder))
    }
}

/// Exactly the files that were pulled, and a `checkpoint.json` that says what the part manifest said.
fn check_complete(folder: &Path, staged: &StagedCheckpoint) -> Result<(), Problem> {
    let lost = |what: &Path| {
        Problem::new(
            Reason::CheckpointNotFound,
            format!(
                "local checkpoint {} is neither staged nor installed, {} is missing: pull it again",
                staged.id,
                what.display()
            ),
        )
        .with("local_checkpoint", staged.id)
        .with("path", what.display())
    };
    let known = |trouble: Trouble| match trouble {
        Trouble::Gone(path) => lost(&path),
        Trouble::Problem(problem) => problem,
    };
    let invalid = |why: String| {
        Problem::new(Reason::ManifestInvalid, format!("staged local checkpoint {} {why}", staged.id))
            .with("local_checkpoint", staged.id)
            .with("why", why)
    };
    let wanted: BTreeSet<&str> = staged.files.iter().map(|path| path.as_str()).collect();
    if !wanted.contains(FILE_NAME) {
        return Err(invalid(format!("has no {FILE_NAME}: it was not pushed from a directory store")));
    }
    let found = walk::regular_files(folder).map_err(known)?;
    let found: BTreeSet<&str> = found.iter().map(|file| file.path.as_str()).collect();
    if let Some(missing) = wanted.difference(&found).next() {
        return Err(lost(&folder.join(missing)));
    }
    if let Some(extra) = found.difference(&wanted).next() {
        return Err(invalid(format!("has a file that its manifest doesn't name: {extra}")));
    }
    let document = CheckpointDocument::read(folder, staged.id).map_err(known)?;
    if (document.step, document.fingerprint) != (staged.step, staged.fingerprint) {
        let shown = |f: Option<Fingerprint>| f.map_or_else(|| "none".to_owned(), |f| f.to_string());
        return Err(invalid(format!(
            "says step {} and fingerprint {} in its {FILE_NAME}, its manifest says step {} and fingerprint {}",
            document.step,
            shown(document.fingerprint),
            staged.step,
            shown(staged.fingerprint)
        )));
    }
    Ok(())
}
