//! What the binary refuses, and how it starts and stops.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use lockstep_devkit::TestDatabase;

pub(crate) fn coordinator(flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lockstep-coordinator"));
    // Nothing of the machine that runs the test leaks in.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("LOCKSTEP_") || name.starts_with("OTEL_")) {
        command.env_remove(name);
    }
    command.env_remove("DATABASE_URL").env_remove("RUST_LOG").args(flags).stdin(Stdio::null());
    command
}

pub(crate) fn refused(mut command: Command) -> (i32, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert!(stdout.is_empty(), "stdout belongs to nobody here: {}", String::from_utf8_lossy(&stdout));
    let stderr = String::from_utf8(stderr).unwrap();
    assert!(!stderr.contains("panicked"), "{stderr}");
    (status.code().unwrap(), stderr)
}

#[test]
fn without_a_database_it_says_what_lockstep_dev_is_for() {
    let (code, message) = refused(coordinator(&["--insecure"]));
    assert_eq!(code, 2, "{message}");
    assert!(message.contains("DATABASE_URL") && message.contains("lockstep dev"), "{message}");
}

#[test]
fn without_insecure_it_does_not_start() {
    let mut command = coordinator(&[]);
    command.env("DATABASE_URL", "postgres://nobody:hunter2@127.0.0.1:1/none");
    let (code, message) = refused(command);
    assert_eq!(code, 2, "{message}");
    assert!(message.contains("--insecure"), "{message}");
}

#[test]
fn an_unknown_flag_and_a_wrong_value_are_refused_by_name() {
    let (code, message) = refused(coordinator(&["--insecure", "--verbose"]));
    assert_eq!(code, 2, "{message}");
    assert!(message.contains("--verbose"), "{message}");
    for (flag, value) in
        [("--lease", "10"), ("--listen", "localhost"), ("--log-format", "xml"), ("--max-attempts", "0")]
    {
        let (code, message) = refused(coordinator(&["--insecure", flag, value]));
        assert_eq!(code, 2, "{message}");
        assert!(message.contains(flag) && message.contains(value), "{message}");
    }
    let mut command = coordinator(&["--insecure"]);
    command.env("LOCKSTEP_RENEW_EVERY", "9s").env("DATABASE_URL", "postgres://nobody:hunter2@127.0.0.1:1/none");
    let (code, message) = refused(command);
    assert_eq!(code, 2, "{message}");
    assert!(message.contains("--renew-every"), "{message}");
}

#[test]
fn an_unreachable_postgres_is_named_without_its_password() {
    // A port that was free a moment ago: nothing answers there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = coordinator(&["--insecure", "--database-wait", "600ms"]);
    command.env("DATABASE_URL", format!("postgres://lockstep:hunter2@127.0.0.1:{port}/orders"));
    let (code, message) = refused(command);
    assert_eq!(code, 1, "{message}");
    assert!(message.contains("DATABASE_UNAVAILABLE"), "{message}");
    assert!(message.contains("127.0.0.1") && message.contains(&port.to_string()), "{message}");
    assert!(message.contains("orders"), "{message}");
    assert!(!message.contains("hunter2"), "{message}");
}

#[test]
fn a_malformed_database_url_is_refused_without_showing_it() {
    let mut command = coordinator(&["--insecure"]);
    command.env("DATABASE_URL", "lockstep:hunter2@db/orders");
    let (code, message) = refused(command);
    assert_eq!(code, 2, "{message}");
    assert!(message.contains("postgres://"), "{message}");
    assert!(!message.contains("hunter2"), "{message}");
}

#[test]
fn help_teaches_and_shows_no_secret() {
    let mut command = coordinator(&["--help"]);
    command.env("DATABASE_URL", "postgres://lockstep:hunter2@127.0.0.1/orders");
    let output = command.output().unwrap();
    assert!(output.status.success());
    let help = String::from_utf8(output.stdout).unwrap();
    for part in [
        "Examples:",
        "LOCKSTEP_LEASE",
        "lockstep dev",
        "/readyz",
        "Exit codes:",
        "lockstep-coordinator migrate",
        "PgBouncer",
    ] {
        assert!(help.contains(part), "{part} in {help}");
    }
    assert!(!help.contains("hunter2"), "{help}");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_says_where_it_listens_and_stops_on_sigterm() {
    let database = TestDatabase::create().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let addrs = folder.path().join("addrs");
    let mut command = coordinator(&["--insecure", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"]);
    command.env("DATABASE_URL", database.url()).arg("--addr-file").arg(&addrs).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let log = BufReader::new(child.stderr.take().unwrap());
    // The address file stands before this line is logged.
    let (mut lines, mut seen) = (log.lines(), Vec::new());
    while !seen.iter().any(|line: &String| line.contains("serving")) {
        match lines.next() {
            Some(line) => seen.push(line.unwrap()),
            None => panic!("it ended: {seen:#?}"),
        }
    }
    assert!(seen.iter().any(|line| line.contains("insecure")), "{seen:#?}");
    let text = std::fs::read_to_string(&addrs).unwrap();
    let http = text.lines().find_map(|line| line.strip_prefix("http=")).unwrap().to_owned();
    let grpc = text.lines().find_map(|line| line.strip_prefix("grpc=")).unwrap().to_owned();
    assert!(std::net::TcpStream::connect(&grpc).is_ok(), "{grpc}");
    assert_eq!(get(&http, "/readyz").await, (200, "ready\n".to_owned()));
    let (status, metrics) = get(&http, "/metrics").await;
    assert_eq!(status, 200);
    assert!(metrics.contains("lockstep_"), "{metrics}");

    let begun = Instant::now();
    let killed = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(0), "{rest:#?}");
    assert!(begun.elapsed() < Duration::from_secs(20), "{rest:#?}");
    database.remove().await.unwrap();
}

async fn get(addr: &str, path: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap();
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap();
    (status, body)
}
