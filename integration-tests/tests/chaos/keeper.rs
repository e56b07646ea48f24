//! Keeps one process running, as Kubernetes would: started again whenever it is gone, unless a fault wants it gone. Its clients reach it through a proxy, so
//! it may listen on another port each time.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lockstep_integration_tests::{process::Process, proxy::FaultProxy};
use tokio::{sync::MutexGuard as Hold, task::AbortHandle};

/// How to start it; `--listen` and `--addr-file` are added.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) program: &'static str,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(&'static str, String)>,
    pub(crate) log: PathBuf,
    pub(crate) addr_file: PathBuf,
}

impl Program {
    fn start(&self) -> Process {
        let _ = fs::remove_file(&self.addr_file);
        let addr_file = self.addr_file.display().to_string();
        let own = ["--listen", "127.0.0.1:0", "--addr-file", &addr_file];
        let args = own.iter().map(|&arg| arg.to_owned()).chain(self.args.iter().cloned());
        let env: Vec<(&str, &str)> = self.env.iter().map(|(name, value)| (*name, value.as_str())).collect();
        Process::start(&self.name, self.program, args, &env, &self.log)
    }

    /// Where it listens, once it does.
    fn address(&self) -> Option<SocketAddr> {
        let text = fs::read_to_string(&self.addr_file).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("grpc=")).or_else(|| text.lines().next())?;
        line.trim().parse().ok()
    }
}

#[derive(Debug)]
struct State {
    process: Option<Process>,
    wanted: bool,
    announced: bool,
    /// It listened, and ended without being asked to.
    died: u32,
}

#[derive(Debug)]
struct Shared {
    program: Program,
    proxy: FaultProxy,
    state: Mutex<State>,
    hands: tokio::sync::Mutex<()>,
}

/// The process and its keeper.
#[derive(Debug)]
pub(crate) struct Keeper {
    shared: Arc<Shared>,
    watching: AbortHandle,
}

const TICK: Duration = Duration::from_millis(25);

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self) {
        let mut state = self.state();
        if !state.wanted {
            return;
        }
        if let Some(process) = &mut state.process
            && process.has_ended()
        {
            state.process = None;
            // One that gives up because its database is away never listened.
            state.died += u32::from(state.announced);
        }
        if state.process.is_none() {
            state.process = Some(self.program.start());
            state.announced = false;
        }
        if !state.announced
            && let Some(address) = self.program.address()
        {
            self.proxy.set_upstream(address);
            state.announced = true;
        }
    }
}

impl Keeper {
    /// Starts it, and a proxy in front of it that leads nowhere until it listens.
    pub(crate) async fn start(program: Program, seed: u64) -> Self {
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 9));
        let proxy = FaultProxy::start(nowhere, seed).await.expect("a proxy");
        let state = Mutex::new(State { process: None, wanted: true, announced: false, died: 0 });
        let shared = Arc::new(Shared { program, proxy, state, hands: tokio::sync::Mutex::default() });
        let watched = Arc::clone(&shared);
        let watching = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(TICK);
            loop {
                ticks.tick().await;
                watched.look();
            }
        });
        Self { shared, watching: watching.abort_handle() }
    }

    pub(crate) fn name(&self) -> &str {
        &self.shared.program.name
    }

    pub(crate) fn proxy(&self) -> &FaultProxy {
        &self.shared.proxy
    }

    pub(crate) fn url(&self) -> String {
        self.shared.proxy.url()
    }

    /// Only one at a time kills, stops and restarts it.
    pub(crate) async fn hold(&self) -> Hold<'_, ()> {
        self.shared.hands.lock().await
    }

    /// kill -9; it stays away until [`Keeper::revive`].
    pub(crate) fn kill(&self) {
        let mut state = self.shared.state();
        state.wanted = false;
        if let Some(process) = state.process.take() {
            process.kill();
        }
    }

    pub(crate) fn revive(&self) {
        self.shared.state().wanted = true;
    }

    /// SIGSTOP or SIGCONT, if it runs.
    pub(crate) fn pause(&self, paused: bool) {
        if let Some(process) = &self.shared.state().process {
            process.pause(paused);
        }
    }

    /// How often it ended by itself while it served.
    pub(crate) fn died(&self) -> u32 {
        self.shared.state().died
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.watching.abort();
        self.kill();
    }
}
