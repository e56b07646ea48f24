//! DeleteObjects: many keys in one request, each with its own outcome; one delete a key where the server takes no batches.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use aws_sdk_s3::{
    operation::delete_objects::DeleteObjectsOutput,
    types::{Delete, ObjectIdentifier},
};
use bytes::Bytes;
use futures::StreamExt as _;

use super::{
    AwsStore,
    checksum::md5,
    request::{Request, text},
};
use crate::{
    error::{Operation, StoreError, StoreErrorKind},
    store::{ObjectStore as _, WriteOutcome},
};

/// Single deletes under way at once.
const PARALLEL: usize = 16;

/// A server that deletes one after the other is given this for each key, beside the time for any answer.
const TIME_A_KEY: Duration = Duration::from_millis(20);

/// Whether the server was seen to take no batches.
#[derive(Debug, Default)]
pub(super) struct NoBatches(AtomicBool);

impl AwsStore {
    pub(super) async fn delete_batch(&self, keys: &[String]) -> Vec<WriteOutcome> {
        if keys.len() < 2 || self.no_batches.0.load(Ordering::Relaxed) {
            return self.delete_each(keys).await;
        }
        let request = self.request(Operation::DeleteMany, "");
        match self.send_batch(&request, keys).await {
            Ok(answer) => self.outcomes(&request, keys, &answer),
            // It does not know the request, or refuses it because of one key and doesn't say which.
            Err(error) if error.is_refusal() && error.s3_code.as_deref() != Some("NoSuchBucket") => {
                self.no_batches.0.store(error.kind != StoreErrorKind::Denied, Ordering::Relaxed);
                tracing::debug!(%error, "no batch of deletes: one by one");
                self.delete_each(keys).await
            }
            Err(error) => keys.iter().map(|key| Self::outcome(Err(self.of_key(&error, key)))).collect(),
        }
    }

    async fn delete_each(&self, keys: &[String]) -> Vec<WriteOutcome> {
        let deletes: Vec<_> = keys.iter().map(|key| self.delete(key)).collect();
        futures::stream::iter(deletes).buffered(PARALLEL).collect().await
    }

    async fn send_batch(&self, request: &Request, keys: &[String]) -> Result<DeleteObjectsOutput, StoreError> {
        let unsendable = |error: &dyn std::error::Error| request.error(StoreErrorKind::BadRequest, error.to_string());
        let mut objects = Vec::with_capacity(keys.len());
        for key in keys {
            let object = ObjectIdentifier::builder().key(self.location.full_key(key)).build();
            objects.push(object.map_err(|error| unsendable(&error))?);
        }
        let delete = Delete::builder().set_objects(Some(objects)).build().map_err(|error| unsendable(&error))?;
        let batch = self.client.delete_objects().bucket(self.location.bucket()).delete(delete);
        // S3 wants a checksum of the list. The SDK sends a CRC-32, which older servers don't know.
        let batch = batch.customize().mutate_request(|request| {
            if let Some(body) = request.body().bytes().map(Bytes::copy_from_slice) {
                request.headers_mut().insert("content-md5", md5(&[body]));
            }
        });
        let time = self.stall + TIME_A_KEY.saturating_mul(u32::try_from(keys.len()).unwrap_or(u32::MAX));
        request.send(time, batch.send()).await
    }

    /// What a key is not told about is not known.
    fn outcomes(&self, request: &Request, keys: &[String], answer: &DeleteObjectsOutput) -> Vec<WriteOutcome> {
        let mut told: BTreeMap<&str, WriteOutcome> = BTreeMap::new();
        for deleted in answer.deleted() {
            told.extend(deleted.key().map(|key| (key, WriteOutcome::Done)));
        }
        for error in answer.errors() {
            let Some(key) = error.key() else { continue };
            let code = error.code().unwrap_or_default();
            let outcome = match code {
                "NoSuchKey" => WriteOutcome::Done,
                _ => Self::outcome(Err(self.failed(key, code, error.message().unwrap_or_default()))),
            };
            told.insert(key, outcome);
        }
        let untold = |key: &str| {
            WriteOutcome::Unknown(
                self.of_key(&request.lied("answers a batch of deletes without a word on this key"), key),
            )
        };
        keys.iter()
            .map(|key| told.remove(self.location.full_key(key).as_str()).unwrap_or_else(|| untold(key)))
            .collect()
    }

    /// One key of a batch, as if it had been refused alone: only its code tells how.
    fn failed(&self, full: &str, code: &str, message: &str) -> StoreError {
        let place = (self.location.bucket(), full);
        let error = StoreError::answered(Operation::DeleteMany, place, Some(200), Some(code), text(message));
        StoreError { kind: StoreErrorKind::of(Some(400), Some(code)), ..error }
    }

    fn of_key(&self, error: &StoreError, key: &str) -> StoreError {
        StoreError { key: self.location.full_key(key), ..error.clone() }
    }
}
