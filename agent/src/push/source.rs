//! Reading a held file so that what was read is one content: the file neither changed nor vanished meanwhile.

use std::{fs::File, io::Read, os::unix::fs::MetadataExt};

use bytes::Bytes;
use lockstep_protocol::{
    digest::Digest,
    manifest::RelativePath,
    problem::{Problem, Reason},
};

use crate::{
    store::{HeldCheckpoint, HeldFile},
    work::Stop,
};

/// Buffer of a file that is only hashed.
const HASH_BUFFER: usize = 256 << 10;

/// What tells one content of a file from another without reading it. Not the time of the last change of the inode: a new hard link is one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Look {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

/// An open file on its way out; read front to back, hashed on the way. All calls block.
#[derive(Debug)]
pub(super) struct Source {
    path: RelativePath,
    file: File,
    look: Look,
    hasher: blake3::Hasher,
    left: u64,
}

fn changed(path: &RelativePath, how: impl std::fmt::Display) -> Problem {
    Problem::new(
        Reason::SourceChanged,
        format!("{path} {how} while it was read: the engine must not touch the files of a checkpoint"),
    )
    .with("path", path)
}

fn unreadable(path: &RelativePath, error: &std::io::Error) -> Problem {
    let problem = Problem::new(Reason::LocalIo, format!("cannot read {path}: {error}")).with("path", path);
    match error.raw_os_error() {
        Some(errno) => problem.with("errno", errno),
        None => problem,
    }
}

impl Source {
    pub(super) fn open(held: &dyn HeldCheckpoint, expected: &HeldFile) -> Result<Self, Problem> {
        let path = expected.path.clone();
        let file = held.open(&path)?;
        let metadata = file.metadata().map_err(|error| unreadable(&path, &error))?;
        if !metadata.is_file() {
            return Err(Problem::new(
                Reason::SourceUnsupported,
                format!("{path} is not a regular file: only those can be pushed"),
            )
            .with("path", &path));
        }
        let look = look(&file, &path)?;
        if look.size != expected.size {
            return Err(changed(&path, format_args!("went from {} to {} bytes", expected.size, look.size))
                .with("expected", expected.size)
                .with("found", look.size));
        }
        Ok(Self { path, file, look, hasher: blake3::Hasher::new(), left: expected.size })
    }

    /// The next bytes, as many as asked for or as are left.
    pub(super) fn read(&mut self, most: u64) -> Result<Bytes, Problem> {
        let wanted = most.min(self.left);
        let mut buffer = vec![0; usize::try_from(wanted).map_err(|_| changed(&self.path, "is too large"))?];
        self.fill(&mut buffer)?;
        Ok(buffer.into())
    }

    /// Whether all of it was read.
    pub(super) const fn is_at_end(&self) -> bool {
        self.left == 0
    }

    /// Hashes all that is left.
    pub(super) fn hash(&mut self, stop: &Stop) -> Result<(), Problem> {
        let mut buffer = vec![0; HASH_BUFFER.min(usize::try_from(self.left).unwrap_or(HASH_BUFFER))];
        while self.left > 0 {
            stop.check()?;
            let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
            if let Some(part) = buffer.get_mut(..wanted) {
                self.fill(part)?;
            }
        }
        Ok(())
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Problem> {
        self.file.read_exact(buffer).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                changed(&self.path, format_args!("became shorter than {} bytes", self.look.size))
                    .with("expected", self.look.size)
            }
            _ => unreadable(&self.path, &error),
        })?;
        self.hasher.update(buffer);
        self.left -= buffer.len() as u64;
        Ok(())
    }

    /// The digest, if all was read and the file is still the one that was opened.
    pub(super) fn finish(mut self) -> Result<Digest, Problem> {
        let more = self.file.read(&mut [0]).map_err(|error| unreadable(&self.path, &error))?;
        if more > 0 || self.left > 0 {
            return Err(changed(&self.path, format_args!("became longer than {} bytes", self.look.size))
                .with("expected", self.look.size));
        }
        let now = look(&self.file, &self.path)?;
        if now != self.look {
            return Err(changed(&self.path, "was written to").with("expected", self.look.size).with("found", now.size));
        }
        Ok(Digest::from_hash(self.hasher.finalize()))
    }
}

fn look(file: &File, path: &RelativePath) -> Result<Look, Problem> {
    let metadata = file.metadata().map_err(|error| unreadable(path, &error))?;
    Ok(Look {
        device: metadata.dev(),
        inode: metadata.ino(),
        size: metadata.len(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write, path::PathBuf};

    use lockstep_protocol::selection::LocalCheckpoint;

    use super::*;

    #[derive(Debug)]
    struct Plain(PathBuf);

    impl HeldCheckpoint for Plain {
        fn checkpoint(&self) -> &LocalCheckpoint {
            unreachable!("not asked by a source")
        }
        fn files(&self) -> &[HeldFile] {
            &[]
        }
        fn open(&self, path: &RelativePath) -> Result<File, Problem> {
            File::open(self.0.join(path.as_str())).map_err(|error| changed(path, error))
        }
        fn store_meta(&self) -> &'static str {
            ""
        }
    }

    fn source(folder: &tempfile::TempDir, content: &[u8]) -> Source {
        fs::write(folder.path().join("f"), content).unwrap();
        let expected = HeldFile { path: RelativePath::new("f").unwrap(), size: content.len() as u64, look: None };
        Source::open(&Plain(folder.path().to_owned()), &expected).unwrap()
    }

    fn append(folder: &tempfile::TempDir) {
        fs::OpenOptions::new().append(true).open(folder.path().join("f")).unwrap().write_all(b"x").unwrap();
    }

    #[test]
    fn an_untouched_file_gives_its_digest_in_whatever_pieces_it_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let mut read = source(&folder, b"abcdef");
        assert_eq!(read.read(4).unwrap(), "abcd");
        assert_eq!(read.read(4).unwrap(), "ef");
        assert_eq!(read.finish().unwrap(), Digest::of(b"abcdef"));
        let mut hashed = source(&folder, b"abcdef");
        hashed.hash(&Stop::default()).unwrap();
        assert_eq!(hashed.finish().unwrap(), Digest::of(b"abcdef"));
    }

    #[test]
    fn a_file_that_grows_shrinks_or_is_written_to_is_a_changed_source() {
        let folder = tempfile::tempdir().unwrap();
        let mut grown = source(&folder, b"abcdef");
        grown.read(6).unwrap();
        append(&folder);
        assert_eq!(grown.finish().unwrap_err().reason, Reason::SourceChanged);

        let mut shrunk = source(&folder, b"abcdef");
        fs::OpenOptions::new().write(true).open(folder.path().join("f")).unwrap().set_len(3).unwrap();
        assert_eq!(shrunk.read(6).unwrap_err().reason, Reason::SourceChanged);

        let mut written = source(&folder, b"abcdef");
        written.read(6).unwrap();
        let file = fs::OpenOptions::new().write(true).open(folder.path().join("f")).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        let problem = written.finish().unwrap_err();
        assert_eq!((problem.reason, problem.metadata["path"].as_str()), (Reason::SourceChanged, "f"));
    }

    #[test]
    fn a_size_other_than_at_the_hold_is_a_changed_source_with_both_values() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("f"), b"abc").unwrap();
        let expected = HeldFile { path: RelativePath::new("f").unwrap(), size: 4, look: None };
        let problem = Source::open(&Plain(folder.path().to_owned()), &expected).unwrap_err();
        assert_eq!((problem.metadata["expected"].as_str(), problem.metadata["found"].as_str()), ("4", "3"));
    }
}
