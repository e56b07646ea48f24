//! One child process of a test: killed with it, its log kept and shown if the test fails.

use std::{
    ffi::OsStr,
    fs,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::wait;

/// A running child process.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

/// Path of a binary of the workspace, beside the running test.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the running test has a path");
    // target/debug/deps/scenarios-<hash>
    let folder = test.parent().and_then(Path::parent).expect("target/debug");
    let path = folder.join(name);
    assert!(path.exists(), "{} is not built: run the tests with cargo test --workspace", path.display());
    path
}

impl Process {
    /// Starts a binary of the workspace with an environment of its own: nothing of AWS or Postgres leaks in from the machine.
    pub fn start<S: AsRef<OsStr>>(
        name: &str,
        program: &str,
        args: impl IntoIterator<Item = S>,
        env: &[(&str, &str)],
        log: &Path,
    ) -> Self {
        let file = fs::OpenOptions::new().create(true).append(true).open(log).expect("the log can be opened");
        let mut command = Command::new(binary(program));
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(file).env_clear();
        for kept in ["PATH", "HOME", "TMPDIR", "LOCKSTEP_TEST_LOG"] {
            if let Some(value) = std::env::var_os(kept) {
                command.env(kept, value);
            }
        }
        command.env("AWS_EC2_METADATA_DISABLED", "true").env("AWS_REGION", "us-east-1");
        command.env("LOCKSTEP_LOG", std::env::var("LOCKSTEP_TEST_LOG").unwrap_or_else(|_| "info".to_owned()));
        command.env("RUST_BACKTRACE", "1").envs(env.iter().copied());
        let child = command.spawn().unwrap_or_else(|error| panic!("{name} did not start: {error}"));
        Self { name: name.to_owned(), child, log: log.to_owned() }
    }

    /// Waits until the file is there and complete, and returns its text.
    pub async fn address_file(&mut self, path: &Path) -> String {
        let ended = self.try_address_file(path).await;
        ended.unwrap_or_else(|status| {
            panic!("{} ended with {status} before it was ready\n{}", self.name, tail(&self.log))
        })
    }

    /// As [`Self::address_file`]; the exit status of a process that ended before.
    pub async fn try_address_file(&mut self, path: &Path) -> Result<String, ExitStatus> {
        let child = &mut self.child;
        let mut check = || match child.try_wait() {
            Ok(Some(status)) => Some(Err(status)),
            // A file is replaced by rename or written in one go; the address itself must be there.
            _ => {
                fs::read_to_string(path).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()).map(Ok)
            }
        };
        wait::until("a process writes its address", || {
            let found = check();
            async move { found.ok_or("no address file yet") }
        })
        .await
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"));
        kill(pid, signal).unwrap_or_else(|error| panic!("{}: {signal}: {error}", self.name));
    }

    /// kill -9, and wait until it is gone.
    pub fn kill(mut self) {
        self.signal(Signal::SIGKILL);
        self.child.wait().expect("a killed child can be waited for");
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_some())
    }

    /// SIGTERM, and no wait.
    pub fn ask_to_stop(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// SIGTERM, and wait for its exit status.
    pub async fn terminate(mut self) -> ExitStatus {
        self.ask_to_stop();
        self.ended().await
    }

    async fn ended(&mut self) -> ExitStatus {
        let (name, child) = (&self.name, &mut self.child);
        wait::until(&format!("{name} ends"), || {
            let status = child.try_wait().expect("a child can be waited for");
            async move { status.ok_or("still running") }
        })
        .await
    }

    /// Waits until it has killed itself, at a failpoint.
    pub async fn killed(&mut self) {
        let status = self.ended().await;
        assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "{} ended with {status}", self.name);
    }

    /// Greatest resident memory so far, in bytes.
    pub fn peak_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("the process runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the kernel counts it");
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().expect("a number of kB");
        kib << 10
    }

    /// Bytes it has read by read(2) and its kin so far, from the disk or its cache: not what it received (recv) or mapped.
    pub fn bytes_read(&self) -> u64 {
        let io = fs::read_to_string(format!("/proc/{}/io", self.child.id())).expect("the process runs and is ours");
        let line = io.lines().find_map(|line| line.strip_prefix("rchar:")).expect("the kernel counts it");
        line.trim().parse().expect("a number of bytes")
    }

    /// Stops or continues it (SIGSTOP, SIGCONT).
    pub fn pause(&self, paused: bool) {
        self.signal(if paused { Signal::SIGSTOP } else { Signal::SIGCONT });
    }

    /// Everything it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

fn tail(log: &Path) -> String {
    const LINES: usize = 60;
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("---- {} ({})\n{}", self.name, self.log.display(), tail(&self.log));
        }
    }
}
