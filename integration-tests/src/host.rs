//! One host's disk with the directory store on it.

use std::{
    collections::BTreeMap,
    fs,
    io::{ErrorKind, Read as _},
    path::{Path, PathBuf},
};

use chrono::Utc;
use lockstep_agent::store::directory::{DirectoryStore, document::CheckpointDocument};
use lockstep_protocol::{
    id::{Fingerprint, LocalCheckpointId, Step},
    manifest::RelativePath,
};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::wait;

/// A host's disk.
#[derive(Debug, Clone)]
pub struct Host {
    /// Index in the layout.
    pub idx: u32,
    /// What the agent was started with as `--dir`.
    pub dir: PathBuf,
}

/// Path to digest of everything the engine would see.
pub type State = BTreeMap<String, String>;

/// What a checkpoint of a test says of itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Marks {
    /// Of the program.
    pub fingerprint: Option<u64>,
    /// By this host.
    pub processed_records: Option<u64>,
}

impl Host {
    /// Makes a checkpoint of these files; returns its id.
    pub fn checkpoint(&self, step: u64, files: &[(&str, &[u8])]) -> LocalCheckpointId {
        self.checkpoint_with(step, files, Marks::default())
    }

    /// Makes a checkpoint of these files with more values; returns its id.
    pub fn checkpoint_with(&self, step: u64, files: &[(&str, &[u8])], marks: Marks) -> LocalCheckpointId {
        let store = DirectoryStore::open(&self.dir).expect("the host's directory can be opened");
        let id = LocalCheckpointId::new(Uuid::now_v7());
        let mut writer = store.writer(id).expect("a checkpoint can be begun");
        for (path, bytes) in files {
            writer.write(&RelativePath::new(*path).expect("a good path"), bytes).expect("a file can be written");
        }
        writer.publish(&document(id, step, marks)).expect("a checkpoint can be published");
        id
    }

    /// Folder of one local checkpoint.
    pub fn folder(&self, id: LocalCheckpointId) -> PathBuf {
        self.dir.join("checkpoints").join(id.to_string())
    }

    /// Ids of the checkpoints that the engine would see.
    pub fn checkpoints(&self) -> Vec<String> {
        let mut ids: Vec<String> = fs::read_dir(self.dir.join("checkpoints"))
            .map(|entries| entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
            .unwrap_or_default();
        ids.sort();
        ids
    }

    /// Digest of every file of every checkpoint that the engine would see.
    pub fn state(&self) -> State {
        digests(&self.dir.join("checkpoints"))
    }

    /// Digest of every file of one checkpoint.
    pub fn state_of(&self, id: LocalCheckpointId) -> State {
        digests(&self.folder(id)).into_iter().map(|(path, digest)| (format!("{id}/{path}"), digest)).collect()
    }

    /// Loses the disk: everything in the host's directory, the agent's own state included. An agent that lives may write to it meanwhile (`ready.json`, after a pull has
    /// ended): what it adds to a folder that is being removed goes with the next try.
    pub fn wipe(&self) {
        const TRIES: usize = 100;
        for entry in fs::read_dir(&self.dir).expect("the host has a directory").flatten() {
            let path = entry.path();
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let remove = || if is_folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            let is_written = |removed: &std::io::Result<()>| {
                removed.as_ref().is_err_and(|error| error.kind() == ErrorKind::DirectoryNotEmpty)
            };
            let removed = std::iter::repeat_with(remove).take(TRIES).find(|removed| !is_written(removed));
            removed.expect("nobody writes there for ever").expect("what is in the directory can be removed");
        }
    }

    /// Files anywhere below the agent's working folders: whatever is of no use between transfers.
    pub fn leftovers(&self) -> Vec<PathBuf> {
        const WORKING: [&str; 5] = ["staging", "hold", "trash", "draft", "writing"];
        let below = |own: PathBuf| WORKING.map(|folder| files(&own.join(folder))).concat();
        self.own().into_iter().flat_map(below).filter(|path| !is_named(path, ".guard")).collect()
    }

    /// Until no draft of the agent's small files is there. It may still replace one after a round has ended.
    pub async fn without_drafts(&self) {
        wait::until("no draft is left", || async {
            let state = self.own().map(|own| files(&own.join("state"))).concat();
            let drafts: Vec<PathBuf> = state.into_iter().filter(|path| is_named(path, ".lockstep-")).collect();
            if drafts.is_empty() { Ok(()) } else { Err(format!("host {}: {drafts:?}", self.idx)) }
        })
        .await;
    }

    /// The agent's folders, with either store.
    fn own(&self) -> [PathBuf; 2] {
        [".lockstep", "coordinator/lockstep"].map(|folder| self.dir.join(folder))
    }
}

fn document(id: LocalCheckpointId, step: u64, marks: Marks) -> CheckpointDocument {
    CheckpointDocument {
        uuid: id,
        step: Step::new(step).expect("a step"),
        fingerprint: marks.fingerprint.map(Fingerprint),
        processed_records: marks.processed_records,
        created_at: Utc::now(),
    }
}

fn is_named(path: &Path, prefix: &str) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else { return found };
    for entry in entries.flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files(&entry.path())),
            Ok(_) => found.push(entry.path()),
            Err(_) => {}
        }
    }
    found
}

/// Relative path to SHA-256 of every file below a folder. One that goes meanwhile is left out: a live agent replaces its own small files.
pub fn digests(folder: &Path) -> State {
    files(folder)
        .into_iter()
        .filter_map(|path| {
            let relative = path.strip_prefix(folder).expect("below the folder").to_string_lossy().into_owned();
            Some((relative, sha256(&path)?))
        })
        .collect()
}

fn sha256(path: &Path) -> Option<String> {
    let mut file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => panic!("{} can't be opened: {error}", path.display()),
    };
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).expect("a file can be read") {
            0 => break,
            n => hasher.update(&buffer[..n]),
        }
    }
    Some(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
