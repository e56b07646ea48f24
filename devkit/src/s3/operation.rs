//! Which operation a request is, before anything is known about its signature: for faults and for the request log.

use http::{HeaderMap, Method, Uri};

use super::percent::{decode, query_value};

/// A request in S3's terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// As AWS names it (`PutObject`), or `Unsupported`.
    pub(crate) operation: &'static str,
    pub(crate) bucket: Option<String>,
    /// The object's key; for listings the prefix.
    pub(crate) key: Option<String>,
    /// The access key id that the request claims.
    pub(crate) access_key: Option<String>,
}

impl Target {
    pub(crate) fn of(method: &Method, uri: &Uri, headers: &HeaderMap) -> Self {
        let query = uri.query().unwrap_or_default();
        let path = decode(uri.path()).unwrap_or_default();
        let path = path.strip_prefix('/').unwrap_or(&path);
        let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
        let has = |name: &str| query_value(query, name).is_some();
        let copies = headers.contains_key("x-amz-copy-source");
        let operation = match (method.as_str(), bucket.is_empty(), key.is_empty()) {
            ("GET", true, _) => "ListBuckets",
            (_, true, _) => "Unsupported",
            ("GET", _, true) if has("uploads") => "ListMultipartUploads",
            ("GET", _, true) if has("location") => "GetBucketLocation",
            ("GET", _, true) if has("list-type") => "ListObjectsV2",
            ("GET", _, true) => "ListObjects",
            ("HEAD", _, true) => "HeadBucket",
            ("PUT", _, true) => "CreateBucket",
            ("DELETE", _, true) => "DeleteBucket",
            ("POST", _, true) if has("delete") => "DeleteObjects",
            ("GET", _, false) if has("uploadId") => "ListParts",
            ("GET", _, false) => "GetObject",
            ("HEAD", _, false) => "HeadObject",
            ("PUT", _, false) if has("uploadId") && copies => "UploadPartCopy",
            ("PUT", _, false) if has("uploadId") => "UploadPart",
            ("PUT", _, false) if copies => "CopyObject",
            ("PUT", _, false) => "PutObject",
            ("POST", _, false) if has("uploads") => "CreateMultipartUpload",
            ("POST", _, false) if has("uploadId") => "CompleteMultipartUpload",
            ("DELETE", _, false) if has("uploadId") => "AbortMultipartUpload",
            ("DELETE", _, false) => "DeleteObject",
            _ => "Unsupported",
        };
        let key = match operation {
            "ListObjects" | "ListObjectsV2" | "ListMultipartUploads" => query_value(query, "prefix"),
            _ => (!key.is_empty()).then(|| key.to_owned()),
        };
        Self {
            operation,
            bucket: (!bucket.is_empty()).then(|| bucket.to_owned()),
            key,
            access_key: access_key(query, headers),
        }
    }
}

fn access_key(query: &str, headers: &HeaderMap) -> Option<String> {
    let presigned = query_value(query, "X-Amz-Credential");
    let signed = headers.get(http::header::AUTHORIZATION).and_then(|value| {
        let (_, credential) = value.to_str().ok()?.split_once("Credential=")?;
        Some(credential.to_owned())
    });
    presigned.or(signed).and_then(|credential| credential.split('/').next().map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(method: &str, uri: &str) -> Target {
        Target::of(&method.parse().unwrap(), &uri.parse().unwrap(), &HeaderMap::new())
    }

    #[test]
    fn operations_are_told_apart_by_method_path_and_query() {
        for (method, uri, operation) in [
            ("GET", "/", "ListBuckets"),
            ("PUT", "/b", "CreateBucket"),
            ("PUT", "/b/", "CreateBucket"),
            ("GET", "/b?list-type=2", "ListObjectsV2"),
            ("GET", "/b?prefix=x", "ListObjects"),
            ("GET", "/b?uploads", "ListMultipartUploads"),
            ("POST", "/b?delete", "DeleteObjects"),
            ("PUT", "/b/k", "PutObject"),
            ("PUT", "/b/k?partNumber=1&uploadId=u", "UploadPart"),
            ("POST", "/b/k?uploads", "CreateMultipartUpload"),
            ("POST", "/b/k?uploadId=u", "CompleteMultipartUpload"),
            ("DELETE", "/b/k?uploadId=u", "AbortMultipartUpload"),
            ("GET", "/b/k?uploadId=u", "ListParts"),
            ("HEAD", "/b/k", "HeadObject"),
            ("PATCH", "/b/k", "Unsupported"),
        ] {
            assert_eq!(of(method, uri).operation, operation, "{method} {uri}");
        }
    }

    #[test]
    fn keys_are_decoded_and_a_listing_has_its_prefix_as_key() {
        assert_eq!(of("GET", "/b/a%20b/c").key.as_deref(), Some("a b/c"));
        assert_eq!(of("GET", "/b?list-type=2&prefix=p%2Fq").key.as_deref(), Some("p/q"));
    }

    #[test]
    fn the_claimed_access_key_is_read_from_header_or_query() {
        let mut headers = HeaderMap::new();
        let value = "AWS4-HMAC-SHA256 Credential=AKIA1/20260101/us-east-1/s3/aws4_request, SignedHeaders=host";
        headers.insert("authorization", value.parse().unwrap());
        let target = Target::of(&Method::GET, &"/b/k".parse().unwrap(), &headers);
        assert_eq!(target.access_key.as_deref(), Some("AKIA1"));
        assert_eq!(of("GET", "/b/k?X-Amz-Credential=AKIA2%2F2026").access_key.as_deref(), Some("AKIA2"));
    }
}
