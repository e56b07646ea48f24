//! Against a real fcntl lock: this test binary runs again as the engine that holds it.

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use nix::{
    fcntl::{FcntlArg, fcntl},
    libc,
};

use super::*;
use crate::store::engine::EngineCheck;

const LOCK_FILE: &str = "LOCKSTEP_TEST_ENGINE_LOCK";

fn engines_lock() -> libc::flock {
    libc::flock {
        l_type: libc::c_short::try_from(libc::F_WRLCK).unwrap(),
        l_whence: libc::c_short::try_from(libc::SEEK_SET).unwrap(),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

fn take_lock(path: &Path) -> Option<fs::File> {
    let file = fs::File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap();
    fcntl(&file, FcntlArg::F_SETLK(&engines_lock())).ok().map(|_| file)
}

/// Not a test by itself: with the variable set it is the engine's process, and says on standard output whether it got its lock.
#[test]
fn engine_process() {
    let Some(path) = std::env::var_os(LOCK_FILE) else { return };
    let lock = take_lock(Path::new(&path));
    // On a line of its own, whatever the test harness printed before.
    println!("\n{}", if lock.is_some() { "engine: locked" } else { "engine: refused" });
    std::io::stdout().flush().unwrap();
    // Until the other end is closed.
    let _ = std::io::stdin().lock().read_line(&mut String::new());
}

/// Another process that tries to be the engine.
struct Engine {
    child: Child,
    stdin: Option<ChildStdin>,
    /// Kept open: the test harness in the child prints its summary.
    stdout: BufReader<ChildStdout>,
    locked: bool,
}

impl Engine {
    fn start(site: &Site) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", concat!(module_path!(), "::engine_process").split_once("::").unwrap().1])
            .env(LOCK_FILE, site.at("feldera.pidlock"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let said =
            stdout.by_ref().lines().find_map(|line| line.unwrap().strip_prefix("engine: ").map(str::to_owned)).unwrap();
        let stdin = child.stdin.take();
        Self { child, stdin, stdout, locked: said == "locked" }
    }

    fn stop(mut self) {
        drop(self.stdin.take());
        std::io::copy(&mut self.stdout, &mut std::io::sink()).unwrap();
        self.child.wait().unwrap();
    }
}

#[test]
fn nothing_is_installed_or_removed_under_a_running_engine() {
    let site = Site::copy_of("host0");
    let staged = site.stage_fixture("host1", expected_host(1).checkpoints[0].id());
    let before = site.content();
    site.store.check_installable().unwrap();

    let engine = Engine::start(&site);
    assert!(engine.locked);
    for problem in [
        refused(site.store.check_installable(), Reason::EngineRunning),
        refused(site.store.install(&staged), Reason::EngineRunning),
        refused(site.store.retain_only(None), Reason::EngineRunning),
        refused(site.store.retain_only(Some(expected_host(0).checkpoints[0].id())), Reason::EngineRunning),
    ] {
        assert_eq!(problem.metadata["pid"], engine.child.id().to_string());
    }
    assert_eq!(site.content(), before);
    // Pushes go on.
    site.store.hold(expected_host(0).checkpoints[2].id()).unwrap();
    engine.stop();

    site.store.install(&staged).unwrap();
    assert_eq!(site.content(), expected_host(1).checkpoints[0].restored("host1"));
}

#[test]
fn the_engine_cannot_start_while_a_checkpoint_is_put_in_place() {
    let site = Site::copy_of("host0");
    let kept_out = site.store.lock.keep_engine_out(&site.store.root).unwrap();
    let engine = Engine::start(&site);
    assert!(!engine.locked);
    engine.stop();
    drop(kept_out);
    let engine = Engine::start(&site);
    assert!(engine.locked);
    engine.stop();
}

#[test]
fn a_lock_that_this_very_process_holds_is_neither_overlooked_nor_lost() {
    let site = Site::copy_of("host0");
    let ours = take_lock(&site.at("feldera.pidlock")).unwrap();
    refused(site.store.check_installable(), Reason::EngineRunning);
    refused(site.store.retain_only(None), Reason::EngineRunning);
    let engine = Engine::start(&site);
    assert!(!engine.locked, "the check has released the lock that it was to find");
    engine.stop();
    drop(ours);
    site.store.check_installable().unwrap();
}

#[test]
fn an_embedded_engine_is_asked_and_its_lock_file_left_alone() {
    let mut site = Site::copy_of("host0");
    let running = Arc::new(AtomicBool::new(true));
    let asked = Arc::clone(&running);
    site.store = site.store.embedded(EngineCheck::new(move || Ok(asked.load(Ordering::Relaxed))));
    let ours = take_lock(&site.at("feldera.pidlock")).unwrap();
    let id = expected_host(0).checkpoints[0].id();
    refused(site.store.check_installable(), Reason::EngineRunning);
    refused(site.store.retain_only(Some(id)), Reason::EngineRunning);
    running.store(false, Ordering::Relaxed);
    site.store.retain_only(Some(id)).unwrap();
    let engine = Engine::start(&site);
    assert!(!engine.locked, "the lock file was opened and closed");
    engine.stop();
    drop(ours);
}

#[test]
fn a_lock_that_can_not_be_examined_counts_as_held() {
    let site = Site::copy_of("host0");
    fs::remove_file(site.at("feldera.pidlock")).unwrap();
    std::os::unix::fs::symlink("/dev/null", site.at("feldera.pidlock")).unwrap();
    refused(site.store.check_installable(), Reason::EngineRunning);
    refused(site.store.retain_only(None), Reason::EngineRunning);
    let mut site = Site::copy_of("host0");
    site.store = site.store.embedded(EngineCheck::new(|| Err(Problem::new(Reason::LocalIo, "no idea"))));
    let problem = refused(site.store.check_installable(), Reason::EngineRunning);
    assert!(problem.message.contains("no idea"), "{problem}");
}
