//! Real DBSP storage directories as hosts' disks: the fixture that lies in this crate, and what it must look like after a pull.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::host::{Host, digests};

/// The committed fixture: three hosts of one multi-host layout, checkpoints at steps 4, 8 and 12.
pub fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/dbsp-multihost")
}

/// Copies one host's storage directory.
pub fn copy_host(host_idx: u32, to: &Path) {
    copy(&fixture().join(format!("host{host_idx}")), to);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("the fixture is there").flatten() {
        let target = to.join(entry.file_name());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).expect("a file is copied");
        }
    }
}

/// What `expected.json` says of one checkpoint of one host.
pub fn expected(host_idx: u32, step: u64) -> Value {
    let text = fs::read_to_string(fixture().join("expected.json")).expect("expected.json");
    let all: Value = serde_json::from_str(&text).expect("expected.json is JSON");
    let hosts = all["hosts"].as_array().expect("hosts");
    let host = hosts.iter().find(|host| host["host"] == host_idx).expect("the host is there");
    let checkpoints = host["checkpoints"].as_array().expect("checkpoints");
    checkpoints.iter().find(|checkpoint| checkpoint["step"] == step).expect("the step is there").clone()
}

/// Asserts that a host's directory holds exactly one checkpoint, every file equal to `expected.json`, and a catalog of exactly the fixture's own
/// entry, byte by byte.
pub fn assert_restored(host: &Host, step: u64) {
    let expected = expected(host.idx, step);
    let uuid = expected["uuid"].as_str().expect("uuid");
    let mut found = digests(&host.dir);
    for file in expected["files"].as_array().expect("files") {
        let path = file["path"].as_str().expect("path");
        let digest = found.remove(path).unwrap_or_else(|| panic!("host {}: {path} is missing", host.idx));
        assert_eq!(digest, file["sha256"].as_str().expect("sha256"), "host {}: {path} differs", host.idx);
    }
    let catalog = fs::read_to_string(host.dir.join("checkpoints.feldera")).expect("a catalog");
    let original =
        fs::read_to_string(fixture().join(format!("host{}/checkpoints.feldera", host.idx))).expect("a catalog");
    let entry = original
        .trim()
        .trim_matches(['[', ']'])
        .split_inclusive('}')
        .map(|entry| entry.trim_start_matches(','))
        .find(|entry| entry.contains(uuid))
        .expect("the entry is in the fixture");
    assert_eq!(catalog, format!("[{entry}]"), "host {}: the catalog has exactly the restored entry", host.idx);
    let root_state = fs::read(host.dir.join("state.json")).expect("root state.json");
    let own_state = fs::read(host.dir.join(uuid).join("state.json")).expect("the checkpoint's state.json");
    assert_eq!(root_state, own_state, "host {}: feldera starts from the root state.json", host.idx);
    found.retain(|path, _| !path.starts_with("coordinator/"));
    let mut left: Vec<&str> = found.keys().map(String::as_str).collect();
    left.retain(|path| !matches!(*path, "checkpoints.feldera" | "state.json" | "feldera.pidlock"));
    assert!(left.is_empty(), "host {}: files of no checkpoint: {left:?}", host.idx);
}
