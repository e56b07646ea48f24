//! An outside auditor: reads bucket, database and what clients were told, and says which promises of the protocol they break.
//!
//! It shares no code with what it audits: documents, keys, phases and the rules by which a commit counts are spelled out here once more, after
//! protocol.md. So a mistake in the `protocol` crate does not excuse itself.
//!
//! - [`Evidence`]: everything that was found, as values; [`collect`] gathers it from servers
//! - [`history`]: what engines made, what clients were told and when, what lay on disks; [`witness`] writes it down
//! - `location`: documents of a location, and which commits count (F1); `parts`: what a commit consists of, byte by byte
//! - `decisions` (S1 to S5, S8, S9, S15), `trail` (S6, S13, legal phases), `told` (S5, S11, S14, S15), `contents` (S3, S7), `installed` (S12): the checks
//!
//! S10 shows as S1: what was deleted wrongly is missing.

pub mod collect;
pub mod database;
pub mod history;
pub mod witness;

mod contents;
mod decisions;
mod installed;
mod location;
mod parts;
mod told;
mod trail;

use std::{collections::BTreeMap, fmt, rc::Rc};

use uuid::Uuid;

use self::{database::Rows, history::History, location::LocationView};

/// Everything an audit is made of.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// Key to bytes of everything in the bucket.
    pub objects: BTreeMap<String, Vec<u8>>,
    /// Every change of the bucket since it was made, in order.
    pub journal: Vec<Written>,
    /// Multipart uploads that nobody ended.
    pub open_uploads: usize,
    /// The coordinators' database.
    pub rows: Rows,
    /// What was seen from outside.
    pub history: History,
}

/// One change of the bucket, as its server wrote it down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// An object has this content now.
    Put { key: String, etag: String },
    /// An object is gone.
    Deleted { key: String },
}

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// Number of the rule in protocol.md, or `layout` for documents that are none.
    pub rule: &'static str,
    /// What is wrong, with names.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.what)
    }
}

/// What an audit came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// Sorted; empty for a sound system.
    pub findings: Vec<Finding>,
    /// Commits that count.
    pub commits: usize,
    /// Abort records.
    pub aborts: usize,
    /// Files whose bytes were read and compared, those of several commits several times.
    pub files: usize,
    /// Objects of hosts that no commit that counts reaches.
    pub orphans: usize,
    /// Their bytes.
    pub orphan_bytes: u64,
    /// Multipart uploads that nobody ended.
    pub open_uploads: usize,
    /// Events of the audit trail that were followed.
    pub events: usize,
    /// Pulls whose disks were compared.
    pub installed: usize,
}

impl Audit {
    fn found(&mut self, rule: &'static str, what: impl Into<String>) {
        self.findings.push(Finding { rule, what: what.into() });
    }

    /// The findings, one a line.
    pub fn listed(&self) -> String {
        self.findings.iter().map(|finding| format!("{finding}\n")).collect()
    }
}

/// Judges the evidence. Every round is expected to have ended.
pub fn audit(evidence: &Evidence) -> Audit {
    let mut audit = Audit { open_uploads: evidence.open_uploads, ..Audit::default() };
    let mut views: BTreeMap<Uuid, Rc<LocationView>> = BTreeMap::new();
    let mut locations: BTreeMap<&str, Rc<LocationView>> = BTreeMap::new();
    for pipeline in evidence.rows.pipelines.values() {
        let view = locations.entry(&pipeline.prefix).or_insert_with(|| {
            let view = LocationView::read(&pipeline.prefix, &evidence.objects, &mut audit);
            decisions::check_location(&view, evidence, &mut audit);
            Rc::new(view)
        });
        decisions::check_pipeline(pipeline, view, evidence, &mut audit);
        views.insert(pipeline.id, Rc::clone(view));
    }
    trail::check(&evidence.rows, &mut audit);
    told::check(evidence, &views, &mut audit);
    contents::check(&evidence.journal, &mut audit);
    installed::check(evidence, &views, &mut audit);
    audit.findings.sort();
    audit.findings.dedup();
    audit
}
