//! The load tool itself works: a run of a few seconds, with a real coordinator.

use std::process::{Command, Stdio};

use serde_json::Value;

fn load(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lockstep-load"));
    command.args(args).stdin(Stdio::null());
    command
}

#[test]
fn a_quick_run_commits_every_round_verifies_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (work, json) = (folder.path().join("work"), folder.path().join("load.json"));
    std::fs::create_dir(&work).unwrap();
    let (dir, file) = (work.to_str().unwrap(), json.to_str().unwrap());
    let args = ["--quick", "--pipelines", "3", "--replicas", "2", "--dir", dir, "--json", file];
    let output = load(&args).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");
    let document: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let figure = |name: &str| document[name].as_f64().unwrap_or_else(|| panic!("{name} in {document:#}"));
    assert!(figure("rounds") >= 3.0, "{document:#}");
    assert!((figure("failed"), figure("verified")) == (0.0, 3.0), "{document:#}");
    // A push orders each of the three hosts once, at least; a round that ends in the counted time may have been ordered before it.
    assert!(document["agent_calls_by_method"]["Push"].as_f64().unwrap() >= 1.0, "{document:#}");
    assert!(document["transactions_by_operation"]["apply"].as_f64().unwrap() >= 1.0, "{document:#}");
    assert!(figure("s3_requests_a_round") >= 1.0 && figure("peak_rss_mib") > 1.0, "{document:#}");
    assert_eq!(std::fs::read_dir(&work).unwrap().count(), 0);
}

#[test]
fn what_is_wrong_is_said_before_anything_is_measured() {
    let nowhere = tempfile::tempdir().unwrap();
    for (args, told) in [
        (["--quick", "--json", "/nowhere/load.json"], "/nowhere/load.json"),
        (["--quick", "--bin-dir", nowhere.path().to_str().unwrap()], "lockstep-coordinator is missing"),
        (["--quick", "--coordinator-cpus", "99999"], "ended with"),
    ] {
        let output = load(&args).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
        assert!(stderr.contains(told), "{args:?}: {stderr}");
    }
}
