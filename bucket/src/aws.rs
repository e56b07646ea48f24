//! The real thing: S3 over `aws-sdk-s3`. No type of the SDK leaves this module.
//!
//! - `connect`: credentials, regions, endpoints; one client for each (endpoint, region, style)
//! - `request`: span, metrics and errors of each request
//! - `body`: bodies that tell whether they move
//!
//! The SDK's retries are off: a retried create-only PUT would take its own first try for somebody else's (R2). So is its
//! stalled-stream protection, which has false alarms on uploads; a transfer is given up after `STALL` without a byte instead.

mod body;
mod connect;
mod request;

use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::{
    Client,
    primitives::SdkBody,
    types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart},
};
use aws_smithy_types::base64;
use bytes::Bytes;
use futures::StreamExt as _;
use lockstep_protocol::location::Location;
use md5::{Digest as _, Md5};

pub use connect::{AwsConnector, AwsOptions, StaticCredentials};

use crate::{
    error::{Operation, StoreError, StoreErrorKind},
    store::{
        ByteStream, CreateOutcome, ListPage, Listed, Lookup, MAX_PAGE, ObjectMeta, ObjectStore, OpenUpload, PartTag,
        Payload, UploadId, WriteOutcome,
    },
};
use body::Upload;
use request::Request;

/// Time for a request that moves no data to be answered.
const ANSWER: Duration = Duration::from_secs(30);

/// A transfer of data is given up after this long without a byte in either direction.
const STALL: Duration = Duration::from_secs(30);

/// AWS may take minutes to put a large object together.
const COMPLETE: Duration = Duration::from_secs(300);

/// Data up to this size carries Content-MD5, which every server verifies; longer data a CRC-32, which costs a fiftieth of it and is verified by those
/// that know it. What arrived is proven by the BLAKE3 of the manifest in any case.
const MD5_UP_TO: u64 = 64 << 10;

/// One location of S3.
#[derive(Debug, Clone)]
pub(crate) struct AwsStore {
    client: Client,
    location: Location,
}

fn md5(chunks: &[Bytes]) -> String {
    let mut digest = Md5::new();
    chunks.iter().for_each(|chunk| digest.update(chunk));
    base64::encode(digest.finalize())
}

/// CRC-32 as S3 wants it: big-endian, base64.
pub(crate) fn crc32(body: &Payload) -> String {
    base64::encode(body.crc32().to_be_bytes())
}

/// The ETag of a multipart object: MD5 over the MD5s of its parts, and their number. None where the parts' ETags are no MD5s.
fn multipart_etag(etags: &[String]) -> Option<String> {
    let mut whole = Md5::new();
    for etag in etags {
        let digits = etag.trim_matches('"');
        if digits.len() != 32 || !digits.is_ascii() {
            return None;
        }
        for at in (0..32).step_by(2) {
            whole.update([u8::from_str_radix(digits.get(at..at + 2)?, 16).ok()?]);
        }
    }
    let digest: String = whole.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Some(format!("{digest}-{}", etags.len()))
}

/// A document's time: 30 s and one more for each 256 KiB.
fn document_time(bytes: usize) -> Duration {
    ANSWER + Duration::from_secs(u64::try_from(bytes >> 18).unwrap_or(0))
}

impl AwsStore {
    pub(crate) const fn new(client: Client, location: Location) -> Self {
        Self { client, location }
    }

    fn request(&self, operation: Operation, key: &str) -> Request {
        Request::new(operation, self.location.bucket(), self.location.full_key(key))
    }

    fn outcome(result: Result<(), StoreError>) -> WriteOutcome {
        match result {
            Ok(()) => WriteOutcome::Done,
            Err(error) if error.is_refusal() => WriteOutcome::Refused(error),
            Err(error) => WriteOutcome::Unknown(error),
        }
    }

    /// The keys of a page, checked: an answer that is out of order or outside of the prefix would loop or mislead its reader.
    fn page(
        &self,
        request: &Request,
        prefix: &str,
        after: Option<&str>,
        listed: Vec<Listed>,
    ) -> Result<Vec<Listed>, StoreError> {
        let mut last = after.map(str::to_owned);
        let mut objects = Vec::with_capacity(listed.len());
        for Listed { key: full, size } in listed {
            let Some(key) = self.location.relative_key(&full).filter(|key| key.starts_with(prefix)) else {
                return Err(request.lied(format!("lists {full:?}, which does not begin with the prefix")));
            };
            if last.as_deref().is_some_and(|last| key <= last) {
                return Err(request.lied(format!("lists {full:?} out of order")));
            }
            last = Some(key.to_owned());
            objects.push(Listed { key: key.to_owned(), size });
        }
        Ok(objects)
    }

    /// Whether the object at `key` was put together from exactly these parts, as far as its ETag tells.
    async fn is_made_of(&self, key: &str, etags: &[String]) -> bool {
        match (self.head(key).await, multipart_etag(etags)) {
            (Lookup::Found(ObjectMeta { etag: Some(found), .. }), Some(expected)) => {
                found.trim_matches('"') == expected
            }
            _ => false,
        }
    }

    /// GET of one byte, for the question that HEAD can't answer: its 404 has no code.
    async fn look_closer(&self, key: &str) -> Lookup<ObjectMeta> {
        let request = self.request(Operation::Head, key);
        let get = self.client.get_object().bucket(self.location.bucket()).key(request.key()).range("bytes=0-0");
        match request.send(ANSWER, get.send()).await {
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
        let time = document_time(body.len());
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
        let mut put = self.client.put_object().bucket(self.location.bucket()).key(request.key());
        put = if body.length() <= MD5_UP_TO {
            put.content_md5(md5(body.chunks()))
        } else {
            put.checksum_crc32(crc32(&body))
        };
        let upload = Upload::new(body);
        let put = put.content_length(upload.length()).body(upload.body().into()).customize().disable_payload_signing();
        Self::outcome(request.transfer(&upload, put.send()).await.map(drop))
    }

    async fn get(&self, key: &str, max_bytes: usize) -> Lookup<Bytes> {
        let request = self.request(Operation::Get, key);
        let get = self.client.get_object().bucket(self.location.bucket()).key(request.key());
        let answer = match request.send(ANSWER, get.send()).await {
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
        let answer = request.send(ANSWER, get.range(format!("bytes={offset}-{last}")).send()).await?;
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
        match request.send(ANSWER, head.send()).await {
            Ok(answer) => match answer.content_length().and_then(|length| u64::try_from(length).ok()) {
                Some(size) => Lookup::Found(ObjectMeta { size, etag: answer.e_tag().map(str::to_owned) }),
                None => Lookup::Unknown(request.lied("gives no size")),
            },
            Err(error) if error.http_status == Some(404) => self.look_closer(key).await,
            Err(error) => Lookup::Unknown(error),
        }
    }

    async fn list(&self, prefix: &str, start_after: Option<&str>, max: u16) -> Result<ListPage, StoreError> {
        let request = self.request(Operation::List, prefix);
        let list = self
            .client
            .list_objects_v2()
            .bucket(self.location.bucket())
            .prefix(request.key())
            .set_start_after(start_after.map(|key| self.location.full_key(key)))
            .max_keys(i32::from(max.clamp(1, MAX_PAGE)));
        let answer = request.send(ANSWER, list.send()).await?;
        let mut listed = Vec::new();
        for object in answer.contents() {
            match (object.key(), object.size().and_then(|size| u64::try_from(size).ok())) {
                (Some(key), Some(size)) => listed.push(Listed { key: key.to_owned(), size }),
                _ => return Err(request.lied("lists an object without key or size")),
            }
        }
        let objects = self.page(&request, prefix, start_after, listed)?;
        let next = match (answer.is_truncated(), objects.last()) {
            (Some(false), _) => None,
            (Some(true), Some(last)) => Some(last.key.clone()),
            (Some(true), None) => return Err(request.lied("says there is more, but lists nothing")),
            // A listing that may be cut off is none: nothing is proven absent by it.
            (None, _) => return Err(request.lied("does not say whether the listing is complete")),
        };
        Ok(ListPage { objects, next })
    }

    async fn delete(&self, key: &str) -> WriteOutcome {
        let request = self.request(Operation::Delete, key);
        let delete = self.client.delete_object().bucket(self.location.bucket()).key(request.key());
        match request.send(ANSWER, delete.send()).await.map(drop) {
            Err(error) if error.s3_code.as_deref() == Some("NoSuchKey") => WriteOutcome::Done,
            result => Self::outcome(result),
        }
    }

    async fn create_multipart(&self, key: &str) -> Result<UploadId, StoreError> {
        let request = self.request(Operation::CreateMultipart, key);
        let create = self.client.create_multipart_upload().bucket(self.location.bucket()).key(request.key());
        let answer = request.send(ANSWER, create.checksum_algorithm(ChecksumAlgorithm::Crc32).send()).await?;
        match answer.upload_id() {
            Some(id) if !id.is_empty() => Ok(UploadId(id.to_owned())),
            _ => Err(request.lied("gives no upload id")),
        }
    }

    async fn upload_part(
        &self,
        key: &str,
        upload: &UploadId,
        number: u16,
        body: Payload,
    ) -> Result<PartTag, StoreError> {
        let request = self.request(Operation::UploadPart, key);
        let crc32 = crc32(&body);
        let body = Upload::new(body);
        let part = self
            .client
            .upload_part()
            .bucket(self.location.bucket())
            .key(request.key())
            .upload_id(&upload.0)
            .part_number(i32::from(number))
            .checksum_crc32(&crc32)
            .content_length(body.length())
            .body(body.body().into())
            .customize()
            .disable_payload_signing();
        let answer = request.transfer(&body, part.send()).await?;
        match answer.e_tag() {
            Some(etag) => Ok(PartTag { number, etag: etag.to_owned(), crc32 }),
            None => Err(request.lied("gives no ETag for a part")),
        }
    }

    async fn complete_multipart(&self, key: &str, upload: &UploadId, parts: &[PartTag]) -> WriteOutcome {
        let request = self.request(Operation::CompleteMultipart, key);
        let etags: Vec<String> = parts.iter().map(|part| part.etag.clone()).collect();
        let parts = parts.iter().map(|part| {
            CompletedPart::builder()
                .part_number(i32::from(part.number))
                .e_tag(&part.etag)
                .checksum_crc32(&part.crc32)
                .build()
        });
        let complete = self
            .client
            .complete_multipart_upload()
            .bucket(self.location.bucket())
            .key(request.key())
            .upload_id(&upload.0)
            .multipart_upload(CompletedMultipartUpload::builder().set_parts(Some(parts.collect())).build());
        match request.send(COMPLETE, complete.send()).await.map(drop) {
            // It may be complete even so: by this try, whose answer was lost or can't be parsed, or by one before. Of an upload that has
            // ended S3 says NoSuchUpload, ceph 16 says 500.
            Err(error) if !error.is_refusal() || error.s3_code.as_deref() == Some("NoSuchUpload") => {
                if self.is_made_of(key, &etags).await { WriteOutcome::Done } else { WriteOutcome::Unknown(error) }
            }
            result => Self::outcome(result),
        }
    }

    async fn abort_multipart(&self, key: &str, upload: &UploadId) -> WriteOutcome {
        let request = self.request(Operation::AbortMultipart, key);
        let abort =
            self.client.abort_multipart_upload().bucket(self.location.bucket()).key(request.key()).upload_id(&upload.0);
        match request.send(ANSWER, abort.send()).await.map(drop) {
            Err(error) if error.s3_code.as_deref() == Some("NoSuchUpload") => WriteOutcome::Done,
            result => Self::outcome(result),
        }
    }

    async fn list_multipart(&self, prefix: &str) -> Result<Vec<OpenUpload>, StoreError> {
        let mut open = Vec::new();
        let mut marker: Option<(String, Option<String>)> = None;
        loop {
            let request = self.request(Operation::ListMultipart, prefix);
            let (key_marker, id_marker) = marker.clone().map_or((None, None), |(key, id)| (Some(key), id));
            let list = self
                .client
                .list_multipart_uploads()
                .bucket(self.location.bucket())
                .prefix(request.key())
                .set_key_marker(key_marker)
                .set_upload_id_marker(id_marker);
            let answer = request.send(ANSWER, list.send()).await?;
            for upload in answer.uploads() {
                let (Some(full), Some(id)) = (upload.key(), upload.upload_id()) else {
                    return Err(request.lied("lists an upload without key or id"));
                };
                let Some(key) = self.location.relative_key(full).filter(|key| key.starts_with(prefix)) else {
                    return Err(
                        request.lied(format!("lists an upload of {full:?}, which does not begin with the prefix"))
                    );
                };
                open.push(OpenUpload { key: key.to_owned(), upload: UploadId(id.to_owned()) });
            }
            let next =
                answer.next_key_marker().map(|key| (key.to_owned(), answer.next_upload_id_marker().map(str::to_owned)));
            match (answer.is_truncated().unwrap_or(false), next) {
                (false, _) => return Ok(open),
                (true, Some(next)) if marker.as_ref() != Some(&next) => marker = Some(next),
                (true, _) => return Err(request.lied("says there are more uploads, but not where to go on")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_etag_of_a_multipart_object_is_that_of_its_parts() {
        // As S3 gave it for one part of 5 MiB of the letter x.
        let parts = ["\"4f08eef4096726bff1125e1b1b734644\"".to_owned()];
        assert_eq!(multipart_etag(&parts).as_deref(), Some("9dc2b5968307ce171ec8a2a9251a60d9-1"));
        assert_eq!(multipart_etag(&["opaque".to_owned()]), None);
    }

    #[test]
    fn checksums_are_big_endian_base64() {
        // The check value of CRC-32: 0xcbf43926.
        assert_eq!(crc32(&Bytes::from_static(b"123456789").into()), base64::encode([0xcb, 0xf4, 0x39, 0x26]));
    }
}
