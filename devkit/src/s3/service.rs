//! The S3 operations, on the store.

mod lists;
mod multipart;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use http::Extensions;
use s3s::dto::*;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::access::Denials;
use super::convert::{attributes, condition, content_range, etag, if_match, last_modified, range_of, read_condition};
use super::read::read;
use super::receive::{Claims, receive};
use super::store::{Object as StoredObject, Store, StoreError, now_ms};

/// How long after its body a write takes effect: the fault `delay_write`, an extension of the request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WriteDelay(pub(crate) Duration);

/// Which bytes stand for the range that is asked for: the fault `other_range`, an extension of the request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OtherRange {
    pub(crate) by: u64,
    pub(crate) admits: bool,
}

impl OtherRange {
    fn instead_of(self, asked: Range<u64>, told: Option<String>, size: u64) -> (Range<u64>, Option<String>) {
        let by = self.by.min(size - asked.end);
        let range = asked.start + by..asked.end + by;
        let told = if self.admits { Some(content_range(&range, size)) } else { told };
        (range, told)
    }
}

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
        let (range, content_range) = match req.extensions.get::<OtherRange>() {
            Some(other) if partial => other.instead_of(range, content_range, object.size),
            _ => (range, content_range),
        };
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
        if req.input.delete.objects.len() > 1000 {
            return Err(s3_error!(MalformedXML, "more than 1,000 keys"));
        }
        let digest = |name: &str| name == "content-md5" || name.starts_with("x-amz-checksum-");
        if !req.headers.keys().any(|name| digest(name.as_str())) {
            return Err(s3_error!(InvalidRequest, "Missing required header for this request: Content-MD5"));
        }
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
        self.page(req).await
    }

    async fn list_objects(&self, req: S3Request<ListObjectsInput>) -> S3Result<S3Response<ListObjectsOutput>> {
        self.page_v1(req).await
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        self.start(req).await
    }

    async fn upload_part(&self, req: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        self.take_part(req).await
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        self.complete(req).await
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        self.abort(req).await
    }

    async fn list_parts(&self, req: S3Request<ListPartsInput>) -> S3Result<S3Response<ListPartsOutput>> {
        self.parts(req).await
    }

    async fn list_multipart_uploads(
        &self,
        req: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        self.uploads(req).await
    }
}

/// The only region there is; signatures for others are accepted too.
pub(crate) const REGION: &str = "us-east-1";

fn content_type(object: &StoredObject) -> Option<String> {
    Some(object.attributes.content_type.clone().unwrap_or_else(|| "binary/octet-stream".to_owned()))
}
