//! A foreign program as a child process that can't outlive this one, its output in a file.
//!
//! The parent-death signal comes when the *thread* that started the child ends, and the threads of a runtime come and go. So each child has
//! a thread of its own that starts it, waits for it and ends after it, or with the process.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
};

use futures::future::select_all;
use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, waitid},
    },
    unistd::Pid,
};
use tokio::sync::watch;

use crate::wait;

/// A running child. Dropping it kills it.
#[derive(Debug)]
pub struct Child {
    name: String,
    log: PathBuf,
    pid: Pid,
    /// Held while it is reaped and while it is signalled: the pid can't belong to somebody else meanwhile.
    reaped: Arc<Mutex<bool>>,
    exit: watch::Receiver<Option<ExitStatus>>,
}

impl Child {
    /// Starts a program with the arguments and an environment of its own, its output in `<folder>/<name>.log`.
    pub fn start(name: &str, program: &Path, args: &[&str], folder: &Path) -> Self {
        let log = folder.join(format!("{name}.log"));
        let output = File::create(&log).expect("a log can be made");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program).args(args);
        command.stdin(Stdio::null()).stdout(output.try_clone().expect("a file can be shared")).stderr(output);
        command.env_clear().current_dir(folder);
        for kept in ["PATH", "HOME", "TMPDIR"] {
            if let Some(value) = std::env::var_os(kept) {
                command.env(kept, value);
            }
        }
        // The log is read while the program runs.
        command.env("PYTHONUNBUFFERED", "1").env("PYTHONDONTWRITEBYTECODE", "1");

        let (started, start) = std::sync::mpsc::channel();
        let (exited, exit) = watch::channel(None);
        let reaped = Arc::new(Mutex::new(false));
        let reaping = Arc::clone(&reaped);
        let owner = move || match command.spawn() {
            Ok(mut child) => {
                let _ = started.send(Ok(child.id()));
                let pid = as_pid(child.id());
                // Waits without reaping first: until the lock is held the pid must stay ours.
                while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(Errno::EINTR) {}
                let mut reaped = reaping.lock().unwrap_or_else(PoisonError::into_inner);
                let status = child.wait();
                *reaped = true;
                let _ = exited.send(status.ok());
            }
            Err(error) => {
                let _ = started.send(Err(error));
            }
        };
        std::thread::Builder::new().name(name.to_owned()).spawn(owner).expect("a thread can be started");
        let pid = start.recv().expect("the thread answers").unwrap_or_else(|error| panic!("{name}: {error}"));
        Self { name: name.to_owned(), log, pid: as_pid(pid), reaped, exit }
    }

    /// Runs a program to its end, which must be a success. `beside` are those that it talks to.
    pub async fn run(name: &str, program: &Path, args: &[&str], folder: &Path, beside: &[&Self]) {
        let (child, status) = Self::run_to_its_end(name, program, args, folder, beside).await;
        assert!(status.success(), "{name} ended with {status}\n{}", logs(beside, &child));
    }

    /// Runs a program that may be run twice again and again, until it is a success.
    pub async fn run_until_it_succeeds(name: &str, program: &Path, args: &[&str], folder: &Path, beside: &[&Self]) {
        wait::until(name, || async {
            let (child, status) = Self::run_to_its_end(name, program, args, folder, beside).await;
            if status.success() { Ok(()) } else { Err(format!("{status}\n{}", logs(beside, &child))) }
        })
        .await;
    }

    async fn run_to_its_end(
        name: &str,
        program: &Path,
        args: &[&str],
        folder: &Path,
        beside: &[&Self],
    ) -> (Self, ExitStatus) {
        let child = Self::start(name, program, args, folder);
        let mut exits: Vec<_> = beside.iter().chain([&&child]).map(|child| Box::pin(child.exited())).collect();
        let first = tokio::time::timeout(wait::PATIENCE, select_all(&mut exits)).await;
        let (status, which, _) = first.unwrap_or_else(|_| panic!("{name} does not end\n{}", logs(beside, &child)));
        if let Some(ended) = beside.get(which) {
            panic!("{} ended with {status} while {name} ran\n{}", ended.name, logs(beside, &child));
        }
        drop(exits);
        (child, status)
    }

    async fn exited(&self) -> ExitStatus {
        let mut exit = self.exit.clone();
        let status = exit.wait_for(Option::is_some).await.map(|status| *status);
        status.ok().flatten().unwrap_or_else(|| panic!("{} can't be waited for", self.name))
    }

    /// Panics with its log if it has ended.
    pub fn must_run(&self) {
        if let Some(status) = *self.exit.borrow() {
            panic!("{} ended with {status}\n{}", self.name, self.log());
        }
    }

    /// The end of what it said.
    pub fn log(&self) -> String {
        const LINES: usize = 15;
        let text = String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned();
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let tail = lines[lines.len().saturating_sub(LINES)..].join("\n");
        format!("---- {} ({})\n{tail}", self.name, self.log.display())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let reaped = self.reaped.lock().unwrap_or_else(PoisonError::into_inner);
        if !*reaped {
            let _ = kill(self.pid, Signal::SIGKILL);
        }
    }
}

fn logs(beside: &[&Child], child: &Child) -> String {
    beside.iter().chain([&child]).map(|child| child.log()).collect::<Vec<_>>().join("\n")
}

fn as_pid(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).expect("a pid of Linux is a positive i32"))
}
