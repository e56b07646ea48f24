//! What a simulated agent moves: two files a checkpoint, one of them the same in all of them, so that pushes reuse objects of their base.

use std::time::Duration;

use bytes::Bytes;
use lockstep_bucket::Lookup;
use lockstep_proto::v1;
use lockstep_protocol::{
    digest::Digest,
    document::MAX_DOCUMENT_BYTES,
    id::{Fingerprint, Step},
    manifest::{FileEntry, ObjectEntry, PartDocument, PartManifest, RelativePath},
    order::OrderHeader,
    problem::{Problem, Reason},
};

use super::{Agent, Local, Stage};

pub(super) const FINGERPRINT: Fingerprint = Fingerprint(u64::MAX);

/// Tries of one request before an attempt fails.
const TRIES: u32 = 4;

const SHARED: &[u8] = b"never changes";

/// What a host's file of a step holds.
fn content(host_idx: u32, step: Step) -> Bytes {
    Bytes::from(format!("host {host_idx} at step {step}"))
}

fn stopped() -> Problem {
    Problem::new(Reason::Cancelled, "stopped")
}

impl Agent {
    /// Some time passes in which bytes move.
    async fn work(&self, header: &OrderHeader) -> Result<(), Problem> {
        tokio::time::sleep(self.0.weather.millis(5..900)).await;
        if !self.goes_on(header) {
            return Err(stopped());
        }
        if let Some(transfer) = &mut self.state().transfer
            && let Stage::Running { moved } = &mut transfer.stage
        {
            *moved += 1;
        }
        Ok(())
    }

    async fn read(&self, key: &str) -> Result<Bytes, Problem> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.0.bucket.get(key, MAX_DOCUMENT_BYTES).await {
                Lookup::Found(bytes) => return Ok(bytes),
                Lookup::Absent => return Err(Problem::new(Reason::CheckpointDamaged, format!("{key} is missing"))),
                Lookup::Unknown(error) if tries >= TRIES => return Err(error.problem()),
                Lookup::Unknown(_) => tokio::time::sleep(self.0.weather.millis(50..500)).await,
            }
        }
    }

    async fn write(&self, key: &str, bytes: Bytes) -> Result<(), Problem> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.0.bucket.put(key, bytes.clone().into()).await.done() {
                Ok(()) => return Ok(()),
                Err(error) if tries >= TRIES => return Err(error.problem()),
                Err(_) => tokio::time::sleep(self.0.weather.millis(50..500)).await,
            }
        }
    }

    pub(super) async fn upload(self, header: OrderHeader, order: v1::PushOrder) {
        let stage = match self.try_upload(&header, &order).await {
            Ok(done) => Stage::Pushed(done),
            Err(problem) => Stage::Failed(problem),
        };
        self.end(&header, stage, None);
    }

    async fn try_upload(&self, header: &OrderHeader, order: &v1::PushOrder) -> Result<v1::PushDone, Problem> {
        let id = order.local_checkpoint.parse().unwrap();
        let Some(local) = self.disk().into_iter().find(|local| local.id == id) else {
            return Err(Problem::new(Reason::CheckpointNotFound, "the engine has removed it"));
        };
        let slot = self.0.slot;
        let mut part = PartManifest {
            pipeline: header.pipeline,
            slot,
            generation: header.generation,
            round: header.round,
            incarnation: header.incarnation,
            attempt: header.attempt,
            local_checkpoint: local.id,
            step: local.step,
            fingerprint: Some(FINGERPRINT),
            processed_records: None,
            store_meta: String::new(),
            objects: Vec::new(),
            files: Vec::new(),
            delta: None,
        };
        let path = part.attempt_path();
        self.work(header).await?;
        let shared = match self.reusable(order).await? {
            Some(object) => object,
            None => {
                let key = path.data(1).to_string();
                self.write(&key, Bytes::from_static(SHARED)).await?;
                ObjectEntry { key, size: SHARED.len() as u64 }
            }
        };
        self.work(header).await?;
        let (key, state) = (path.data(0).to_string(), content(slot.idx(), local.step));
        self.write(&key, state.clone()).await?;
        let file = |name: &str, bytes: &[u8], object: u32| FileEntry {
            path: RelativePath::new(name).unwrap(),
            size: bytes.len() as u64,
            blake3: Digest::of(bytes),
            head: None,
            object: Some(object),
            offset: 0,
            length: bytes.len() as u64,
        };
        part.files = vec![file("shared", SHARED, 0), file("state", &state, 1)];
        part.objects = vec![shared, ObjectEntry { key, size: state.len() as u64 }];
        self.work(header).await?;
        let (bytes, manifest) = (part.encode(), path.manifest().to_string());
        self.write(&manifest, Bytes::from(bytes.clone())).await?;
        Ok(v1::PushDone {
            part: Some(v1::PartRef {
                host_idx: slot.idx(),
                key: manifest,
                length: bytes.len() as u64,
                blake3: Digest::of(&bytes).to_string(),
            }),
            local_checkpoint: order.local_checkpoint.clone(),
            step: order.step,
            fingerprint: order.fingerprint.clone(),
            files: 2,
            bytes: part.bytes(),
            bytes_uploaded: state.len() as u64,
            processed_records: None,
            elapsed: None,
        })
    }

    /// The object of the base that holds what never changes.
    async fn reusable(&self, order: &v1::PushOrder) -> Result<Option<ObjectEntry>, Problem> {
        let own = |base: &&v1::PartRef| base.host_idx == self.0.slot.idx();
        let Some(base) = order.base_parts.iter().find(own) else { return Ok(None) };
        let bytes = self.read(&base.key).await?;
        let PartDocument::Full(part) = PartDocument::parse(&base.key, &bytes)? else { return Ok(None) };
        Ok(part.objects.into_iter().find(|object| object.size == SHARED.len() as u64))
    }

    pub(super) async fn download(self, header: OrderHeader, order: v1::PullOrder) {
        let (stage, staged) = match self.try_download(&header, &order).await {
            Ok((done, staged)) => (Stage::Pulled(done), Some(staged)),
            Err(problem) => (Stage::Failed(problem), None),
        };
        self.end(&header, stage, staged);
    }

    async fn try_download(
        &self,
        header: &OrderHeader,
        order: &v1::PullOrder,
    ) -> Result<(v1::PullDone, Local), Problem> {
        let part = order.part.clone().unwrap_or_default();
        let bytes = self.read(&part.key).await?;
        if Digest::of(&bytes).to_string() != part.blake3 {
            return Err(Problem::new(Reason::Integrity, format!("{} has another digest", part.key)));
        }
        let PartDocument::Full(manifest) = PartDocument::parse(&part.key, &bytes)? else {
            return Err(Problem::new(Reason::ManifestInvalid, "simulated agents write no deltas"));
        };
        self.work(header).await?;
        for file in &manifest.files {
            let object = &manifest.objects[file.object.unwrap() as usize];
            let bytes = self.read(&object.key).await?;
            if Digest::of(&bytes) != file.blake3 {
                return Err(Problem::new(Reason::Integrity, format!("{} has another digest", object.key)));
            }
            self.work(header).await?;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        if !self.goes_on(header) {
            return Err(stopped());
        }
        let done = v1::PullDone {
            reach: v1::PullReach::Staged.into(),
            local_checkpoint: order.local_checkpoint.clone(),
            step: order.step,
            files: 2,
            bytes: manifest.bytes(),
            bytes_downloaded: manifest.bytes(),
            ..v1::PullDone::default()
        };
        Ok((done, Local { id: manifest.local_checkpoint, step: manifest.step, made: None }))
    }
}
