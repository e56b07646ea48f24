//! Reading a held file so that what was read is one content: the file neither changed nor vanished meanwhile.

use std::{fmt, fs::File, io, os::unix::fs::FileExt};

use crc_fast::{CrcAlgorithm, Digest as Crc};
use lockstep_bucket::Payload;
use lockstep_protocol::{
    manifest::RelativePath,
    problem::{Problem, Reason},
};

use crate::{
    blocks::{BLOCK, Block, Room},
    store::{HeldCheckpoint, HeldFile, Look},
    work::Stop,
};

/// Bytes that are read, hashed and summed before the next ones: they are still in the core's cache.
const SLICE: usize = 128 << 10;

/// An open file on its way out. Parts of it may be read on several threads at once. All calls block.
#[derive(Debug)]
pub(super) struct Source {
    path: RelativePath,
    file: File,
    look: Look,
}

fn changed(path: &RelativePath, how: impl fmt::Display) -> Problem {
    Problem::new(
        Reason::SourceChanged,
        format!("{path} {how} while it was read: the engine must not touch the files of a checkpoint"),
    )
    .with("path", path)
}

fn unreadable(path: &RelativePath, error: &io::Error) -> Problem {
    let problem = Problem::new(Reason::LocalIo, format!("cannot read {path}: {error}")).with("path", path);
    match error.raw_os_error() {
        Some(errno) => problem.with("errno", errno),
        None => problem,
    }
}

impl Source {
    /// What the file looked like when it was held is what it must look like after each read; only where that isn't known it is looked at now.
    pub(super) fn open(held: &dyn HeldCheckpoint, expected: &HeldFile) -> Result<Self, Problem> {
        let path = expected.path.clone();
        let file = held.open(&path)?;
        let look = match expected.look {
            Some(look) => look,
            None => look(&file, &path)?,
        };
        if look.size != expected.size {
            return Err(resized(&path, expected.size, look.size));
        }
        Ok(Self { path, file, look })
    }

    fn fill(&self, mut buffer: &mut [u8], mut offset: u64) -> Result<(), Problem> {
        while !buffer.is_empty() {
            match self.file.read_at(buffer, offset) {
                Ok(0) => {
                    let found = look(&self.file, &self.path)?.size;
                    return Err(resized(&self.path, self.look.size, found));
                }
                Ok(read) => {
                    offset += read as u64;
                    buffer = buffer.get_mut(read..).unwrap_or_default();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(unreadable(&self.path, &error)),
            }
        }
        Ok(())
    }

    /// Says that a good part of it will be read front to back.
    pub(super) fn announce(&self) {
        use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
        // Only a hint: a file system without it reads all the same.
        let _ = posix_fadvise(&self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_SEQUENTIAL);
    }

    /// To be asked after a read: what was read is of the file that was held.
    pub(super) fn check(&self) -> Result<Look, Problem> {
        let now = look(&self.file, &self.path)?;
        if now == self.look {
            return Ok(now);
        }
        if now.size != self.look.size {
            return Err(resized(&self.path, self.look.size, now.size));
        }
        Err(changed(&self.path, "was written to").with("expected", self.look.size).with("found", now.size))
    }
}

fn resized(path: &RelativePath, expected: u64, found: u64) -> Problem {
    changed(path, format_args!("went from {expected} to {found} bytes")).with("expected", expected).with("found", found)
}

fn look(file: &File, path: &RelativePath) -> Result<Look, Problem> {
    let metadata = file.metadata().map_err(|error| unreadable(path, &error))?;
    if !metadata.is_file() {
        return Err(Problem::new(
            Reason::SourceUnsupported,
            format!("{path} is not a regular file: only those can be pushed"),
        )
        .with("path", path));
    }
    Ok(Look::of(&metadata))
}

/// What will be one body: bytes of one file or of several, one after the other, in blocks, with their CRC-32.
#[derive(Debug)]
pub(super) struct Body {
    room: Room,
    blocks: Vec<Block>,
    filled: u64,
    crc: Crc,
}

/// Where a body ended.
pub(super) struct Mark {
    filled: u64,
    crc: Crc,
}

impl Body {
    pub(super) fn new(room: Room) -> Self {
        Self { blocks: Vec::with_capacity(room.left()), room, filled: 0, crc: Crc::new(CrcAlgorithm::Crc32IsoHdlc) }
    }

    pub(super) const fn length(&self) -> u64 {
        self.filled
    }

    /// Adds a range of a file, slice by slice; `hash` sees each while it is hot.
    pub(super) fn read(
        &mut self,
        source: &Source,
        (mut offset, length): (u64, u64),
        stop: &Stop,
        mut hash: impl FnMut(&[u8]),
    ) -> Result<(), Problem> {
        let end = offset + length;
        while offset < end {
            stop.check()?;
            let at = usize::try_from(self.filled % BLOCK as u64).unwrap_or(0);
            let index = usize::try_from(self.filled / BLOCK as u64).unwrap_or(usize::MAX);
            if index >= self.blocks.len() {
                let block = self.room.block()?.ok_or_else(|| {
                    // Room is made for what is read; were it not, nothing wrong would be sent.
                    Problem::new(Reason::LocalIo, format!("no room for {} from byte {offset} on", source.path))
                })?;
                self.blocks.push(block);
            }
            let wanted = SLICE.min(BLOCK - at).min(usize::try_from(end - offset).unwrap_or(SLICE));
            let Some(slice) = self.blocks.get_mut(index).and_then(|block| block.get_mut(at..at + wanted)) else {
                return Err(Problem::new(Reason::LocalIo, format!("no block for {}", source.path)));
            };
            source.fill(slice, offset)?;
            hash(slice);
            self.crc.update(slice);
            offset += wanted as u64;
            self.filled += wanted as u64;
        }
        Ok(())
    }

    pub(super) fn mark(&self) -> Mark {
        Mark { filled: self.filled, crc: self.crc }
    }

    /// Takes back what came after the mark.
    pub(super) fn rewind(&mut self, mark: Mark) {
        (self.filled, self.crc) = (mark.filled, mark.crc);
    }

    pub(super) fn into_payload(self) -> Payload {
        let mut left = usize::try_from(self.filled).unwrap_or(usize::MAX);
        let mut chunks = Vec::with_capacity(self.blocks.len());
        for block in self.blocks {
            let length = left.min(BLOCK);
            if length > 0 {
                chunks.push(block.freeze(length));
            }
            left -= length;
        }
        // The upper half of what a 32-bit algorithm returns is zero.
        Payload::new(chunks).with_crc32(u32::try_from(self.crc.finalize()).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write, path::PathBuf};

    use lockstep_protocol::selection::LocalCheckpoint;

    use super::*;
    use crate::blocks::Blocks;

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
        let path = folder.path().join("f");
        fs::write(&path, content).unwrap();
        let look = Some(Look::of(&fs::metadata(&path).unwrap()));
        let expected = HeldFile { path: RelativePath::new("f").unwrap(), size: content.len() as u64, look };
        Source::open(&Plain(folder.path().to_owned()), &expected).unwrap()
    }

    async fn read(source: &Source, ranges: &[(u64, u64)], bytes: u64) -> Result<(Payload, Vec<u8>), Problem> {
        let mut body = Body::new(Blocks::new(bytes).room(bytes).await?);
        let mut seen = Vec::new();
        for range in ranges {
            body.read(source, *range, &Stop::default(), |slice| seen.extend_from_slice(slice))?;
        }
        source.check()?;
        Ok((body.into_payload(), seen))
    }

    fn noise(length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    #[tokio::test]
    async fn ranges_come_out_in_blocks_with_the_sum_of_all_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let content = noise(3 * BLOCK + 77);
        let source = source(&folder, &content);
        let ranges = [(5, 1), (BLOCK as u64, 2 * BLOCK as u64), (0, 0), (100, 300)];
        let (payload, seen) = read(&source, &ranges, 3 << 20).await.unwrap();
        let expected = [&content[5..6], &content[BLOCK..3 * BLOCK], &content[100..400]].concat();
        assert_eq!(payload.chunks().concat(), expected);
        assert_eq!(seen, expected);
        assert_eq!(payload.crc32(), crc_fast::crc32_iso_hdlc(&expected));
        assert_eq!(payload.chunks().iter().map(bytes::Bytes::len).collect::<Vec<_>>(), [BLOCK, BLOCK, 301]);
    }

    #[tokio::test]
    async fn what_is_taken_back_leaves_no_trace() {
        let folder = tempfile::tempdir().unwrap();
        let content = noise(2 * BLOCK);
        let source = source(&folder, &content);
        let mut body = Body::new(Blocks::new(2 << 20).room(2 << 20).await.unwrap());
        body.read(&source, (0, 10), &Stop::default(), |_| {}).unwrap();
        let mark = body.mark();
        body.read(&source, (50, BLOCK as u64), &Stop::default(), |_| {}).unwrap();
        body.rewind(mark);
        body.read(&source, (10, 20), &Stop::default(), |_| {}).unwrap();
        let payload = body.into_payload();
        assert_eq!(payload.chunks().concat(), &content[..30]);
        assert_eq!(payload.crc32(), crc_fast::crc32_iso_hdlc(&content[..30]));
    }

    #[tokio::test]
    async fn a_file_that_grows_shrinks_or_is_written_to_is_a_changed_source() {
        let folder = tempfile::tempdir().unwrap();
        let write = || fs::OpenOptions::new().append(true).open(folder.path().join("f")).unwrap();

        let grown = source(&folder, b"abcdef");
        write().write_all(b"x").unwrap();
        let problem = read(&grown, &[(0, 6)], 1).await.unwrap_err();
        assert_eq!((problem.reason, problem.metadata["found"].as_str()), (Reason::SourceChanged, "7"));

        let shrunk = source(&folder, b"abcdef");
        fs::OpenOptions::new().write(true).open(folder.path().join("f")).unwrap().set_len(3).unwrap();
        let problem = read(&shrunk, &[(0, 6)], 1).await.unwrap_err();
        assert_eq!((problem.reason, problem.metadata["found"].as_str()), (Reason::SourceChanged, "3"));

        let written = source(&folder, b"abcdef");
        write().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        let problem = read(&written, &[(0, 6)], 1).await.unwrap_err();
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

    #[test]
    fn a_folder_is_no_file() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("f")).unwrap();
        let expected = HeldFile { path: RelativePath::new("f").unwrap(), size: 4, look: None };
        let problem = Source::open(&Plain(folder.path().to_owned()), &expected).unwrap_err();
        assert_eq!(problem.reason, Reason::SourceUnsupported);
    }
}
