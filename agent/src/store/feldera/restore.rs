//! Putting a staged checkpoint in place.
//!
//! Order is everything (each step is one rename or removal, and nothing is undone): the checkpoint's files, the root's `state.json`, the steps of the old
//! history away, and last the catalog, with exactly the restored entry. Before the catalog's rename the old checkpoints are all still there and the
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
    local_io::{describe, exists, read_document},
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
}

/// See the module. The engine must be kept out by the caller.
pub(super) fn install(root: &Root, staged: &StagedCheckpoint) -> Result<(), Problem> {
    let plan = Plan::check(root, staged)?;
    durable::replace_file(&root.installing(), staged.id.to_string().as_bytes(), &root.drafts())?;

    make_room(root, staged)?;
    move_files(root, staged)?;

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

/// The old catalog may name this very checkpoint. So a folder that is there stays, and its files are replaced one by one: it is never without them. Only
/// what doesn't belong into it goes; all of it, if a symlink or the like is in it.
fn make_room(root: &Root, staged: &StagedCheckpoint) -> Result<(), Problem> {
    let place = root.folder(staged.id);
    let inside = format!("{}/", staged.id);
    let wanted: BTreeSet<&str> = staged.files.iter().filter_map(|path| path.as_str().strip_prefix(&inside)).collect();
    match walk::regular_files(&place) {
        Ok(found) => {
            for file in found.iter().filter(|file| !wanted.contains(file.path.as_str())) {
                durable::remove_file(&place.join(file.path.as_str()))?;
            }
            Ok(())
        }
        Err(Trouble::Gone(_)) => Ok(()),
        Err(Trouble::Problem(problem)) if problem.reason == Reason::SourceUnsupported => root.trash().discard(&place),
        Err(Trouble::Problem(problem)) => Err(problem),
    }
}

fn move_files(root: &Root, staged: &StagedCheckpoint) -> Result<(), Problem> {
    let mut folders = BTreeSet::from([root.path().to_owned()]);
    for path in &staged.files {
        let (from, to) = (staged.folder.join(path.as_str()), root.at(path));
        for ancestor in path.ancestors() {
            let folder = root.path().join(ancestor);
            if !exists(&folder)? {
                durable::create_folder(&folder)?;
            }
            folders.insert(folder);
        }
        if exists(&from)? {
            if to.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
                root.trash().discard(&to)?;
            }
            // Where staging reused the file that is there by a hard link, both names mean one file and the rename does nothing: as wanted.
            durable::rename(&from, &to)?;
        }
    }
    // Innermost first: a name is worth something only when what it names is there.
    folders.iter().rev().try_for_each(|folder| durable::sync_folder(folder))
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

        let dependencies = RelativePath::new(format!("{}/{DEPENDENCIES}", staged.id))?;
        let source = Self::present(root, staged, &dependencies)?;
        let bytes = read_document(&source, dependencies::MAX_BYTES).map_err(|trouble| known(staged, trouble))?;
        let needs = Dependencies::parse(&source.display().to_string(), staged.id, &bytes)?;
        Self::check_names(staged, &needs)?;
        Self::check_nothing_else(staged)?;
        for path in &staged.files {
            Self::present(root, staged, path)?;
        }

        let named = state_path(staged.id)?;
        let state = if staged.files.contains(&named) {
            let path = Self::present(root, staged, &named)?;
            Some(read_document(&path, MAX_STATE_BYTES).map_err(|trouble| known(staged, trouble))?)
        } else if meta.root_state_json {
            return Err(invalid(
                staged,
                format!("has no {named}, without which a Feldera controller would start fresh"),
            ));
        } else {
            None
        };
        Ok(Self { entry, batches: needs.batches, state })
    }

    /// Where a file is: in staging, or, if an earlier call got that far, in its place.
    fn present(root: &Root, staged: &StagedCheckpoint, path: &RelativePath) -> Result<PathBuf, Problem> {
        let from = staged.folder.join(path.as_str());
        let at = if exists(&from)? { from } else { root.at(path) };
        match at.symlink_metadata() {
            Ok(metadata) if metadata.is_file() => Ok(at),
            Ok(metadata) => {
                Err(invalid(staged, format!("can't use {}, which {}", at.display(), describe(metadata.file_type()))))
            }
            Err(error) => Err(known(staged, Trouble::of("stat", &at, &error))),
        }
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

    /// Staging holds no file that the manifest doesn't name.
    fn check_nothing_else(staged: &StagedCheckpoint) -> Result<(), Problem> {
        let found = match walk::regular_files(&staged.folder) {
            Ok(found) => found,
            Err(Trouble::Gone(_)) => return Ok(()),
            Err(Trouble::Problem(problem)) => return Err(problem),
        };
        let wanted: BTreeSet<&RelativePath> = staged.files.iter().collect();
        match found.iter().find(|file| !wanted.contains(&file.path)) {
            Some(extra) => Err(invalid(staged, format!("has a file that its manifest doesn't name: {}", extra.path))),
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
