//! Listings: a page at a time, in the order of the keys' bytes.

use std::ops::Bound;
use std::sync::Arc;

use super::{Object, Store, StoreError};

/// Where a page begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum After {
    Start,
    /// After this key.
    Key(String),
    /// After every key that begins with this common prefix.
    Prefix(String),
}

/// A page of a listing.
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub(crate) objects: Vec<(String, Arc<Object>)>,
    pub(crate) prefixes: Vec<String>,
    /// Where the next page begins, if this is not the last.
    pub(crate) next: Option<After>,
}

impl Store {
    /// Up to `limit` keys and common prefixes. A common prefix ends with the first `delimiter` after `prefix`.
    pub(crate) fn list(
        &self,
        bucket: &str,
        prefix: &str,
        delimiter: Option<&str>,
        after: &After,
        limit: usize,
    ) -> Result<Page, StoreError> {
        let index = self.index();
        let objects = &index.bucket(bucket)?.objects;
        let mut page = Page::default();
        if limit == 0 {
            return Ok(page);
        }
        let mut from = match after {
            After::Start => Bound::Included(prefix.to_owned()),
            After::Key(key) if key.as_str() < prefix => Bound::Included(prefix.to_owned()),
            After::Key(key) => Bound::Excluded(key.clone()),
            After::Prefix(common) => match beyond(common) {
                Some(bound) => Bound::Included(bound),
                None => return Ok(page),
            },
        };
        let mut last = After::Start;
        while let Some((key, object)) = objects.range::<String, _>((from, Bound::Unbounded)).next() {
            if !key.starts_with(prefix) {
                break;
            }
            if page.objects.len() + page.prefixes.len() == limit {
                page.next = Some(last);
                break;
            }
            let common = delimiter.filter(|delimiter| !delimiter.is_empty()).and_then(|delimiter| {
                let end = prefix.len() + key[prefix.len()..].find(delimiter)? + delimiter.len();
                Some(&key[..end])
            });
            from = match common {
                // A start-after inside a common prefix still shows the prefix, as S3 does, if a later key is in it.
                Some(common) => {
                    page.prefixes.push(common.to_owned());
                    last = After::Prefix(common.to_owned());
                    match beyond(common) {
                        Some(bound) => Bound::Included(bound),
                        None => break,
                    }
                }
                None => {
                    page.objects.push((key.clone(), Arc::clone(object)));
                    last = After::Key(key.clone());
                    Bound::Excluded(key.clone())
                }
            };
        }
        Ok(page)
    }
}

/// The smallest string greater than every string that begins with `prefix`; there is none if all are the last character.
fn beyond(prefix: &str) -> Option<String> {
    let mut bound = prefix.to_owned();
    while let Some(last) = bound.pop() {
        // Skips the surrogates, which are no characters.
        let next = if last == '\u{d7ff}' { Some('\u{e000}') } else { char::from_u32(u32::from(last) + 1) };
        if let Some(next) = next {
            bound.push(next);
            return Some(bound);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_a_prefix_is_past_every_key_in_it_and_before_the_next() {
        assert_eq!(beyond("a/").as_deref(), Some("a0"));
        assert_eq!(beyond("a\u{10ffff}").as_deref(), Some("b"));
        assert_eq!(beyond("\u{d7ff}").as_deref(), Some("\u{e000}"));
        assert_eq!(beyond("\u{10ffff}"), None);
        assert!(beyond("ä").is_some_and(|bound| bound.as_str() > "äz"));
    }
}
