//! Where everything lies: in memory if there is room, so that no disk is measured.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::statvfs::statvfs;
use tempfile::TempDir;

use crate::plan::DataSet;
use crate::{data, proc};

const SHM: &str = "/dev/shm";

/// What the machine and its processes need beside the files, when those lie in memory.
const SPARE: u64 = 2 << 30;

/// A fresh folder for what these data sets need; it goes with the handle.
pub(crate) fn create(dir: Option<&Path>, data_sets: &[DataSet], scale: f64) -> Result<TempDir> {
    // Source, the server's copy and what is pulled, of one data set at a time; and a little more.
    let needed = data_sets.iter().map(|set| data::size(*set, scale)).max().unwrap_or_default() * 13 / 4 + (64 << 20);
    let place = match dir {
        Some(dir) => {
            ensure!(dir.is_dir(), "--dir {} is not a folder", dir.display());
            let free = free(dir)?;
            ensure!(
                free >= needed,
                "--dir {} has {}, this needs {}: give another or a smaller --scale",
                dir.display(),
                mib(free),
                mib(needed)
            );
            dir.to_owned()
        }
        None => choose(needed)?,
    };
    tempfile::Builder::new().prefix("lockstep-bench-").tempdir_in(&place).with_context(|| place.display().to_string())
}

fn choose(needed: u64) -> Result<PathBuf> {
    let shm = Path::new(SHM);
    if shm.is_dir() && free(shm)? >= needed && proc::available_memory()? >= needed + SPARE {
        return Ok(shm.to_owned());
    }
    let temp = std::env::temp_dir();
    let free = free(&temp)?;
    if free < needed {
        bail!(
            "neither {SHM} nor {} ({}) has room for {}: give --dir or a smaller --scale",
            temp.display(),
            mib(free),
            mib(needed)
        );
    }
    eprintln!(
        "note: {SHM} has no room for {}: on the disk of {} figures say more about the disk",
        mib(needed),
        temp.display()
    );
    Ok(temp)
}

fn free(path: &Path) -> Result<u64> {
    let stat = statvfs(path).with_context(|| path.display().to_string())?;
    Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_fresh_and_goes() {
        let parent = tempfile::tempdir().unwrap();
        let made = create(Some(parent.path()), &[DataSet::B], 0.0).unwrap();
        let path = made.path().to_owned();
        assert!(path.starts_with(parent.path()));
        drop(made);
        assert!(!path.exists());
    }

    #[test]
    fn a_folder_without_room_is_refused_with_both_figures() {
        let parent = tempfile::tempdir().unwrap();
        let error = create(Some(parent.path()), &[DataSet::D], 1e6).unwrap_err().to_string();
        assert!(error.contains("MiB, this needs 1331200"), "{error}");
        assert!(
            create(Some(Path::new("/nowhere")), &[DataSet::B], 1.0).unwrap_err().to_string().contains("not a folder")
        );
    }
}
