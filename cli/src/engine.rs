//! A small engine for `dev` and `demo`: it stands where a stream processor would.
//!
//! Its state is a set of immutable segment files, as in an LSM tree: work appends segments and retires old ones, a
//! checkpoint is a folder of hard links to the live ones. What it writes follows from seed, host and segment number, so
//! that two runs are alike and a wrong byte can't hide.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use chrono::Utc;
use lockstep_agent::store::CheckpointStore as _;
use lockstep_agent::store::directory::DirectoryStore;
use lockstep_agent::store::directory::document::CheckpointDocument;
use lockstep_protocol::id::{Fingerprint, LocalCheckpointId, Step};
use lockstep_protocol::manifest::RelativePath;
use lockstep_protocol::problem::Problem;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::failure::Failure;

/// What the engine itself keeps in a checkpoint.
const STATE_FILE: &str = "engine.json";

/// Stands for the program that the engine runs.
const PROGRAM: u64 = 7_400_740_174_027_403;

/// Bytes of one record: a segment holds as many as fit.
const RECORD: u64 = 64;

/// Local checkpoints that are kept.
const KEPT: usize = 3;

/// One host's engine.
#[derive(Debug)]
pub(crate) struct Engine {
    dir: PathBuf,
    host: u32,
    seed: u64,
    store: DirectoryStore,
    state: State,
    /// The checkpoint that the state continues.
    last: Option<LocalCheckpointId>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    step: u64,
    records: u64,
    next_segment: u64,
    live: BTreeSet<u64>,
}

/// What a checkpoint holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Written {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
}

impl Engine {
    /// The engine over `dir`, at its newest local checkpoint; at the beginning if there is none.
    pub(crate) fn open(dir: impl Into<PathBuf>, host: u32, seed: u64) -> Result<Self, Failure> {
        let dir = dir.into();
        let store = DirectoryStore::open(&dir)?;
        let mut engine = Self { dir, host, seed, store, state: State::default(), last: None };
        engine.recover()?;
        Ok(engine)
    }

    /// Goes on from the newest local checkpoint, whatever the state was before.
    pub(crate) fn recover(&mut self) -> Result<(), Failure> {
        let newest = self.store.list()?.into_iter().max_by_key(|checkpoint| checkpoint.step);
        self.state = State::default();
        self.last = newest.map(|checkpoint| checkpoint.id);
        if let Some(id) = self.last {
            let folder = self.store.folder(id);
            let path = folder.join(STATE_FILE);
            let text = fs::read(&path).map_err(io("read", &path))?;
            self.state = serde_json::from_slice(&text).map_err(|error| io("parse", &path)(error.into()))?;
        }
        self.put_segments_in_place()
    }

    /// Links the checkpoint's segments to where the engine works, and removes all others there.
    fn put_segments_in_place(&self) -> Result<(), Failure> {
        let segments = self.dir.join("segments");
        fs::create_dir_all(&segments).map_err(io("create", &segments))?;
        for entry in fs::read_dir(&segments).map_err(io("list", &segments))? {
            let path = entry.map_err(io("list", &segments))?.path();
            fs::remove_file(&path).map_err(io("remove", &path))?;
        }
        let Some(id) = self.last else { return Ok(()) };
        for segment in &self.state.live {
            let from = self.store.folder(id).join(segment_name(*segment));
            let to = self.dir.join(segment_name(*segment));
            fs::hard_link(&from, &to).map_err(io("link", &from))?;
        }
        Ok(())
    }

    /// True if somebody put another checkpoint in the place of the one that the state continues.
    pub(crate) fn was_replaced(&self) -> bool {
        self.last.is_some_and(|id| !self.store.folder(id).exists())
    }

    /// Step of the newest local checkpoint on disk.
    pub(crate) fn step_on_disk(&self) -> Result<Option<u64>, Failure> {
        Ok(self.store.list()?.iter().map(|checkpoint| checkpoint.step.get()).max())
    }

    pub(crate) fn host(&self) -> u32 {
        self.host
    }

    pub(crate) fn step(&self) -> u64 {
        self.state.step
    }

    pub(crate) fn records(&self) -> u64 {
        self.state.records
    }

    /// Processes input: `segments` new files of about `bytes` each. With more than `limit` live ones the oldest are retired, as
    /// a compaction would.
    pub(crate) fn work(&mut self, segments: u64, bytes: u64, limit: usize) -> Result<(), Failure> {
        for _ in 0..segments {
            let number = self.state.next_segment;
            // From half to one and a half of it, as real files differ.
            let bytes = bytes / 4 * (2 + number % 5);
            let path = self.dir.join(segment_name(number));
            let mut file = File::create(&path).map_err(io("create", &path))?;
            let write = file.write_all(&content(self.seed, self.host, number, bytes)).and_then(|()| file.sync_all());
            write.map_err(io("write", &path))?;
            self.state.next_segment += 1;
            self.state.live.insert(number);
            self.state.records += bytes / RECORD;
        }
        while self.state.live.len() > limit {
            let Some(oldest) = self.state.live.pop_first() else { break };
            let path = self.dir.join(segment_name(oldest));
            fs::remove_file(&path).map_err(io("remove", &path))?;
        }
        Ok(())
    }

    /// Writes a local checkpoint of the state, as the next step, and drops the oldest beyond those that are kept.
    pub(crate) fn checkpoint(&mut self) -> Result<Written, Failure> {
        self.state.step += 1;
        let id = LocalCheckpointId::new(Uuid::new_v4());
        let mut writer = self.store.writer(id)?;
        let mut written = Written::default();
        for segment in &self.state.live {
            let name = segment_name(*segment);
            let live = self.dir.join(&name);
            written.bytes += live.metadata().map_err(io("read", &live))?.len();
            written.files += 1;
            writer.link(&RelativePath::new(name)?, &live)?;
        }
        let state = serde_json::to_vec(&self.state).map_err(|error| io("write", &self.dir)(error.into()))?;
        writer.write(&RelativePath::new(STATE_FILE)?, &state)?;
        written.bytes += state.len() as u64;
        written.files += 1;
        writer.publish(&CheckpointDocument {
            uuid: id,
            step: Step::new(self.state.step)?,
            fingerprint: Some(Fingerprint(PROGRAM)),
            processed_records: Some(self.state.records),
            created_at: Utc::now(),
        })?;
        self.last = Some(id);
        self.drop_old()?;
        Ok(written)
    }

    fn drop_old(&self) -> Result<(), Problem> {
        let mut checkpoints = self.store.list()?;
        checkpoints.sort_by_key(|checkpoint| checkpoint.step);
        let excess = checkpoints.len().saturating_sub(KEPT);
        checkpoints.into_iter().take(excess).try_for_each(|checkpoint| self.store.remove(checkpoint.id))
    }

    /// Digest over names and contents of every file of the checkpoint that the state continues.
    pub(crate) fn digest(&self) -> Result<blake3::Hash, Failure> {
        let mut hasher = blake3::Hasher::new();
        if let Some(id) = self.last {
            let folder = self.store.folder(id);
            digest_folder(&folder, &folder, &mut hasher)?;
        }
        Ok(hasher.finalize())
    }
}

fn segment_name(number: u64) -> String {
    format!("segments/{number:06}.seg")
}

/// Looks random, so that nothing on the way can compress or guess it.
fn content(seed: u64, host: u32, segment: u64, bytes: u64) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    for number in [seed, u64::from(host), segment] {
        hasher.update(&number.to_le_bytes());
    }
    let mut content = vec![0; usize::try_from(bytes).unwrap_or(usize::MAX)];
    hasher.finalize_xof().fill(&mut content);
    content
}

fn digest_folder(root: &Path, folder: &Path, hasher: &mut blake3::Hasher) -> Result<(), Failure> {
    let entries = fs::read_dir(folder).map_err(io("list", folder))?;
    let mut paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>();
    if let Ok(paths) = &mut paths {
        paths.sort();
    }
    for path in paths.map_err(io("list", folder))? {
        if path.is_dir() {
            digest_folder(root, &path, hasher)?;
            continue;
        }
        let content = fs::read(&path).map_err(io("read", &path))?;
        let name = path.strip_prefix(root).unwrap_or(&path).as_os_str().as_encoded_bytes();
        // Lengths keep a name from running into a content.
        for part in [name, &content] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
    }
    Ok(())
}

fn io<'a>(action: &'a str, path: &'a Path) -> impl FnOnce(std::io::Error) -> Failure + use<'a> {
    move |error| {
        Failure::local("LOCAL_IO", format!("can't {action} {}: {error}", path.display())).with("path", path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_runs_from_one_seed_are_alike_and_hosts_differ() {
        let run = |host, seed| {
            let dir = tempfile::tempdir().unwrap();
            let mut engine = Engine::open(dir.path(), host, seed).unwrap();
            engine.work(3, 1000, 2).unwrap();
            (engine.state.clone(), fs::read(dir.path().join("segments/000002.seg")).unwrap())
        };
        assert_eq!(run(0, 1), run(0, 1));
        assert_ne!(run(0, 1).1, run(1, 1).1);
        assert_ne!(run(0, 1).1, run(0, 2).1);
    }

    #[test]
    fn a_restarted_engine_goes_on_from_its_newest_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let mut engine = Engine::open(dir.path(), 0, 1).unwrap();
        for _ in 0..5 {
            engine.work(2, 100, 3).unwrap();
            engine.checkpoint().unwrap();
        }
        let (digest, state) = (engine.digest().unwrap(), engine.state.clone());
        engine.work(2, 100, 3).unwrap();
        let mut engine = Engine::open(dir.path(), 0, 1).unwrap();
        assert_eq!((engine.digest().unwrap(), &engine.state), (digest, &state));
        assert_eq!((engine.step(), engine.store.list().unwrap().len()), (5, KEPT));
        engine.work(1, 100, 3).unwrap();
        engine.checkpoint().unwrap();
        assert_ne!(engine.digest().unwrap(), digest);
    }

    #[test]
    fn a_checkpoint_put_in_its_place_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let mut engine = Engine::open(dir.path(), 0, 1).unwrap();
        assert!(!engine.was_replaced());
        engine.checkpoint().unwrap();
        assert!(!engine.was_replaced());
        engine.store.retain_only(None).unwrap();
        assert!(engine.was_replaced());
        assert_eq!(engine.step_on_disk().unwrap(), None);
    }

    #[test]
    fn the_digest_sees_names_and_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let mut engine = Engine::open(dir.path(), 0, 1).unwrap();
        engine.work(1, 100, 3).unwrap();
        engine.checkpoint().unwrap();
        let before = engine.digest().unwrap();
        let folder = engine.store.folder(engine.last.unwrap());
        fs::rename(folder.join("segments/000000.seg"), folder.join("segments/000001.seg")).unwrap();
        assert_ne!(engine.digest().unwrap(), before);
    }
}
