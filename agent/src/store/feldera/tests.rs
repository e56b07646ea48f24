//! On copies of real storage directories: three hosts of one layout, each with checkpoints at steps 4, 8 and 12, and a list of all their files.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use lockstep_protocol::{
    id::{Fingerprint, LocalCheckpointId, Step},
    manifest::RelativePath,
    problem::{Problem, Reason},
};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::FelderaStore;
use crate::store::{CheckpointStore, HeldCheckpoint, StagedCheckpoint};

mod crashing;
mod holding;
mod listing;
mod locking;
mod racing;
mod restoring;
mod retaining;

#[derive(Deserialize)]
struct Expected {
    hosts: Vec<ExpectedHost>,
}

#[derive(Deserialize)]
struct ExpectedHost {
    dir: String,
    checkpoints: Vec<ExpectedCheckpoint>,
}

#[derive(Deserialize)]
struct ExpectedCheckpoint {
    uuid: String,
    step: u64,
    processed_records: u64,
    fingerprint: u64,
    files_count: u64,
    bytes: u64,
    files: Vec<ExpectedFile>,
}

#[derive(Deserialize)]
struct ExpectedFile {
    path: String,
    size: u64,
    sha256: String,
}

impl ExpectedCheckpoint {
    fn id(&self) -> LocalCheckpointId {
        self.uuid.parse().unwrap()
    }

    /// In the root, what it restores to.
    fn restored(&self, host: &str) -> BTreeMap<String, Vec<u8>> {
        let source = fixtures().join(host);
        let mut files: BTreeMap<String, Vec<u8>> =
            self.files.iter().map(|file| (file.path.clone(), fs::read(source.join(&file.path)).unwrap())).collect();
        files.insert("state.json".to_owned(), fs::read(source.join(&self.uuid).join("state.json")).unwrap());
        files.insert("checkpoints.feldera".to_owned(), self.alone(&source));
        files
    }

    /// The catalog with its entry only, cut out of the real one without a JSON parser.
    fn alone(&self, source: &Path) -> Vec<u8> {
        let catalog = fs::read_to_string(source.join("checkpoints.feldera")).unwrap();
        let start = catalog.find(&format!("{{\"uuid\":\"{}\"", self.uuid)).unwrap();
        let len = catalog[start..].find('}').unwrap() + 1;
        format!("[{}]", &catalog[start..start + len]).into_bytes()
    }
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../integration-tests/fixtures/dbsp-multihost")
}

fn expected() -> Expected {
    serde_json::from_slice(&fs::read(fixtures().join("expected.json")).unwrap()).unwrap()
}

fn expected_host(host: usize) -> ExpectedHost {
    expected().hosts.swap_remove(host)
}

/// In memory where there is room: these tests end a process in thought only, so what a sync would save is not at stake, and there are thousands of them.
fn quick_folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let roomy = nix::sys::statvfs::statvfs(memory)
        .is_ok_and(|stat| stat.blocks_available().saturating_mul(stat.fragment_size()) > 1 << 30);
    if roomy && let Ok(dir) = tempfile::tempdir_in(memory) {
        return dir;
    }
    tempfile::tempdir().unwrap()
}

/// A copy of one host's directory that a test may spoil.
struct Site {
    dir: TempDir,
    store: FelderaStore,
}

impl Site {
    fn copy_of(host: &str) -> Self {
        let site = Self::empty();
        copy_tree(&fixtures().join(host), &site.root());
        site
    }

    fn empty() -> Self {
        let dir = quick_folder();
        let store = FelderaStore::open(dir.path().join("storage")).unwrap();
        Self { dir, store }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("storage")
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root().join(path)
    }

    /// As `copy_of` another site, which nobody may write to in place any more: for tests that make many.
    fn linked_to(other: &Self) -> Self {
        let site = Self::empty();
        link_tree(&other.root(), &site.root());
        site
    }

    /// Puts a checkpoint of another directory into this one's staging, as a pull does that could reuse every file.
    fn stage_linked(&self, source: &Self, id: LocalCheckpointId) -> StagedCheckpoint {
        let held = source.store.hold(id).unwrap();
        let (staged, put) = self.staging(&*held);
        for file in &staged.files {
            fs::hard_link(source.at(file.as_str()), put(file)).unwrap();
        }
        staged
    }

    /// Puts a checkpoint of another directory into this one's staging, as a pull does.
    fn stage(&self, held: &dyn HeldCheckpoint) -> StagedCheckpoint {
        let (staged, put) = self.staging(held);
        for file in &staged.files {
            std::io::copy(&mut held.open(file).unwrap(), &mut fs::File::create(put(file)).unwrap()).unwrap();
        }
        staged
    }

    /// What will be staged, and where its files go.
    fn staging(&self, held: &dyn HeldCheckpoint) -> (StagedCheckpoint, impl Fn(&RelativePath) -> PathBuf + use<>) {
        let folder = self.store.staging_root().unwrap().join("transfer");
        let checkpoint = held.checkpoint();
        let staged = StagedCheckpoint {
            folder: folder.clone(),
            id: checkpoint.id,
            step: checkpoint.step,
            fingerprint: checkpoint.fingerprint,
            processed_records: checkpoint.processed_records,
            store_meta: held.store_meta().to_owned(),
            files: held.files().iter().map(|file| file.path.clone()).collect(),
        };
        let put = move |file: &RelativePath| {
            let to = folder.join(file.as_str());
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            to
        };
        (staged, put)
    }

    /// The same, of a fixture.
    fn stage_fixture(&self, host: &str, id: LocalCheckpointId) -> StagedCheckpoint {
        let source = Self::copy_of(host);
        self.stage(&*source.store.hold(id).unwrap())
    }

    /// All files in it but our own and the engine's lock.
    fn content(&self) -> BTreeMap<String, Vec<u8>> {
        let mut content = tree(&self.root());
        content.retain(|path, _| !path.starts_with("coordinator/lockstep/") && path != "feldera.pidlock");
        content
    }
}

fn copy_tree(from: &Path, to: &Path) {
    for_each_file(from, to, &|from, to| fs::write(to, fs::read(from).unwrap()).unwrap());
}

fn link_tree(from: &Path, to: &Path) {
    for_each_file(from, to, &|from, to| fs::hard_link(from, to).unwrap());
}

fn for_each_file(from: &Path, to: &Path, act: &dyn Fn(&Path, &Path)) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            for_each_file(&entry.path(), &to, act);
        } else {
            act(&entry.path(), &to);
        }
    }
}

fn tree(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut content = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                content.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    content
}

fn names(content: &BTreeMap<String, Vec<u8>>) -> Vec<&str> {
    content.keys().map(String::as_str).collect()
}

fn refused<T: std::fmt::Debug>(result: Result<T, Problem>, reason: Reason) -> Problem {
    let problem = result.unwrap_err();
    assert_eq!(problem.reason, reason, "{problem}");
    problem
}
