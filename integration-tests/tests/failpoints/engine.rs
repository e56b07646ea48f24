//! What an engine would find on a host's disk: read here, and not by the code under test.

use std::{collections::BTreeMap, fs};

use lockstep_integration_tests::host::{Host, State, digests};
use serde_json::Value;

/// Checkpoints by their UUID, each with the digest of every file that it is made of.
pub(crate) type Checkpoints = BTreeMap<String, State>;

/// Which engine's directory it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Store {
    Directory,
    Feldera,
}

impl Store {
    pub(crate) const fn flag(self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::Feldera => "feldera",
        }
    }

    /// Every checkpoint that an engine would take for one. Fails where a file that it needs is missing.
    pub(crate) fn checkpoints(self, host: &Host) -> Checkpoints {
        match self {
            Self::Directory => host
                .checkpoints()
                .into_iter()
                .map(|id| {
                    let state = host.state_of(id.parse().unwrap());
                    (id, state)
                })
                .collect(),
            Self::Feldera => catalog(host).into_iter().map(|id| (id.clone(), dbsp_checkpoint(host, &id))).collect(),
        }
    }

    /// Nothing but this one checkpoint is left, and what the engine starts from is its.
    pub(crate) fn assert_alone(self, host: &Host, id: &str, state: &State) {
        assert_eq!(self.checkpoints(host), Checkpoints::from([(id.to_owned(), state.clone())]), "host {}", host.idx);
        assert!(host.leftovers().is_empty(), "host {}: {:?}", host.idx, host.leftovers());
        if self == Self::Feldera {
            let own = ["checkpoints.feldera", "state.json", "feldera.pidlock"];
            let mut found = digests(&host.dir);
            found.retain(|path, _| !own.contains(&path.as_str()) && !path.starts_with("coordinator/"));
            assert_eq!(&found, state, "host {}: files of no checkpoint", host.idx);
            let read = |path: String| fs::read(host.dir.join(path)).unwrap();
            assert_eq!(read("state.json".to_owned()), read(format!("{id}/state.json")), "host {}", host.idx);
        }
    }
}

fn catalog(host: &Host) -> Vec<String> {
    // Absent: the engine would start from nothing.
    let Ok(text) = fs::read(host.dir.join("checkpoints.feldera")) else { return Vec::new() };
    let entries: Vec<Value> = serde_json::from_slice(&text).unwrap();
    entries.iter().map(|entry| entry["uuid"].as_str().unwrap().to_owned()).collect()
}

fn dbsp_checkpoint(host: &Host, id: &str) -> State {
    let mut state: State =
        digests(&host.dir.join(id)).into_iter().map(|(path, digest)| (format!("{id}/{path}"), digest)).collect();
    let needs: Value = serde_json::from_slice(&fs::read(host.dir.join(id).join("dependencies.json")).unwrap()).unwrap();
    let names = |what: &str| needs[what].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned());
    for name in names("state_files") {
        assert!(state.contains_key(&format!("{id}/{name}")), "host {}: {id}/{name} is missing", host.idx);
    }
    for batch in names("batches") {
        let digest = digests(&host.dir).remove(&batch);
        state.insert(batch.clone(), digest.unwrap_or_else(|| panic!("host {}: {batch} is missing", host.idx)));
    }
    state
}
