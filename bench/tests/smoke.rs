//! The bench itself works: a run of a few seconds, with the real binaries.

#![expect(clippy::unwrap_used, reason = "a test ends where something it needs is not there")]

use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const BENCH: &str = env!("CARGO_BIN_EXE_lockstep-bench");

/// `cargo test --workspace` builds coordinator and agent beside the bench.
fn bench(args: &[&str]) -> Command {
    let mut command = Command::new(BENCH);
    command.args(args).stdin(Stdio::null());
    command
}

fn entries(folder: &Path) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

#[test]
fn a_smoke_run_measures_every_operation_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (work, json) = (folder.path().join("work"), folder.path().join("figures.json"));
    std::fs::create_dir(&work).unwrap();
    let args = [
        "--smoke",
        "--data-set",
        "A,B,C",
        "--tools",
        "lockstep,curl",
        "--dir",
        work.to_str().unwrap(),
        "--json",
        json.to_str().unwrap(),
    ];
    let output = bench(&args).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");
    for heading in ["push of A", "nothing of B", "pull of B", "repair of B", "push of C", "must reach"] {
        assert!(stdout.contains(heading), "{heading} is missing in\n{stdout}");
    }
    let document: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let find = |data_set: &str, operation: &str, tool: &str| {
        let wanted = [data_set, operation, tool];
        let fields =
            |entry: &Value| ["data_set", "operation", "tool"].map(|field| entry[field].as_str().unwrap().to_owned());
        document
            .as_array()
            .unwrap()
            .iter()
            .find(|entry| fields(entry) == wanted)
            .unwrap_or_else(|| panic!("{wanted:?}"))
            .clone()
    };
    let files = 100.0 * f64::from(64 << 10);
    assert!(find("B", "push", "lockstep")["bytes_sent"].as_f64().unwrap() >= files);
    assert!(find("B", "pull", "lockstep")["bytes_received"].as_f64().unwrap() >= files);
    assert!(find("B", "repair", "lockstep")["bytes_received"].as_f64().unwrap() < files / 2.0);
    assert!(find("C", "push", "lockstep")["bytes_sent"].as_f64().unwrap() < files / 2.0);
    assert_eq!(find("B", "push", "curl")["requests"], 100);
    assert_eq!(entries(&work), 0);
}

#[test]
fn what_is_wrong_is_said_before_anything_is_measured() {
    let nowhere = tempfile::tempdir().unwrap();
    for (args, told) in [
        (["--smoke", "--dir", "/nowhere"], "--dir /nowhere is not a folder"),
        (["--smoke", "--json", "/nowhere/figures.json"], "/nowhere/figures.json"),
        (["--smoke", "--bin-dir", nowhere.path().to_str().unwrap()], "lockstep-coordinator is missing"),
    ] {
        let output = bench(&args).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
        assert!(stderr.contains(told), "{args:?}: {stderr}");
    }
}

#[test]
fn when_it_is_interrupted_children_end_and_the_folder_goes() {
    let folder = tempfile::tempdir().unwrap();
    let mut command =
        bench(&["--smoke", "--tools", "lockstep", "--runs", "1000", "--dir", folder.path().to_str().unwrap()]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    // Its first line of progress comes when everything runs.
    let mut stderr = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut stderr, &mut line).unwrap();
    assert!(line.starts_with("data set A"), "{line}");
    assert_eq!(entries(folder.path()), 1);
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    std::io::copy(&mut stderr, &mut std::io::sink()).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert_eq!(entries(folder.path()), 0);
    let left = processes_that_name(folder.path());
    assert!(left.is_empty(), "{left:?}");
}

fn processes_that_name(folder: &Path) -> Vec<String> {
    let name = folder.to_str().unwrap();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " ")).filter(|line| line.contains(name)).collect()
}
