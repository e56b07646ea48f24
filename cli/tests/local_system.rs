//! `dev` and `demo` for real: Postgres, S3, coordinator and agents, and every command against them.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

struct Dev {
    process: Child,
    coordinator: String,
    s3: String,
    dir: tempfile::TempDir,
}

impl Dev {
    /// Comes back when it says that all is up.
    fn start(dir: tempfile::TempDir) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_lockstep"))
            // One checkpoint at the start, and then none that would disturb.
            .args(["dev", "--port", "0", "--hosts", "2", "--engine-interval", "1h", "--dir"])
            .arg(dir.path().join("dev"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut coordinator, mut s3) = (String::new(), String::new());
        for line in BufReader::new(process.stdout.as_mut().unwrap()).lines() {
            let line = line.unwrap();
            if let Some(rest) = line.strip_prefix("coordinator ") {
                coordinator = rest.split_whitespace().next().unwrap().to_owned();
            }
            if let Some(rest) = line.strip_prefix("S3 ") {
                let endpoint = rest.split_whitespace().next().unwrap();
                s3 = endpoint.strip_prefix("http://").unwrap().to_owned();
            }
            if line == "Ctrl-C ends it." {
                return Self { process, coordinator, s3, dir };
            }
        }
        panic!("lockstep dev ended before it was up: {:?}", process.wait());
    }

    fn command(&self, options: &[&str], args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lockstep"));
        command.args(["--actor", "tester", "--coordinator", &self.coordinator]).args(options).args(args);
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(&["--output", "json"], args).output().unwrap()
    }

    /// Makes the S3 server misbehave.
    fn fault(&self, rule: &str) {
        let mut connection = TcpStream::connect(&self.s3).unwrap();
        let length = rule.len();
        write!(
            connection,
            "POST /_lockstep/faults HTTP/1.1\r\nhost: s3\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{rule}"
        )
        .unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    /// The one document on stdout, and the exit code.
    fn document(&self, args: &[&str]) -> (Value, i32) {
        let output = self.run(args);
        let document = serde_json::from_slice(&output.stdout);
        let document = document.unwrap_or_else(|error| panic!("{args:?}: {error}: {output:?}"));
        (document, output.status.code().unwrap())
    }

    fn done(&self, args: &[&str]) -> Value {
        let (document, exit) = self.document(args);
        assert_eq!(exit, 0, "{args:?}: {document}");
        document
    }

    fn fails(&self, args: &[&str], reason: &str, exit: i32) {
        let (document, code) = self.document(args);
        assert_eq!((&document["error"]["reason"], code), (&json!(reason), exit), "{args:?}: {document}");
    }

    /// Ctrl-C, and gives the directory back.
    fn stop(mut self) -> tempfile::TempDir {
        kill(Pid::from_raw(self.process.id().cast_signed()), Signal::SIGINT).unwrap();
        assert_eq!(self.process.wait().unwrap().code(), Some(0));
        let output = self.run(&["status"]);
        assert_eq!(output.status.code(), Some(3), "the coordinator has ended too");
        std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap())
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Postgres does not run as root: whoever it runs as must get through.
fn traversable_dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

/// The engines write their first checkpoint just after everything is up.
fn push_when_there_is_something(dev: &Dev) -> Value {
    let began = Instant::now();
    loop {
        let (document, exit) = dev.document(&["push", "dev", "--wait"]);
        if exit == 0 {
            return document;
        }
        let reason = document["error"]["reason"].as_str().or(document["problem"]["reason"].as_str());
        assert_eq!(reason, Some("NO_COMMON_CHECKPOINT"), "{document}");
        assert!(began.elapsed() < Duration::from_secs(30), "{document}");
    }
}

fn write_spec(dir: &Path, spec: &Value) -> String {
    let path = dir.join("spec.json");
    std::fs::write(&path, spec.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn every_command_gives_one_document_and_its_exit_code() {
    let dev = Dev::start(traversable_dir());

    let pushed = push_when_there_is_something(&dev);
    assert_eq!((&pushed["phase"], &pushed["kind"], &pushed["step"]), (&json!("committed"), &json!("push"), &json!(1)));
    assert_eq!(pushed["participants"].as_array().unwrap().len(), 2);
    let id = pushed["id"].as_str().unwrap();

    assert_eq!(dev.done(&["status"])["pipelines"][0]["last_committed_step"], 1);
    assert_eq!(dev.done(&["pipeline", "list"])["pipelines"][0]["name"], "dev");
    assert_eq!(dev.done(&["round", "show", id])["id"], id);
    assert_eq!(dev.done(&["round", "watch", id])["phase"], "committed");
    assert_eq!(dev.done(&["round", "list", "dev", "--kind", "push", "--limit", "1"])["rounds"][0]["kind"], "push");
    assert_eq!(dev.done(&["checkpoint", "list", "dev"])["checkpoints"][0]["id"], id);
    assert_eq!(dev.done(&["checkpoint", "show", "dev", "1"])["id"], id);
    assert_eq!(dev.done(&["checkpoint", "verify", "dev"])["intact"], true);
    let audit = dev.done(&["audit", "dev", "--round", id]);
    assert!(audit["events"].as_array().unwrap().iter().any(|event| event["actor"] == "tester"), "{audit}");

    let dry = dev.done(&["push", "dev", "--force", "--dry-run"]);
    assert_eq!(dry["dry_run"], true);
    let pulled = dev.done(&["pull", "dev", "--standby=false", "--discard-local", "--wait"]);
    assert_eq!((&pulled["phase"], &pulled["source"]), (&json!("installed"), &json!("location")));

    dev.fails(&["push", "nothing"], "PIPELINE_NOT_FOUND", 4);
    dev.fails(&["round", "show", "7f6b5c1e-90bb-4a0e-8f5e-0d9a3b8f2c11"], "ROUND_NOT_FOUND", 4);
    dev.fails(&["checkpoint", "show", "dev", "99"], "CHECKPOINT_NOT_FOUND", 4);
    dev.fails(&["round", "cancel", id], "ROUND_NOT_CANCELLABLE", 5);
    dev.fails(&["pipeline", "delete", "dev", "--etag", "stale"], "ETAG_MISMATCH", 5);

    let mut spec = dev.done(&["pipeline", "get", "dev"])["spec"].clone();
    let dir = dev.dir.path().to_owned();
    let apply = |spec: &Value| dev.done(&["pipeline", "apply", "-f", &write_spec(&dir, spec)])["result"].clone();
    assert_eq!(apply(&spec), "unchanged");
    spec["transfer"]["concurrency"] = json!(8);
    assert_eq!(apply(&spec), "updated");
    assert_eq!(apply(&spec), "unchanged");

    let dir = dev.stop();
    let again = Dev::start(dir);
    assert_eq!(again.done(&["status"])["pipelines"][0]["last_committed_step"], 1, "the next run goes on from there");
    again.stop();
}

#[test]
fn ctrl_c_ends_the_waiting_and_not_the_round() {
    let dev = Dev::start(traversable_dir());
    push_when_there_is_something(&dev);
    dev.fault(r#"{"method": "PUT", "action": {"kind": "hang"}}"#);
    let mut waiting = dev.command(&["--output", "table"], &["push", "dev", "--force", "--wait"]);
    let mut waiting = waiting.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(waiting.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("transferring")));
    kill(Pid::from_raw(waiting.id().cast_signed()), Signal::SIGINT).unwrap();
    assert_eq!(waiting.wait().unwrap().code(), Some(1));
    let said = lines.collect::<Vec<_>>().join("\n");
    let round = dev.done(&["status"])["pipelines"][0]["active_round"].clone();
    let id = round["id"].as_str().unwrap();
    assert_eq!(round["phase"], "transferring", "it goes on");
    assert!(said.contains(&format!("lockstep round watch {id}")), "{said}");
    assert!(said.contains(&format!("lockstep round cancel {id}")), "{said}");

    dev.fails(&["push", "dev", "--force"], "ROUND_IN_PROGRESS", 5);
    dev.done(&["round", "cancel", id, "--cause", "the test is over"]);
    let (ended, exit) = dev.document(&["round", "watch", id]);
    assert_eq!((&ended["phase"], exit), (&json!("cancelled"), 1), "{ended}");
    dev.stop();
}

#[test]
fn the_demo_tells_its_story_in_a_screenful_and_every_byte_comes_back() {
    let output = Command::new(env!("CARGO_BIN_EXE_lockstep")).arg("demo").output().unwrap();
    let story = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{story}\n{}", String::from_utf8_lossy(&output.stderr));
    for part in ["kill -9", "took the round over: term 2", "rm -rf all disks", "every byte of every host came back"] {
        assert!(story.contains(part), "{part}: {story}");
    }
    assert_eq!(story.matches("equal").count(), 3, "{story}");
    assert!(story.lines().count() <= 50, "{story}");
}
