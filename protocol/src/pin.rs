//! A pin: keeps one checkpoint from retention. Whoever reads a location that another database owns puts one first, *then* looks for a tombstone (G5).

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    commit::CommitRef,
    document::{self, FORMAT, check_format, invalid, kind},
    key::Key,
    problem::Problem,
};

kind!(PinKind, "pin");

/// `pins/<name>-<uuid>.json`: create-only; its key is never used again after it was deleted.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Pin {
    /// Letters, digits, `-` and `_`; for a reader.
    pub name: String,
    /// Drawn for this pin.
    pub id: Uuid,
    /// What it keeps.
    pub commit: CommitRef,
    /// Who wants it kept.
    pub pinned_by: String,
    /// When.
    pub pinned_at: DateTime<Utc>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPin {
    format: u32,
    kind: PinKind,
    name: String,
    id: Uuid,
    commit: CommitRef,
    pinned_by: String,
    pinned_at: DateTime<Utc>,
}

impl Pin {
    /// Key of this pin.
    pub fn key(&self) -> Key {
        Key::Pin(self.name.clone(), self.id)
    }

    /// The exact bytes.
    pub fn encode(&self) -> Vec<u8> {
        document::encode(&RawPin {
            format: FORMAT,
            kind: PinKind::Kind,
            name: self.name.clone(),
            id: self.id,
            commit: self.commit,
            pinned_by: self.pinned_by.clone(),
            pinned_at: self.pinned_at,
        })
    }

    /// Parses bytes read at `key`. A pin that can't be read stops what would delete: nobody knows what it keeps.
    pub fn parse(key: &str, bytes: &[u8]) -> Result<Self, Problem> {
        let raw: RawPin = document::parse(key, bytes)?;
        check_format(key, raw.format)?;
        let pin =
            Self { name: raw.name, id: raw.id, commit: raw.commit, pinned_by: raw.pinned_by, pinned_at: raw.pinned_at };
        let own = pin.key().to_string();
        if own != key {
            return Err(invalid(key, format!("says it belongs at {own}")));
        }
        Ok(pin)
    }
}
