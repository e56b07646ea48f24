//! Going back to one of the local checkpoints, or to none.
//!
//! Here the catalog comes first, unlike in a restore: the checkpoint is in place already, and until the catalog is replaced nothing has happened. Should an
//! engine start after that and before the rest, the root's `state.json` names a checkpoint that the catalog doesn't, and the engine refuses: better than one that
//! goes on from the right checkpoint with the steps of an abandoned history.

use super::{
    CatalogEntry, Problem, Trouble, damaged,
    dependencies::{Dependencies, state_path},
    layout::Root,
    restore::{MAX_STATE_BYTES, remove_others},
};
use crate::store::{
    durable,
    local_io::{exists, read_document},
};

/// Keeps one checkpoint, after a look that all it needs is there.
pub(super) fn only(root: &Root, entry: &CatalogEntry) -> Result<(), Problem> {
    let id = entry.uuid;
    let gone = |trouble| match trouble {
        Trouble::Gone(path) => damaged(id, &path, "is missing"),
        Trouble::Problem(problem) => problem,
    };
    let needs = Dependencies::read(root, id).map_err(gone)?;
    for path in needs.batches.iter().chain(&needs.required) {
        let at = root.at(path);
        match at.symlink_metadata() {
            Ok(metadata) if metadata.is_file() => {}
            Ok(_) => return Err(damaged(id, &at, "is no regular file")),
            Err(_) => return Err(damaged(id, &at, "is missing")),
        }
    }
    let own = root.at(&state_path(id)?);
    let state = match read_document(&own, MAX_STATE_BYTES) {
        Ok(state) => Some(state),
        Err(Trouble::Gone(_)) if exists(&root.state())? => {
            return Err(damaged(id, &own, "is missing, though the root has a state.json"));
        }
        Err(Trouble::Gone(_)) => None,
        Err(Trouble::Problem(problem)) => return Err(problem),
    };

    durable::replace_file(&root.catalog(), &entry.alone(), &root.drafts())?;
    root.trash().discard(&root.steps())?;
    if let Some(state) = state {
        durable::replace_file(&root.state(), &state, &root.drafts())?;
    }
    remove_others(root, Some((entry, &needs.batches)))?;
    durable::remove_file(&root.installing())
}

/// Leaves what the engine makes of an empty directory: a catalog `[]`, and nothing that it would have to delete.
pub(super) fn nothing(root: &Root) -> Result<(), Problem> {
    durable::replace_file(&root.catalog(), b"[]", &root.drafts())?;
    root.trash().discard(&root.steps())?;
    durable::remove_file(&root.state())?;
    remove_others(root, None)?;
    durable::remove_file(&root.installing())
}
