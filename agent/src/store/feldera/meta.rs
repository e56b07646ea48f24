//! What a part manifest carries for this store besides files.

use lockstep_protocol::problem::{Problem, Reason};
use serde::{Deserialize, Serialize};

/// The part's `store_meta`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StoreMeta {
    /// The catalog entry as the engine wrote it, to the byte: in a string, so that no JSON library between here and the restore can touch its numbers.
    pub(super) entry: String,
    /// Whether the root had a `state.json`, that is, whether a Feldera controller used the directory. If so, a part without one can't be restored.
    pub(super) root_state_json: bool,
}

impl StoreMeta {
    pub(super) fn encode(&self) -> String {
        serde_json::json!({ "entry": self.entry, "root_state_json": self.root_state_json }).to_string()
    }

    pub(super) fn parse(text: &str) -> Result<Self, Problem> {
        serde_json::from_str(text).map_err(|error| {
            Problem::new(
                Reason::ManifestInvalid,
                format!("the part's store_meta is not that of a feldera store: {error}: was it pushed from another kind of store?"),
            )
            .with("why", error)
        })
    }
}
