//! What is there: objects, and uploads that are neither completed nor aborted.

use super::{AwsStore, request::Request};
use crate::{
    error::{Operation, StoreError},
    store::{ListPage, Listed, MAX_PAGE, OpenUpload, UploadId},
};

impl AwsStore {
    pub(super) async fn page(&self, prefix: &str, start_after: Option<&str>, max: u16) -> Result<ListPage, StoreError> {
        let request = self.request(Operation::List, prefix);
        let list = self
            .client
            .list_objects_v2()
            .bucket(self.location.bucket())
            .prefix(request.key())
            .set_start_after(start_after.map(|key| self.location.full_key(key)))
            .max_keys(i32::from(max.clamp(1, MAX_PAGE)));
        let answer = request.send(self.stall, list.send()).await?;
        let mut listed = Vec::new();
        for object in answer.contents() {
            match (object.key(), object.size().and_then(|size| u64::try_from(size).ok())) {
                (Some(key), Some(size)) => listed.push(Listed { key: key.to_owned(), size }),
                _ => return Err(request.lied("lists an object without key or size")),
            }
        }
        let objects = self.checked(&request, prefix, start_after, listed)?;
        let next = match (answer.is_truncated(), objects.last()) {
            (Some(false), _) => None,
            (Some(true), Some(last)) => Some(last.key.clone()),
            (Some(true), None) => return Err(request.lied("says there is more, but lists nothing")),
            // A listing that may be cut off is none: nothing is proven absent by it.
            (None, _) => return Err(request.lied("does not say whether the listing is complete")),
        };
        Ok(ListPage { objects, next })
    }

    /// The keys of a page, checked: an answer that is out of order or outside of the prefix would loop or mislead its reader.
    fn checked(
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

    pub(super) async fn open_uploads(&self, prefix: &str) -> Result<Vec<OpenUpload>, StoreError> {
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
            let answer = request.send(self.stall, list.send()).await?;
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
