//! The bucket's in-memory twin as one replica or agent sees it: behind its gate, some milliseconds away.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use lockstep_bucket::{
    ByteStream, Connector, CreateOutcome, ListPage, Lookup, MemoryBuckets, MemoryStore, ObjectMeta, ObjectStore,
    OpenUpload, PartTag, Payload, StoreError, UploadId, WriteOutcome,
};
use lockstep_coordinator::store::memory::Gate;
use lockstep_protocol::{location::Location, problem::Problem};

use crate::weather::Weather;

#[derive(Clone, Debug)]
pub(crate) struct FarBuckets {
    pub(crate) buckets: MemoryBuckets,
    pub(crate) gate: Arc<dyn Gate>,
    pub(crate) weather: Weather,
}

impl FarBuckets {
    /// One location.
    pub(crate) fn store(&self, location: &Location) -> Arc<dyn ObjectStore> {
        Arc::new(FarStore { near: self.buckets.store(location.clone()), far: self.clone() })
    }
}

#[async_trait]
impl Connector for FarBuckets {
    async fn connect(&self, location: &Location) -> Result<Arc<dyn ObjectStore>, Problem> {
        Ok(self.store(location))
    }
}

#[derive(Debug)]
struct FarStore {
    near: MemoryStore,
    far: FarBuckets,
}

impl FarStore {
    async fn there<T>(&self, request: impl Future<Output = T> + Send) -> T {
        self.far.gate.pass().await;
        tokio::time::sleep(self.far.weather.latency()).await;
        let answer = request.await;
        tokio::time::sleep(self.far.weather.latency()).await;
        self.far.gate.pass().await;
        answer
    }
}

#[async_trait]
impl ObjectStore for FarStore {
    fn location(&self) -> &Location {
        self.near.location()
    }

    async fn create(&self, key: &str, body: Bytes) -> CreateOutcome {
        self.there(self.near.create(key, body)).await
    }

    async fn put(&self, key: &str, body: Payload) -> WriteOutcome {
        self.there(self.near.put(key, body)).await
    }

    async fn get(&self, key: &str, max_bytes: usize) -> Lookup<Bytes> {
        self.there(self.near.get(key, max_bytes)).await
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<ByteStream, StoreError> {
        self.there(self.near.get_range(key, offset, length)).await
    }

    async fn head(&self, key: &str) -> Lookup<ObjectMeta> {
        self.there(self.near.head(key)).await
    }

    async fn list(&self, prefix: &str, start_after: Option<&str>, max: u16) -> Result<ListPage, StoreError> {
        self.there(self.near.list(prefix, start_after, max)).await
    }

    async fn delete(&self, key: &str) -> WriteOutcome {
        self.there(self.near.delete(key)).await
    }

    async fn delete_many(&self, keys: &[String]) -> Vec<WriteOutcome> {
        self.there(self.near.delete_many(keys)).await
    }

    async fn create_multipart(&self, key: &str) -> Result<UploadId, StoreError> {
        self.there(self.near.create_multipart(key)).await
    }

    async fn upload_part(
        &self,
        key: &str,
        upload: &UploadId,
        number: u16,
        body: Payload,
    ) -> Result<PartTag, StoreError> {
        self.there(self.near.upload_part(key, upload, number, body)).await
    }

    async fn complete_multipart(&self, key: &str, upload: &UploadId, parts: &[PartTag]) -> WriteOutcome {
        self.there(self.near.complete_multipart(key, upload, parts)).await
    }

    async fn abort_multipart(&self, key: &str, upload: &UploadId) -> WriteOutcome {
        self.there(self.near.abort_multipart(key, upload)).await
    }

    async fn list_multipart(&self, prefix: &str) -> Result<Vec<OpenUpload>, StoreError> {
        self.there(self.near.list_multipart(prefix)).await
    }
}
