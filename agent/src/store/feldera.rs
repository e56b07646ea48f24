//! A DBSP storage directory as the `dbsp` crate writes it and Feldera's controller uses it. What this module relies on, and how it was found out, stands in
//! the design notes on Feldera's storage; the traps in short:
//!
//! - a checkpoint is real only once the catalog, `checkpoints.feldera`, names it, and the engine deletes at its start whatever the catalog doesn't reach. So a
//!   catalog that can't be read is an error here and never "no checkpoints";
//! - Feldera starts from the `state.json` in the root, not from the catalog;
//! - `feldera.pidlock` is an fcntl lock: a process that holds it loses it when it closes *any* descriptor of that file (`lock`);
//! - below `coordinator/` nothing is cleaned up by the engine: our hold folders, staging and trash live there.
//!
//! Paths in a part manifest are those in the root: `<uuid>/CHECKPOINT`, `w0-….feldera`. The catalog entry travels as it was written in the part's
//! `store_meta`; the root's `state.json` doesn't travel, it is made from the checkpoint's own.
//!
//! Other files in the root (`status.json`, `activated.feldera`, `datafusion-tmp/`, what else is in `coordinator/`) are neither copied nor touched.

use std::path::PathBuf;

use lockstep_protocol::{
    id::LocalCheckpointId,
    problem::{Problem, Reason},
    selection::LocalCheckpoint,
};

use super::{
    CheckpointStore, HeldCheckpoint, ReusableFile, StagedCheckpoint, durable,
    engine::EngineCheck,
    hold::Holding,
    local_io::{Trouble, local},
    scratch, walk,
};
use catalog::{Catalog, CatalogEntry};
use layout::Root;
use lock::EngineLock;

mod catalog;
mod dependencies;
mod holding;
mod layout;
mod lock;
mod meta;
mod restore;
mod retain;
mod state_wait;

#[cfg(test)]
mod tests;

pub use state_wait::StateWait;

/// The store over one host's storage directory.
#[derive(Debug)]
pub struct FelderaStore {
    root: Root,
    lock: EngineLock,
    holding: Holding,
    state_wait: StateWait,
}

impl FelderaStore {
    /// Opens `root`, which need not exist yet, and removes what dead processes left in `coordinator/lockstep`. The engine, if it runs, is another process.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, Problem> {
        let root = Root::new(root.into());
        scratch::sweep(&root.holds())?;
        root.trash().empty()?;
        durable::remove_tree(&root.drafts())?;
        Ok(Self { root, lock: EngineLock::PidLock, holding: Holding::default(), state_wait: StateWait::default() })
    }

    /// For an agent inside the engine's own process: the engine is asked and its lock file is never opened, because closing it would release the lock.
    #[must_use]
    pub fn embedded(mut self, check: EngineCheck) -> Self {
        self.lock = EngineLock::Embedder(check);
        self
    }

    /// How checkpoints are held.
    #[must_use]
    pub fn with_holding(mut self, holding: Holding) -> Self {
        self.holding = holding;
        self
    }

    /// How long a hold waits for a checkpoint's `state.json`, which older controllers write after the catalog. 10 s unless told.
    #[must_use]
    pub fn with_state_wait(mut self, wait: StateWait) -> Self {
        self.state_wait = wait;
        self
    }

    fn not_found(&self, id: LocalCheckpointId, catalog: &Catalog) -> Problem {
        let newest = catalog
            .candidates()
            .last()
            .map_or_else(|| "none".to_owned(), |(entry, step)| format!("{} at step {step}", entry.uuid));
        Problem::new(
            Reason::CheckpointNotFound,
            format!(
                "{} has no local checkpoint {id}, or no longer; its newest is {newest}",
                self.root.path().display()
            ),
        )
        .with("path", self.root.path().display())
        .with("local_checkpoint", id)
        .with("newest", newest)
    }
}

impl CheckpointStore for FelderaStore {
    fn kind(&self) -> &'static str {
        "feldera"
    }

    /// Empty only where that is proven: no such directory, a catalog `[]`, or neither a catalog nor anything that one could name.
    fn list(&self) -> Result<Vec<LocalCheckpoint>, Problem> {
        let catalog = Catalog::read(&self.root)?;
        let mut listed = Vec::new();
        for (entry, step) in catalog.candidates() {
            let (bytes, files) = self.root.extent(entry)?;
            listed.push(entry.describe(step, bytes, files));
        }
        Ok(listed)
    }

    fn hold(&self, id: LocalCheckpointId) -> Result<Box<dyn HeldCheckpoint>, Problem> {
        let catalog = Catalog::read(&self.root)?;
        let Some((entry, step)) = catalog.candidates().find(|(entry, _)| entry.uuid == id) else {
            return Err(self.not_found(id, &catalog));
        };
        match self.try_hold(entry, step) {
            // Still in the catalog now that all is linked: so the engine had deleted nothing of it.
            Ok(held) => match Catalog::read(&self.root)? {
                now if now.find(id) == Some(entry) => Ok(Box::new(held)),
                now => Err(self.not_found(id, &now)),
            },
            Err(Trouble::Problem(problem)) => Err(problem),
            Err(Trouble::Gone(path)) => {
                // The engine takes a checkpoint out of the catalog before it deletes files: if it is still in, they are missing for another reason.
                let now = Catalog::read(&self.root)?;
                Err(if now.find(id).is_some() { damaged(id, &path, "is missing") } else { self.not_found(id, &now) })
            }
        }
    }

    fn files_are_immutable(&self) -> bool {
        true
    }

    fn staging_root(&self) -> Result<PathBuf, Problem> {
        let staging = self.root.own().join("staging");
        durable::own_folder(&staging)?;
        Ok(staging)
    }

    /// Does not ask the catalog: what is reused is judged by its digest, and a pull must be able to repair a broken catalog.
    fn reusable_files(&self) -> Result<Vec<ReusableFile>, Problem> {
        self.root.reusable_files()
    }

    fn check_installable(&self) -> Result<(), Problem> {
        self.lock.refuse_if_running(&self.root)
    }

    fn install(&self, staged: &StagedCheckpoint) -> Result<(), Problem> {
        let _engine_kept_out = self.lock.keep_engine_out(&self.root)?;
        restore::install(&self.root, staged)
    }

    fn retain_only(&self, keep: Option<LocalCheckpointId>) -> Result<(), Problem> {
        let _engine_kept_out = self.lock.keep_engine_out(&self.root)?;
        let Some(id) = keep else { return retain::nothing(&self.root) };
        let catalog = Catalog::read(&self.root)?;
        let Some((entry, _)) = catalog.candidates().find(|(entry, _)| entry.uuid == id) else {
            return Err(self.not_found(id, &catalog));
        };
        retain::only(&self.root, entry)
    }

    fn default_state_dir(&self) -> PathBuf {
        self.root.own().join("state")
    }
}

/// `CHECKPOINT_DAMAGED`: the catalog names it, yet it can't be restored as it is.
fn damaged(id: LocalCheckpointId, path: &std::path::Path, what: &str) -> Problem {
    Problem::new(Reason::CheckpointDamaged, format!("local checkpoint {id} can't be used: {} {what}", path.display()))
        .with("local_checkpoint", id)
        .with("path", path.display())
        .with("why", what)
}
