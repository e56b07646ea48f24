//! Objects that are sent in parts.

use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart};

use super::{
    AwsStore,
    body::Upload,
    checksum::{crc32, multipart_etag},
};
use crate::{
    error::{Operation, StoreError},
    store::{Lookup, ObjectMeta, ObjectStore as _, PartTag, Payload, UploadId, WriteOutcome},
};

/// AWS may take minutes to put a large object together: this many times the silence that is put up with elsewhere.
const COMPLETE: u32 = 10;

impl AwsStore {
    pub(super) async fn begin_upload(&self, key: &str) -> Result<UploadId, StoreError> {
        let request = self.request(Operation::CreateMultipart, key);
        let create = self.client.create_multipart_upload().bucket(self.location.bucket()).key(request.key());
        let answer = request.send(self.stall, create.checksum_algorithm(ChecksumAlgorithm::Crc32).send()).await?;
        match answer.upload_id() {
            Some(id) if !id.is_empty() => Ok(UploadId(id.to_owned())),
            _ => Err(request.lied("gives no upload id")),
        }
    }

    pub(super) async fn send_part(
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
        request.stored(Some(&crc32), answer.checksum_crc32())?;
        match answer.e_tag() {
            Some(etag) => Ok(PartTag { number, etag: etag.to_owned(), crc32 }),
            None => Err(request.lied("gives no ETag for a part")),
        }
    }

    pub(super) async fn complete(&self, key: &str, upload: &UploadId, parts: &[PartTag]) -> WriteOutcome {
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
        match request.send(self.stall * COMPLETE, complete.send()).await.map(drop) {
            // It may be complete even so: by this try, whose answer was lost or can't be parsed, or by one before. Of an upload that has
            // ended S3 says NoSuchUpload, ceph 16 says 500.
            Err(error) if !error.is_refusal() || error.s3_code.as_deref() == Some("NoSuchUpload") => {
                if self.is_made_of(key, &etags).await { WriteOutcome::Done } else { WriteOutcome::Unknown(error) }
            }
            result => Self::outcome(result),
        }
    }

    pub(super) async fn abort(&self, key: &str, upload: &UploadId) -> WriteOutcome {
        let request = self.request(Operation::AbortMultipart, key);
        let abort =
            self.client.abort_multipart_upload().bucket(self.location.bucket()).key(request.key()).upload_id(&upload.0);
        match request.send(self.stall, abort.send()).await.map(drop) {
            Err(error) if error.s3_code.as_deref() == Some("NoSuchUpload") => WriteOutcome::Done,
            result => Self::outcome(result),
        }
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
}
