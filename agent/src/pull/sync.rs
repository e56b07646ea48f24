//! Makes staged files durable: each by itself while they are few, else all of the file system at once, so that no file is waited for.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::{StreamExt, TryStreamExt, stream};
use lockstep_protocol::problem::Problem;

use crate::{
    durable::io_problem,
    work::{DISK_THREADS, Work},
};

/// Above this many files one sync of the file system is cheaper, whatever else it holds.
const FEW: usize = 64;

/// Files whose content may not be on the disk yet. They stay open, because the system tells a failed write-back only to those who had the file open when it failed.
#[derive(Debug)]
pub(super) struct Unsynced {
    path: PathBuf,
    /// Opened before anything was written, for the same reason.
    folder: File,
    files: Mutex<Files>,
}

#[derive(Debug)]
enum Files {
    Few(Vec<(PathBuf, Arc<File>)>),
    Many,
}

impl Unsynced {
    /// `folder` is on the file system that the files are written to. Blocks.
    pub(super) fn on(folder: &Path) -> Result<Self, Problem> {
        let open = File::open(folder).map_err(|error| io_problem("open", folder, &error))?;
        Ok(Self { path: folder.to_owned(), folder: open, files: Mutex::new(Files::Few(Vec::new())) })
    }

    fn lock(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be synced, too. `open` is asked for the file only while files are few.
    pub(super) fn add(&self, path: &Path, open: impl FnOnce() -> io::Result<Arc<File>>) -> Result<(), Problem> {
        if matches!(*self.lock(), Files::Many) {
            return Ok(());
        }
        let file = open().map_err(|error| io_problem("open", path, &error))?;
        let mut files = self.lock();
        let too_many = match &mut *files {
            Files::Few(few) if few.len() < FEW => {
                few.push((path.to_owned(), file));
                None
            }
            other => Some(std::mem::replace(other, Files::Many)),
        };
        drop(files);
        // Closed without the lock.
        drop(too_many);
        Ok(())
    }

    /// Returns when the content of all of them is on the disk.
    pub(super) async fn sync(self: &Arc<Self>, work: &Work) -> Result<(), Problem> {
        let files = std::mem::replace(&mut *self.lock(), Files::Few(Vec::new()));
        match files {
            Files::Few(few) => {
                stream::iter(few)
                    .map(|(path, file)| {
                        work.disk(move |_| file.sync_all().map_err(|error| io_problem("sync", &path, &error)))
                    })
                    .buffer_unordered(DISK_THREADS)
                    .try_collect()
                    .await
            }
            Files::Many => {
                let this = Arc::clone(self);
                work.disk(move |_| {
                    nix::unistd::syncfs(&this.folder)
                        .map_err(|errno| io_problem("sync the file system of", &this.path, &errno.into()))
                })
                .await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio::sync::Semaphore;

    use super::*;
    use crate::order::TransferLimits;

    fn add(unsynced: &Unsynced, folder: &Path, count: usize) -> usize {
        let mut opened = 0;
        for number in 0..count {
            let path = folder.join(number.to_string());
            fs::write(&path, b"x").unwrap();
            let mut open = || {
                opened += 1;
                File::open(&path).map(Arc::new)
            };
            unsynced.add(&path, &mut open).unwrap();
        }
        opened
    }

    #[tokio::test]
    async fn few_files_are_synced_one_by_one_and_many_with_their_file_system() {
        let folder = tempfile::tempdir().unwrap();
        let work = Work::new(TransferLimits::default(), Arc::new(Semaphore::new(DISK_THREADS)));
        for (count, few, opened) in
            [(0, Some(0), 0), (FEW, Some(FEW), FEW), (FEW + 1, None, FEW + 1), (500, None, FEW + 1)]
        {
            let unsynced = Arc::new(Unsynced::on(folder.path()).unwrap());
            assert_eq!(add(&unsynced, folder.path(), count), opened, "{count} files");
            let kept = match &*unsynced.lock() {
                Files::Few(few) => Some(few.len()),
                Files::Many => None,
            };
            assert_eq!(kept, few, "{count} files");
            unsynced.sync(&work).await.unwrap();
        }
    }

    #[test]
    fn a_file_that_can_t_be_opened_is_told_and_not_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let unsynced = Unsynced::on(folder.path()).unwrap();
        let path = folder.path().join("gone");
        let problem = unsynced.add(&path, || File::open(&path).map(Arc::new)).unwrap_err();
        assert_eq!(problem.metadata["path"], path.display().to_string());
    }
}
