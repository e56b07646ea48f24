//! Staging folders: one an attempt, fresh, made of folders and files that only this code created, so that nothing in them can lead outside.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    str::FromStr,
};

use lockstep_failpoint::{Point, reached};
use lockstep_protocol::{
    id::{Attempt, RoundId},
    manifest::{PartManifest, RelativePath},
    problem::Problem,
};

use crate::{
    durable::{self, io_problem},
    store::CheckpointStore,
};

/// Where an attempt stages.
pub(crate) fn folder(root: &Path, (round, attempt): (RoundId, Attempt)) -> PathBuf {
    root.join(format!("{round}-{attempt}"))
}

/// Removes the stagings of earlier processes: the coordinator orders Pull again when it sees the new incarnation.
pub(crate) fn clear(store: &dyn CheckpointStore) -> Result<(), Problem> {
    let root = store.staging_root()?;
    let entries = fs::read_dir(&root).map_err(|error| io_problem("read", &root, &error))?;
    for entry in entries {
        let entry = entry.map_err(|error| io_problem("read", &root, &error))?;
        let is_ours = entry.file_name().to_str().is_some_and(is_staging_name);
        if is_ours {
            let path = entry.path();
            reached(Point::StartBeforeStagingRemoved);
            remove(&path)?;
            tracing::info!(folder = %path.display(), "removed a staging that an earlier process left");
        }
    }
    Ok(())
}

/// The root may hold other things of the store.
fn is_staging_name(name: &str) -> bool {
    name.rsplit_once('-').is_some_and(|(round, attempt)| {
        RoundId::from_str(round).is_ok() && attempt.parse::<u32>().is_ok_and(|attempt| attempt > 0)
    })
}

/// Whatever is there: a symlink goes itself, not what it points at.
fn remove(path: &Path) -> Result<(), Problem> {
    let removed = match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => durable::remove_folder(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    removed.map_err(|error| io_problem("remove", path, &error))
}

/// A fresh folder with all subfolders of a part.
#[derive(Debug)]
pub(crate) struct Staging {
    root: PathBuf,
    folder: PathBuf,
    /// Innermost last.
    subfolders: Vec<PathBuf>,
}

impl Staging {
    /// Blocks. What stood at its place goes first.
    pub(crate) fn create(root: &Path, name: (RoundId, Attempt), part: &PartManifest) -> Result<Self, Problem> {
        let folder = folder(root, name);
        remove(&folder)?;
        let make = |path: &Path| fs::create_dir(path).map_err(|error| io_problem("create", path, &error));
        make(&folder)?;
        // Sorted: a folder comes before those in it. Each is created here, so none can be a symlink.
        let names: BTreeSet<&str> = part.files.iter().flat_map(|file| file.path.ancestors()).collect();
        let subfolders: Vec<PathBuf> = names.into_iter().map(|name| folder.join(name)).collect();
        subfolders.iter().try_for_each(|path| make(path))?;
        Ok(Self { root: root.to_owned(), folder, subfolders })
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn path(&self, path: &RelativePath) -> PathBuf {
        self.folder.join(path.as_str())
    }

    /// A new file; one that is there already, or a symlink, is an error.
    pub(crate) fn create_file(&self, path: &RelativePath) -> Result<File, Problem> {
        let path = self.path(path);
        OpenOptions::new().write(true).create_new(true).open(&path).map_err(|error| io_problem("create", &path, &error))
    }

    /// A file that was created here, to be written anew.
    pub(crate) fn open_file(&self, path: &RelativePath) -> Result<File, Problem> {
        let path = self.path(path);
        OpenOptions::new()
            .write(true)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(&path)
            .map_err(|error| io_problem("open", &path, &error))
    }

    /// Makes all names durable, after the content of the files.
    pub(crate) fn sync(&self) -> Result<(), Problem> {
        let folders = self.subfolders.iter().rev().chain([&self.folder, &self.root]);
        for folder in folders {
            durable::sync_folder(folder).map_err(|error| io_problem("sync", folder, &error))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_a_staging_has_are_cleared() {
        assert!(is_staging_name("33333333-3333-4333-8333-333333333333-2"));
        for other in
            ["33333333-3333-4333-8333-333333333333", "hold-2", "checkpoints", "33333333-3333-4333-8333-333333333333-0"]
        {
            assert!(!is_staging_name(other), "{other}");
        }
    }

    #[test]
    fn a_symlink_in_place_of_a_staging_goes_and_its_target_stays() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("target");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("precious"), b"x").unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&target, &link).unwrap();
        remove(&link).unwrap();
        assert!(link.symlink_metadata().is_err());
        assert!(target.join("precious").exists());
    }
}
