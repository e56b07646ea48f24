//! Digests of files that were hashed before, so that an unchanged file is not read again: in memory, and in a file that survives restarts.
//!
//! It is a cache and never an authority: what is missing, old or damaged is hashed again. Entries are found by [`Look`] without the device, whose number changes
//! when a volume is mounted elsewhere; inode, size and the nanoseconds of birth and last write are enough to tell files apart.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lockstep_failpoint::{Point, reached};
use lockstep_protocol::digest::Digest;

use crate::{durable, store::look::Look};

const FILE: &str = "digests";
const MAGIC: &[u8; 16] = b"lockstep-digest1";
const RECORD: usize = 6 * 8 + 32;

/// Transfers after which an entry that none of them met is forgotten: engines keep two or three checkpoints.
const KEPT_TRANSFERS: u32 = 4;

/// A file written to this shortly before it was hashed may be written to again within the same tick of the file system's clock. Does not concern engines that
/// promise never to write to a file again.
const SETTLED: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Key {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    born: (i64, i64),
}

impl From<&Look> for Key {
    fn from(look: &Look) -> Self {
        // No file is born then, so "unknown" meets nothing but itself.
        let born = look.born.unwrap_or((i64::MIN, 0));
        Self { inode: look.inode, size: look.size, modified: look.modified, born }
    }
}

#[derive(Debug, Default)]
struct Inner {
    entries: HashMap<Key, (Digest, u32)>,
    transfer: u32,
    changed: bool,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Digests {
    path: PathBuf,
    immutable: bool,
    inner: Mutex<Inner>,
}

impl Digests {
    /// Loads what earlier processes learned. `immutable` is the engine's promise about its files. Blocks.
    pub(crate) fn load(state_dir: &Path, immutable: bool) -> Self {
        let path = state_dir.join(FILE);
        let entries = match fs::read(&path) {
            Ok(bytes) => parse(&bytes).unwrap_or_else(|| {
                tracing::warn!(path = %path.display(), "the digest cache is damaged and is ignored: files are hashed again");
                HashMap::new()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => HashMap::new(),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the digest cache can't be read: files are hashed again");
                HashMap::new()
            }
        };
        Self { path, immutable, inner: Mutex::new(Inner { entries, transfer: 0, changed: false }) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The digest of a file that looks like this.
    pub(crate) fn get(&self, look: &Look) -> Option<Digest> {
        let mut inner = self.lock();
        let transfer = inner.transfer;
        inner.entries.get_mut(&Key::from(look)).map(|(digest, used)| {
            *used = transfer;
            *digest
        })
    }

    /// A file was read to its end, or written by us, and looked like this before and after.
    pub(crate) fn learn(&self, look: &Look, digest: Digest) {
        if !self.immutable && !is_settled(look, SystemTime::now()) {
            return;
        }
        let mut inner = self.lock();
        let transfer = inner.transfer;
        let before = inner.entries.insert(Key::from(look), (digest, transfer));
        inner.changed |= before.is_none_or(|(known, _)| known != digest);
    }

    /// Writes what is new to the disk and forgets files that were not met for long. To be called when a transfer has ended. Blocks.
    pub(crate) fn save(&self) {
        let mut inner = self.lock();
        inner.transfer = inner.transfer.saturating_add(1);
        let oldest = inner.transfer.saturating_sub(KEPT_TRANSFERS);
        let before = inner.entries.len();
        inner.entries.retain(|_, (_, used)| *used >= oldest);
        if !std::mem::take(&mut inner.changed) && inner.entries.len() == before {
            return;
        }
        let bytes = encode(&inner.entries);
        drop(inner);
        // Not synced: after a power loss a torn file is noticed and ignored.
        let written = durable::replace_unsynced(&self.path, &bytes);
        reached(Point::DigestsSaved);
        if let Err(error) = written {
            tracing::warn!(path = %self.path.display(), %error, "the digest cache was not saved: after a restart files are hashed again");
        }
    }
}

fn is_settled(look: &Look, now: SystemTime) -> bool {
    let (seconds, nanos) = look.modified;
    let (Ok(seconds), Ok(nanos)) = (u64::try_from(seconds), u32::try_from(nanos)) else { return true };
    let modified = UNIX_EPOCH + Duration::new(seconds, nanos);
    now.duration_since(modified).is_ok_and(|age| age >= SETTLED)
}

fn encode(entries: &HashMap<Key, (Digest, u32)>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(MAGIC.len() + entries.len() * RECORD + 32);
    bytes.extend_from_slice(MAGIC);
    for (key, (digest, _)) in entries {
        bytes.extend_from_slice(&key.inode.to_le_bytes());
        bytes.extend_from_slice(&key.size.to_le_bytes());
        for number in [key.modified.0, key.modified.1, key.born.0, key.born.1] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(digest.as_bytes());
    }
    let checksum = *Digest::of(&bytes).as_bytes();
    bytes.extend_from_slice(&checksum);
    bytes
}

/// None: torn, or not ours.
fn parse(bytes: &[u8]) -> Option<HashMap<Key, (Digest, u32)>> {
    let (content, checksum) = bytes.split_last_chunk::<32>()?;
    let records = content.strip_prefix(MAGIC.as_slice())?;
    if Digest::of(content).as_bytes() != checksum || records.len() % RECORD != 0 {
        return None;
    }
    records
        .chunks_exact(RECORD)
        .map(|record| {
            let number = |at: usize| record.get(at * 8..at * 8 + 8)?.try_into().ok().map(u64::from_le_bytes);
            let time = |at: usize| number(at).map(u64::cast_signed);
            let key =
                Key { inode: number(0)?, size: number(1)?, modified: (time(2)?, time(3)?), born: (time(4)?, time(5)?) };
            let digest: [u8; 32] = record.last_chunk().copied()?;
            Some((key, (Digest::from_hash(digest.into()), 0)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(inode: u64) -> Look {
        Look { device: 1, inode, size: 5, modified: (1_000, 7), born: Some((999, 3)) }
    }

    fn digest(text: &str) -> Digest {
        Digest::of(text.as_bytes())
    }

    #[test]
    fn what_was_learned_survives_a_restart_and_a_mount_elsewhere() {
        let folder = tempfile::tempdir().unwrap();
        let digests = Digests::load(folder.path(), true);
        digests.learn(&look(1), digest("one"));
        digests.save();
        let again = Digests::load(folder.path(), true);
        assert_eq!(again.get(&Look { device: 2, ..look(1) }), Some(digest("one")));
        let others = [
            look(2),
            Look { size: 6, ..look(1) },
            Look { modified: (1_000, 8), ..look(1) },
            Look { born: None, ..look(1) },
            Look { born: Some((999, 4)), ..look(1) },
        ];
        for other in others {
            assert_eq!(again.get(&other), None, "{other:?}");
        }
    }

    #[test]
    fn a_torn_or_edited_file_is_ignored_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let digests = Digests::load(folder.path(), true);
        digests.learn(&look(1), digest("one"));
        digests.save();
        let whole = fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        flipped[40] ^= 1;
        for broken in [&whole[..whole.len() - 1], &whole[..10], &[], &flipped] {
            fs::write(&path, broken).unwrap();
            let digests = Digests::load(folder.path(), true);
            assert_eq!(digests.get(&look(1)), None);
            digests.learn(&look(1), digest("one"));
            digests.save();
            assert_eq!(fs::read(&path).unwrap(), whole);
        }
    }

    #[test]
    fn files_that_no_transfer_met_for_long_are_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let digests = Digests::load(folder.path(), true);
        digests.learn(&look(1), digest("kept"));
        digests.learn(&look(2), digest("gone"));
        for _ in 0..=KEPT_TRANSFERS {
            digests.save();
            assert!(digests.get(&look(1)).is_some());
        }
        assert_eq!(digests.get(&look(2)), None);
        assert_eq!(fs::metadata(folder.path().join(FILE)).unwrap().len() as usize, MAGIC.len() + RECORD + 32);
    }

    #[test]
    fn a_file_that_may_be_written_to_again_within_the_same_tick_is_not_trusted() {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let fresh = Look { modified: (now.cast_signed(), 0), ..look(1) };
        for (immutable, known) in [(false, None), (true, Some(digest("one")))] {
            let digests = Digests::load(folder.path(), immutable);
            digests.learn(&fresh, digest("one"));
            digests.learn(&look(2), digest("old"));
            assert_eq!((digests.get(&fresh), digests.get(&look(2))), (known, Some(digest("old"))));
        }
    }
}
