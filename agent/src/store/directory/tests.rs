use std::{
    collections::BTreeMap,
    io::Read,
    os::unix::fs::{MetadataExt, symlink},
};

use chrono::{DateTime, Utc};
use lockstep_protocol::{
    id::{Fingerprint, Step},
    manifest::RelativePath,
};
use tempfile::TempDir;
use uuid::Uuid;

use super::*;
use crate::store::durable::crash;

struct Site {
    dir: TempDir,
    store: DirectoryStore,
}

const FINGERPRINT: Fingerprint = Fingerprint(11_057_525_854_332_059_820);

fn id(n: u128) -> LocalCheckpointId {
    LocalCheckpointId::new(Uuid::from_u128(n))
}

fn path(path: &str) -> RelativePath {
    RelativePath::new(path).unwrap()
}

fn document(n: u128) -> CheckpointDocument {
    CheckpointDocument {
        uuid: id(n),
        step: Step::new(u64::try_from(n).unwrap() * 10).unwrap(),
        fingerprint: Some(FINGERPRINT),
        processed_records: Some(7),
        created_at: DateTime::<Utc>::from_timestamp(1_700_000_000 + i64::try_from(n).unwrap(), 0).unwrap(),
    }
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = DirectoryStore::open(dir.path().join("engine")).unwrap();
        Self { dir, store }
    }

    /// As an engine does: new files are written, known ones linked.
    fn make(&self, n: u128, previous: Option<u128>) {
        let mut writer = self.store.writer(id(n)).unwrap();
        match previous {
            Some(previous) => writer.link(&path("shared/a"), &self.file(previous, "shared/a")).unwrap(),
            None => writer.write(&path("shared/a"), b"immutable").unwrap(),
        }
        writer.write(&path("own"), n.to_string().as_bytes()).unwrap();
        writer.write(&path("empty"), b"").unwrap();
        writer.publish(&document(n)).unwrap();
    }

    fn file(&self, n: u128, name: &str) -> PathBuf {
        self.store.folder(id(n)).join(name)
    }

    fn steps(&self) -> Vec<u64> {
        self.store.list().unwrap().iter().map(|checkpoint| checkpoint.step.get()).collect()
    }

    fn stage(&self, source: &Self, n: u128) -> StagedCheckpoint {
        let held = source.store.hold(id(n)).unwrap();
        let folder = self.store.staging_root().unwrap().join("transfer");
        for (name, bytes) in content(&*held) {
            let to = folder.join(name);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::write(to, bytes).unwrap();
        }
        let checkpoint = held.checkpoint();
        StagedCheckpoint {
            folder,
            id: checkpoint.id,
            step: checkpoint.step,
            fingerprint: checkpoint.fingerprint,
            processed_records: checkpoint.processed_records,
            store_meta: held.store_meta().to_owned(),
            files: held.files().iter().map(|file| file.path.clone()).collect(),
        }
    }

    /// Everything that can be held, by id.
    fn all(&self) -> BTreeMap<LocalCheckpointId, BTreeMap<String, Vec<u8>>> {
        let listed = self.store.list().unwrap();
        listed.iter().map(|checkpoint| (checkpoint.id, content(&*self.store.hold(checkpoint.id).unwrap()))).collect()
    }
}

fn content(held: &dyn HeldCheckpoint) -> BTreeMap<String, Vec<u8>> {
    held.files()
        .iter()
        .map(|file| {
            let mut bytes = Vec::new();
            held.open(&file.path).unwrap().read_to_end(&mut bytes).unwrap();
            assert_eq!(bytes.len() as u64, file.size);
            (file.path.as_str().to_owned(), bytes)
        })
        .collect()
}

fn refused<T: std::fmt::Debug>(result: Result<T, Problem>, reason: Reason) -> Problem {
    let problem = result.unwrap_err();
    assert_eq!(problem.reason, reason, "{problem}");
    problem
}

#[test]
fn written_checkpoints_are_listed_oldest_first_and_share_their_unchanged_files() {
    let site = Site::new();
    assert!(site.store.list().unwrap().is_empty());
    site.make(2, None);
    site.make(1, Some(2));
    let listed = site.store.list().unwrap();
    assert_eq!(listed.iter().map(|c| c.id).collect::<Vec<_>>(), [id(1), id(2)]);
    assert_eq!(listed[1], document(2).describe(listed[1].bytes, 4));
    assert_eq!(listed[1].bytes, 9 + 1 + fs::metadata(site.file(2, FILE_NAME)).unwrap().len());
    let inode = |n| fs::metadata(site.file(n, "shared/a")).unwrap().ino();
    assert_eq!(inode(1), inode(2));
    let text = fs::read_to_string(site.file(2, FILE_NAME)).unwrap();
    assert!(text.contains("\"fingerprint\":\"11057525854332059820\""), "{text}");
}

#[test]
fn an_unpublished_checkpoint_is_none_and_leaves_nothing() {
    let site = Site::new();
    let mut writer = site.store.writer(id(1)).unwrap();
    writer.write(&path("a/b"), b"x").unwrap();
    assert!(site.store.list().unwrap().is_empty());
    drop(writer);
    assert_eq!(fs::read_dir(site.store.writing_root()).unwrap().count(), 1, "only the guard stays");
    fs::create_dir_all(site.store.folder(id(2))).unwrap();
    fs::write(site.file(2, "data"), "x").unwrap();
    assert!(site.store.list().unwrap().is_empty(), "a folder without checkpoint.json");
    refused(site.store.hold(id(2)), Reason::CheckpointNotFound);
}

#[test]
fn a_writer_refuses_another_id_a_taken_one_and_its_own_document() {
    let site = Site::new();
    site.make(1, None);
    refused(site.store.writer(id(1)).unwrap().publish(&document(1)), Reason::SpecInvalid);
    refused(site.store.writer(id(2)).unwrap().publish(&document(3)), Reason::SpecInvalid);
    refused(site.store.writer(id(2)).unwrap().write(&path(FILE_NAME), b""), Reason::SpecInvalid);
    assert_eq!(site.steps(), [10]);
}

#[test]
fn a_held_checkpoint_outlives_its_removal() {
    for holding in [Holding::HardLinks, Holding::OpenFiles] {
        let mut site = Site::new();
        site.store = site.store.with_holding(holding);
        site.make(1, None);
        let held = site.store.hold(id(1)).unwrap();
        let before = content(&*held);
        assert_eq!(before.keys().collect::<Vec<_>>(), [FILE_NAME, "empty", "own", "shared/a"]);
        site.store.remove(id(1)).unwrap();
        assert!(site.store.list().unwrap().is_empty());
        assert_eq!(content(&*held), before, "{holding:?}");
        refused(site.store.hold(id(1)), Reason::CheckpointNotFound);
        drop(held);
        assert_eq!(fs::read_dir(site.store.hold_root()).unwrap().count(), 1, "only the guard stays");
    }
}

#[test]
fn a_broken_checkpoint_stops_neither_its_successors_nor_counts_as_none() {
    let whole = serde_json::to_string(&document(1)).unwrap();
    for (text, why) in [
        (whole[..whole.len() / 2].to_owned(), "is not valid"),
        (String::new(), "is not valid"),
        (whole.replace(&id(1).to_string(), &id(9).to_string()), "its folder is that of"),
        (whole.replace(&id(1).to_string(), &format!("{{{}}}", id(1))), "is not valid"),
        (whole.replace("\"step\":10", "\"step\":9223372036854775808"), "is not valid"),
        (whole.replace("\"11057525854332059820\"", "11057525854332059820"), "is not valid"),
    ] {
        let site = Site::new();
        site.make(1, None);
        fs::write(site.file(1, FILE_NAME), &text).unwrap();
        for problem in [
            refused(site.store.list(), Reason::ManifestInvalid),
            refused(site.store.hold(id(1)), Reason::ManifestInvalid),
            refused(site.store.retain_only(Some(id(1))), Reason::ManifestInvalid),
        ] {
            assert!(problem.message.contains(why), "{text}: {problem}");
            assert_eq!(problem.metadata["path"], site.file(1, FILE_NAME).display().to_string());
        }
        site.make(2, None);
        assert_eq!(site.steps(), [20]);
    }
}

#[test]
fn links_and_special_files_are_refused_with_their_path() {
    let site = Site::new();
    site.make(1, None);
    site.make(2, None);
    symlink("/etc/passwd", site.file(1, "shared/link")).unwrap();
    let problem = refused(site.store.hold(id(1)), Reason::SourceUnsupported);
    assert_eq!(problem.metadata["path"], site.file(1, "shared/link").display().to_string());
    // It is listed nevertheless: pushing an older one in silence would be worse than an error.
    assert_eq!(site.steps(), [10, 20]);
    nix::unistd::mkfifo(&site.file(2, "pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let problem = refused(site.store.hold(id(2)), Reason::SourceUnsupported);
    assert_eq!(problem.metadata["found"], "is a FIFO");
    fs::rename(site.store.folder(id(2)), site.dir.path().join("away")).unwrap();
    symlink(site.dir.path().join("away"), site.store.folder(id(2))).unwrap();
    refused(site.store.hold(id(2)), Reason::SourceUnsupported);
}

#[test]
fn an_installed_checkpoint_is_whole_and_alone() {
    let (source, site) = (Site::new(), Site::new());
    source.make(5, None);
    for old in [7, 5, 6] {
        site.make(old, None);
    }
    fs::write(site.file(5, "stale"), "x").unwrap();
    fs::write(site.file(7, FILE_NAME), "broken").unwrap();
    let staged = site.stage(&source, 5);
    site.store.check_installable().unwrap();
    for _ in 0..2 {
        site.store.install(&staged).unwrap();
        assert_eq!(site.all(), source.all());
        assert_eq!(fs::read_dir(site.store.checkpoints()).unwrap().count(), 1);
        assert!(!staged.folder.exists());
    }
}

#[test]
fn an_install_is_taken_up_after_a_crash_at_any_change() {
    let source = Site::new();
    source.make(5, None);
    let mut tried = 0;
    for changes in 0.. {
        let mut site = Site::new();
        for old in [5, 6, 7] {
            site.make(old, None);
        }
        let (before, staged) = (site.all(), site.stage(&source, 5));
        crash::after(changes);
        let died = site.store.install(&staged);
        crash::never();
        if died.is_ok() {
            break;
        }
        tried += 1;
        site.store = DirectoryStore::open(site.dir.path().join("engine")).unwrap();
        for (id, files) in site.all() {
            assert!(files == before[&id] || files == source.all()[&id], "half a checkpoint after change {changes}");
        }
        site.store.install(&staged).unwrap();
        assert_eq!(site.all(), source.all(), "after a crash at change {changes}");
    }
    assert!(tried > 5, "only {tried} changes");
}

#[test]
fn a_staging_that_is_incomplete_or_says_otherwise_is_refused_and_nothing_changes() {
    type Spoil = fn(&mut StagedCheckpoint);
    let spoils: [(Reason, Spoil); 7] = [
        (Reason::CheckpointNotFound, |staged| fs::remove_dir_all(&staged.folder).unwrap()),
        (Reason::CheckpointNotFound, |staged| fs::remove_file(staged.folder.join("own")).unwrap()),
        (Reason::ManifestInvalid, |staged| fs::write(staged.folder.join("extra"), "x").unwrap()),
        (Reason::ManifestInvalid, |staged| staged.files.retain(|file| file.as_str() != FILE_NAME)),
        (Reason::ManifestInvalid, |staged| staged.step = Step::new(1).unwrap()),
        (Reason::ManifestInvalid, |staged| staged.fingerprint = None),
        (Reason::ManifestInvalid, |staged| staged.id = id(6)),
    ];
    for (number, (reason, spoil)) in spoils.into_iter().enumerate() {
        let (source, site) = (Site::new(), Site::new());
        source.make(5, None);
        site.make(7, None);
        let before = site.all();
        let mut staged = site.stage(&source, 5);
        spoil(&mut staged);
        let problem = site.store.install(&staged).unwrap_err();
        assert_eq!(problem.reason, reason, "{number}: {problem}");
        assert_eq!(site.all(), before, "{number}");
    }
}

#[test]
fn going_back_keeps_one_checkpoint_or_none() {
    let site = Site::new();
    for n in [1, 2, 3] {
        site.make(n, None);
    }
    refused(site.store.retain_only(Some(id(9))), Reason::CheckpointNotFound);
    assert_eq!(site.steps(), [10, 20, 30]);
    site.store.retain_only(Some(id(2))).unwrap();
    assert_eq!(site.steps(), [20]);
    site.store.retain_only(None).unwrap();
    assert!(site.steps().is_empty());
    Site::new().store.retain_only(None).unwrap();
}

#[test]
fn a_running_engine_is_left_alone_if_its_embedder_says_so() {
    let source = Site::new();
    source.make(5, None);
    let mut site = Site::new();
    site.make(7, None);
    let staged = site.stage(&source, 5);
    site.store = site.store.with_engine_check(EngineCheck::new(|| Ok(true)));
    refused(site.store.check_installable(), Reason::EngineRunning);
    refused(site.store.install(&staged), Reason::EngineRunning);
    refused(site.store.retain_only(None), Reason::EngineRunning);
    assert_eq!(site.steps(), [70]);
}

#[test]
fn every_present_file_may_be_reused() {
    let site = Site::new();
    site.make(1, None);
    site.make(2, Some(1));
    let reusable = site.store.reusable_files().unwrap();
    let of = |n: u128| -> Vec<&str> {
        let mut paths: Vec<&str> =
            reusable.iter().filter(|f| f.on_disk == site.file(n, f.path.as_str())).map(|f| f.path.as_str()).collect();
        paths.sort_unstable();
        paths
    };
    for n in [1, 2] {
        assert_eq!(of(n), [FILE_NAME, "empty", "own", "shared/a"]);
    }
    assert_eq!(reusable.len(), 8);
}
