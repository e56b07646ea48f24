//! Every change of the bucket: no key ever holds two contents (S7), what is create-only is created once and stays (S3).

use std::collections::BTreeMap;

use super::{Audit, Written};

/// The one key that is no authority, and so may change.
const HINT: &str = "head.json";

fn stands_in(key: &str, folder: &str) -> bool {
    key.starts_with(folder) || key.contains(&format!("/{folder}"))
}

pub(super) fn check(journal: &[Written], audit: &mut Audit) {
    let mut contents: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for written in journal {
        match written {
            Written::Put { key, etag } => contents.entry(key).or_default().push(etag),
            Written::Deleted { key } => {
                // Commits may be swept, once they are retired; nothing else here ever goes.
                if stands_in(key, "fences/") || stands_in(key, "retired/") || key.ends_with("lockstep.json") {
                    audit.found("S3", format!("{key} was deleted"));
                }
            }
        }
    }
    for (key, etags) in contents {
        if key.rsplit('/').next() == Some(HINT) {
            continue;
        }
        if etags.iter().any(|etag| *etag != etags[0]) {
            audit.found("S7", format!("{key} has held {} contents", etags.len()));
        }
        let once = ["commits/", "fences/", "retired/"].iter().any(|folder| stands_in(key, folder));
        if once && etags.len() > 1 {
            audit.found("S3", format!("{key} was written {} times", etags.len()));
        }
    }
}
