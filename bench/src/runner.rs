//! One run of a peer, measured from close by: a small process that starts the peer as its only child, waits, and says what the kernel counted for it.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{Signal, killpg};
use nix::sys::time::TimeValLike as _;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::child::{THIS, command, tail};

/// Hidden subcommand: `__run RESULT PROGRAM ARGS...`
pub(crate) const RUN: &str = "__run";

/// A tool that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

/// What to run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Invocation {
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<OsString>,
    pub(crate) env: Vec<(&'static str, String)>,
}

/// What it took.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Usage {
    pub(crate) wall_s: f64,
    /// User and system time, of its children too.
    pub(crate) cpu_s: f64,
    /// Of its largest process.
    pub(crate) peak_rss: u64,
    status: i32,
}

/// The hidden side.
pub(crate) fn run(args: &[OsString]) -> ExitCode {
    match run_and_measure(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_and_measure(args: &[OsString]) -> Result<()> {
    let [result, program, args @ ..] = args else { bail!("{RUN} needs a result file and a program") };
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let began = Instant::now();
    let status = Command::new(program).args(args).status().with_context(|| program.display().to_string())?;
    let wall = began.elapsed();
    // The one child and whom it waited for.
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let cpu = usage.user_time() + usage.system_time();
    let usage = Usage {
        wall_s: wall.as_secs_f64(),
        cpu_s: Duration::from_micros(u64::try_from(cpu.num_microseconds())?).as_secs_f64(),
        // Linux counts it in KiB.
        peak_rss: u64::try_from(usage.max_rss())? << 10,
        status: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()),
    };
    Ok(std::fs::write(result, serde_json::to_vec(&usage)?)?)
}

/// Kills the peer and its runner if they are still there when the bench gives up on them.
#[derive(Debug)]
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // Fails only if all of them have ended.
            let _ = killpg(pid, Signal::SIGKILL);
        }
    }
}

/// Runs it to its end; its output goes to `log`. One that fails is an error with the end of that.
pub(crate) async fn measure(invocation: &Invocation, folder: &Path) -> Result<Usage> {
    let (result, log) = (folder.join("usage.json"), folder.join("peer.log"));
    let output = std::fs::File::create(&log).with_context(|| log.display().to_string())?;
    let mut command = command(Path::new(THIS), &invocation.env);
    command.arg(RUN).arg(&result).arg(&invocation.program).args(&invocation.args);
    command.stdout(output.try_clone()?).stderr(output).stdin(Stdio::null());
    let mut child =
        tokio::process::Command::from(command).kill_on_drop(true).spawn().context("can't start the runner")?;
    let mut group = Group(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw));
    let name = invocation.program.display();
    let Ok(status) = tokio::time::timeout(PATIENCE, child.wait()).await else {
        bail!("{name} had not ended after {} min", PATIENCE.as_secs() / 60);
    };
    group.0 = None;
    if !status?.success() {
        bail!("{name} could not be run:\n{}", tail(&log));
    }
    let usage: Usage = serde_json::from_slice(&std::fs::read(&result)?)?;
    match usage.status {
        0 => Ok(usage),
        status => bail!("{name} failed with status {status}:\n{}", tail(&log)),
    }
}
