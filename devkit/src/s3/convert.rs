//! Between S3's words and the store's.

use std::ops::Range;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use s3s::dto::{
    CommonPrefix, CompleteMultipartUploadInput, CompletedMultipartUpload, ETag, ETagCondition, EncodingType, Metadata,
    Object, ObjectStorageClass, Range as ByteRange, Timestamp,
};
use s3s::{S3Error, S3ErrorCode, S3Result, s3_error};

use super::percent::encode;
use super::store::{After, Attributes, Checksums, CompletedPart, Condition, Object as StoredObject, Page, StoreError};

impl From<StoreError> for S3Error {
    fn from(error: StoreError) -> Self {
        let code = match &error {
            StoreError::NoSuchBucket(_) => S3ErrorCode::NoSuchBucket,
            StoreError::BucketExists(_) => S3ErrorCode::BucketAlreadyOwnedByYou,
            StoreError::BucketNotEmpty(_) => S3ErrorCode::BucketNotEmpty,
            StoreError::NoSuchKey(_) => S3ErrorCode::NoSuchKey,
            StoreError::NoSuchUpload(_) => S3ErrorCode::NoSuchUpload,
            StoreError::InvalidPart(_) => S3ErrorCode::InvalidPart,
            StoreError::InvalidPartOrder(_) => S3ErrorCode::InvalidPartOrder,
            StoreError::PartTooSmall { .. } => S3ErrorCode::EntityTooSmall,
            StoreError::PreconditionFailed(_) => S3ErrorCode::PreconditionFailed,
            StoreError::BadDigest { .. } => S3ErrorCode::BadDigest,
            StoreError::Stopping => S3ErrorCode::ServiceUnavailable,
            StoreError::Io { .. } => S3ErrorCode::InternalError,
        };
        Self::with_message(code, error.to_string())
    }
}

pub(crate) fn etag(value: &str) -> ETag {
    ETag::Strong(value.to_owned())
}

pub(crate) fn last_modified(ms: u64) -> Timestamp {
    Timestamp::from(SystemTime::UNIX_EPOCH + Duration::from_millis(ms))
}

pub(crate) fn attributes(content_type: Option<String>, metadata: Option<Metadata>) -> Attributes {
    Attributes { content_type, metadata: metadata.unwrap_or_default().into_iter().collect() }
}

pub(crate) fn if_match(if_match: Option<ETagCondition>) -> Condition {
    match if_match {
        None => Condition::Always,
        Some(ETagCondition::Any) => Condition::Matches(None),
        Some(ETagCondition::ETag(etag)) => Condition::Matches(Some(etag.into_value())),
    }
}

/// The condition of a write. Like S3, of `If-None-Match` only `*`.
pub(crate) fn condition(matches: Option<ETagCondition>, none_matches: Option<ETagCondition>) -> S3Result<Condition> {
    match (matches, none_matches) {
        (matches, None) => Ok(if_match(matches)),
        (None, Some(ETagCondition::Any)) => Ok(Condition::Absent),
        (Some(_), Some(_)) => Err(s3_error!(InvalidRequest, "if-match and if-none-match exclude each other")),
        (None, Some(_)) => Err(s3_error!(NotImplemented, "if-none-match is supported with * only")),
    }
}

/// The condition of a read.
pub(crate) fn read_condition(
    object: &StoredObject,
    matches: Option<&ETagCondition>,
    none_matches: Option<&ETagCondition>,
) -> S3Result<()> {
    let is = |condition: &ETagCondition| condition.as_etag().is_none_or(|etag| etag.value() == object.etag);
    if matches.is_some_and(|condition| !is(condition)) {
        return Err(s3_error!(PreconditionFailed, "the ETag is \"{}\"", object.etag));
    }
    if none_matches.is_some_and(is) {
        return Err(s3_error!(NotModified));
    }
    Ok(())
}

/// The bytes to send, and the `Content-Range` if that is a part of them.
pub(crate) fn range_of(range: Option<&ByteRange>, size: u64) -> S3Result<(Range<u64>, Option<String>)> {
    let Some(range) = range else { return Ok((0..size, None)) };
    let part = range.check(size).ok().filter(|part| !part.is_empty());
    let Some(part) = part else {
        let mut error = s3_error!(InvalidRange, "{} is not within {size} bytes", range.to_header_string());
        if let Ok(value) = format!("bytes */{size}").parse() {
            let mut headers = http::HeaderMap::new();
            headers.insert(http::header::CONTENT_RANGE, value);
            headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/xml"));
            error.set_headers(headers);
        }
        return Err(error);
    };
    let content_range = content_range(&part, size);
    Ok((part, Some(content_range)))
}

/// Of a range that is not empty.
pub(crate) fn content_range(range: &Range<u64>, size: u64) -> String {
    format!("bytes {}-{}/{size}", range.start, range.end - 1)
}

pub(crate) fn whole_checksums(input: &CompleteMultipartUploadInput) -> Checksums {
    Checksums {
        crc32: input.checksum_crc32.clone(),
        crc32c: input.checksum_crc32c.clone(),
        crc64nvme: input.checksum_crc64nvme.clone(),
        sha1: input.checksum_sha1.clone(),
        sha256: input.checksum_sha256.clone(),
    }
}

pub(crate) fn named_parts(upload: Option<CompletedMultipartUpload>) -> S3Result<Vec<CompletedPart>> {
    let parts = upload.and_then(|upload| upload.parts).unwrap_or_default();
    if parts.is_empty() {
        return Err(s3_error!(MalformedXML, "an upload is completed with at least one part"));
    }
    let part = |part: s3s::dto::CompletedPart| {
        let number = part.part_number.ok_or_else(|| s3_error!(MalformedXML, "a part has no number"))?;
        let checksums = Checksums {
            crc32: part.checksum_crc32,
            crc32c: part.checksum_crc32c,
            crc64nvme: part.checksum_crc64nvme,
            sha1: part.checksum_sha1,
            sha256: part.checksum_sha256,
        };
        Ok(CompletedPart { number, etag: part.e_tag.map(ETag::into_value), checksums })
    };
    parts.into_iter().map(part).collect()
}

/// What a listing asks for, and how it is to be shown.
#[derive(Debug)]
pub(crate) struct PageRequest {
    pub(crate) prefix: String,
    pub(crate) delimiter: Option<String>,
    pub(crate) limit: usize,
    pub(crate) encoding: Option<EncodingType>,
    pub(crate) after: After,
}

impl PageRequest {
    pub(crate) fn new(
        prefix: Option<String>,
        delimiter: Option<String>,
        max_keys: Option<i32>,
        encoding: Option<EncodingType>,
        after: After,
    ) -> S3Result<Self> {
        let max_keys = max_keys.unwrap_or(1000).min(1000);
        let limit =
            usize::try_from(max_keys).map_err(|_| s3_error!(InvalidArgument, "max-keys is {max_keys}, less than 0"))?;
        let delimiter = delimiter.filter(|delimiter| !delimiter.is_empty());
        Ok(Self { prefix: prefix.unwrap_or_default(), delimiter, limit, encoding, after })
    }

    /// Opaque to clients: a letter that says which kind of place it is, then the place.
    pub(crate) fn write_token(after: &After) -> String {
        URL_SAFE_NO_PAD.encode(match after {
            After::Start => String::new(),
            After::Key(key) => format!("k{key}"),
            After::Prefix(prefix) => format!("p{prefix}"),
        })
    }

    pub(crate) fn read_token(token: &str) -> S3Result<After> {
        let place = URL_SAFE_NO_PAD.decode(token).ok().and_then(|place| String::from_utf8(place).ok());
        let after = place.and_then(|place| match place.split_at_checked(1)? {
            ("k", key) => Some(After::Key(key.to_owned())),
            ("p", prefix) => Some(After::Prefix(prefix.to_owned())),
            _ => None,
        });
        after.ok_or_else(|| s3_error!(InvalidArgument, "the continuation token {token} is not ours"))
    }

    pub(crate) fn shown(&self, text: &str) -> String {
        if self.encoding.is_some() { encode(text) } else { text.to_owned() }
    }

    pub(crate) fn contents(&self, page: &Page) -> Vec<Object> {
        let shown = page.objects.iter().map(|(key, object)| Object {
            key: Some(self.shown(key)),
            size: i64::try_from(object.size).ok(),
            e_tag: Some(etag(&object.etag)),
            last_modified: Some(last_modified(object.modified_ms)),
            storage_class: Some(ObjectStorageClass::from_static(ObjectStorageClass::STANDARD)),
            ..Object::default()
        });
        shown.collect()
    }

    pub(crate) fn common_prefixes(&self, page: &Page) -> Vec<CommonPrefix> {
        page.prefixes.iter().map(|prefix| CommonPrefix { prefix: Some(self.shown(prefix)) }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_lead_back_to_where_they_were_written() {
        for after in [After::Key("ä/b".into()), After::Prefix("a/".into())] {
            assert_eq!(PageRequest::read_token(&PageRequest::write_token(&after)).unwrap(), after);
        }
        assert!(PageRequest::read_token("not ours").is_err());
        assert!(PageRequest::read_token("").is_err());
    }

    #[test]
    fn ranges_beyond_the_end_are_cut_and_ranges_outside_refused() {
        let of = |text: &str, size| range_of(Some(&ByteRange::parse(text).unwrap()), size);
        assert_eq!(of("bytes=2-100", 10).unwrap(), (2..10, Some("bytes 2-9/10".to_owned())));
        assert_eq!(of("bytes=-3", 10).unwrap().0, 7..10);
        assert_eq!(of("bytes=10-", 10).unwrap_err().code(), &S3ErrorCode::InvalidRange);
        assert_eq!(of("bytes=0-", 0).unwrap_err().code(), &S3ErrorCode::InvalidRange);
    }
}
