//! What all JSON documents of a location have in common: a format number, a kind, strict fields, bounded size.

use serde::{Serialize, de::DeserializeOwned};

use crate::problem::{Problem, Reason};

/// The format this code writes and the newest it reads.
pub const FORMAT: u32 = 1;

/// Largest document that is read at all: 64 MiB hold a part manifest of more than 300,000 files.
pub const MAX_DOCUMENT_BYTES: usize = 64 << 20;

/// Parses one document. Unknown fields, trailing bytes, wrong format or kind and oversize are refused; `key` names it in the message.
pub(crate) fn parse<T: DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<T, Problem> {
    if bytes.len() > MAX_DOCUMENT_BYTES {
        return Err(invalid(
            key,
            format!("has {} bytes, more than the greatest allowed, {MAX_DOCUMENT_BYTES}", bytes.len()),
        ));
    }
    serde_json::from_slice(bytes).map_err(|e| invalid(key, format!("is not valid: {e}")))
}

/// The bytes of a document. One spelling: the same value gives the same bytes, so outcomes can be judged by comparing them.
pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    encode_into(Vec::new(), value)
}

/// As [`encode`], into a buffer that has room already.
pub(crate) fn encode_into<T: Serialize>(mut bytes: Vec<u8>, value: &T) -> Vec<u8> {
    // The documents are plain structs with string keys: serializing them into memory can't fail, and an empty result would be
    // refused by every reader.
    if serde_json::to_writer(&mut bytes, value).is_err() {
        bytes.clear();
    }
    bytes
}

pub(crate) fn invalid(key: &str, why: impl std::fmt::Display) -> Problem {
    Problem::new(Reason::ManifestInvalid, format!("{key} {why}")).with("key", key).with("why", why)
}

pub(crate) fn check_format(key: &str, format: u32) -> Result<(), Problem> {
    if format == FORMAT {
        return Ok(());
    }
    Err(invalid(key, format!("has format {format}, this version reads {FORMAT}: upgrade lockstep"))
        .with("format", format))
}

/// A `kind` field that must hold one fixed text.
macro_rules! kind {
    ($name:ident, $text:literal) => {
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
        pub(crate) enum $name {
            #[default]
            #[serde(rename = $text)]
            Kind,
        }
    };
}
pub(crate) use kind;
