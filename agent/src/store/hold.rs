//! Keeping files where the engine's clean-up can't reach them: hard links in a folder of our own or, where the file system has none, open files.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use lockstep_protocol::{
    manifest::RelativePath,
    problem::{Problem, Reason},
    selection::LocalCheckpoint,
};
use nix::errno::Errno;

use super::{
    HeldCheckpoint, HeldFile, Look,
    local_io::{Trouble, describe, local, open_regular, read_open, unsupported},
    scratch::Scratch,
};

/// How files are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Holding {
    /// A hard link each; for a file that can't be linked, an open file.
    #[default]
    HardLinks,
    /// An open file each. Takes one descriptor a file while the hold lasts.
    OpenFiles,
}

/// A hold in the making: files are added one by one.
#[derive(Debug)]
pub(crate) struct Hold {
    scratch: Scratch,
    how: Holding,
    files: BTreeMap<RelativePath, Kept>,
    /// The folder of the last link: it is there.
    folder: Option<PathBuf>,
}

#[derive(Debug)]
struct Kept {
    look: Look,
    /// Where there is no link.
    open: Option<File>,
}

impl Hold {
    pub(crate) fn begin(base: &Path, how: Holding) -> Result<Self, Problem> {
        Ok(Self { scratch: Scratch::create(base)?, how, files: BTreeMap::new(), folder: None })
    }

    /// Keeps one file under the path that the manifest will give it.
    pub(crate) fn keep(&mut self, path: RelativePath, original: &Path) -> Result<(), Trouble> {
        let linked = match self.how {
            Holding::HardLinks => self.link(&path, original)?,
            Holding::OpenFiles => None,
        };
        let kept = match linked {
            Some(look) => Kept { look, open: None },
            None => {
                let (file, metadata) = open_regular(original)?;
                Kept { look: Look::of(&metadata), open: Some(file) }
            }
        };
        self.files.insert(path, kept);
        Ok(())
    }

    /// The linked file; None if it can't be linked here.
    fn link(&mut self, path: &RelativePath, original: &Path) -> Result<Option<Look>, Trouble> {
        let link = self.at(path);
        if let Some(parent) = link.parent()
            && self.folder.as_deref() != Some(parent)
        {
            fs::create_dir_all(parent).map_err(|error| local("create folder", parent, &error))?;
            self.folder = Some(parent.to_owned());
        }
        // Makes a second name of a symlink or FIFO itself: what it is is looked at afterwards, when nobody can change it any more.
        if let Err(error) = fs::hard_link(original, &link) {
            return match error.raw_os_error().map(Errno::from_raw) {
                // EPERM: no hard links on this file system, or not to a file of another user (fs.protected_hardlinks).
                Some(Errno::EPERM | Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EMLINK | Errno::EXDEV) => Ok(None),
                _ => Err(Trouble::of("link", original, &error)),
            };
        }
        let metadata = link.symlink_metadata().map_err(|error| local("stat", &link, &error))?;
        if !metadata.is_file() {
            return Err(Trouble::Problem(unsupported(original, describe(metadata.file_type()))));
        }
        Ok(Some(Look::of(&metadata)))
    }

    pub(crate) fn has(&self, path: &str) -> bool {
        // Paths are checked before they get in, so one that isn't valid isn't there.
        RelativePath::new(path).is_ok_and(|path| self.files.contains_key(&path))
    }

    /// Reads a kept document.
    pub(crate) fn read(&self, path: &RelativePath, max: u64) -> Result<Vec<u8>, Trouble> {
        let Some(kept) = self.files.get(path) else { return Err(Trouble::Gone(PathBuf::from(path.as_str()))) };
        let (file, _) = reopen(&self.at(path), kept.open.as_ref())?;
        Ok(read_open(file, &self.at(path), max)?)
    }

    fn at(&self, path: &RelativePath) -> PathBuf {
        self.scratch.path().join(path.as_str())
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.files.values().map(|kept| kept.look.size).sum()
    }

    pub(crate) fn len(&self) -> u64 {
        self.files.len() as u64
    }

    /// Nothing more comes in.
    pub(crate) fn finish(self, checkpoint: LocalCheckpoint, store_meta: String) -> Held {
        let mut open = BTreeMap::new();
        let mut files = Vec::with_capacity(self.files.len());
        for (path, kept) in self.files {
            if let Some(file) = kept.open {
                open.insert(path.clone(), file);
            }
            files.push(HeldFile { path, size: kept.look.size, look: Some(kept.look) });
        }
        Held { scratch: self.scratch, files, open, checkpoint, store_meta }
    }
}

/// An independent reader at the beginning of a kept file, with its size now.
fn reopen(link: &Path, open: Option<&File>) -> Result<(File, u64), Trouble> {
    let Some(open) = open else {
        let (file, metadata) = open_regular(link)?;
        return Ok((file, metadata.len()));
    };
    // Opens the very file again even if it has no name any more; a duplicate of the descriptor would share its position.
    let again = PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd()));
    let file = File::open(&again).map_err(|error| local("open again", link, &error))?;
    let size = file.metadata().map_err(|error| local("stat", link, &error))?.len();
    Ok((file, size))
}

/// A held checkpoint; dropping it lets the engine's clean-up free the space.
#[derive(Debug)]
pub(crate) struct Held {
    scratch: Scratch,
    checkpoint: LocalCheckpoint,
    /// Sorted by path.
    files: Vec<HeldFile>,
    /// Those that have no link.
    open: BTreeMap<RelativePath, File>,
    store_meta: String,
}

impl HeldCheckpoint for Held {
    fn checkpoint(&self) -> &LocalCheckpoint {
        &self.checkpoint
    }

    fn files(&self) -> &[HeldFile] {
        &self.files
    }

    fn open(&self, path: &RelativePath) -> Result<File, Problem> {
        let changed = |what: String| {
            Problem::new(Reason::SourceChanged, format!("{path} of local checkpoint {} {what}", self.checkpoint.id))
                .with("path", path)
                .with("local_checkpoint", self.checkpoint.id)
        };
        let found = self.files.binary_search_by(|file| file.path.cmp(path)).ok();
        let Some(kept) = found.and_then(|at| self.files.get(at)) else {
            return Err(changed("is not among its held files".to_owned()));
        };
        match reopen(&self.scratch.path().join(path.as_str()), self.open.get(path)) {
            Ok((file, size)) if size == kept.size => Ok(file),
            Ok((_, size)) => Err(changed(format!("had {} bytes when it was held and has {size} now", kept.size))
                .with("expected_size", kept.size)
                .with("found_size", size)),
            Err(Trouble::Gone(at)) => Err(changed(format!("vanished from the hold folder ({})", at.display()))),
            Err(Trouble::Problem(problem)) => Err(problem),
        }
    }

    fn store_meta(&self) -> &str {
        &self.store_meta
    }
}
