//! Writing a local checkpoint safely, for engines that keep theirs in a [`super::DirectoryStore`].

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use lockstep_protocol::{
    id::LocalCheckpointId,
    manifest::RelativePath,
    problem::{Problem, Reason},
};

use super::document::{CheckpointDocument, FILE_NAME};
use crate::store::{
    durable,
    local_io::{exists, local},
    scratch::Scratch,
};

/// A checkpoint in the making. Nobody sees it before [`publish`](Self::publish); dropped before that, it leaves nothing.
#[derive(Debug)]
pub struct CheckpointWriter {
    id: LocalCheckpointId,
    scratch: Scratch,
    checkpoints: PathBuf,
    /// Not yet on disk for certain.
    unsynced: Vec<PathBuf>,
    /// Every folder that got a name in it.
    folders: Vec<PathBuf>,
}

impl CheckpointWriter {
    pub(super) fn begin(checkpoints: &Path, writing: &Path, id: LocalCheckpointId) -> Result<Self, Problem> {
        let scratch = Scratch::create(writing)?;
        let folder = scratch.path().join(id.to_string());
        fs::create_dir(&folder).map_err(|error| local("create folder", &folder, &error))?;
        Ok(Self { id, scratch, checkpoints: checkpoints.to_owned(), unsynced: Vec::new(), folders: vec![folder] })
    }

    fn folder(&self) -> PathBuf {
        self.scratch.path().join(self.id.to_string())
    }

    /// A new file to write into; it is synced by [`publish`](Self::publish).
    pub fn create(&mut self, path: &RelativePath) -> Result<File, Problem> {
        let at = self.make_room(path)?;
        let file = File::create_new(&at).map_err(|error| local("create", &at, &error))?;
        self.unsynced.push(at);
        Ok(file)
    }

    /// A new file with these bytes.
    pub fn write(&mut self, path: &RelativePath, bytes: &[u8]) -> Result<(), Problem> {
        use std::io::Write;
        self.create(path)?.write_all(bytes).map_err(|error| local("write", &self.folder().join(path.as_str()), &error))
    }

    /// The same file as in an earlier checkpoint, by a hard link: no bytes are copied, and both must never change.
    pub fn link(&mut self, path: &RelativePath, from: &Path) -> Result<(), Problem> {
        let at = self.make_room(path)?;
        fs::hard_link(from, &at).map_err(|error| local(&format!("link {} to", from.display()), &at, &error))
    }

    fn make_room(&mut self, path: &RelativePath) -> Result<PathBuf, Problem> {
        if path.as_str() == FILE_NAME {
            return Err(
                Problem::new(Reason::SpecInvalid, format!("{FILE_NAME} is written by publish")).with("path", path)
            );
        }
        let root = self.folder();
        for ancestor in path.ancestors() {
            let folder = root.join(ancestor);
            if !self.folders.contains(&folder) {
                fs::create_dir(&folder).map_err(|error| local("create folder", &folder, &error))?;
                self.folders.push(folder);
            }
        }
        Ok(root.join(path.as_str()))
    }

    /// Makes it visible, complete and durable, in one rename. `document.uuid` must be the id that it was begun with, and free.
    pub fn publish(mut self, document: &CheckpointDocument) -> Result<PathBuf, Problem> {
        if document.uuid != self.id {
            return Err(Problem::new(
                Reason::SpecInvalid,
                format!("the document says uuid {}, the checkpoint was begun as {}", document.uuid, self.id),
            )
            .with("expected_uuid", self.id)
            .with("found_uuid", document.uuid));
        }
        let place = self.checkpoints.join(self.id.to_string());
        if exists(&place)? {
            return Err(Problem::new(Reason::SpecInvalid, format!("local checkpoint {} is there already", self.id))
                .with("path", place.display()));
        }
        let named = self.folder().join(FILE_NAME);
        let bytes = serde_json::to_vec(document).map_err(|error| local("write", &named, &error.into()))?;
        fs::write(&named, bytes).map_err(|error| local("write", &named, &error))?;
        self.unsynced.push(named);
        for path in &self.unsynced {
            File::open(path).and_then(|file| file.sync_all()).map_err(|error| local("sync", path, &error))?;
        }
        self.folders.iter().try_for_each(|folder| durable::sync_folder(folder))?;
        durable::create_folder(&self.checkpoints)?;
        durable::rename(&self.folder(), &place)?;
        durable::sync_folder(&self.checkpoints)?;
        Ok(place)
    }
}
