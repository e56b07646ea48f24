//! Children: the same binary with a hidden subcommand.
//!
//! A child's stdin is a pipe that only this process holds. When this process ends, also by `kill -9`, the pipe closes and
//! the child ends itself ([`super::supervised`]). Children have a process group of their own, so that Ctrl-C reaches only
//! this process, which then ends them in order.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::supervised::SUPERVISED;
use crate::failure::Failure;

/// How long a child may take to start.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// How long a child may take to stop before it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// How often a child is looked at while it starts or stops.
const LOOK: Duration = Duration::from_millis(10);

/// Lines of a log that are shown when its child has failed.
const TAIL: usize = 12;

/// Variables that would change what a child does.
const OURS: [&str; 3] = ["LOCKSTEP_", "AWS_", "DATABASE_URL"];

/// A running child. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Process {
    what: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it; its stderr is appended to `log`. What an earlier one left in `addr_file` is removed.
    pub(crate) fn spawn(
        what: &str,
        log: &Path,
        args: &[String],
        environment: &[(&'static str, String)],
        addr_file: &Path,
    ) -> Result<Self, Failure> {
        let failed = |action: &str, error: std::io::Error| {
            Failure::local("PROCESS_FAILED", format!("can't {action} {what}: {error}")).with("process", what)
        };
        match fs::remove_file(addr_file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed("remove the old address of", error));
            }
            _ => {}
        }
        let binary = std::env::current_exe().map_err(|error| failed("find the binary of", error))?;
        let log_file = File::options().create(true).append(true).open(log);
        let log_file = log_file.map_err(|error| failed("open the log of", error))?;
        let mut command = Command::new(binary);
        for (name, _) in std::env::vars_os() {
            let foreign = name.to_str().is_some_and(|name| OURS.iter().any(|ours| name.starts_with(ours)));
            // How much is logged is up to the user.
            if foreign && name != "LOCKSTEP_LOG" {
                command.env_remove(&name);
            }
        }
        command
            .args(args)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .env(SUPERVISED, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log_file)
            .process_group(0);
        let child = command.spawn().map_err(|error| failed("start", error))?;
        Ok(Self { what: what.to_owned(), child, log: log.to_owned() })
    }

    /// Waits until the child has written where it listens and `parse` can read it.
    pub(crate) async fn until_ready<T>(
        &mut self,
        addr_file: &Path,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<T, Failure> {
        let began = Instant::now();
        loop {
            // Written in one step or half written: what can't be parsed is looked at again.
            if let Some(address) = fs::read_to_string(addr_file).ok().as_deref().and_then(&parse) {
                return Ok(address);
            }
            self.check()?;
            if began.elapsed() > START_PATIENCE {
                let message = format!("{} did not start within {} s", self.what, START_PATIENCE.as_secs());
                return Err(self.failure(message));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A failure with the end of its log if the child has ended.
    pub(crate) fn check(&mut self) -> Result<(), Failure> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.failure(format!("{} ended by itself ({status})", self.what))),
            Err(error) => Err(self.failure(format!("{} can't be watched: {error}", self.what))),
        }
    }

    fn failure(&self, message: String) -> Failure {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n  | ");
        let failure = Failure::local("PROCESS_FAILED", format!("{message}; the end of its log:\n  | {tail}"));
        failure.with("process", &self.what).with("log", self.log.display())
    }

    /// SIGKILL, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        // Both fail only if it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM; what has not ended in time is killed.
    pub(crate) async fn stop(mut self) {
        if let Ok(pid) = i32::try_from(self.pid()) {
            // Fails only if it is gone already; it isn't reaped yet, so the id is still its own.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let began = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && began.elapsed() < STOP_PATIENCE {
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
