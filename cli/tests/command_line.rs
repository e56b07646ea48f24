//! The binary as scripts meet it: exit codes, and what stands on which stream.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::net::TcpListener;
use std::process::{Command, Output};

use serde_json::Value;

fn lockstep(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lockstep"))
        .args(args)
        .env_remove("LOCKSTEP_COORDINATOR")
        .env_remove("LOCKSTEP_LOG")
        .env_remove("RUST_LOG")
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// An address where nobody listens.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[test]
fn a_wrong_command_line_is_exit_2_and_says_so_on_stderr() {
    for (args, says) in [
        (&["no-such-command"][..], "unrecognized subcommand"),
        (&["push"], "<PIPELINE>"),
        (&["push", "orders", "--step", "x"], "invalid value 'x'"),
        (&["push", "orders", "--step", "1", "--checkpoint", "u"], "cannot be used with"),
        (&["push", "orders", "--wait", "--dry-run"], "cannot be used with"),
        (&["push", "orders", "--deadline", "10"], "write for example 30s"),
        (&["pull", "orders"], "--standby <BOOL>"),
        (&["pull", "orders", "--standby"], "a value is required"),
        (&["pull", "orders", "--standby=false", "--at", "yesterday"], "RFC 3339"),
        (&["audit"], "<PIPELINE>"),
        (&["--output", "yaml", "status"], "invalid value 'yaml'"),
        (&["pipeline", "apply"], "--file <FILE>"),
    ] {
        let output = lockstep(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(stderr(&output).contains(says), "{args:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "", "{args:?}");
    }
}

#[test]
fn a_coordinator_that_is_not_there_is_exit_3() {
    let address = nobody();
    for args in [&["status"][..], &["push", "orders"], &["pull", "orders", "--standby=false"], &["round", "show", "r"]]
    {
        let output = lockstep(&[&["--coordinator", &address], args].concat());
        assert_eq!(output.status.code(), Some(3), "{args:?}");
        let text = stderr(&output);
        assert!(text.starts_with("error: UNREACHABLE: ") && text.contains(&address), "{text}");
        assert!(text.contains("-> ") && text.contains("lockstep dev"), "says what to do: {text}");
        assert_eq!(stdout(&output), "");
    }
}

#[test]
fn the_address_may_come_from_the_environment() {
    let address = nobody();
    let output = Command::new(env!("CARGO_BIN_EXE_lockstep"))
        .arg("status")
        .env("LOCKSTEP_COORDINATOR", &address)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains(&address));
}

#[test]
fn an_error_in_json_is_one_document_on_stdout_and_text_on_stderr() {
    let address = nobody();
    let output = lockstep(&["--output", "json", "--coordinator", &address, "status"]);
    assert_eq!(output.status.code(), Some(3));
    let document: Value = serde_json::from_str(stdout(&output)).unwrap();
    let error = &document["error"];
    assert_eq!((&error["reason"], &error["retryable"]), (&"UNREACHABLE".into(), &"yes".into()));
    assert_eq!(error["metadata"]["coordinator"], address.as_str());
    assert!(stderr(&output).starts_with("error: UNREACHABLE"));
}

#[test]
fn a_wrong_address_says_what_is_wrong_with_it() {
    let output = lockstep(&["--coordinator", "https://localhost:7400", "status"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).starts_with("error: ADDRESS_INVALID: "), "{}", stderr(&output));
}

#[test]
fn a_wrong_spec_is_found_before_anybody_is_asked() {
    let spec = std::env::temp_dir().join(format!("lockstep-spec-{}.yaml", std::process::id()));
    std::fs::write(
        &spec,
        "name: orders\nhosts: 3\nagents: http://a-{host}:1\nlocation: {bucket: acme}\nstandby: false\n",
    )
    .unwrap();
    let output = lockstep(&["--coordinator", &nobody(), "pipeline", "apply", "-f", spec.to_str().unwrap()]);
    std::fs::remove_file(&spec).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).starts_with("error: STANDBY_FIELD_REMOVED: "), "{}", stderr(&output));

    let output = lockstep(&["pipeline", "apply", "-f", "/no/such/file.yaml"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("FILE_UNREADABLE: can't read /no/such/file.yaml"), "{}", stderr(&output));
}

#[test]
fn help_of_every_command_teaches_with_examples() {
    for args in [
        &["--help"][..],
        &["push", "--help"],
        &["pull", "--help"],
        &["pipeline", "apply", "--help"],
        &["probe", "--help"],
    ] {
        let output = lockstep(args);
        assert_eq!(output.status.code(), Some(0));
        assert!(stdout(&output).contains("lockstep "), "{args:?}");
        assert!(stdout(&output).contains("Examples:") || stdout(&output).contains("Try it:"), "{args:?}");
    }
}

#[test]
fn a_feldera_sync_block_becomes_a_spec_and_its_notes_go_to_stderr() {
    let folder = std::env::temp_dir().join(format!("lockstep-import-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("sync.json");
    let import = |block: &str, output: &str| {
        std::fs::write(&file, block).unwrap();
        let file = file.display().to_string();
        let agent = "http://orders-{host}.orders:7402";
        lockstep(&[
            "--output", output, "pipeline", "import", &file, "--name", "orders", "--hosts", "3", "--agent", agent,
        ])
    };
    let block = r#"{"sync": {"bucket": "acme/orders", "push_interval": 120, "transfers": 20}}"#;
    let output = import(block, "table");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    // What is printed is a spec again.
    for line in ["name: orders", "hosts: 3", "push_interval: 2m", "agents: http://orders-{host}.orders:7402"] {
        assert!(stdout(&output).lines().any(|shown| shown == line), "{line} is not in\n{}", stdout(&output));
    }
    assert!(stderr(&output).contains("transfers: ignored"), "{}", stderr(&output));
    let document: Value = serde_json::from_slice(&import(block, "json").stdout).unwrap();
    assert_eq!(document["spec"]["location"]["prefix"], "orders/lockstep");
    for (block, says) in [
        (r#"{"bucket": "acme", "standby": false}"#, "STANDBY_FIELD_REMOVED"),
        (r#"{"bucket": "acme", "secret_key": "hush"}"#, "standard AWS chain"),
        ("{}", "no sync block"),
    ] {
        let output = import(block, "table");
        assert_eq!((output.status.code(), stdout(&output)), (Some(1), ""), "{block}");
        assert!(stderr(&output).contains(says) && !stderr(&output).contains("hush"), "{}", stderr(&output));
    }
    std::fs::remove_dir_all(&folder).unwrap();
}
