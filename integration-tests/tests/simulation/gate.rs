//! What stands between a replica and the world: it can be stopped for a while, as by SIGSTOP, or for ever, as by kill -9.
//!
//! Everything a replica does that anybody could notice passes here, twice: on its way out and before the answer is seen. A replica that was killed
//! in between has done what it asked for and never learns of it.

use std::sync::{Arc, Mutex, PoisonError};

use lockstep_coordinator::store::memory::Gate;
use tokio::{sync::Notify, time::Instant};

#[derive(Clone, Copy, Debug)]
enum State {
    Open,
    ClosedUntil(Instant),
    Gone,
}

/// Clones are the same gate. Those who wait go on in the order they came, so that a seed is one history.
#[derive(Clone, Debug)]
pub(crate) struct ReplicaGate(Arc<(Mutex<State>, Notify)>);

impl ReplicaGate {
    pub(crate) fn new() -> Self {
        Self(Arc::new((Mutex::new(State::Open), Notify::new())))
    }

    fn state(&self) -> State {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, state: State) {
        let mut now = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        // One that was killed stays so.
        if !matches!(*now, State::Gone) {
            *now = state;
        }
        drop(now);
        self.0.1.notify_waiters();
    }

    pub(crate) fn stop_until(&self, until: Instant) {
        self.set(State::ClosedUntil(until));
    }

    pub(crate) fn kill(&self) {
        self.set(State::Gone);
    }
}

impl Gate for ReplicaGate {
    fn pass(&self) -> futures::future::BoxFuture<'static, ()> {
        let gate = self.clone();
        Box::pin(async move {
            loop {
                let changed = gate.0.1.notified();
                match gate.state() {
                    State::Open => return,
                    State::ClosedUntil(until) if until <= Instant::now() => return,
                    State::ClosedUntil(until) => {
                        let _ = tokio::time::timeout_at(until, changed).await;
                    }
                    State::Gone => std::future::pending().await,
                }
            }
        })
    }
}
