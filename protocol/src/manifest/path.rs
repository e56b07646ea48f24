//! Paths inside a checkpoint, which come from strangers.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::problem::{Problem, Reason};

/// A path inside a checkpoint: relative, `/`-separated, no `.`, `..` or empty component, no NUL, components up to 255 bytes.
///
/// A copy shares the text: a part of 100,000 files is compared with its base without holding every path twice.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct RelativePath(Arc<str>);

/// Longest path in bytes, as Linux' `PATH_MAX` less room for the staging folder's own path.
pub const MAX_PATH_BYTES: usize = 3072;

impl RelativePath {
    /// Checks the form.
    pub fn new(path: impl AsRef<str>) -> Result<Self, Problem> {
        let path = path.as_ref();
        let why = if path.is_empty() {
            Some("is empty")
        } else if path.len() > MAX_PATH_BYTES {
            Some("is longer than 3072 bytes")
        } else if path.starts_with('/') {
            Some("is absolute")
        } else if path.contains('\0') {
            Some("contains NUL")
        } else {
            path.split('/').find_map(|component| match component {
                ".." => Some("has a component .."),
                "" | "." => Some("has an empty component or ."),
                _ if component.len() > 255 => Some("has a component of more than 255 bytes"),
                _ => None,
            })
        };
        match why {
            None => Ok(Self(Arc::from(path))),
            Some(why) => Err(Problem::new(Reason::ManifestInvalid, format!("path {path:?} {why}"))
                .with("path", path)
                .with("why", why)),
        }
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The folders above it, outermost first: `a/b/c` has `a` and `a/b`.
    pub fn ancestors(&self) -> impl Iterator<Item = &str> {
        self.0.match_indices('/').map(|(at, _)| &self.0[..at])
    }
}

impl fmt::Display for RelativePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for RelativePath {
    type Error = Problem;
    fn try_from(value: String) -> Result<Self, Problem> {
        Self::new(value)
    }
}

impl From<RelativePath> for String {
    fn from(value: RelativePath) -> String {
        value.as_str().to_owned()
    }
}

impl Serialize for RelativePath {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for RelativePath {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl serde::de::Visitor<'_> for Text {
            type Value = RelativePath;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a relative path")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<RelativePath, E> {
                RelativePath::new(text).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}
