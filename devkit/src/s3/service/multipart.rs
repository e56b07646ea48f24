//! Multipart uploads.

use s3s::dto::*;
use s3s::{S3Request, S3Response, S3Result, s3_error};

use super::Operations;
use crate::s3::convert::{attributes, condition, etag, last_modified, named_parts, whole_checksums};
use crate::s3::percent::encode;
use crate::s3::receive::{Claims, receive};
use crate::s3::store::{Part as StoredPart, Store, now_ms};

impl Operations {
    pub(super) async fn start(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let input = req.input;
        let attributes = attributes(input.content_type, input.metadata);
        let id = self.store.start_upload(&input.bucket, &input.key, attributes)?;
        Ok(S3Response::new(CreateMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(id),
            checksum_algorithm: input.checksum_algorithm,
            checksum_type: input.checksum_type,
            ..CreateMultipartUploadOutput::default()
        }))
    }

    pub(super) async fn take_part(
        &self,
        mut req: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        let number = req.input.part_number;
        if !(1..=10_000).contains(&number) {
            return Err(s3_error!(InvalidArgument, "part number {number} is not between 1 and 10000"));
        }
        let claims = Claims::from_headers(&req.headers, req.trailing_headers.take());
        let received = receive(self.store.blobs(), req.input.body.take(), claims).await?;
        let part = StoredPart {
            blob: received.blob,
            etag: received.digests.etag(),
            modified_ms: now_ms(),
            checksums: received.digests.checksums,
        };
        let output = UploadPartOutput {
            e_tag: Some(etag(&part.etag)),
            checksum_crc32: part.checksums.crc32.clone(),
            checksum_crc32c: part.checksums.crc32c.clone(),
            checksum_crc64nvme: part.checksums.crc64nvme.clone(),
            checksum_sha1: part.checksums.sha1.clone(),
            checksum_sha256: part.checksums.sha256.clone(),
            ..UploadPartOutput::default()
        };
        let (bucket, key, id) = (req.input.bucket, req.input.key, req.input.upload_id);
        self.land(&req.extensions, move |store| store.keep_part(&bucket, &key, &id, number, part)).await?;
        Ok(S3Response::new(output))
    }

    pub(super) async fn complete(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let mut input = req.input;
        let condition = condition(input.if_match.take(), input.if_none_match.take())?;
        let whole = whole_checksums(&input);
        let parts = named_parts(input.multipart_upload.take())?;
        let (bucket, key, id) = (input.bucket.clone(), input.key.clone(), input.upload_id);
        let complete = move |store: &Store| store.complete_upload(&bucket, &key, &id, &parts, &whole, &condition);
        let object = self.land(&req.extensions, complete).await?;
        Ok(S3Response::new(CompleteMultipartUploadOutput {
            location: Some(format!("/{}/{}", input.bucket, encode(&input.key))),
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: Some(etag(&object.etag)),
            ..CompleteMultipartUploadOutput::default()
        }))
    }

    pub(super) async fn abort(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let (bucket, key, id) = (req.input.bucket, req.input.key, req.input.upload_id);
        self.land(&req.extensions, move |store| store.abort_upload(&bucket, &key, &id)).await?;
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }

    pub(super) async fn parts(&self, req: S3Request<ListPartsInput>) -> S3Result<S3Response<ListPartsOutput>> {
        let input = req.input;
        let limit = usize::try_from(input.max_parts.unwrap_or(1000).clamp(0, 1000)).unwrap_or(0);
        let marker = input.part_number_marker.unwrap_or(0);
        let all = self.store.parts(&input.bucket, &input.key, &input.upload_id)?;
        let mut following = all.into_iter().filter(|(number, _)| *number > marker);
        let page: Vec<_> = following.by_ref().take(limit).collect();
        let more = following.next().is_some();
        let last = page.last().map(|(number, _)| *number).filter(|_| more);
        let part = |(number, part): (i32, StoredPart)| Part {
            part_number: Some(number),
            size: i64::try_from(part.size()).ok(),
            e_tag: Some(etag(&part.etag)),
            last_modified: Some(last_modified(part.modified_ms)),
            checksum_crc32: part.checksums.crc32,
            checksum_crc32c: part.checksums.crc32c,
            checksum_crc64nvme: part.checksums.crc64nvme,
            checksum_sha1: part.checksums.sha1,
            checksum_sha256: part.checksums.sha256,
        };
        Ok(S3Response::new(ListPartsOutput {
            parts: Some(page.into_iter().map(part).collect()),
            is_truncated: Some(more),
            next_part_number_marker: last,
            part_number_marker: Some(marker),
            max_parts: i32::try_from(limit).ok(),
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(input.upload_id),
            ..ListPartsOutput::default()
        }))
    }

    pub(super) async fn uploads(
        &self,
        req: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        let input = req.input;
        if input.delimiter.as_ref().is_some_and(|delimiter| !delimiter.is_empty()) {
            return Err(s3_error!(NotImplemented, "ListMultipartUploads with a delimiter is not supported"));
        }
        let prefix = input.prefix.clone().unwrap_or_default();
        let limit = usize::try_from(input.max_uploads.unwrap_or(1000).clamp(0, 1000)).unwrap_or(0);
        let key_marker = input.key_marker.clone().unwrap_or_default();
        let id_marker = input.upload_id_marker.clone();
        let mut following = self.store.uploads(&input.bucket, &prefix)?.into_iter().filter(|upload| match &id_marker {
            Some(id) => (&upload.key, &upload.id) > (&key_marker, id),
            None => upload.key > key_marker,
        });
        let page: Vec<_> = following.by_ref().take(limit).collect();
        let last = following.next().and_then(|_| page.last().cloned());
        let url = input.encoding_type.is_some();
        let shown = |key: &str| if url { encode(key) } else { key.to_owned() };
        let uploads = page.iter().map(|upload| MultipartUpload {
            key: Some(shown(&upload.key)),
            upload_id: Some(upload.id.clone()),
            initiated: Some(last_modified(upload.started_ms)),
            ..MultipartUpload::default()
        });
        Ok(S3Response::new(ListMultipartUploadsOutput {
            uploads: Some(uploads.collect()),
            is_truncated: Some(last.is_some()),
            next_key_marker: last.as_ref().map(|upload| shown(&upload.key)),
            next_upload_id_marker: last.map(|upload| upload.id),
            bucket: Some(input.bucket),
            prefix: input.prefix,
            key_marker: input.key_marker,
            upload_id_marker: input.upload_id_marker,
            max_uploads: i32::try_from(limit).ok(),
            encoding_type: input.encoding_type,
            ..ListMultipartUploadsOutput::default()
        }))
    }
}
