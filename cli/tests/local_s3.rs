//! `probe` against a real S3 server: the embedded one as a process of its own, as `dev` and `demo` could run it.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

const SECRET: &str = "the-secret-of-this-test";

struct S3 {
    process: Child,
    endpoint: String,
}

impl S3 {
    fn start() -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_lockstep"))
            .args(["__s3", "--bucket", "acme"])
            .env("AWS_ACCESS_KEY_ID", "ADA")
            .env("AWS_SECRET_ACCESS_KEY", SECRET)
            .env("LOCKSTEP_SUPERVISED", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut endpoint = String::new();
        BufReader::new(process.stdout.as_mut().unwrap()).read_line(&mut endpoint).unwrap();
        Self { process, endpoint: endpoint.trim().to_owned() }
    }

    fn probe(&self, location: &str, secret: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_lockstep"))
            .args(["--output", "json", "probe", location])
            .env("AWS_ACCESS_KEY_ID", "ADA")
            .env("AWS_SECRET_ACCESS_KEY", secret)
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ENDPOINT_URL", &self.endpoint)
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .output()
            .unwrap()
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        // It ends by itself, and removes what it made.
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

fn document(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_good_store_passes_and_leaves_one_document() {
    let s3 = S3::start();
    let output = s3.probe("s3://acme/orders", SECRET);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let document = document(&output);
    assert_eq!(document["suitable"], true);
    assert!(document["checks"].as_array().unwrap().len() >= 4, "{document}");
    assert_eq!(document["left"], serde_json::json!([]));
}

#[test]
fn wrong_secrets_and_missing_buckets_have_their_reasons_and_show_no_secret() {
    let s3 = S3::start();
    for (location, secret, reason, exit) in [
        ("s3://acme/orders", "wrong-secret-of-this-test", "STORE_DENIED", 1),
        ("s3://nothing-here/orders", SECRET, "STORE_NOT_FOUND", 4),
        ("acme/orders", SECRET, "SPEC_INVALID", 1),
    ] {
        let output = s3.probe(location, secret);
        let document = document(&output);
        assert_eq!(document["error"]["reason"], reason, "{document}");
        assert_eq!(output.status.code(), Some(exit), "{document}");
        let shown = [output.stdout, output.stderr].concat();
        assert!(!String::from_utf8_lossy(&shown).contains("of-this-test"));
    }
}

#[test]
fn a_child_ends_when_its_supervisor_is_gone() {
    let mut s3 = S3::start();
    // What the kernel does when a supervisor is killed.
    drop(s3.process.stdin.take());
    assert_eq!(s3.process.wait().unwrap().code(), Some(0));
}
