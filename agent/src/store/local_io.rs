//! Failures of the local disk as problems, and reading small files without being fooled by what lies there.

use std::{
    fs::{File, Metadata, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use lockstep_protocol::problem::{Problem, Reason};
use nix::fcntl::OFlag;

/// `NO_SPACE` or `LOCAL_IO`, with operation, path and errno.
pub(crate) fn local(operation: &str, path: &Path, error: &io::Error) -> Problem {
    let reason = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Reason::NoSpace,
        _ => Reason::LocalIo,
    };
    let problem = Problem::new(reason, format!("can't {operation} {}: {error}", path.display()))
        .with("operation", operation)
        .with("path", path.display());
    match error.raw_os_error() {
        Some(errno) => problem.with("errno", errno),
        None => problem,
    }
}

/// `SOURCE_UNSUPPORTED` with path and what is there instead of a regular file.
pub(crate) fn unsupported(path: &Path, what: &str) -> Problem {
    Problem::new(
        Reason::SourceUnsupported,
        format!("{} {what}: a checkpoint consists of folders and regular files with UTF-8 names only", path.display()),
    )
    .with("path", path.display())
    .with("found", what)
}

/// Why a file of a checkpoint could not be had. That it is gone is no failure yet: the engine may have collected the whole checkpoint.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// Nothing is there.
    Gone(PathBuf),
    /// Something else.
    Problem(Problem),
}

impl From<Problem> for Trouble {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

impl Trouble {
    /// Tells ENOENT from all other failures. ENOTDIR is not among it: the path leads over something that is no folder.
    pub(crate) fn of(operation: &str, path: &Path, error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::NotFound {
            Self::Gone(path.to_owned())
        } else {
            Self::Problem(local(operation, path, error))
        }
    }
}

/// What a file is, in words.
pub(crate) fn describe(file_type: std::fs::FileType) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    if file_type.is_symlink() {
        "is a symlink"
    } else if file_type.is_fifo() {
        "is a FIFO"
    } else if file_type.is_socket() {
        "is a socket"
    } else if file_type.is_block_device() || file_type.is_char_device() {
        "is a device"
    } else if file_type.is_dir() {
        "is a folder"
    } else {
        "is a regular file"
    }
}

/// Opens a regular file for reading. Follows no symlink and does not wait for the other end of a FIFO.
pub(crate) fn open_regular(path: &Path) -> Result<(File, Metadata), Trouble> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path).map_err(|error| {
        match error.raw_os_error().map(nix::errno::Errno::from_raw) {
            Some(nix::errno::Errno::ELOOP) => Trouble::Problem(unsupported(path, "is a symlink")),
            Some(nix::errno::Errno::ENXIO) => {
                Trouble::Problem(unsupported(path, "is a socket or a device without a driver"))
            }
            _ => Trouble::of("open", path, &error),
        }
    })?;
    let metadata = file.metadata().map_err(|error| local("stat", path, &error))?;
    if !metadata.is_file() {
        return Err(Trouble::Problem(unsupported(path, describe(metadata.file_type()))));
    }
    Ok((file, metadata))
}

/// Reads a regular file of at most `max` bytes; a greater one is `MANIFEST_INVALID`, because only documents are read this way.
pub(crate) fn read_document(path: &Path, max: u64) -> Result<Vec<u8>, Trouble> {
    let (file, _) = open_regular(path)?;
    Ok(read_open(file, path, max)?)
}

/// As [`read_document`], of an open file.
pub(crate) fn read_open(file: File, path: &Path, max: u64) -> Result<Vec<u8>, Problem> {
    let mut bytes = Vec::new();
    file.take(max.saturating_add(1)).read_to_end(&mut bytes).map_err(|error| local("read", path, &error))?;
    if u64::try_from(bytes.len()).is_ok_and(|len| len <= max) {
        return Ok(bytes);
    }
    Err(Problem::new(Reason::ManifestInvalid, format!("{} has more than the {max} bytes allowed", path.display()))
        .with("path", path.display())
        .with("max", max))
}

/// Whether anything has this name, be it a dangling symlink.
pub(crate) fn exists(path: &Path) -> Result<bool, Problem> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(local("stat", path, &error)),
    }
}
