//! An engine's store that is watched, and that things happen to.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use lockstep_agent::store::{CheckpointStore, HeldCheckpoint, HeldFile, ReusableFile, StagedCheckpoint};
use lockstep_devkit::S3Server;
use lockstep_protocol::{id::LocalCheckpointId, manifest::RelativePath, problem::Problem, selection::LocalCheckpoint};

use crate::harness::{Host, directory};

type Happening = dyn Fn(&str) -> Result<(), Problem> + Send + Sync;

/// Files by path as they were opened, and what happens then.
#[derive(Clone, Default)]
pub(crate) struct Watch {
    opened: Arc<Mutex<Vec<String>>>,
    before_open: Arc<Mutex<Option<Arc<Happening>>>>,
    after_open: Arc<Mutex<Option<Arc<Happening>>>>,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("opened", &self.opened).finish_non_exhaustive()
    }
}

impl Watch {
    pub(crate) fn take_opened(&self) -> Vec<String> {
        let mut opened = std::mem::take(&mut *self.opened.lock().unwrap());
        opened.sort();
        opened
    }

    pub(crate) fn before_open(&self, happens: impl Fn(&str) -> Result<(), Problem> + Send + Sync + 'static) {
        *self.before_open.lock().unwrap() = Some(Arc::new(happens));
    }

    pub(crate) fn after_open(&self, happens: impl Fn(&str) -> Result<(), Problem> + Send + Sync + 'static) {
        *self.after_open.lock().unwrap() = Some(Arc::new(happens));
    }
}

fn happens(to: &Mutex<Option<Arc<Happening>>>, path: &RelativePath) -> Result<(), Problem> {
    let happening = to.lock().unwrap().clone();
    happening.map_or(Ok(()), |happening| happening(path.as_str()))
}

#[derive(Debug)]
struct Watched {
    inner: Arc<dyn CheckpointStore>,
    watch: Watch,
    /// Whether it says what files look like.
    looks: bool,
}

#[derive(Debug)]
struct Held {
    inner: Box<dyn HeldCheckpoint>,
    watch: Watch,
    files: Vec<HeldFile>,
}

impl HeldCheckpoint for Held {
    fn checkpoint(&self) -> &LocalCheckpoint {
        self.inner.checkpoint()
    }
    fn files(&self) -> &[HeldFile] {
        &self.files
    }
    fn open(&self, path: &RelativePath) -> Result<fs::File, Problem> {
        self.watch.opened.lock().unwrap().push(path.to_string());
        happens(&self.watch.before_open, path)?;
        let file = self.inner.open(path)?;
        happens(&self.watch.after_open, path)?;
        Ok(file)
    }
    fn store_meta(&self) -> &str {
        self.inner.store_meta()
    }
}

impl CheckpointStore for Watched {
    fn kind(&self) -> &'static str {
        "watched"
    }
    fn list(&self) -> Result<Vec<LocalCheckpoint>, Problem> {
        self.inner.list()
    }
    fn hold(&self, id: LocalCheckpointId) -> Result<Box<dyn HeldCheckpoint>, Problem> {
        let inner = self.inner.hold(id)?;
        let mut files = inner.files().to_vec();
        if !self.looks {
            files.iter_mut().for_each(|file| file.look = None);
        }
        Ok(Box::new(Held { inner, watch: self.watch.clone(), files }))
    }
    fn files_are_immutable(&self) -> bool {
        self.inner.files_are_immutable()
    }
    fn staging_root(&self) -> Result<PathBuf, Problem> {
        self.inner.staging_root()
    }
    fn reusable_files(&self) -> Result<Vec<ReusableFile>, Problem> {
        self.inner.reusable_files()
    }
    fn check_installable(&self) -> Result<(), Problem> {
        self.inner.check_installable()
    }
    fn install(&self, staged: &StagedCheckpoint) -> Result<(), Problem> {
        self.inner.install(staged)
    }
    fn retain_only(&self, keep: Option<LocalCheckpointId>) -> Result<(), Problem> {
        self.inner.retain_only(keep)
    }
    fn default_state_dir(&self) -> PathBuf {
        self.inner.default_state_dir()
    }
}

/// A host whose store is watched; over a directory that is there already after a restart.
pub(crate) async fn host_over(s3: &S3Server, dir: tempfile::TempDir, host_idx: u32, looks: bool) -> (Host, Watch) {
    let watch = Watch::default();
    let store = Arc::new(Watched { inner: directory(dir.path()), watch: watch.clone(), looks });
    let slot = lockstep_agent::Agent::slot(host_idx, 3).unwrap();
    (Host::with(s3, dir, store, |start| start.slot = slot).await, watch)
}

pub(crate) async fn host(s3: &S3Server) -> (Host, Watch) {
    host_over(s3, tempfile::tempdir().unwrap(), 1, true).await
}

/// Another process over the same directory; something may happen while none runs.
pub(crate) async fn restarted(s3: &S3Server, host: Host, happens: impl FnOnce(&Path)) -> (Host, Watch) {
    let Host { dir, agent, .. } = host;
    tokio::task::spawn_blocking(|| agent.shutdown()).await.unwrap();
    happens(dir.path());
    host_over(s3, dir, 1, true).await
}
