//! The postmaster as a child process.
//!
//! The parent-death signal comes when the *thread* that started the child ends, and tokio's threads come and go. So each
//! server has a thread of its own that starts it, waits for it and reaps it; the thread ends only after the server did, or
//! with the process.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use tokio::sync::watch;

use super::PostgresError;

/// How long a dropped handle blocks for the server to go: immediate shutdown takes some 20 ms.
const DROP_PATIENCE: Duration = Duration::from_secs(5);

/// How a server is asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopMode {
    /// Cuts clients off and writes a checkpoint.
    Fast,
    /// Just ends; the next start recovers.
    Immediate,
    /// The server doesn't even get to know.
    Kill,
}

impl StopMode {
    fn signal(self) -> Signal {
        match self {
            Self::Fast => Signal::SIGINT,
            Self::Immediate => Signal::SIGQUIT,
            Self::Kill => Signal::SIGKILL,
        }
    }

    /// As `setpriv --pdeathsig` wants it.
    pub(crate) fn signal_name(self) -> &'static str {
        match self {
            Self::Fast => "INT",
            Self::Immediate => "QUIT",
            Self::Kill => "KILL",
        }
    }
}

#[derive(Debug)]
pub(crate) struct Server {
    pid: Pid,
    /// `true` once reaped. Held while signalling, so that the pid can't belong to somebody else by then.
    reaped: Arc<Mutex<bool>>,
    exit: watch::Receiver<Option<String>>,
    exit_blocking: Mutex<std::sync::mpsc::Receiver<()>>,
    log: PathBuf,
}

impl Server {
    /// Starts `command` with its output in `<directory>/postgres.log`.
    pub(crate) async fn spawn(mut command: Command, directory: &Path) -> Result<Self, PostgresError> {
        let log = directory.join("postgres.log");
        let output = File::create(&log).map_err(PostgresError::io(&log))?;
        command.stdout(output.try_clone().map_err(PostgresError::io(&log))?).stderr(output);
        let program = PathBuf::from(command.get_program());

        let (started, start) = tokio::sync::oneshot::channel();
        let (exit_sender, exit) = watch::channel(None);
        let (gone_sender, gone) = std::sync::mpsc::channel();
        let reaped = Arc::new(Mutex::new(false));
        let thread_reaped = Arc::clone(&reaped);
        std::thread::Builder::new()
            .name("postgres".to_owned())
            .spawn(move || {
                match command.spawn() {
                    Ok(child) => {
                        let pid = child.id();
                        // Nobody listening means that the start was cancelled: the server must not outlive it.
                        if started.send(Ok(pid)).is_err() {
                            let _ = kill(as_pid(pid), Signal::SIGQUIT);
                        }
                        let _ = exit_sender.send(Some(reap(child, &thread_reaped)));
                    }
                    Err(error) => drop(started.send(Err(error))),
                }
                let _ = gone_sender.send(());
            })
            .map_err(PostgresError::io(&program))?;

        let pid = match start.await {
            Ok(Ok(pid)) => as_pid(pid),
            Ok(Err(error)) => return Err(PostgresError::io(&program)(error)),
            Err(_) => return Err(PostgresError::io(&program)(std::io::Error::other("the starting thread ended"))),
        };
        Ok(Self { pid, reaped, exit, exit_blocking: Mutex::new(gone), log })
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    pub(crate) fn signal(&self, mode: StopMode) {
        let reaped = self.reaped.lock().unwrap_or_else(PoisonError::into_inner);
        if !*reaped {
            // It may be a zombie already: then the signal does nothing, which is right.
            let _ = kill(self.pid, mode.signal());
        }
    }

    /// The exit status in words, or `None` if it still runs after `patience`.
    pub(crate) async fn wait_exit(&self, patience: Duration) -> Option<String> {
        let mut exit = self.exit.clone();
        let exited = tokio::time::timeout(patience, exit.wait_for(Option::is_some)).await;
        exited.ok()?.map_or_else(|_| Some("reaped".to_owned()), |status| status.clone())
    }

    /// The end of what the server said, for error messages.
    pub(crate) fn log_tail(&self) -> String {
        let mut text = Vec::new();
        let read = File::open(&self.log).and_then(|mut file| {
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(2000)))?;
            file.read_to_end(&mut text)
        });
        match read {
            Ok(_) => String::from_utf8_lossy(&text).trim().to_owned(),
            Err(error) => format!("no log at {}: {error}", self.log.display()),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.signal(StopMode::Immediate);
        let gone = self.exit_blocking.get_mut().unwrap_or_else(PoisonError::into_inner);
        if gone.recv_timeout(DROP_PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            self.signal(StopMode::Kill);
        }
    }
}

fn as_pid(pid: u32) -> Pid {
    // A Linux pid is a positive i32 by definition (pid_max is at most 2^22).
    Pid::from_raw(i32::try_from(pid).unwrap_or(i32::MAX))
}

/// Waits without reaping first: between the two the pid is still ours, and signalling is locked out.
fn reap(mut child: Child, reaped: &Mutex<bool>) -> String {
    let pid = as_pid(child.id());
    while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(nix::errno::Errno::EINTR) {}
    let mut reaped = reaped.lock().unwrap_or_else(PoisonError::into_inner);
    let status = child.wait();
    *reaped = true;
    status.map_or_else(|error| error.to_string(), |status| status.to_string())
}

/// The pid in `postmaster.pid`, if a postgres with that pid runs.
pub(crate) fn running_postmaster(data_dir: &Path) -> Option<i32> {
    let text = std::fs::read_to_string(data_dir.join("postmaster.pid")).ok()?;
    let pid: i32 = text.lines().next()?.trim().parse().ok()?;
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    (name.trim() == "postgres" && !is_zombie(pid)).then_some(pid)
}

fn is_zombie(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
}

/// What `pg_ctl` waits for: the eighth line of `postmaster.pid`, written by this very server. A standby that serves reads says so.
pub(crate) fn is_ready(data_dir: &Path, pid: i32) -> bool {
    let Ok(text) = std::fs::read_to_string(data_dir.join("postmaster.pid")) else { return false };
    let mut lines = text.lines();
    lines.next().is_some_and(|line| line.trim() == pid.to_string())
        && lines.nth(6).is_some_and(|line| ["ready", "standby"].contains(&line.trim()))
}
