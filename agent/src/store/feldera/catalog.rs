//! `checkpoints.feldera`: read strictly, kept to the letter.

use std::collections::BTreeSet;

use chrono::DateTime;
use lockstep_protocol::{
    id::{Fingerprint, LocalCheckpointId, Step},
    problem::{Problem, Reason},
    selection::LocalCheckpoint,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::layout::Root;
use crate::store::local_io::{Trouble, read_document};

/// Thousands of times what an engine that keeps two checkpoints writes.
const MAX_BYTES: u64 = 64 << 20;

/// The catalog, oldest checkpoint first.
#[derive(Debug, Default)]
pub(super) struct Catalog {
    entries: Vec<CatalogEntry>,
}

/// One checkpoint as the catalog has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CatalogEntry {
    pub(super) uuid: LocalCheckpointId,
    pub(super) fingerprint: Fingerprint,
    /// Without it the checkpoint can't be aligned with those of other hosts, so it is no candidate.
    pub(super) step: Option<Step>,
    pub(super) processed_records: Option<u64>,
    /// The entry to the byte, with the fields that we don't know.
    pub(super) verbatim: String,
}

/// What we need of an entry. Numbers go from their digits to `u64` directly, so a fingerprint keeps all its bits.
#[derive(Deserialize)]
struct Fields {
    uuid: String,
    #[serde(rename = "identifier")]
    _identifier: Option<String>,
    fingerprint: u64,
    #[serde(rename = "size")]
    _size: Option<u64>,
    steps: Option<u64>,
    processed_records: Option<u64>,
}

impl Catalog {
    /// Reads that of a directory. A missing one counts as empty only where nothing is that it could name.
    pub(super) fn read(root: &Root) -> Result<Self, Problem> {
        let path = root.catalog();
        match read_document(&path, MAX_BYTES) {
            Ok(bytes) => Self::parse(&path.display().to_string(), &bytes),
            Err(Trouble::Gone(_)) => {
                root.prove_empty()?;
                Ok(Self::default())
            }
            Err(Trouble::Problem(problem)) => Err(problem),
        }
    }

    /// `source` names it in messages.
    fn parse(source: &str, bytes: &[u8]) -> Result<Self, Problem> {
        let text = std::str::from_utf8(bytes)
            .map_err(|error| invalid(source, error.valid_up_to(), &format!("is no UTF-8: {error}")))?;
        let raw: Vec<&RawValue> = serde_json::from_str(text)
            .map_err(|error| invalid(source, offset_of(text, &error), &format!("is no JSON array: {error}")))?;
        let mut entries = Vec::with_capacity(raw.len());
        let mut seen = BTreeSet::new();
        for raw in raw {
            // Where the entry lies in the file: `raw` borrows from it.
            let at = raw.get().as_ptr().addr() - text.as_ptr().addr();
            let entry = CatalogEntry::parse_at(source, at, raw.get())?;
            if !seen.insert(entry.uuid) {
                return Err(invalid(source, at, &format!("has a second entry for uuid {}", entry.uuid)));
            }
            entries.push(entry);
        }
        Ok(Self { entries })
    }

    pub(super) fn find(&self, id: LocalCheckpointId) -> Option<&CatalogEntry> {
        self.entries.iter().find(|entry| entry.uuid == id)
    }

    /// Those that have a step.
    pub(super) fn candidates(&self) -> impl Iterator<Item = (&CatalogEntry, Step)> {
        self.entries.iter().filter_map(|entry| entry.step.map(|step| (entry, step)))
    }
}

impl CatalogEntry {
    /// Parses one that travelled outside a catalog; `source` names where.
    pub(super) fn parse(source: &str, text: &str) -> Result<Self, Problem> {
        Self::parse_at(source, 0, text)
    }

    fn parse_at(source: &str, at: usize, text: &str) -> Result<Self, Problem> {
        if !text.starts_with('{') {
            // Serde would also take an array of the fields' values.
            return Err(invalid(source, at, "has an entry that is no object"));
        }
        let fields: Fields = serde_json::from_str(text).map_err(|error| {
            invalid(source, at + offset_of(text, &error), &format!("has an invalid entry: {error}"))
        })?;
        let uuid = fields
            .uuid
            .parse()
            .map_err(|problem: Problem| invalid(source, at, &format!("has an invalid entry: {}", problem.message)))?;
        let step = fields
            .steps
            .map(Step::new)
            .transpose()
            .map_err(|problem| invalid(source, at, &format!("has an invalid entry: {}", problem.message)))?;
        Ok(Self {
            uuid,
            fingerprint: Fingerprint(fields.fingerprint),
            step,
            processed_records: fields.processed_records,
            verbatim: text.to_owned(),
        })
    }

    /// A catalog of this entry alone.
    pub(super) fn alone(&self) -> Vec<u8> {
        format!("[{}]", self.verbatim).into_bytes()
    }

    pub(super) fn describe(&self, step: Step, bytes: u64, files: u64) -> LocalCheckpoint {
        let created_at = self.uuid.uuid().get_timestamp().and_then(|timestamp| {
            let (seconds, nanos) = timestamp.to_unix();
            DateTime::from_timestamp(i64::try_from(seconds).ok()?, nanos)
        });
        LocalCheckpoint {
            id: self.uuid,
            step,
            fingerprint: Some(self.fingerprint),
            processed_records: self.processed_records,
            bytes,
            files,
            created_at,
        }
    }
}

fn invalid(source: &str, at: usize, why: &str) -> Problem {
    Problem::new(Reason::ManifestInvalid, format!("{source} {why} (byte {at})"))
        .with("path", source)
        .with("byte", at)
        .with("why", why)
}

/// Serde tells line and column; an operator with a hex editor wants the byte. Both count from 1, the byte from 0.
fn offset_of(text: &str, error: &serde_json::Error) -> usize {
    let before: usize = text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum();
    (before + error.column().saturating_sub(1)).min(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = r#"{"uuid":"01a20379-9c00-7277-8caa-890bf6e3357b","identifier":null,"fingerprint":11057525854332059820,"size":4840,"steps":4,"processed_records":3075}"#;
    const B: &str = r#"{"uuid": "01a20379-a1a0-74ce-acc6-b08719952cdf", "identifier": "x", "fingerprint": 0, "size": null, "steps": null, "processed_records": null, "later": {"a": [1.50, 1e2]}}"#;

    fn refused(text: &str) -> Problem {
        let problem = Catalog::parse("dir/checkpoints.feldera", text.as_bytes()).unwrap_err();
        assert_eq!(problem.reason, Reason::ManifestInvalid);
        assert_eq!(problem.metadata["path"], "dir/checkpoints.feldera");
        assert!(problem.metadata.contains_key("byte"));
        problem
    }

    #[test]
    fn an_entry_survives_to_the_byte_with_fields_nobody_knows_and_all_bits_of_its_fingerprint() {
        let catalog = Catalog::parse("c", format!(" [\n{A} ,\n {B}]\n").as_bytes()).unwrap();
        assert_eq!(catalog.entries[0].fingerprint, Fingerprint(11_057_525_854_332_059_820));
        assert_eq!(catalog.entries[0].alone(), format!("[{A}]").as_bytes());
        assert_eq!(catalog.entries[1].alone(), format!("[{B}]").as_bytes());
    }

    #[test]
    fn an_entry_without_step_is_no_candidate() {
        let catalog = Catalog::parse("c", format!("[{A},{B}]").as_bytes()).unwrap();
        let candidates: Vec<u64> = catalog.candidates().map(|(_, step)| step.get()).collect();
        assert_eq!(candidates, [4]);
    }

    #[test]
    fn a_catalog_cut_off_anywhere_is_refused_and_never_empty() {
        let whole = format!("[{A},{B}]");
        for len in 0..whole.len() {
            let problem = refused(&whole[..len]);
            assert_eq!(problem.metadata["byte"], len.saturating_sub(1).to_string(), "cut to {len}: {problem}");
        }
    }

    #[test]
    fn edited_entries_are_refused_with_the_byte_where_it_went_wrong() {
        for (from, to) in [
            ("11057525854332059820", "18446744073709551616"),
            ("11057525854332059820", "-1"),
            ("11057525854332059820", "1.0"),
            ("\"fingerprint\"", "\"fingerprints\""),
            ("\"steps\":4", "\"steps\":9223372036854775808"),
            ("\"steps\":4", "\"steps\":\"4\""),
            ("\"steps\":4", "\"steps\":4,\"steps\":5"),
            ("01a20379-9c00", "01A20379-9C00"),
            ("01a20379-9c00-7277-8caa-890bf6e3357b", "../../etc"),
        ] {
            let text = format!("[\n{B},\n{}]", A.replace(from, to));
            let at: usize = refused(&text).metadata["byte"].parse().unwrap();
            assert!(at > B.len(), "{from} to {to}: {at}");
        }
        for text in ["", "null", "{}", "[1]", "[[]]", "[]x", "[null]", &format!("[{A},{A}]"), &format!("[{A}] []")] {
            refused(text);
        }
    }

    #[test]
    fn the_time_of_a_checkpoint_comes_from_its_uuid() {
        let catalog = Catalog::parse("c", format!("[{A}]").as_bytes()).unwrap();
        let described = catalog.entries[0].describe(Step::new(4).unwrap(), 1, 1);
        assert_eq!(described.created_at.unwrap().timestamp_millis(), 0x01a2_0379_9c00);
    }
}
