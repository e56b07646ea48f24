//! What an engine implements to embed the agent: where its local checkpoints are, how to hold one still, and how to put one back.
//!
//! All calls block and run on the agent's own low-priority threads, never on the engine's.

use std::{fmt, fs::File, path::PathBuf};

use lockstep_protocol::{
    id::{Fingerprint, LocalCheckpointId, Step},
    manifest::RelativePath,
    problem::Problem,
    selection::LocalCheckpoint,
};

pub mod directory;
mod durable;
pub mod engine;
pub mod feldera;
pub mod hold;
mod local_io;
pub mod look;
mod scratch;
mod walk;

pub use look::Look;

/// Local checkpoints of one host. Two implementations come with the agent: [`directory::DirectoryStore`] and [`feldera::FelderaStore`].
pub trait CheckpointStore: fmt::Debug + Send + Sync + 'static {
    /// Short name for `Describe`, logs and metrics: `directory`, `feldera` or the embedder's own.
    fn kind(&self) -> &'static str;

    /// Local checkpoints that a push may choose, oldest first. A half-made checkpoint is not listed.
    fn list(&self) -> Result<Vec<LocalCheckpoint>, Problem>;

    /// Keeps the files of one local checkpoint from the engine's clean-up until the guard drops. `CHECKPOINT_NOT_FOUND` if it is gone.
    fn hold(&self, id: LocalCheckpointId) -> Result<Box<dyn HeldCheckpoint>, Problem>;

    /// True if a file's content never changes once a checkpoint names it (the engine's promise; lets a push skip reading files it knows). That is a promise
    /// about files, not about names: the same path in another checkpoint may be another file, so what was learned of a file is kept by device, inode,
    /// size and modification time, never by path alone.
    fn files_are_immutable(&self) -> bool;

    /// An existing folder on the same file system as the checkpoints, where the engine's clean-up doesn't reach. The agent stages below it, in a
    /// folder of its own a transfer.
    fn staging_root(&self) -> Result<PathBuf, Problem>;

    /// Files of present local checkpoints that a pull may reuse instead of downloading, by the path a manifest would use for them. Digests
    /// are the caller's business.
    fn reusable_files(&self) -> Result<Vec<ReusableFile>, Problem>;

    /// Refuses (`ENGINE_RUNNING`) if the engine uses the directory now, so that a pull fails before it downloads anything.
    fn check_installable(&self) -> Result<(), Problem>;

    /// Makes a completely staged, verified and synced checkpoint visible to the engine by one rename, and removes every other local checkpoint, so
    /// that no step of an abandoned history can be chosen later. Idempotent: after a crash half way the same call, with the staging where it was or
    /// already moved, ends in the same state.
    fn install(&self, staged: &StagedCheckpoint) -> Result<(), Problem>;

    /// Removes every local checkpoint but this one; with None all of them, so that the engine starts fresh. `CHECKPOINT_NOT_FOUND`, and nothing removed,
    /// if the one to keep isn't there.
    fn retain_only(&self, keep: Option<LocalCheckpointId>) -> Result<(), Problem>;

    /// Where the agent keeps its own state (highest order) unless `--state-dir` says otherwise.
    fn default_state_dir(&self) -> PathBuf;
}

/// A local checkpoint whose files stay as they are until this drops.
pub trait HeldCheckpoint: fmt::Debug + Send + Sync {
    /// What is held.
    fn checkpoint(&self) -> &LocalCheckpoint;

    /// Its files. Paths are those that the part manifest will carry.
    fn files(&self) -> &[HeldFile];

    /// Opens one for reading, following no symlink; `SOURCE_UNSUPPORTED` for anything but a regular file, `SOURCE_CHANGED` if it vanished.
    fn open(&self, path: &RelativePath) -> Result<File, Problem>;

    /// What [`CheckpointStore::install`] needs to know beyond the files (the Feldera catalog entry); travels in the part manifest.
    fn store_meta(&self) -> &str;
}

/// One file of a held checkpoint, as it was when the hold was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldFile {
    /// As in the part manifest.
    pub path: RelativePath,
    /// Bytes.
    pub size: u64,
    /// What its metadata said then. A file that looks like one that was pushed or pulled before is not opened again; None: it is always read.
    pub look: Option<Look>,
}

/// A file on this host's disk whose content a pull may reuse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReusableFile {
    /// As in the part manifest of the checkpoint it belongs to.
    pub path: RelativePath,
    /// Bytes.
    pub size: u64,
    /// Where it is. On the same file system as the staging root, so it can be hard-linked if files are immutable.
    pub on_disk: PathBuf,
    /// What its metadata says, if it is known already.
    pub look: Option<Look>,
}

/// A checkpoint in staging: every file there, verified and synced.
#[derive(Clone, Debug)]
pub struct StagedCheckpoint {
    /// The folder that holds the files by their manifest paths.
    pub folder: PathBuf,
    /// Of the local checkpoint.
    pub id: LocalCheckpointId,
    /// Of the local checkpoint.
    pub step: Step,
    /// Of the program.
    pub fingerprint: Option<Fingerprint>,
    /// Records this host had processed.
    pub processed_records: Option<u64>,
    /// From the part manifest.
    pub store_meta: String,
    /// Every file's path.
    pub files: Vec<RelativePath>,
}
