//! An agent, its S3 server and its client, and orders as a coordinator gives them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use lockstep_agent::{
    Agent, AgentHandle,
    store::{
        CheckpointStore,
        directory::{DirectoryStore, document::CheckpointDocument},
    },
};
use lockstep_bucket::{AwsConnector, AwsOptions, StaticCredentials};
use lockstep_devkit::{S3Options, S3Server};
use lockstep_proto::v1::{self, agent_client::AgentClient, pull_status_response, push_status_response};
use lockstep_protocol::{
    host::Slot,
    id::{LocalCheckpointId, Step},
    location::Location,
    manifest::RelativePath,
};
use lockstep_rpc::{ChannelOptions, MAX_MESSAGE_BYTES, RpcProblem, TracedChannel, connect_lazy};
use tonic::Status;
use uuid::Uuid;

pub(crate) const BUCKET: &str = "acme";
pub(crate) const PREFIX: &str = "ckpt/orders";
pub(crate) const PIPELINE: &str = "11111111-1111-4111-8111-111111111111";

pub(crate) type Client = AgentClient<TracedChannel>;

/// Files of a checkpoint by path.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

pub(crate) async fn s3() -> S3Server {
    S3Server::start(S3Options { buckets: vec![BUCKET.to_owned(), "other".to_owned()], ..S3Options::default() })
        .await
        .unwrap()
}

pub(crate) fn location(s3: &S3Server) -> Location {
    format!("s3://{BUCKET}/{PREFIX}?endpoint={}&path_style=true", s3.endpoint()).parse().unwrap()
}

/// What stands at a key relative to the location.
pub(crate) fn object(s3: &S3Server, key: &str) -> Vec<u8> {
    s3.admin().read(BUCKET, &format!("{PREFIX}/{key}")).unwrap()
}

/// Deterministic bytes that don't compress or repeat.
pub(crate) fn noise(seed: &str, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(seed.as_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

pub(crate) fn files(files: &[(&str, Vec<u8>)]) -> Files {
    files.iter().map(|(path, bytes)| ((*path).to_owned(), bytes.clone())).collect()
}

/// All regular files below a folder.
pub(crate) fn read_tree(folder: &Path) -> Files {
    let mut found = Files::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
                found.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// One host: its directory, agent and client.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) agent: AgentHandle,
    pub(crate) client: Client,
    pub(crate) slot: Slot,
    pub(crate) location: Location,
}

pub(crate) struct Start {
    pub(crate) slot: Slot,
    pub(crate) secret: &'static str,
    pub(crate) allowed: Vec<Location>,
}

impl Host {
    /// Host 1 of 3 over a `DirectoryStore`.
    pub(crate) async fn start(s3: &S3Server) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = directory(dir.path());
        Self::over(s3, dir, store).await
    }

    pub(crate) async fn solo(s3: &S3Server) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = directory(dir.path());
        Self::with(s3, dir, store, |start| start.slot = Slot::Solo).await
    }

    pub(crate) async fn over(s3: &S3Server, dir: tempfile::TempDir, store: Arc<dyn CheckpointStore>) -> Self {
        Self::with(s3, dir, store, |_| {}).await
    }

    pub(crate) async fn with(
        s3: &S3Server,
        dir: tempfile::TempDir,
        store: Arc<dyn CheckpointStore>,
        change: impl FnOnce(&mut Start),
    ) -> Self {
        let location = location(s3);
        let mut start =
            Start { slot: Agent::slot(1, 3).unwrap(), secret: "lockstep-secret", allowed: vec![location.clone()] };
        change(&mut start);
        let connector = AwsConnector::with(AwsOptions {
            credentials: Some(StaticCredentials {
                access_key_id: "lockstep".to_owned(),
                secret_access_key: start.secret.to_owned(),
            }),
            endpoint: Some(s3.endpoint()),
            region: Some("us-east-1".to_owned()),
            ..AwsOptions::default()
        })
        .await;
        let slot = start.slot;
        let builder = Agent::builder(PIPELINE.parse().unwrap(), slot, store).connector(Arc::new(connector));
        let builder = start.allowed.into_iter().fold(builder, |builder, location| builder.allow(location));
        let agent = tokio::task::spawn_blocking(|| builder.start()).await.unwrap().unwrap();
        let client = client(&agent);
        Self { dir, agent, client, slot, location }
    }

    /// The agent's process ends and another one starts over the same directory.
    pub(crate) async fn restart(self, s3: &S3Server) -> Self {
        let Self { dir, agent, slot, .. } = self;
        tokio::task::spawn_blocking(|| agent.shutdown()).await.unwrap();
        let store = directory(dir.path());
        Self::with(s3, dir, store, |start| start.slot = slot).await
    }

    pub(crate) fn header(&self, round_no: u64) -> v1::OrderHeader {
        v1::OrderHeader {
            pipeline_id: PIPELINE.to_owned(),
            pipeline_name: "orders".to_owned(),
            host_info: self
                .slot
                .host_info()
                .map(|info| v1::HostInfo { host_idx: info.host_idx(), n_hosts: info.n_hosts() }),
            incarnation: self.agent.incarnation().to_string(),
            generation: 1,
            round_no,
            term: 1,
            round: round_id(round_no),
            attempt: 1,
            own_location: Some(proto_location(&self.location)),
        }
    }

    pub(crate) fn push_order(&self, round_no: u64, checkpoint: LocalCheckpointId, step: u64) -> v1::PushOrder {
        v1::PushOrder {
            header: Some(self.header(round_no)),
            local_checkpoint: checkpoint.to_string(),
            step,
            fingerprint: FINGERPRINT.to_owned(),
            base: None,
            base_parts: Vec::new(),
            deadline: None,
            time_left: None,
            transfer: None,
        }
    }

    pub(crate) fn pull_order(&self, round_no: u64, pushed: &v1::PushDone, pushed_in: u64) -> v1::PullOrder {
        v1::PullOrder {
            header: Some(self.header(round_no)),
            source: Some(proto_location(&self.location)),
            commit: Some(commit(pushed_in)),
            part: pushed.part.clone(),
            local_checkpoint: pushed.local_checkpoint.clone(),
            step: pushed.step,
            fingerprint: pushed.fingerprint.clone(),
            deadline: None,
            time_left: None,
            transfer: None,
        }
    }

    pub(crate) fn install_order(&self, round_no: u64, checkpoint: &str, step: u64) -> v1::InstallOrder {
        v1::InstallOrder {
            header: Some(self.header(round_no)),
            local_checkpoint: checkpoint.to_owned(),
            step,
            fresh: false,
        }
    }

    /// Writes a local checkpoint as an engine does.
    pub(crate) fn checkpoint(&self, step: u64, files: &Files) -> LocalCheckpointId {
        write_checkpoint(self.dir.path(), step, files)
    }

    pub(crate) fn folder(&self, checkpoint: impl ToString) -> PathBuf {
        self.dir.path().join("checkpoints").join(checkpoint.to_string())
    }

    pub(crate) async fn push(&self, order: v1::PushOrder) -> Result<v1::PushDone, v1::Problem> {
        let header = order.header.clone();
        self.client.clone().push(order).await.unwrap();
        self.push_end(header.unwrap()).await
    }

    pub(crate) async fn push_end(&self, header: v1::OrderHeader) -> Result<v1::PushDone, v1::Problem> {
        loop {
            match self.push_state(header.clone(), 10).await {
                push_status_response::State::InProgress(_) => {}
                push_status_response::State::Done(done) => return Ok(done),
                push_status_response::State::Failed(problem) => return Err(problem),
                push_status_response::State::NotRequested(_) => panic!("the push is not known"),
            }
        }
    }

    pub(crate) async fn push_state(&self, header: v1::OrderHeader, wait: i64) -> push_status_response::State {
        self.client.clone().push_status(status_request(header, wait)).await.unwrap().into_inner().state.unwrap()
    }

    pub(crate) async fn pull(&self, order: v1::PullOrder) -> Result<v1::PullDone, v1::Problem> {
        let header = order.header.clone().unwrap();
        self.client.clone().pull(order).await.unwrap();
        loop {
            match self.pull_state(header.clone(), 10).await {
                pull_status_response::State::InProgress(_) => {}
                pull_status_response::State::Done(done) => return Ok(done),
                pull_status_response::State::Failed(problem) => return Err(problem),
                pull_status_response::State::NotRequested(_) => panic!("the pull is not known"),
            }
        }
    }

    pub(crate) async fn pull_state(&self, header: v1::OrderHeader, wait: i64) -> pull_status_response::State {
        self.client.clone().pull_status(status_request(header, wait)).await.unwrap().into_inner().state.unwrap()
    }

    pub(crate) async fn install(&self, order: v1::InstallOrder) -> Result<v1::PullDone, RpcProblem> {
        let answer = self.client.clone().install(order).await.map_err(RpcProblem::from)?.into_inner();
        match answer.state.unwrap() {
            pull_status_response::State::Done(done) => Ok(done),
            other => panic!("not installed: {other:?}"),
        }
    }

    pub(crate) fn stagings(&self) -> Vec<PathBuf> {
        let root = directory(self.dir.path()).staging_root().unwrap();
        fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect()
    }
}

pub(crate) const FINGERPRINT: &str = "11057525854332059820";

pub(crate) fn directory(root: &Path) -> Arc<dyn CheckpointStore> {
    Arc::new(DirectoryStore::open(root).unwrap())
}

pub(crate) fn write_checkpoint(root: &Path, step: u64, files: &Files) -> LocalCheckpointId {
    let id = LocalCheckpointId::new(Uuid::new_v4());
    let store = DirectoryStore::open(root).unwrap();
    let mut writer = store.writer(id).unwrap();
    for (path, bytes) in files {
        writer.write(&RelativePath::new(path.as_str()).unwrap(), bytes).unwrap();
    }
    writer
        .publish(&CheckpointDocument {
            uuid: id,
            step: Step::new(step).unwrap(),
            fingerprint: Some(FINGERPRINT.parse().unwrap()),
            processed_records: Some(1000 + step),
            created_at: chrono::Utc::now(),
        })
        .unwrap();
    id
}

/// The same for all hosts of a round.
pub(crate) fn round_id(round_no: u64) -> String {
    format!("33333333-3333-4333-8333-{round_no:012}")
}

pub(crate) fn commit(round_no: u64) -> v1::CommitRef {
    v1::CommitRef { generation: 1, seq: round_no, round: round_id(round_no), digest: "0".repeat(64) }
}

pub(crate) fn proto_location(location: &Location) -> v1::Location {
    v1::Location {
        bucket: location.bucket().to_owned(),
        prefix: location.prefix().to_owned(),
        region: String::new(),
        endpoint: location.endpoint().unwrap_or_default().to_owned(),
        force_path_style: location.force_path_style(),
    }
}

pub(crate) fn status_request(header: v1::OrderHeader, wait: i64) -> v1::StatusRequest {
    v1::StatusRequest { header: Some(header), wait: Some(prost_types::Duration { seconds: wait, nanos: 0 }) }
}

pub(crate) fn client(agent: &AgentHandle) -> Client {
    let channel = connect_lazy(&agent.addr().to_string(), &ChannelOptions::default()).unwrap();
    AgentClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES)
}

pub(crate) fn refusal<T: std::fmt::Debug>(answer: Result<T, Status>) -> RpcProblem {
    RpcProblem::from(answer.unwrap_err())
}

/// Asks again until the condition holds; the time limit only ends a test that has failed.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let mut look = tokio::time::interval(Duration::from_millis(5));
    let waiting = async {
        while !condition().await {
            look.tick().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.unwrap_or_else(|_| panic!("never came: {what}"));
}
