//! Reads that are asked again. What a look at a location is made of are many requests (a collection reads every commit), and whoever begins the whole of it anew wherever one of them fails comes to no
//! end where one in a hundred does, as with a store that throttles. Writes pass as they are: what a second one means is the protocol's to say.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use lockstep_protocol::{location::Location, problem::Problem};
use rand::Rng as _;
use tokio::time::Instant;

use crate::{
    error::StoreError,
    payload::Payload,
    store::{
        ByteStream, Connector, CreateOutcome, ListPage, Lookup, ObjectMeta, ObjectStore, OpenUpload, PartTag, UploadId,
        WriteOutcome,
    },
};

/// Tries of one read.
const TRIES: u32 = 4;

/// Pause after the first try; each one after it is twice as long. Half of it is left to chance.
const PAUSE: Duration = Duration::from_millis(50);

/// After this none is added: where a store doesn't answer at all it is the caller's patience that counts.
const AT_MOST: Duration = Duration::from_secs(2);

/// Opens locations whose reads are asked up to 4 times while they fail in a way that may pass, as long as that takes less than 2 s.
#[derive(Debug)]
pub struct Insisting<C>(pub C);

#[async_trait]
impl<C: Connector> Connector for Insisting<C> {
    async fn connect(&self, location: &Location) -> Result<Arc<dyn ObjectStore>, Problem> {
        Ok(Arc::new(Insistent(self.0.connect(location).await?)))
    }

    fn default_endpoint(&self) -> Option<&str> {
        self.0.default_endpoint()
    }
}

#[derive(Debug)]
struct Insistent(Arc<dyn ObjectStore>);

/// Of one read.
struct Tries {
    begun: Instant,
    left: u32,
    pause: Duration,
}

impl Tries {
    fn new() -> Self {
        Self { begun: Instant::now(), left: TRIES - 1, pause: PAUSE }
    }

    /// After a pause; false: the answer stands.
    async fn again(&mut self, failure: Option<&StoreError>) -> bool {
        let may_pass = failure.is_some_and(StoreError::is_retryable);
        if !may_pass || self.left == 0 || self.begun.elapsed() >= AT_MOST {
            return false;
        }
        let part = rand::rng().random_range(0.5..=1.0);
        tokio::time::sleep(self.pause.mul_f64(part)).await;
        self.left -= 1;
        self.pause *= 2;
        true
    }
}

fn unknown<T>(lookup: &Lookup<T>) -> Option<&StoreError> {
    match lookup {
        Lookup::Unknown(error) => Some(error),
        Lookup::Found(_) | Lookup::Absent => None,
    }
}

fn error<T>(result: &Result<T, StoreError>) -> Option<&StoreError> {
    result.as_ref().err()
}

#[async_trait]
impl ObjectStore for Insistent {
    fn location(&self) -> &Location {
        self.0.location()
    }

    async fn get(&self, key: &str, max_bytes: usize) -> Lookup<Bytes> {
        let mut tries = Tries::new();
        loop {
            let answer = self.0.get(key, max_bytes).await;
            if !tries.again(unknown(&answer)).await {
                return answer;
            }
        }
    }

    async fn head(&self, key: &str) -> Lookup<ObjectMeta> {
        let mut tries = Tries::new();
        loop {
            let answer = self.0.head(key).await;
            if !tries.again(unknown(&answer)).await {
                return answer;
            }
        }
    }

    async fn list(&self, prefix: &str, start_after: Option<&str>, max: u16) -> Result<ListPage, StoreError> {
        let mut tries = Tries::new();
        loop {
            let answer = self.0.list(prefix, start_after, max).await;
            if !tries.again(error(&answer)).await {
                return answer;
            }
        }
    }

    async fn list_multipart(&self, prefix: &str) -> Result<Vec<OpenUpload>, StoreError> {
        let mut tries = Tries::new();
        loop {
            let answer = self.0.list_multipart(prefix).await;
            if !tries.again(error(&answer)).await {
                return answer;
            }
        }
    }

    /// Its end is not known before it was read: whoever reads it asks again.
    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<ByteStream, StoreError> {
        self.0.get_range(key, offset, length).await
    }

    async fn create(&self, key: &str, body: Bytes) -> CreateOutcome {
        self.0.create(key, body).await
    }

    async fn put(&self, key: &str, body: Payload) -> WriteOutcome {
        self.0.put(key, body).await
    }

    async fn delete(&self, key: &str) -> WriteOutcome {
        self.0.delete(key).await
    }

    async fn delete_many(&self, keys: &[String]) -> Vec<WriteOutcome> {
        self.0.delete_many(keys).await
    }

    async fn create_multipart(&self, key: &str) -> Result<UploadId, StoreError> {
        self.0.create_multipart(key).await
    }

    async fn upload_part(
        &self,
        key: &str,
        upload: &UploadId,
        number: u16,
        body: Payload,
    ) -> Result<PartTag, StoreError> {
        self.0.upload_part(key, upload, number, body).await
    }

    async fn complete_multipart(&self, key: &str, upload: &UploadId, parts: &[PartTag]) -> WriteOutcome {
        self.0.complete_multipart(key, upload, parts).await
    }

    async fn abort_multipart(&self, key: &str, upload: &UploadId) -> WriteOutcome {
        self.0.abort_multipart(key, upload).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Operation, StoreErrorKind};

    #[tokio::test(start_paused = true)]
    async fn where_answers_do_not_come_nobody_insists() {
        let silent = StoreError {
            operation: Operation::Get,
            bucket: "acme".to_owned(),
            key: "orders/head.json".to_owned(),
            http_status: None,
            s3_code: None,
            request_id: None,
            kind: StoreErrorKind::Unavailable,
            message: "not answered within 5s".into(),
        };
        let mut tries = Tries::new();
        assert!(tries.again(Some(&silent)).await, "it failed at once");
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(!tries.again(Some(&silent)).await);
    }
}
