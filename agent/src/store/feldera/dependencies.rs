//! `dependencies.json` in a checkpoint's folder: which batches and which files of the folder it needs.

use lockstep_protocol::{
    id::LocalCheckpointId,
    manifest::RelativePath,
    problem::{Problem, Reason},
};
use serde::Deserialize;

use super::{
    Trouble,
    layout::{DEPENDENCIES, MARKER, Root, STATE, batch_path},
};
use crate::store::local_io::read_document;

/// A name takes some 50 bytes; this is for more batches than a host has inodes to spare.
pub(super) const MAX_BYTES: u64 = 64 << 20;

/// What a checkpoint needs besides its catalog entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dependencies {
    /// In the root, each once.
    pub(super) batches: Vec<RelativePath>,
    /// In the folder; the marker and the document itself are always among them.
    pub(super) required: Vec<RelativePath>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Document {
    /// Older engines.
    Batches(Vec<String>),
    Both {
        batches: Vec<String>,
        #[serde(default)]
        state_files: Vec<String>,
    },
}

impl Dependencies {
    /// Reads that of a checkpoint in the root.
    pub(super) fn read(root: &Root, id: LocalCheckpointId) -> Result<Self, Trouble> {
        let path = root.folder(id).join(DEPENDENCIES);
        let bytes = read_document(&path, MAX_BYTES)?;
        Ok(Self::parse(&path.display().to_string(), id, &bytes)?)
    }

    /// Checks every name: they become paths, and the document may come from a bucket. `source` names it in messages.
    pub(super) fn parse(source: &str, id: LocalCheckpointId, bytes: &[u8]) -> Result<Self, Problem> {
        let invalid = |why: String| {
            Problem::new(Reason::ManifestInvalid, format!("{source} {why}")).with("path", source).with("why", why)
        };
        let document: Document = serde_json::from_slice(bytes).map_err(|error| {
            invalid(format!("is neither a list of batches nor an object with batches and state_files: {error}"))
        })?;
        let (batches, state_files) = match document {
            Document::Batches(batches) => (batches, Vec::new()),
            Document::Both { batches, state_files } => (batches, state_files),
        };
        let mut checked = Vec::with_capacity(batches.len());
        for name in batches {
            checked.push(batch_path(&name).map_err(|why| invalid(format!("names batch {name:?}, which {why}")))?);
        }
        checked.sort();
        checked.dedup();
        let mut required = Vec::with_capacity(state_files.len() + 2);
        for name in state_files.iter().map(String::as_str).chain([MARKER, DEPENDENCIES]) {
            let path = RelativePath::new(format!("{id}/{name}")).ok().filter(|_| !name.contains('/'));
            required
                .push(path.ok_or_else(|| invalid(format!("names state file {name:?}, which is no plain file name")))?);
        }
        required.sort();
        required.dedup();
        Ok(Self { batches: checked, required })
    }
}

/// The path of the controller's file in a checkpoint's folder.
pub(super) fn state_path(id: LocalCheckpointId) -> Result<RelativePath, Problem> {
    RelativePath::new(format!("{id}/{STATE}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "01a20379-9c00-7277-8caa-890bf6e3357b";

    fn parse(text: &str) -> Result<Dependencies, Problem> {
        Dependencies::parse("d", ID.parse().unwrap(), text.as_bytes())
    }

    fn names(paths: &[RelativePath]) -> Vec<&str> {
        paths.iter().map(RelativePath::as_str).collect()
    }

    #[test]
    fn both_forms_are_understood() {
        let old = parse(r#"["w1-b.feldera","w0-a.feldera","w1-b.feldera"]"#).unwrap();
        assert_eq!(names(&old.batches), ["w0-a.feldera", "w1-b.feldera"]);
        assert_eq!(names(&old.required), [format!("{ID}/CHECKPOINT"), format!("{ID}/dependencies.json")]);
        let new = parse(r#"{"batches":["w0-a.feldera"],"state_files":["x.dat","CHECKPOINT"],"later":1}"#).unwrap();
        assert_eq!(names(&new.batches), ["w0-a.feldera"]);
        assert_eq!(
            names(&new.required),
            [format!("{ID}/CHECKPOINT"), format!("{ID}/dependencies.json"), format!("{ID}/x.dat")]
        );
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for name in [
            "../w0-a.feldera",
            "/etc/w0.feldera",
            "a/b.feldera",
            "..",
            ".",
            "",
            "w0-a",
            "w0-a.feldera.mut",
            ".feldera",
            "checkpoints.feldera",
            "activated.feldera",
            "feldera.pidlock",
            "state.json",
            "status.json",
            "coordinator",
        ] {
            let problem = parse(&format!(r#"{{"batches":["{name}"]}}"#)).unwrap_err();
            assert_eq!(problem.reason, Reason::ManifestInvalid, "{name}");
            assert!(problem.message.contains(&format!("{name:?}")), "{problem}");
        }
        for name in ["../x", "a/b", "..", "", "/x"] {
            let problem = parse(&format!(r#"{{"batches":[],"state_files":["{name}"]}}"#)).unwrap_err();
            assert_eq!(problem.reason, Reason::ManifestInvalid, "{name}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "{}", "null", "[1]", r#"{"batches":"x"}"#, r#"["w0-a.feldera""#] {
            assert_eq!(parse(text).unwrap_err().reason, Reason::ManifestInvalid, "{text}");
        }
    }
}
