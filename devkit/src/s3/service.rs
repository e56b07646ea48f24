//! The S3 operations, on the store.

use std::sync::Arc;
use std::time::Duration;

use http::Extensions;
use s3s::dto::*;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::access::Denials;
use super::convert::{
    PageRequest, attributes, condition, etag, if_match, last_modified, named_parts, range_of, read_condition,
    whole_checksums,
};
use super::percent::encode;
use super::read::read;
use super::receive::{Claims, receive};
use super::store::{After, Object as StoredObject, Part as StoredPart, Store, StoreError, now_ms};

/// How long after its body a write takes effect: the fault `delay_write`, an extension of the request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WriteDelay(pub(crate) Duration);

pub(crate) struct Operations {
    pub(crate) store: Arc<Store>,
    pub(crate) denials: Denials,
    /// Writes under way; stopping waits for them.
    pub(crate) writes: TaskTracker,
    pub(crate) stopping: CancellationToken,
}

impl Operations {
    /// Carries a write out on its own: a client that leaves can't stop it half way, nor at all once its body is in.
    async fn land<T: Send + 'static>(
        &self,
        extensions: &Extensions,
        write: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> S3Result<T> {
        let store = Arc::clone(&self.store);
        let landed = match extensions.get::<WriteDelay>() {
            None => self.writes.spawn_blocking(move || write(&store)).await,
            Some(WriteDelay(delay)) => {
                let (delay, stopping) = (*delay, self.stopping.clone());
                let late = async move {
                    // A write that is still to land when the server stops is lost, as a crash would lose it.
                    let stopped = stopping.run_until_cancelled(tokio::time::sleep(delay)).await.is_none();
                    if stopped {
                        return Err(StoreError::Stopping);
                    }
                    write(&store)
                };
                self.writes.spawn(late).await
            }
        };
        match landed {
            Ok(result) => Ok(result?),
            Err(error) => Err(s3s::S3Error::internal_error(error)),
        }
    }

    /// As AWS does: without permission to list, a missing key can't be told from a forbidden one.
    fn missing<T>(&self, req: &S3Request<T>, bucket: &str, error: StoreError) -> s3s::S3Error {
        if let (StoreError::NoSuchKey(key), Some(credentials)) = (&error, &req.credentials)
            && let Err(denied) = self.denials.check(&credentials.access_key, "ListBucket", bucket, key)
        {
            return denied;
        }
        error.into()
    }
}

#[async_trait::async_trait]
impl S3 for Operations {
    async fn list_buckets(&self, _: S3Request<ListBucketsInput>) -> S3Result<S3Response<ListBucketsOutput>> {
        let bucket = |(name, created_ms)| Bucket {
            name: Some(name),
            creation_date: Some(last_modified(created_ms)),
            ..Bucket::default()
        };
        let buckets = self.store.buckets().into_iter().map(bucket).collect();
        Ok(S3Response::new(ListBucketsOutput { buckets: Some(buckets), ..ListBucketsOutput::default() }))
    }

    async fn create_bucket(&self, req: S3Request<CreateBucketInput>) -> S3Result<S3Response<CreateBucketOutput>> {
        let bucket = req.input.bucket;
        let location = format!("/{bucket}");
        self.land(&req.extensions, move |store| store.create_bucket(&bucket)).await?;
        Ok(S3Response::new(CreateBucketOutput { location: Some(location) }))
    }

    async fn head_bucket(&self, req: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        self.store.check_bucket(&req.input.bucket)?;
        Ok(S3Response::new(HeadBucketOutput { bucket_region: Some(REGION.to_owned()), ..HeadBucketOutput::default() }))
    }

    async fn delete_bucket(&self, req: S3Request<DeleteBucketInput>) -> S3Result<S3Response<DeleteBucketOutput>> {
        let bucket = req.input.bucket;
        self.land(&req.extensions, move |store| store.delete_bucket(&bucket)).await?;
        Ok(S3Response::with_status(DeleteBucketOutput::default(), http::StatusCode::NO_CONTENT))
    }

    async fn get_bucket_location(
        &self,
        req: S3Request<GetBucketLocationInput>,
    ) -> S3Result<S3Response<GetBucketLocationOutput>> {
        self.store.check_bucket(&req.input.bucket)?;
        // No constraint is how S3 says us-east-1.
        Ok(S3Response::new(GetBucketLocationOutput::default()))
    }

    async fn put_object(&self, mut req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let condition = condition(req.input.if_match.take(), req.input.if_none_match.take())?;
        let claims = Claims::from_headers(&req.headers, req.trailing_headers.take());
        let received = receive(self.store.blobs(), req.input.body.take(), claims).await?;
        let object = StoredObject {
            size: received.blob.as_ref().map_or(0, |blob| blob.len),
            blobs: received.blob.into_iter().collect(),
            etag: received.digests.etag(),
            modified_ms: now_ms(),
            attributes: attributes(req.input.content_type.take(), req.input.metadata.take()),
            checksums: received.digests.checksums,
        };
        let (bucket, key) = (req.input.bucket, req.input.key);
        let publish = move |store: &Store| store.publish(&bucket, &key, object, &condition);
        let object = self.land(&req.extensions, publish).await?;
        let sums = object.checksums.clone();
        Ok(S3Response::new(PutObjectOutput {
            e_tag: Some(etag(&object.etag)),
            checksum_crc32: sums.crc32,
            checksum_crc32c: sums.crc32c,
            checksum_crc64nvme: sums.crc64nvme,
            checksum_sha1: sums.sha1,
            checksum_sha256: sums.sha256,
            ..PutObjectOutput::default()
        }))
    }

    async fn get_object(&self, req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = &req.input;
        if input.part_number.is_some() {
            return Err(s3_error!(NotImplemented, "reads by part number are not supported"));
        }
        let object = match self.store.object(&input.bucket, &input.key) {
            Ok(object) => object,
            Err(error) => return Err(self.missing(&req, &input.bucket, error)),
        };
        read_condition(&object, input.if_match.as_ref(), input.if_none_match.as_ref())?;
        let (range, content_range) = range_of(input.range.as_ref(), object.size)?;
        let partial = content_range.is_some();
        let length = i64::try_from(range.end - range.start).map_err(s3s::S3Error::internal_error)?;
        let body = read(&object, range).await.map_err(s3s::S3Error::internal_error)?;
        // The checksums are of the whole: with a part of it, a client would compare them in vain.
        let asked = input.checksum_mode.is_some() && !partial;
        let sums = if asked { object.checksums.clone() } else { Default::default() };
        let output = GetObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            body: Some(body),
            content_length: Some(length),
            content_range,
            content_type: content_type(&object),
            e_tag: Some(etag(&object.etag)),
            last_modified: Some(last_modified(object.modified_ms)),
            metadata: Some(object.attributes.metadata.clone().into_iter().collect()),
            checksum_crc32: sums.crc32,
            checksum_crc32c: sums.crc32c,
            checksum_crc64nvme: sums.crc64nvme,
            checksum_sha1: sums.sha1,
            checksum_sha256: sums.sha256,
            ..GetObjectOutput::default()
        };
        let status = if partial { http::StatusCode::PARTIAL_CONTENT } else { http::StatusCode::OK };
        Ok(S3Response::with_status(output, status))
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let input = &req.input;
        let object = match self.store.object(&input.bucket, &input.key) {
            Ok(object) => object,
            Err(error) => return Err(self.missing(&req, &input.bucket, error)),
        };
        read_condition(&object, input.if_match.as_ref(), input.if_none_match.as_ref())?;
        let (range, content_range) = range_of(input.range.as_ref(), object.size)?;
        let status = if content_range.is_some() { http::StatusCode::PARTIAL_CONTENT } else { http::StatusCode::OK };
        let asked = input.checksum_mode.is_some() && content_range.is_none();
        let sums = if asked { object.checksums.clone() } else { Default::default() };
        let output = HeadObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            content_length: i64::try_from(range.end - range.start).ok(),
            content_range,
            content_type: content_type(&object),
            e_tag: Some(etag(&object.etag)),
            last_modified: Some(last_modified(object.modified_ms)),
            metadata: Some(object.attributes.metadata.clone().into_iter().collect()),
            checksum_crc32: sums.crc32,
            checksum_crc32c: sums.crc32c,
            checksum_crc64nvme: sums.crc64nvme,
            checksum_sha1: sums.sha1,
            checksum_sha256: sums.sha256,
            ..HeadObjectOutput::default()
        };
        Ok(S3Response::with_status(output, status))
    }

    async fn delete_object(&self, req: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        let condition = if_match(req.input.if_match);
        let (bucket, key) = (req.input.bucket, req.input.key);
        self.land(&req.extensions, move |store| store.delete(&bucket, &key, &condition)).await?;
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(&self, req: S3Request<DeleteObjectsInput>) -> S3Result<S3Response<DeleteObjectsOutput>> {
        self.store.check_bucket(&req.input.bucket)?;
        let quiet = req.input.delete.quiet.unwrap_or(false);
        let access_key = req.credentials.as_ref().map(|credentials| credentials.access_key.clone()).unwrap_or_default();
        let (bucket, denials) = (req.input.bucket, self.denials.clone());
        let delete = move |store: &Store| {
            let mut output = DeleteObjectsOutput::default();
            for object in req.input.delete.objects {
                let key = object.key;
                let allowed = denials.check(&access_key, "DeleteObject", &bucket, &key);
                let deleted = allowed.and_then(|()| {
                    Ok(store.delete(&bucket, &key, &if_match(object.e_tag.map(ETagCondition::ETag)))?)
                });
                match deleted {
                    Ok(_) if quiet => {}
                    Ok(_) => output
                        .deleted
                        .get_or_insert_default()
                        .push(DeletedObject { key: Some(key), ..DeletedObject::default() }),
                    Err(error) => output.errors.get_or_insert_default().push(Error {
                        code: Some(error.code().as_str().to_owned()),
                        message: error.message().map(str::to_owned),
                        key: Some(key),
                        ..Error::default()
                    }),
                }
            }
            Ok(output)
        };
        Ok(S3Response::new(self.land(&req.extensions, delete).await?))
    }

    async fn list_objects_v2(&self, req: S3Request<ListObjectsV2Input>) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = req.input;
        let after = match (&input.continuation_token, &input.start_after) {
            (Some(token), _) => PageRequest::read_token(token)?,
            (None, Some(key)) => After::Key(key.clone()),
            (None, None) => After::Start,
        };
        let request = PageRequest::new(input.prefix, input.delimiter, input.max_keys, input.encoding_type, after)?;
        let page = self.store.list(
            &input.bucket,
            &request.prefix,
            request.delimiter.as_deref(),
            &request.after,
            request.limit,
        )?;
        let (contents, common_prefixes) = (request.contents(&page), request.common_prefixes(&page));
        Ok(S3Response::new(ListObjectsV2Output {
            key_count: i32::try_from(page.objects.len() + page.prefixes.len()).ok(),
            is_truncated: Some(page.next.is_some()),
            next_continuation_token: page.next.as_ref().map(PageRequest::write_token),
            contents: Some(contents),
            common_prefixes: Some(common_prefixes),
            name: Some(input.bucket),
            prefix: Some(request.shown(&request.prefix)),
            delimiter: request.delimiter.as_deref().map(|delimiter| request.shown(delimiter)),
            max_keys: i32::try_from(request.limit).ok(),
            continuation_token: input.continuation_token,
            start_after: input.start_after.map(|key| request.shown(&key)),
            encoding_type: request.encoding,
            ..ListObjectsV2Output::default()
        }))
    }

    async fn list_objects(&self, req: S3Request<ListObjectsInput>) -> S3Result<S3Response<ListObjectsOutput>> {
        let input = req.input;
        let after = match (&input.marker, &input.delimiter) {
            // A marker may be the common prefix that ended the page before.
            (Some(marker), Some(delimiter)) if !delimiter.is_empty() && marker.ends_with(delimiter.as_str()) => {
                After::Prefix(marker.clone())
            }
            (Some(marker), _) if !marker.is_empty() => After::Key(marker.clone()),
            _ => After::Start,
        };
        let request = PageRequest::new(input.prefix, input.delimiter, input.max_keys, input.encoding_type, after)?;
        let page = self.store.list(
            &input.bucket,
            &request.prefix,
            request.delimiter.as_deref(),
            &request.after,
            request.limit,
        )?;
        let (contents, common_prefixes) = (request.contents(&page), request.common_prefixes(&page));
        let next_marker = match &page.next {
            Some(After::Key(last) | After::Prefix(last)) => Some(request.shown(last)),
            _ => None,
        };
        Ok(S3Response::new(ListObjectsOutput {
            is_truncated: Some(next_marker.is_some()),
            next_marker,
            contents: Some(contents),
            common_prefixes: Some(common_prefixes),
            name: Some(input.bucket),
            prefix: Some(request.shown(&request.prefix)),
            delimiter: request.delimiter.as_deref().map(|delimiter| request.shown(delimiter)),
            max_keys: i32::try_from(request.limit).ok(),
            marker: Some(input.marker.map(|marker| request.shown(&marker)).unwrap_or_default()),
            encoding_type: request.encoding,
            ..ListObjectsOutput::default()
        }))
    }

    async fn create_multipart_upload(
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

    async fn upload_part(&self, mut req: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        let number = req.input.part_number;
        if !(1..=10_000).contains(&number) {
            return Err(s3_error!(InvalidArgument, "part number {number} is not between 1 and 10000"));
        }
        self.store.check_upload(&req.input.bucket, &req.input.key, &req.input.upload_id)?;
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

    async fn complete_multipart_upload(
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

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let (bucket, key, id) = (req.input.bucket, req.input.key, req.input.upload_id);
        self.land(&req.extensions, move |store| store.abort_upload(&bucket, &key, &id)).await?;
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }

    async fn list_parts(&self, req: S3Request<ListPartsInput>) -> S3Result<S3Response<ListPartsOutput>> {
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

    async fn list_multipart_uploads(
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

/// The only region there is; signatures for others are accepted too.
pub(crate) const REGION: &str = "us-east-1";

fn content_type(object: &StoredObject) -> Option<String> {
    Some(object.attributes.content_type.clone().unwrap_or_else(|| "binary/octet-stream".to_owned()))
}
