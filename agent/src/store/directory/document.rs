//! `checkpoint.json`: what a folder says of itself.

use std::path::Path;

use chrono::{DateTime, Utc};
use lockstep_protocol::{
    id::{Fingerprint, LocalCheckpointId, Step},
    problem::{Problem, Reason},
    selection::LocalCheckpoint,
};
use serde::{Deserialize, Serialize};

use crate::store::local_io::{Trouble, read_document};

/// In the checkpoint's folder.
pub const FILE_NAME: &str = "checkpoint.json";

/// More than anybody needs, so that a stray file isn't read into memory.
const MAX_BYTES: u64 = 1 << 20;

/// The fields of `checkpoint.json`. Others are the engine's own affair: the file travels as it is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CheckpointDocument {
    /// The folder's name, in the same spelling.
    #[serde(with = "spelled")]
    pub uuid: LocalCheckpointId,
    /// The position that all hosts share.
    pub step: Step,
    /// Of the program, as a decimal string.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<Fingerprint>,
    /// Records this host has processed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processed_records: Option<u64>,
    /// RFC 3339.
    pub created_at: DateTime<Utc>,
}

/// One spelling of an id only; serde's own takes braces and capitals too.
mod spelled {
    use lockstep_protocol::id::LocalCheckpointId;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(id: &LocalCheckpointId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(id)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<LocalCheckpointId, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl CheckpointDocument {
    /// Reads that of a folder, which must be of this id.
    pub(crate) fn read(folder: &Path, id: LocalCheckpointId) -> Result<Self, Trouble> {
        let path = folder.join(FILE_NAME);
        let bytes = read_document(&path, MAX_BYTES)?;
        let invalid = |why: String| {
            Problem::new(Reason::ManifestInvalid, format!("{} {why}", path.display()))
                .with("path", path.display())
                .with("why", why)
        };
        let document: Self =
            serde_json::from_slice(&bytes).map_err(|error| invalid(format!("is not valid: {error}")))?;
        if document.uuid != id {
            return Err(Trouble::Problem(
                invalid(format!("says uuid {}, its folder is that of {id}", document.uuid))
                    .with("expected_uuid", id)
                    .with("found_uuid", document.uuid),
            ));
        }
        Ok(document)
    }

    pub(crate) fn describe(&self, bytes: u64, files: u64) -> LocalCheckpoint {
        LocalCheckpoint {
            id: self.uuid,
            step: self.step,
            fingerprint: self.fingerprint,
            processed_records: self.processed_records,
            bytes,
            files,
            created_at: Some(self.created_at),
        }
    }
}
