//! Putting a staged checkpoint in place.
//!
//! Order is everything (each step is one rename or removal, and nothing is undone): the checkpoint's folder, its batches, the root's `state.json`, the steps
//! of the old history away, and last the catalog, with exactly the restored entry. Before the catalog's rename the old checkpoints are all still there and the
//! same call goes on where it stopped; after it only what nobody needs any more is left to remove. A catalog that is empty or missing while batches are there
//! never happens unless it was so before.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use lockstep_protocol::{
    manifest::RelativePath,
    problem::{Problem, Reason},
};

use super::{
    CatalogEntry, Trouble,
    dependencies::{self, Dependencies, state_path},
    layout::{DEPENDENCIES, Name, Root},
    meta::StoreMeta,
    walk,
};
use crate::store::{
    StagedCheckpoint, durable,
    local_io::{exists, read_document},
};

/// A controller's state is a few kilobytes to megabytes; it goes through memory once.
pub(super) const MAX_STATE_BYTES: u64 = 1 << 30;

/// Everything that is checked before the first change.
#[derive(Debug)]
struct Plan {
    entry: CatalogEntry,
    batches: Vec<RelativePath>,
    /// For the root; None if the part has none and no controller was there to need it.
    state: Option<Vec<u8>>,
    /// The staged folder; None if it has been moved.
    folder: Option<PathBuf>,
}

/// See the module. The engine must be kept out by the caller.
pub(super) fn install(root: &Root, staged: &StagedCheckpoint) -> Result<(), Problem> {
    let plan = Plan::check(root, staged)?;
    durable::replace_file(&root.installing(), staged.id.to_string().as_bytes(), &root.drafts())?;

    if let Some(folder) = &plan.folder {
        let place = root.folder(staged.id);
        root.trash().discard(&place)?;
        durable::rename(folder, &place)?;
    }
    for batch in &plan.batches {
        let from = staged.folder.join(batch.as_str());
        if exists(&from)? {
            // Where staging reused the file that is there by a hard link, both names mean one file and the rename does nothing: as wanted.
            durable::rename(&from, &root.at(batch))?;
        }
    }
    durable::sync_folder(root.path())?;

    if let Some(state) = &plan.state {
        durable::replace_file(&root.state(), state, &root.drafts())?;
    }
    root.trash().discard(&root.steps())?;
    if plan.state.is_none() {
        durable::remove_file(&root.state())?;
    }
    durable::sync_folder(root.path())?;

    durable::replace_file(&root.catalog(), &plan.entry.alone(), &root.drafts())?;

    remove_others(root, Some((&plan.entry, &plan.batches)))?;
    durable::remove_tree(&staged.folder)?;
    durable::remove_file(&root.installing())
}

/// Removes checkpoints' folders and batches that the catalog, which stands already, doesn't reach.
pub(super) fn remove_others(root: &Root, keep: Option<(&CatalogEntry, &[RelativePath])>) -> Result<(), Problem> {
    let batches: BTreeSet<&RelativePath> = keep.iter().flat_map(|(_, batches)| batches.iter()).collect();
    for name in root.checkpoint_names()? {
        match name {
            Name::Folder(id) if keep.is_none_or(|(entry, _)| entry.uuid != id) => {
                durable::remove_tree(&root.folder(id))?
            }
            Name::Batch(path) if !batches.contains(&path) => durable::remove_tree(&root.at(&path))?,
            Name::Folder(_) | Name::Batch(_) => {}
        }
    }
    if exists(root.path())? { durable::sync_folder(root.path()) } else { Ok(()) }
}

impl Plan {
    fn check(root: &Root, staged: &StagedCheckpoint) -> Result<Self, Problem> {
        let meta = StoreMeta::parse(&staged.store_meta)?;
        let entry = CatalogEntry::parse("the part's store_meta", &meta.entry)?;
        let said = (staged.id, Some(staged.step), staged.fingerprint);
        if (entry.uuid, entry.step, Some(entry.fingerprint)) != said {
            return Err(invalid(staged, format!("has a catalog entry for another checkpoint: {}", entry.verbatim)));
        }

        let folder = staged.folder.join(staged.id.to_string());
        let folder = exists(&folder)?.then_some(folder);
        let source = folder.clone().unwrap_or_else(|| root.folder(staged.id));
        let needs = Self::dependencies(&source, staged)?;
        Self::check_names(staged, &needs)?;
        Self::check_folder(&source, staged)?;
        for batch in &needs.batches {
            let from = staged.folder.join(batch.as_str());
            let at = if exists(&from)? { from } else { root.at(batch) };
            match at.symlink_metadata() {
                Ok(metadata) if metadata.is_file() => {}
                Ok(_) => return Err(invalid(staged, format!("has {} where a batch must be", at.display()))),
                Err(_) => return Err(lost(staged, &at)),
            }
        }

        let named = state_path(staged.id)?;
        let state = if staged.files.contains(&named) {
            let path = source.join(super::layout::STATE);
            Some(read_document(&path, MAX_STATE_BYTES).map_err(|trouble| known(staged, trouble))?)
        } else if meta.root_state_json {
            return Err(invalid(
                staged,
                format!("has no {named}, without which a Feldera controller would start fresh"),
            ));
        } else {
            None
        };
        Ok(Self { entry, batches: needs.batches, state, folder })
    }

    fn dependencies(source: &Path, staged: &StagedCheckpoint) -> Result<Dependencies, Problem> {
        let path = source.join(DEPENDENCIES);
        let bytes = read_document(&path, dependencies::MAX_BYTES).map_err(|trouble| known(staged, trouble))?;
        Dependencies::parse(&path.display().to_string(), staged.id, &bytes)
    }

    /// The part consists of the checkpoint's folder and its batches: all that it needs, and nothing that could land on other names in the root.
    fn check_names(staged: &StagedCheckpoint, needs: &Dependencies) -> Result<(), Problem> {
        let files: BTreeSet<&RelativePath> = staged.files.iter().collect();
        if let Some(missing) = needs.batches.iter().chain(&needs.required).find(|path| !files.contains(path)) {
            return Err(invalid(staged, format!("lacks {missing}, which its dependencies.json names")));
        }
        let inside = format!("{}/", staged.id);
        match files
            .into_iter()
            .find(|path| !path.as_str().starts_with(&inside) && needs.batches.binary_search(path).is_err())
        {
            Some(stray) => {
                Err(invalid(staged, format!("has {stray}, which is neither in its folder nor one of its batches")))
            }
            None => Ok(()),
        }
    }

    /// The folder has exactly the part's files.
    fn check_folder(source: &Path, staged: &StagedCheckpoint) -> Result<(), Problem> {
        let found = walk::regular_files(source).map_err(|trouble| known(staged, trouble))?;
        let found: BTreeSet<&str> = found.iter().map(|file| file.path.as_str()).collect();
        let inside = format!("{}/", staged.id);
        let wanted: BTreeSet<&str> =
            staged.files.iter().filter_map(|path| path.as_str().strip_prefix(&inside)).collect();
        if let Some(missing) = wanted.difference(&found).next() {
            return Err(lost(staged, &source.join(missing)));
        }
        match found.difference(&wanted).next() {
            Some(extra) => Err(invalid(
                staged,
                format!("has a file that its manifest doesn't name: {}", source.join(extra).display()),
            )),
            None => Ok(()),
        }
    }
}

fn known(staged: &StagedCheckpoint, trouble: Trouble) -> Problem {
    match trouble {
        Trouble::Gone(path) => lost(staged, &path),
        Trouble::Problem(problem) => problem,
    }
}

fn lost(staged: &StagedCheckpoint, path: &Path) -> Problem {
    Problem::new(
        Reason::CheckpointNotFound,
        format!(
            "local checkpoint {} is neither staged nor installed, {} is missing: pull it again",
            staged.id,
            path.display()
        ),
    )
    .with("local_checkpoint", staged.id)
    .with("path", path.display())
}

fn invalid(staged: &StagedCheckpoint, why: String) -> Problem {
    Problem::new(Reason::ManifestInvalid, format!("staged local checkpoint {} {why}", staged.id))
        .with("local_checkpoint", staged.id)
        .with("why", why)
}
