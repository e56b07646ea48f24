//! Receiving a body: to disk in batches, hashed on the way, verified before anybody can publish it.
//!
//! Memory is bounded by two batches a request: one is written and hashed on a blocking thread while the next comes in.

use std::fs::File;
use std::io::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::ready;
use futures::{FutureExt as _, StreamExt as _};
use http::HeaderMap;
use s3s::dto::StreamingBlob;
use s3s::{S3Error, S3ErrorCode, S3Result, StdError, TrailingHeaders, s3_error};

use super::checksum::{Digests, Hashers, first_difference};
use super::store::{Blob, BlobDir, Checksums};

/// Bytes that are handed to a blocking thread at once.
const BATCH: usize = 1024 * 1024;

/// What the client said about the body.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    /// Bytes, after any chunked encoding is undone.
    pub(crate) length: Option<u64>,
    /// Base64.
    pub(crate) md5: Option<String>,
    pub(crate) checksums: Checksums,
    /// Algorithms to compute besides those in `checksums`.
    pub(crate) asked: Vec<String>,
    /// Where checksums stand that follow the body.
    pub(crate) trailers: Option<TrailingHeaders>,
}

impl Claims {
    /// From the request's headers: `x-amz-checksum-*`, `x-amz-sdk-checksum-algorithm`, `x-amz-trailer`, `content-md5`.
    pub(crate) fn from_headers(headers: &HeaderMap, trailers: Option<TrailingHeaders>) -> Self {
        let value = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let mut asked: Vec<String> =
            value("x-amz-sdk-checksum-algorithm").into_iter().map(|name| name.to_ascii_lowercase()).collect();
        for name in headers.get_all("x-amz-trailer").iter().filter_map(|value| value.to_str().ok()) {
            let names = name.split(',').map(|name| name.trim().to_ascii_lowercase());
            asked.extend(names.filter_map(|name| name.strip_prefix("x-amz-checksum-").map(str::to_owned)));
        }
        Self {
            length: value("content-length").and_then(|length| length.parse().ok()),
            md5: value("content-md5"),
            checksums: checksums_in(headers),
            asked,
            trailers,
        }
    }

    fn algorithms(&self) -> impl Iterator<Item = &str> {
        let sums = &self.checksums;
        let named = [
            ("crc32", &sums.crc32),
            ("crc32c", &sums.crc32c),
            ("crc64nvme", &sums.crc64nvme),
            ("sha1", &sums.sha1),
            ("sha256", &sums.sha256),
        ];
        named
            .into_iter()
            .filter(|(_, sum)| sum.is_some())
            .map(|(name, _)| name)
            .chain(self.asked.iter().map(String::as_str))
    }

    fn verify(&self, length: u64, digests: &Digests) -> S3Result<()> {
        if self.length.is_some_and(|expected| expected != length) {
            let expected = self.length.unwrap_or_default();
            return Err(s3_error!(IncompleteBody, "content-length is {expected}, the body has {length} bytes"));
        }
        if let (Some(named), Some(ours)) = (&self.md5, digests.md5_base64())
            && *named != ours
        {
            return Err(s3_error!(BadDigest, "content-md5 is {named}, the body's MD5 is {ours}"));
        }
        let trailing = self.trailers.as_ref().and_then(|trailers| trailers.read(checksums_in)).unwrap_or_default();
        for named in [&self.checksums, &trailing] {
            if let Some((algorithm, named, ours)) = first_difference(named, &digests.checksums) {
                return Err(s3_error!(BadDigest, "{algorithm} is given as {named}, the body's is {ours}"));
            }
        }
        Ok(())
    }
}

fn checksums_in(headers: &HeaderMap) -> Checksums {
    let value = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    Checksums {
        crc32: value("x-amz-checksum-crc32"),
        crc32c: value("x-amz-checksum-crc32c"),
        crc64nvme: value("x-amz-checksum-crc64nvme"),
        sha1: value("x-amz-checksum-sha1"),
        sha256: value("x-amz-checksum-sha256"),
    }
}

/// A body that is complete, verified and on disk; dropped unpublished, its file goes.
#[derive(Debug)]
pub(crate) struct Received {
    /// `None` if empty.
    pub(crate) blob: Option<Arc<Blob>>,
    pub(crate) digests: Digests,
}

/// Takes in the whole body, or fails and leaves nothing.
pub(crate) async fn receive(blobs: &BlobDir, body: Option<StreamingBlob>, claims: Claims) -> S3Result<Received> {
    let md5 = blobs.md5_etags() || claims.md5.is_some();
    let writer = Writer { blobs: blobs.clone(), target: None, hashers: Hashers::new(md5, claims.algorithms()) };
    let mut writing = ready(Ok(writer)).boxed();
    let mut body = body;
    loop {
        let (batch, last) = next_batch(body.as_mut()).await?;
        let writer = writing.await?;
        if last {
            let sync = blobs.sync();
            let (blob, digests) = on_thread(move || writer.write(&batch)?.finish(sync)).await?;
            claims.verify(blob.as_ref().map_or(0, |blob| blob.len), &digests)?;
            return Ok(Received { blob: blob.map(Arc::new), digests });
        }
        writing = on_thread(move || writer.write(&batch)).boxed();
    }
}

/// About one batch, and whether the body ended.
async fn next_batch(body: Option<&mut StreamingBlob>) -> S3Result<(Vec<Bytes>, bool)> {
    let mut batch = Vec::new();
    let Some(body) = body else { return Ok((batch, true)) };
    let mut size = 0;
    while size < BATCH {
        match body.next().await {
            Some(Ok(bytes)) => {
                size += bytes.len();
                batch.push(bytes);
            }
            Some(Err(error)) => return Err(body_error(error)),
            None => return Ok((batch, true)),
        }
    }
    Ok((batch, false))
}

/// Begins at once, whether or not the result is being waited for.
fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> impl Future<Output = S3Result<T>> + Send {
    let working = tokio::task::spawn_blocking(work);
    async move {
        match working.await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => Err(S3Error::internal_error(error)),
            Err(error) => Err(S3Error::internal_error(error)),
        }
    }
}

/// s3s checks signatures of payloads in the stream and keeps the types of its errors to itself, so their words decide.
fn body_error(error: StdError) -> S3Error {
    let text = error.to_string();
    let mut answer = if text.ends_with("Sha256Mismatch") {
        let code = S3ErrorCode::Custom("XAmzContentSHA256Mismatch".into());
        let mut answer =
            S3Error::with_message(code, "the body's SHA-256 is not the x-amz-content-sha256 that was signed");
        answer.set_status_code(http::StatusCode::BAD_REQUEST);
        answer
    } else if text.ends_with("SignatureMismatch") {
        s3_error!(SignatureDoesNotMatch, "the signature of a chunk does not match")
    } else {
        s3_error!(IncompleteBody, "the body ended early: {text}")
    };
    answer.set_source(error);
    answer
}

struct Writer {
    blobs: BlobDir,
    /// Made with the first byte.
    target: Option<(Blob, File)>,
    hashers: Hashers,
}

impl Writer {
    fn write(mut self, batch: &[Bytes]) -> std::io::Result<Self> {
        for bytes in batch.iter().filter(|bytes| !bytes.is_empty()) {
            let (blob, file) = match &mut self.target {
                Some(target) => target,
                None => self.target.insert(self.blobs.create()?),
            };
            file.write_all(bytes)?;
            blob.len += bytes.len() as u64;
            self.hashers.update(bytes);
        }
        Ok(self)
    }

    fn finish(self, sync: bool) -> std::io::Result<(Option<Blob>, Digests)> {
        let blob = match self.target {
            Some((blob, file)) => {
                if sync {
                    file.sync_all()?;
                }
                Some(blob)
            }
            None => None,
        };
        Ok((blob, self.hashers.finish()))
    }
}
