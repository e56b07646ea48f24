//! The command line, as its users run it.

use std::process::Command;

use serde_json::Value;

use crate::{cluster::Cluster, process::binary};

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    /// Its exit code.
    pub code: i32,
    /// The one document on stdout.
    pub document: Value,
    /// What it told people.
    pub stderr: String,
}

/// Runs `lockstep --output json` with these arguments against the cluster's coordinator.
pub fn lockstep(cluster: &Cluster, args: &[&str]) -> Ran {
    let mut command = Command::new(binary("lockstep"));
    command.args(["--coordinator", &cluster.coordinator_url(), "--output", "json"]).args(args).env_remove("RUST_LOG");
    let output = command.output().expect("the command runs");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let document = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{args:?}: {error}: {}\n{stderr}", String::from_utf8_lossy(&output.stdout)));
    Ran { code: output.status.code().expect("it was not killed"), document, stderr }
}
