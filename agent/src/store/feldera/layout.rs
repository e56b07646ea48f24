//! Names in a storage directory.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use lockstep_protocol::{
    id::LocalCheckpointId,
    manifest::RelativePath,
    problem::{Problem, Reason},
};
use uuid::Uuid;

use super::{CatalogEntry, ReusableFile, Trouble, dependencies::Dependencies, local, walk};
use crate::store::{durable::Trash, local_io::exists, look::Look};

/// The engine's catalog. Ends like a batch but is none.
const CATALOG: &str = "checkpoints.feldera";
/// Of the controller. Ends like a batch but is none.
const ACTIVATION_MARKER: &str = "activated.feldera";
/// In each checkpoint's folder.
pub(super) const MARKER: &str = "CHECKPOINT";
/// In each checkpoint's folder.
pub(super) const DEPENDENCIES: &str = "dependencies.json";
/// In a checkpoint's folder, and in the root that of the newest.
pub(super) const STATE: &str = "state.json";
const BATCH_SUFFIX: &str = ".feldera";

/// The directory, and where everything is in it.
#[derive(Clone, Debug)]
pub(super) struct Root(PathBuf);

impl Root {
    pub(super) const fn new(path: PathBuf) -> Self {
        Self(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn catalog(&self) -> PathBuf {
        self.0.join(CATALOG)
    }

    pub(super) fn state(&self) -> PathBuf {
        self.0.join(STATE)
    }

    pub(super) fn steps(&self) -> PathBuf {
        self.0.join("steps.bin")
    }

    pub(super) fn pidlock(&self) -> PathBuf {
        self.0.join("feldera.pidlock")
    }

    pub(super) fn folder(&self, id: LocalCheckpointId) -> PathBuf {
        self.0.join(id.to_string())
    }

    pub(super) fn at(&self, path: &RelativePath) -> PathBuf {
        self.0.join(path.as_str())
    }

    /// Ours; the engine leaves everything below `coordinator/` alone.
    pub(super) fn own(&self) -> PathBuf {
        self.0.join("coordinator/lockstep")
    }

    pub(super) fn holds(&self) -> PathBuf {
        self.own().join("hold")
    }

    pub(super) fn drafts(&self) -> PathBuf {
        self.own().join("draft")
    }

    pub(super) fn trash(&self) -> Trash {
        Trash::new(self.own().join("trash"))
    }

    /// There while an install is under way: what the catalog doesn't name may be its half.
    pub(super) fn installing(&self) -> PathBuf {
        self.own().join("installing")
    }

    /// All names in it; none if it doesn't exist. Names that are no UTF-8 are never the engine's.
    fn names(&self) -> Result<Vec<String>, Problem> {
        let listing = match fs::read_dir(&self.0) {
            Ok(listing) => listing,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(local("list", &self.0, &error)),
        };
        let mut names = Vec::new();
        for entry in listing {
            let entry = entry.map_err(|error| local("list", &self.0, &error))?;
            names.extend(entry.file_name().into_string().ok());
        }
        names.sort();
        Ok(names)
    }

    /// Names of checkpoints' folders and of batches, whether any checkpoint needs them or not.
    pub(super) fn checkpoint_names(&self) -> Result<Vec<Name>, Problem> {
        Ok(self.names()?.into_iter().filter_map(Name::of).collect())
    }

    /// Bytes and number of the files of a checkpoint, as far as they are there.
    pub(super) fn extent(&self, entry: &CatalogEntry) -> Result<(u64, u64), Problem> {
        let mut sizes: Vec<u64> = match walk::regular_files_so_far(&self.folder(entry.uuid)) {
            Ok(files) => files.into_iter().map(|file| file.size).collect(),
            // Gone or no folder at all: it is in the catalog, so it is listed, and a hold says what is wrong with it.
            Err(Trouble::Gone(_)) => Vec::new(),
            Err(Trouble::Problem(problem)) if problem.reason == Reason::SourceUnsupported => Vec::new(),
            Err(Trouble::Problem(problem)) => return Err(problem),
        };
        let batches = Dependencies::read(self, entry.uuid).map(|dependencies| dependencies.batches).unwrap_or_default();
        sizes.extend(batches.iter().filter_map(|batch| self.at(batch).symlink_metadata().ok()).map(|m| m.len()));
        Ok((sizes.iter().sum(), sizes.len() as u64))
    }

    /// Batches and files of checkpoints that are there.
    pub(super) fn reusable_files(&self) -> Result<Vec<ReusableFile>, Problem> {
        let mut reusable = Vec::new();
        for name in self.checkpoint_names()? {
            match name {
                Name::Batch(path) => {
                    let on_disk = self.at(&path);
                    if let Ok(metadata) = on_disk.symlink_metadata()
                        && metadata.is_file()
                    {
                        reusable.push(ReusableFile {
                            path,
                            size: metadata.len(),
                            on_disk,
                            look: Some(Look::of(&metadata)),
                        });
                    }
                }
                Name::Folder(id) => {
                    for file in walk::regular_files_so_far(&self.folder(id)).unwrap_or_default() {
                        if let Ok(path) = RelativePath::new(format!("{id}/{}", file.path)) {
                            let on_disk = self.at(&path);
                            reusable.push(ReusableFile { path, size: file.size, on_disk, look: Some(file.look) });
                        }
                    }
                }
            }
        }
        Ok(reusable)
    }

    /// Refuses to take a missing catalog for an empty one where the engine would delete what lies there.
    pub(super) fn prove_empty(&self) -> Result<(), Problem> {
        let names = self.checkpoint_names()?;
        // A pull into a new directory that was cut short leaves its files and no catalog yet. They are in nobody's checkpoint, and the same pull
        // overwrites them.
        if names.is_empty() || exists(&self.installing())? {
            return Ok(());
        }
        let catalog = self.catalog();
        Err(Problem::new(
            Reason::ManifestInvalid,
            format!(
                "{} is missing, but {} checkpoint folders and batches are there, which the engine would delete at its start: restore the \
                 catalog, or pull a checkpoint",
                catalog.display(),
                names.len()
            ),
        )
        .with("path", catalog.display())
        .with("found", names.len()))
    }
}

/// A name in the root that belongs to checkpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Name {
    Folder(LocalCheckpointId),
    Batch(RelativePath),
}

impl Name {
    fn of(name: String) -> Option<Self> {
        if let Ok(id) = name.parse() {
            return Some(Self::Folder(id));
        }
        // Only what a batch is called by today's engine; what else ends like one is the engine's to clean up.
        let stem = name.strip_suffix(BATCH_SUFFIX)?;
        let uuid = match stem.split_once('-') {
            Some((worker, uuid))
                if worker.strip_prefix('w').is_some_and(|n| !n.is_empty() && n.bytes().all(|c| c.is_ascii_digit())) =>
            {
                uuid
            }
            _ => stem,
        };
        Uuid::try_parse(uuid).ok()?;
        RelativePath::new(name).ok().map(Self::Batch)
    }
}

/// A batch's name as some document gives it: one plain name in the root, of a batch and nothing else.
pub(super) fn batch_path(name: &str) -> Result<RelativePath, &'static str> {
    if name.contains('/') {
        return Err("is no plain file name");
    }
    if !name.ends_with(BATCH_SUFFIX) || matches!(name, CATALOG | ACTIVATION_MARKER | BATCH_SUFFIX) {
        return Err("is no batch's name");
    }
    RelativePath::new(name).map_err(|_| "is no plain file name")
}
