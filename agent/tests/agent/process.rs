//! The sidecar as a process: flags, signals, and a restart in the middle of a transfer.

use std::{
    cell::RefCell,
    fs,
    io::Read as _,
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use lockstep_devkit::{FaultAction, FaultRule, S3Server};
use lockstep_proto::v1::{self, agent_client::AgentClient};
use lockstep_rpc::{ChannelOptions, connect_lazy};

use crate::harness::{
    BUCKET, Client, FINGERPRINT, PIPELINE, files, noise, proto_location, round_id, s3, until, write_checkpoint,
};

/// Killed when the test ends, however.
pub(crate) struct Process(pub(crate) Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lockstep-agent"));
    // The test's own environment must not fill in flags.
    command.env_clear().args(arguments).stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const ALLOWED: &str = "s3://acme/ckpt/orders";

#[test]
fn help_teaches_with_examples_and_names_every_variable() {
    let output = run(&["--help"]);
    assert!(output.status.success());
    let help = String::from_utf8(output.stdout).unwrap();
    for expected in [
        "Examples:",
        "--host-idx 0 --n-hosts 3",
        "AWS_ENDPOINT_URL",
        "LOCKSTEP_AGENT_ALLOW_LOCATION",
        "credentials come from",
        "LOCKSTEP_AGENT_READY_FILE",
        "LOCKSTEP_AGENT_READY_HOOK",
        "wait-ready --agent",
    ] {
        assert!(help.contains(expected), "{expected} is not in {help}");
    }
}

#[test]
fn wrong_usage_exits_with_2_and_says_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    let right = ["--pipeline", "orders", "--dir", dir, "--allow-location", ALLOWED];
    let with = |more: &[&'static str]| -> Vec<&str> { right.iter().copied().chain(more.iter().copied()).collect() };
    for (arguments, expected) in [
        (with(&["--solo"]), "--insecure"),
        (with(&["--insecure"]), "--host-idx"),
        (with(&["--insecure", "--host-idx", "3", "--n-hosts", "3"]), "HOST_INFO_INVALID"),
        (with(&["--insecure", "--host-idx", "0", "--n-hosts", "0"]), "HOST_INFO_INVALID"),
        (with(&["--insecure", "--solo", "--n-hosts", "2"]), "cannot be used with"),
        (with(&["--insecure", "--solo", "--allow-location", "acme/x"]), "does not begin with s3://"),
        (with(&["--insecure", "--solo", "--allow-location", "s3://Acme"]), "bucket"),
        (with(&["--insecure", "--solo", "--listen", "nowhere"]), "--listen"),
        (with(&["--insecure", "--solo", "--store", "redis"]), "--store"),
        (with(&["--insecure", "--solo", "--standby"]), "--standby"),
    ] {
        let output = run(&arguments);
        let told = told(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {told}");
        assert!(told.contains(expected), "{arguments:?}: {told}");
        assert!(!told.contains("panicked"), "{told}");
    }
}

#[test]
fn waiting_for_the_word_tells_usage_nobody_there_and_help_apart() {
    let nobody = ["wait-ready", "--agent", "http://127.0.0.1:9", "--timeout", "300ms"];
    for (arguments, status, expected) in [
        (&["wait-ready", "--help"][..], 0, "Exit status"),
        (&["wait-ready", "--timeout", "10"], 2, "has no unit"),
        (&["wait-ready", "--role", "primary"], 2, "standby"),
        (&["wait-ready", "--agent", "ftp://agent"], 2, "--agent"),
        (&["wait-ready", "--timeout", "1s", "--solo"], 2, "--solo"),
        (&nobody, 1, "does not answer"),
    ] {
        let output = run(arguments);
        let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), told(&output));
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {told}");
        assert!(told.contains(expected) && !told.contains("panicked"), "{arguments:?}: {told}");
    }
    // The flags of an agent may stand in the pod's environment.
    let output = command(&nobody).env("LOCKSTEP_AGENT_PIPELINE", "orders").env("LOCKSTEP_AGENT_SOLO", "true").output();
    assert_eq!(output.unwrap().status.code(), Some(1));
}

#[tokio::test]
async fn what_is_waited_for_and_for_how_long_may_come_from_the_environment() {
    // One that doesn't heed them waits for ever, so it is not simply waited for.
    let ends = async |variables: &[(&str, &str)]| {
        let mut command = command(&["wait-ready"]);
        command.env("LOCKSTEP_AGENT", "http://127.0.0.1:9").envs(variables.iter().copied()).stderr(Stdio::piped());
        let process = RefCell::new(Process(command.spawn().unwrap()));
        until("the process to end", async || process.borrow_mut().0.try_wait().unwrap().is_some()).await;
        let mut process = process.into_inner();
        let mut told = String::new();
        process.0.stderr.take().unwrap().read_to_string(&mut told).unwrap();
        (process.0.wait().unwrap().code(), told)
    };
    for (name, value, expected) in
        [("LOCKSTEP_AGENT_WAIT_TIMEOUT", "10", "has no unit"), ("LOCKSTEP_AGENT_WAIT_ROLE", "primary", "standby")]
    {
        let (status, told) = ends(&[(name, value)]).await;
        assert!(status == Some(2) && told.contains(expected) && told.contains(value), "{name}: {status:?}: {told}");
    }
    let (status, told) = ends(&[("LOCKSTEP_AGENT_WAIT_TIMEOUT", "300ms"), ("LOCKSTEP_AGENT_WAIT_ROLE", "any")]).await;
    assert!(status == Some(1) && told.contains("does not answer"), "{status:?}: {told}");
}

#[test]
fn what_can_not_be_started_exits_with_1_and_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, b"x").unwrap();
    let base = |dir: &str| {
        [
            "--insecure",
            "--solo",
            "--pipeline",
            "orders",
            "--listen",
            "127.0.0.1:0",
            "--allow-location",
            ALLOWED,
            "--dir",
            dir,
        ]
        .map(str::to_owned)
        .to_vec()
    };
    let fails = |arguments: Vec<String>, expected: &str| {
        let output = run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        let told = told(&output);
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.contains(expected) && !told.contains("panicked"), "{told}");
    };
    fails(base("/no/such/dir"), "/no/such/dir");
    fails(base(file.to_str().unwrap()), "file");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut arguments = base(dir.path().to_str().unwrap());
    arguments[5].clone_from(&address);
    fails(arguments, &address);

    let state = dir.path().join("state");
    fs::create_dir(&state).unwrap();
    fs::write(state.join("orders.json"), b"{").unwrap();
    let mut arguments = base(dir.path().to_str().unwrap());
    arguments.extend(["--state-dir".to_owned(), state.to_str().unwrap().to_owned()]);
    fails(arguments, "orders.json");
}

/// Starts the sidecar of host 1 of 3 over `dir` and waits until it serves.
pub(crate) async fn sidecar(s3: &S3Server, dir: &Path) -> (Process, Client) {
    let addr_file = dir.join("addr");
    let _ = fs::remove_file(&addr_file);
    let child = command(&["--insecure", "--host-idx", "1", "--n-hosts", "3", "--listen", "127.0.0.1:0"])
        .arg("--dir")
        .arg(dir)
        .arg("--addr-file")
        .arg(&addr_file)
        .args(["--allow-location", &format!("s3://{BUCKET}/ckpt/orders")])
        // Flags may come from the environment.
        .env("LOCKSTEP_AGENT_PIPELINE", PIPELINE)
        .env("AWS_ENDPOINT_URL", s3.endpoint())
        .env("AWS_ACCESS_KEY_ID", "lockstep")
        .env("AWS_SECRET_ACCESS_KEY", "lockstep-secret")
        .env("AWS_REGION", "us-east-1")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let process = Process(child);
    until("the address", async || addr_file.exists()).await;
    let address = fs::read_to_string(&addr_file).unwrap();
    (process, AgentClient::new(connect_lazy(&address, &ChannelOptions::default()).unwrap()))
}

pub(crate) async fn order(s3: &S3Server, client: &Client, checkpoint: impl ToString, attempt: u32) -> v1::PushOrder {
    let described = client.clone().describe(v1::DescribeRequest {}).await.unwrap().into_inner();
    v1::PushOrder {
        header: Some(v1::OrderHeader {
            pipeline_id: PIPELINE.to_owned(),
            pipeline_name: "orders".to_owned(),
            host_info: described.host_info,
            incarnation: described.incarnation,
            generation: 1,
            round_no: 1,
            term: 1,
            round: round_id(1),
            attempt,
            own_location: Some(proto_location(&crate::harness::location(s3))),
        }),
        local_checkpoint: checkpoint.to_string(),
        step: 4,
        fingerprint: FINGERPRINT.to_owned(),
        ..Default::default()
    }
}

fn signal(process: &Process, signal: nix::sys::signal::Signal) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(process.0.id()).unwrap());
    nix::sys::signal::kill(pid, signal).unwrap();
}

async fn exit(mut process: Process) -> Option<i32> {
    tokio::task::spawn_blocking(move || process.0.wait().unwrap().code()).await.unwrap()
}

#[tokio::test]
async fn sigterm_in_the_middle_of_a_push_stops_it_and_exits_with_0() {
    let s3 = s3().await;
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = write_checkpoint(dir.path(), 4, &files(&[("large", noise("large", 6 << 20))]));
    let (process, client) = sidecar(&s3, dir.path()).await;
    let mut order = order(&s3, &client, checkpoint, 1).await;
    order.transfer = Some(v1::TransferOptions { part_size: 5 << 20, ..Default::default() });
    let hang = s3.faults().add(FaultRule::new(FaultAction::Hang).operation("UploadPart"));
    client.clone().push(order).await.unwrap();
    until("the upload to hang", async || s3.faults().hits(hang) > 0).await;
    signal(&process, nix::sys::signal::Signal::SIGTERM);
    assert_eq!(exit(process).await, Some(0));
    assert_eq!(s3.admin().open_uploads(BUCKET).unwrap(), [], "it did not clean up");
}

#[tokio::test]
async fn a_killed_agent_comes_back_as_another_incarnation_that_takes_the_next_attempt() {
    let s3 = s3().await;
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = write_checkpoint(dir.path(), 4, &files(&[("a", noise("a", 1000))]));
    let (process, client) = sidecar(&s3, dir.path()).await;
    let first = order(&s3, &client, checkpoint, 1).await;
    let hang = s3.faults().add(FaultRule::new(FaultAction::Hang).operation("PutObject"));
    client.clone().push(first.clone()).await.unwrap();
    until("the upload to hang", async || s3.faults().hits(hang) > 0).await;
    signal(&process, nix::sys::signal::Signal::SIGKILL);
    exit(process).await;
    s3.faults().clear();

    let (_process, client) = sidecar(&s3, dir.path()).await;
    let stale = lockstep_rpc::RpcProblem::from(client.clone().push(first.clone()).await.unwrap_err());
    assert_eq!(stale.reason, "INCARNATION_MISMATCH");
    let second = order(&s3, &client, checkpoint, 2).await;
    assert_ne!(second.header.as_ref().unwrap().incarnation, first.header.unwrap().incarnation);
    let header = second.header.clone();
    client.clone().push(second).await.unwrap();
    until("the push to be done", async || {
        let request = v1::StatusRequest { header: header.clone(), wait: None };
        let status = client.clone().push_status(request).await.unwrap().into_inner();
        matches!(status.state, Some(v1::push_status_response::State::Done(_)))
    })
    .await;
}
