//! The real thing: S3 over `aws-sdk-s3`. No type of the SDK leaves this module.
//!
//! - `connect`: credentials, regions, endpoints; one client for each (endpoint, region, style)
//! - `request`: span, metrics and errors of each request
//! - `body`: bodies that tell whether they move
//! - `multipart`, `listing`, `deletes`, `checksum`
//!
//! The SDK's retries are off: a retried create-only PUT would take its own first try for somebody else's (R2). So is its
//! stalled-stream protection, which has false alarms on uploads; a transfer is given up after
//! [`AwsOptions::stall`] without a byte instead.

mod body;
pub(crate) mod checksum;
mod connect;
mod deletes;
mod listing;
mod multipart;
mod request;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use aws_sdk_s3::{Client, primitives::SdkBody};
use bytes::Bytes;
use futures::StreamExt as _;
use lockstep_protocol::location::Location;

pub use connect::{AwsConnector, AwsOptions, StaticCredentials};

use crate::{
    error::{Operation, StoreError, StoreErrorKind},
    store::{
        ByteStream, CreateOutcome, ListPage, Lookup, ObjectMeta, ObjectStore, OpenUpload, PartTag, Payload, UploadId,
        WriteOutcome,
    },
};
use body::Upload;
use checksum::{crc32, md5};
use deletes::NoBatches;
use request::Request;

/// Data up to this size carries Content-MD5, which every server verifies; longer data a CRC-32, which costs a fiftieth of it and is verified by those
/// that know it. What arrived is proven by the BLAKE3 of the manifest in any case.
const MD5_UP_TO: u64 = 64 << 10;

/// One location of S3.
#[derive(Debug, Clone)]
pub(crate) struct AwsStore {
    client: Client,
    location: Location,
    stall: Duration,
    no_batches: Arc<NoBatches>,
}

impl AwsStore {
    fn new(client: Client, location: Location, stall: Duration) -> Self {
        Self { client, location, stall, no_batches: Arc::default() }
    }

    /// A document's time: that of any answer, and a second more for each 256 KiB.
    fn document_time(&self, bytes: usize) -> Duration {
        self.stall + Duration::from_secs(u64::try_from(bytes >> 18).unwrap_or(0))
    }

    fn request(&self, operation: Operation, key: &str) -> Request {
        Request::new(operation, self.location.bucket(), self.location.full_key(key), self.stall)
    }

    fn outcome(result: Result<(), StoreError>) -> WriteOutcome {
        match result {
            Ok(()) => WriteOutcome::Done,
            Err(error) if error.is_refusal() => WriteOutcome::Refused(error),
            Err(error) => WriteOutcome::Unknown(error),
        }
    }

    /// GET of one byte, for the question that HEAD can't answer: its 404 has no code.
    async fn look_closer(&self, key: &str) -> Lookup<ObjectMeta> {
        let request = self.request(Operation::Head, key);
        let get = self.client.get_object().bucket(self.location.bucket()).key(request.key()).range("bytes=0-0");
        match request.send(self.stall, get.send()).await {
            Ok(answer) => match answer
                .content_range()
                .and_then(total_of)
                .or(answer.content_length().and_then(|n| u64::try_from(n).ok()))
            {
                Some(size) => Lookup::Found(ObjectMeta { size, etag: answer.e_tag().map(str::to_owned) }),
                None => Lookup::Unknown(request.lied("gives no size")),
            },
            Err(error) => absence(error),
        }
    }
}

/// Only "no such key" proves that a key is not there: a missing bucket or a proxy's 404 prove nothing.
fn absence<T>(error: StoreError) -> Lookup<T> {
    if error.kind == StoreErrorKind::NotFound && error.s3_code.as_deref() == Some("NoSuchKey") {
        Lookup::Absent
    } else {
        Lookup::Unknown(error)
    }
}

/// `bytes 0-0/123` → 123.
fn total_of(content_range: &str) -> Option<u64> {
    content_range.rsplit_once('/')?.1.parse().ok()
}

#[async_trait]
impl ObjectStore for AwsStore {
    fn location(&self) -> &Location {
        &self.location
    }

    async fn create(&self, key: &str, body: Bytes) -> CreateOutcome {
        let request = self.request(Operation::Create, key);
        let time = self.document_time(body.len());
        let length = body.len();
        let put = self.client.put_object().bucket(self.location.bucket()).key(request.key()).if_none_match("*");
        let put = put.content_md5(md5(std::slice::from_ref(&body))).body(SdkBody::from(body).into());
        match request.send(time, put.send()).await {
            Ok(_) => {
                request::sent(length);
                CreateOutcome::Done
            }
            Err(error) if error.kind == StoreErrorKind::Precondition => CreateOutcome::Exists,
            Err(error) if error.is_refusal() => CreateOutcome::Refused(error),
            Err(error) => CreateOutcome::Unknown(error),
        }
    }

    async fn put(&self, key: &str, body: Payload) -> WriteOutcome {
        let request = self.request(Operation::Put, key);
        let put = self.client.put_object().bucket(self.location.bucket()).key(request.key());
        let (put, sent) = if body.length() <= MD5_UP_TO {
            (put.content_md5(md5(body.chunks())), None)
        } else {
            let crc32 = crc32(&body);
            (put.checksum_crc32(&crc32), Some(crc32))
        };
        let upload = Upload::new(body);
        let put = put.content_length(upload.length()).body(upload.body().into()).customize().disable_payload_signing();
        Self::outcome(match request.transfer(&upload, put.send()).await {
            Ok(answer) => request.stored(sent.as_deref(), answer.checksum_crc32()),
            Err(error) => Err(error),
        })
    }

    async fn get(&self, key: &str, max_bytes: usize) -> Lookup<Bytes> {
        let request = self.request(Operation::Get, key);
        let get = self.client.get_object().bucket(self.location.bucket()).key(request.key());
        let answer = match request.send(self.stall, get.send()).await {
            Ok(answer) => answer,
            Err(error) => return absence(error),
        };
        let announced = answer.content_length().and_then(|length| usize::try_from(length).ok());
        let too_large = |bytes: usize| {
            request.error(StoreErrorKind::TooLarge, format!("has {bytes} bytes, more than the {max_bytes} allowed"))
        };
        if announced.is_some_and(|bytes| bytes > max_bytes) {
            return Lookup::Unknown(too_large(announced.unwrap_or_default()));
        }
        let mut content = Vec::with_capacity(announced.unwrap_or(0));
        let mut chunks = body::chunks(answer.body, request.clone());
        while let Some(chunk) = chunks.next().await {
            match chunk {
                Ok(chunk) if content.len() + chunk.len() > max_bytes => {
                    return Lookup::Unknown(too_large(content.len() + chunk.len()));
                }
                Ok(chunk) => content.extend_from_slice(&chunk),
                Err(error) => return Lookup::Unknown(error),
            }
        }
        match announced {
            Some(announced) if announced != content.len() => {
                Lookup::Unknown(request.lied(format!("announced {announced} bytes and sent {}", content.len())))
            }
            _ => Lookup::Found(Bytes::from(content)),
        }
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<ByteStream, StoreError> {
        let Some(last) = length.checked_sub(1) else {
            return Ok(futures::stream::empty().boxed());
        };
        let request = self.request(Operation::GetRange, key);
        let Some(last) = offset.checked_add(last) else {
            return Err(
                request.error(StoreErrorKind::BadRequest, format!("no object has {length} bytes from {offset} on"))
            );
        };
        let get = self.client.get_object().bucket(self.location.bucket()).key(request.key());
        let answer = request.send(self.stall, get.range(format!("bytes={offset}-{last}")).send()).await?;
        let expected = format!("bytes {offset}-{last}/");
        match answer.content_range() {
            Some(range) if range.starts_with(&expected) => {}
            Some(range) => return Err(request.lied(format!("asked for bytes {offset} to {last}, got {range:?}"))),
            None => return Err(request.lied(format!("asked for bytes {offset} to {last}, got the whole object"))),
        }
        if let Some(announced) = answer.content_length().filter(|&n| u64::try_from(n) != Ok(length)) {
            return Err(request.lied(format!("asked for {length} bytes, it announces {announced}")));
        }
        Ok(body::exactly(body::chunks(answer.body, request.clone()), length, request))
    }

    async fn head(&self, key: &str) -> Lookup<ObjectMeta> {
        let request = self.request(Operation::Head, key);
        let head = self.client.head_object().bucket(self.location.bucket()).key(request.key());
        match request.send(self.stall, head.send()).await {
            Ok(answer) => match answer.content_length().and_then(|length| u64::try_from(length).ok()) {
                Some(size) => Lookup::Found(ObjectMeta { size, etag: answer.e_tag().map(str::to_owned) }),
                None => Lookup::Unknown(request.lied("gives no size")),
            },
            Err(error) if error.http_status == Some(404) => self.look_closer(key).await,
            Err(error) => Lookup::Unknown(error),
        }
    }

    async fn list(&self, prefix: &str, start_after: Option<&str>, max: u16) -> Result<ListPage, StoreError> {
        self.page(prefix, start_after, max).await
    }

    async fn delete(&self, key: &str) -> WriteOutcome {
        let request = self.request(Operation::Delete, key);
        let delete = self.client.delete_object().bucket(self.location.bucket()).key(request.key());
        match request.send(self.stall, delete.send()).await.map(drop) {
            Err(error) if error.s3_code.as_deref() == Some("NoSuchKey") => WriteOutcome::Done,
            result => Self::outcome(result),
        }
    }

    async fn delete_many(&self, keys: &[String]) -> Vec<WriteOutcome> {
        self.delete_batch(keys).await
    }

    async fn create_multipart(&self, key: &str) -> Result<UploadId, StoreError> {
        self.begin_upload(key).await
    }

    async fn upload_part(
        &self,
        key: &str,
        upload: &UploadId,
        number: u16,
        body: Payload,
    ) -> Result<PartTag, StoreError> {
        self.send_part(key, upload, number, body).await
    }

    async fn complete_multipart(&self, key: &str, upload: &UploadId, parts: &[PartTag]) -> WriteOutcome {
        self.complete(key, upload, parts).await
    }

    async fn abort_multipart(&self, key: &str, upload: &UploadId) -> WriteOutcome {
        self.abort(key, upload).await
    }

    async fn list_multipart(&self, prefix: &str) -> Result<Vec<OpenUpload>, StoreError> {
        self.open_uploads(prefix).await
    }
}
