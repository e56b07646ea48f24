//! Local checkpoints as plain folders: `<root>/checkpoints/<uuid>/` with the engine's files and a [`document::CheckpointDocument`] in `checkpoint.json`.
//!
//! The engine's side of the contract:
//!
//! - a checkpoint appears by one rename ([`writer::CheckpointWriter`] does it), and a folder without `checkpoint.json` is none;
//! - files of a published checkpoint never change; hard links between checkpoints are welcome, and so is any depth of folders, but no symlinks;
//! - the engine removes old checkpoints as it likes ([`DirectoryStore::remove`] does it safely), and leaves `<root>/.lockstep` alone.
//!
//! Empty folders are not part of a checkpoint: they don't survive a push and pull.

use std::{
    fs,
    path::{Path, PathBuf},
};

use lockstep_protocol::{
    id::LocalCheckpointId,
    problem::{Problem, Reason},
    selection::LocalCheckpoint,
};

use super::{
    CheckpointStore, HeldCheckpoint, ReusableFile, StagedCheckpoint,
    durable::{self, Trash},
    engine::EngineCheck,
    hold::{Hold, Holding},
    local_io::{Trouble, exists, local},
    scratch, walk,
};
use document::{CheckpointDocument, FILE_NAME};

pub mod document;
mod install;
pub mod writer;

#[cfg(test)]
mod tests;

/// The store over one such root.
#[derive(Debug)]
pub struct DirectoryStore {
    root: PathBuf,
    engine: EngineCheck,
    holding: Holding,
}

impl DirectoryStore {
    /// Opens `root`, which need not exist yet, and removes what dead processes left in its `.lockstep` folder.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, Problem> {
        let store = Self { root: root.into(), engine: EngineCheck::never_running(), holding: Holding::default() };
        scratch::sweep(&store.hold_root())?;
        scratch::sweep(&store.writing_root())?;
        store.trash().empty()?;
        Ok(store)
    }

    /// Asks the embedder whether the engine runs. Without it the engine is trusted to read its directory only between installs.
    #[must_use]
    pub fn with_engine_check(mut self, check: EngineCheck) -> Self {
        self.engine = check;
        self
    }

    /// How checkpoints are held.
    #[must_use]
    pub fn with_holding(mut self, holding: Holding) -> Self {
        self.holding = holding;
        self
    }

    /// Begins to write a local checkpoint, on the engine's side.
    pub fn writer(&self, id: LocalCheckpointId) -> Result<writer::CheckpointWriter, Problem> {
        writer::CheckpointWriter::begin(&self.checkpoints(), &self.writing_root(), id)
    }

    /// Removes one local checkpoint in one step, on the engine's side. Does nothing if it is gone.
    pub fn remove(&self, id: LocalCheckpointId) -> Result<(), Problem> {
        self.trash().discard(&self.folder(id))
    }

    /// Where a local checkpoint's files are.
    pub fn folder(&self, id: LocalCheckpointId) -> PathBuf {
        self.checkpoints().join(id.to_string())
    }

    fn checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    fn own(&self) -> PathBuf {
        self.root.join(".lockstep")
    }

    fn hold_root(&self) -> PathBuf {
        self.own().join("hold")
    }

    fn writing_root(&self) -> PathBuf {
        self.own().join("writing")
    }

    fn trash(&self) -> Trash {
        Trash::new(self.own().join("trash"))
    }

    /// Names in the folder of checkpoints that are ids, with their paths. A root that isn't there has none.
    fn candidates(&self) -> Result<Vec<(LocalCheckpointId, PathBuf)>, Problem> {
        let folder = self.checkpoints();
        let listing = match fs::read_dir(&folder) {
            Ok(listing) => listing,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(local("list", &folder, &error)),
        };
        let mut found = Vec::new();
        for entry in listing {
            let entry = entry.map_err(|error| local("list", &folder, &error))?;
            match entry.file_name().to_str().map(str::parse) {
                Some(Ok(id)) => found.push((id, entry.path())),
                _ if exists(&entry.path().join(FILE_NAME)).unwrap_or(false) => {
                    tracing::warn!(path = %entry.path().display(), "holds a checkpoint.json but is not named by a UUID: ignored");
                }
                _ => {}
            }
        }
        Ok(found)
    }

    /// What a candidate says of itself; None if it is no checkpoint (any more).
    fn read(&self, id: LocalCheckpointId, folder: &Path) -> Result<Option<LocalCheckpoint>, Problem> {
        let files = match walk::regular_files_so_far(folder) {
            Ok(files) => files,
            Err(Trouble::Gone(_)) => return Ok(None),
            Err(Trouble::Problem(problem)) => return Err(problem),
        };
        match CheckpointDocument::read(folder, id) {
            Ok(document) => Ok(Some(document.describe(files.iter().map(|file| file.size).sum(), files.len() as u64))),
            Err(Trouble::Gone(_)) => Ok(None),
            Err(Trouble::Problem(problem)) => Err(problem),
        }
    }

    fn not_found(&self, id: LocalCheckpointId) -> Problem {
        Problem::new(Reason::CheckpointNotFound, format!("{} has no local checkpoint {id}", self.root.display()))
            .with("path", self.root.display())
            .with("local_checkpoint", id)
    }
}

impl CheckpointStore for DirectoryStore {
    fn kind(&self) -> &'static str {
        "directory"
    }

    /// A broken checkpoint is passed over with a warning, so that it doesn't stop the pushes of its successors. But where nothing else is left it is an
    /// error: "no checkpoint" would be the permission to start fresh.
    fn list(&self) -> Result<Vec<LocalCheckpoint>, Problem> {
        let mut found = Vec::new();
        let mut broken = None;
        for (id, folder) in self.candidates()? {
            match self.read(id, &folder) {
                Ok(checkpoint) => found.extend(checkpoint),
                Err(problem) => {
                    tracing::warn!(path = %folder.display(), %problem, "broken local checkpoint passed over");
                    broken = Some(problem);
                }
            }
        }
        match broken {
            Some(problem) if found.is_empty() => Err(problem),
            _ => {
                found.sort_by_key(|checkpoint| (checkpoint.created_at, checkpoint.step, checkpoint.id));
                Ok(found)
            }
        }
    }

    fn hold(&self, id: LocalCheckpointId) -> Result<Box<dyn HeldCheckpoint>, Problem> {
        let folder = self.folder(id);
        let attempt = || {
            let document = CheckpointDocument::read(&folder, id)?;
            let mut hold = Hold::begin(&self.hold_root(), self.holding)?;
            for file in walk::regular_files(&folder)? {
                let original = folder.join(file.path.as_str());
                hold.keep(file.path, &original)?;
            }
            let checkpoint = document.describe(hold.bytes(), hold.len());
            Ok(hold.finish(checkpoint, String::new()))
        };
        match attempt() {
            Ok(held) => Ok(Box::new(held)),
            Err(Trouble::Problem(problem)) => Err(problem),
            Err(Trouble::Gone(path)) if exists(&folder.join(FILE_NAME))? => Err(Problem::new(
                Reason::SourceChanged,
                format!("{} vanished while local checkpoint {id} was being held", path.display()),
            )
            .with("path", path.display())
            .with("local_checkpoint", id)),
            Err(Trouble::Gone(_)) => Err(self.not_found(id)),
        }
    }

    fn files_are_immutable(&self) -> bool {
        true
    }

    fn staging_root(&self) -> Result<PathBuf, Problem> {
        let staging = self.own().join("staging");
        durable::own_folder(&staging)?;
        Ok(staging)
    }

    fn reusable_files(&self) -> Result<Vec<ReusableFile>, Problem> {
        let mut reusable = Vec::new();
        for (_, folder) in self.candidates()? {
            match walk::regular_files_so_far(&folder) {
                Ok(files) => reusable.extend(files.into_iter().map(|file| {
                    let on_disk = folder.join(file.path.as_str());
                    ReusableFile { path: file.path, size: file.size, on_disk, look: Some(file.look) }
                })),
                Err(trouble) => tracing::debug!(path = %folder.display(), ?trouble, "nothing to reuse here"),
            }
        }
        Ok(reusable)
    }

    fn check_installable(&self) -> Result<(), Problem> {
        self.engine.refuse_if_running(&self.root)
    }

    fn install(&self, staged: &StagedCheckpoint) -> Result<(), Problem> {
        self.check_installable()?;
        self.put_in_place(staged)?;
        self.discard_all_but(Some(staged.id))
    }

    fn retain_only(&self, keep: Option<LocalCheckpointId>) -> Result<(), Problem> {
        self.check_installable()?;
        if let Some(id) = keep
            && self.read(id, &self.folder(id))?.is_none()
        {
            return Err(self.not_found(id));
        }
        self.discard_all_but(keep)
    }

    fn default_state_dir(&self) -> PathBuf {
        self.own().join("state")
    }
}
