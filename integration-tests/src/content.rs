//! Content of checkpoints: noise from a seed, written straight into a folder, and what a folder holds.

use std::{
    collections::BTreeMap,
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use lockstep_protocol::id::LocalCheckpointId;

use crate::host::Host;

/// Bytes that don't compress and don't repeat, the same for the same seed and tag.
pub fn noise(seed: u64, tag: &str, length: usize) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes()).update(tag.as_bytes());
    let mut bytes = vec![0; length];
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

/// Writes one file and the folders above it.
pub fn put(folder: &Path, path: &str, bytes: &[u8]) {
    let at = room(folder, path);
    fs::write(&at, bytes).unwrap_or_else(|error| panic!("{}: {error}", at.display()));
}

/// The same file under another checkpoint, as an engine keeps what did not change.
pub fn link(from: &Path, folder: &Path, path: &str) {
    let at = room(folder, path);
    fs::hard_link(from, &at).unwrap_or_else(|error| panic!("{}: {error}", at.display()));
}

fn room(folder: &Path, path: &str) -> PathBuf {
    let at = folder.join(path);
    fs::create_dir_all(at.parent().expect("below the folder")).expect("a folder can be made");
    at
}

/// Size and BLAKE3 of every file below a folder, by its path.
pub type Identity = BTreeMap<String, (u64, String)>;

/// What a folder holds. Digested here, and not by the code under test.
pub fn identity(folder: &Path) -> Identity {
    let mut found = Identity::new();
    let mut buffer = vec![0; 1 << 20];
    walk(folder, &mut |path| {
        let relative = path.strip_prefix(folder).expect("below the folder").to_string_lossy().into_owned();
        found.insert(relative, digest(path, &mut buffer));
    });
    found
}

fn digest(path: &Path, buffer: &mut [u8]) -> (u64, String) {
    let mut file = fs::File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (mut hasher, mut size) = (blake3::Hasher::new(), 0);
    loop {
        match file.read(buffer).unwrap_or_else(|error| panic!("{}: {error}", path.display())) {
            0 => break,
            n => {
                hasher.update(&buffer[..n]);
                size += n as u64;
            }
        }
    }
    (size, hasher.finalize().to_hex().to_string())
}

fn walk(folder: &Path, file: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let entry = entry.expect("an entry can be read");
        match entry.file_type().expect("an entry has a kind") {
            kind if kind.is_dir() => walk(&entry.path(), file),
            _ => file(&entry.path()),
        }
    }
}

/// What differs between two folders, in a few words; empty if nothing does.
pub fn differences(wanted: &Identity, found: &Identity) -> Vec<String> {
    let missing = wanted.keys().filter(|path| !found.contains_key(*path)).map(|path| format!("{path:?} is missing"));
    let strange = found.keys().filter(|path| !wanted.contains_key(*path)).map(|path| format!("{path:?} is too many"));
    let other = wanted.iter().filter_map(|(path, is)| {
        found.get(path).filter(|other| *other != is).map(|other| format!("{path:?} is {other:?}, not {is:?}"))
    });
    missing.chain(strange).chain(other).collect()
}

impl Host {
    /// Makes a checkpoint whose files `fill` writes into its folder. Faster than the store's writer, which waits for the disk; only for while nobody
    /// looks at this host.
    pub fn checkpoint_filled(&self, step: u64, fill: impl FnOnce(&Path)) -> LocalCheckpointId {
        let id = self.checkpoint(step, &[]);
        fill(&self.folder(id));
        id
    }
}
