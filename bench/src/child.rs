//! Servers that run while the measurement does: S3, coordinator, agent. Killed with their handle, and by the kernel when the bench itself is killed.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::process::set_parent_process_death_signal;

use crate::proc;

/// Hidden subcommand: the rest of the command line is executed in this process's place, and dies with the bench.
pub const EXEC: &str = "__exec";

/// This program, also after a build has replaced its file.
pub const THIS: &str = "/proc/self/exe";

/// How long a child may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often a child that starts or stops is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// Lines of a log that are shown when its process has failed.
const TAIL: usize = 12;

/// Of our own environment, what others get to see: nothing of AWS, of Lockstep or of Postgres on this machine.
const KEPT: [&str; 4] = ["PATH", "HOME", "TMPDIR", "LOCKSTEP_LOG"];

/// A command with a clean environment and a process group of its own, so that Ctrl-C reaches only the bench.
pub fn command(program: &Path, env: &[(&str, String)]) -> Command {
    let mut command = Command::new(program);
    command.env_clear().process_group(0).stdin(Stdio::null());
    for name in KEPT {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.envs(env.iter().map(|(name, value)| (name, value)));
    command
}

/// The child's side of [`EXEC`]; comes back only if it failed.
pub fn exec(args: &[OsString]) -> ExitCode {
    let [program, args @ ..] = args else {
        eprintln!("error: {EXEC} needs a program");
        return ExitCode::from(2);
    };
    // SIGKILL: who starts this has nothing to save.
    if let Err(error) = set_parent_process_death_signal(Some(rustix::process::Signal::KILL)) {
        eprintln!("error: can't be tied to the bench: {error}");
        return ExitCode::FAILURE;
    }
    let error = Command::new(program).args(args).exec();
    eprintln!("error: can't start {}: {error}", program.display());
    ExitCode::FAILURE
}

/// A running server process.
#[derive(Debug)]
pub struct Server {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Server {
    /// Starts `program`; its stderr is appended to `log`. Called on the main thread: the kernel ties the child to the thread.
    pub fn start(
        name: &str,
        program: &Path,
        args: &[String],
        env: &[(&str, String)],
        log: &Path,
        talks: bool,
    ) -> Result<Self> {
        let file = File::options().create(true).append(true).open(log).with_context(|| log.display().to_string())?;
        let mut command = command(Path::new(THIS), env);
        command.arg(EXEC).arg(program).args(args).stderr(file);
        if talks {
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
        } else {
            command.stdout(Stdio::null());
        }
        let child = command.spawn().with_context(|| format!("can't start {name} ({})", program.display()))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// The pipes of one that talks; they can be taken once.
    pub fn pipes(&mut self) -> Result<(ChildStdin, ChildStdout)> {
        match (self.child.stdin.take(), self.child.stdout.take()) {
            (Some(stdin), Some(stdout)) => Ok((stdin, stdout)),
            _ => bail!("{} has no pipes to talk by", self.name),
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn cpu(&self) -> Result<Duration> {
        proc::cpu(self.pid())
    }

    /// Waits until the process has written the file, and returns its text.
    pub async fn ready(&mut self, address_file: &Path) -> Result<String> {
        let began = Instant::now();
        loop {
            match fs::read_to_string(address_file) {
                // It appears in one step, complete.
                Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_owned()),
                _ => {}
            }
            if let Some(status) = self.child.try_wait()? {
                return Err(self.failure(&format!("{} ended with {status} before it was ready", self.name)));
            }
            if began.elapsed() > PATIENCE {
                return Err(self.failure(&format!("{} was not ready after {} s", self.name, PATIENCE.as_secs())));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// An error with the end of its log.
    pub fn failure(&self, what: &str) -> anyhow::Error {
        anyhow::anyhow!("{what}; the end of its log:\n{}", tail(&self.log))
    }

    /// SIGTERM, so that it ends in order; killed if it takes too long.
    pub async fn stop(mut self) {
        if let Ok(pid) = i32::try_from(self.pid()) {
            // Fails only if it has ended, and it is not reaped yet: the id is still its own.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let began = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && began.elapsed() < PATIENCE {
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only if it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last lines of a log.
pub fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}
