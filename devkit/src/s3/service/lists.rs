//! Listings of objects.

use s3s::dto::*;
use s3s::{S3Request, S3Response, S3Result};

use super::Operations;
use crate::s3::convert::PageRequest;
use crate::s3::store::After;

impl Operations {
    pub(super) async fn page(&self, req: S3Request<ListObjectsV2Input>) -> S3Result<S3Response<ListObjectsV2Output>> {
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

    pub(super) async fn page_v1(&self, req: S3Request<ListObjectsInput>) -> S3Result<S3Response<ListObjectsOutput>> {
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
}
