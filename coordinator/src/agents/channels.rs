//! Connections to agents, one an address: made when it is called, kept while it is called, closed when nobody calls it any more.
//!
//! A coordinator of a thousand pipelines has tens of thousands of agents and calls few of them at a time. Each open connection is memory here and at
//! the agent; a new one costs a round trip. So some are kept for the next round, up to a number, and none for long: one that was
//! silent for minutes may have been cut without a word.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use lockstep_rpc::{Carrier, ChannelOptions, RpcProblem};
use tokio::time::Instant;

use super::AgentPoolOptions;

/// How often idle connections are looked for, while there are any.
const SWEEP: Duration = Duration::from_secs(1);

/// Makes the channel to an address, connecting when it is first used.
pub(super) type Dial = dyn Fn(&str, &ChannelOptions) -> Result<Carrier, RpcProblem> + Send + Sync;

/// Clones share the connections.
#[derive(Clone, Debug)]
pub(super) struct Channels(Arc<Shared>);

struct Shared {
    options: AgentPoolOptions,
    dial: Box<Dial>,
    state: Mutex<State>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("options", &self.options).field("state", &self.state).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct State {
    open: BTreeMap<String, Open>,
    sweeping: bool,
    /// Tells the connections of one address apart.
    made: u64,
}

#[derive(Debug)]
struct Open {
    channel: Carrier,
    number: u64,
    calls: usize,
    used: Instant,
}

/// A call is under way over a connection.
#[derive(Debug)]
pub(super) struct InUse {
    shared: Arc<Shared>,
    address: String,
    number: u64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn channel(&self, address: &str) -> Result<Carrier, RpcProblem> {
        let options = ChannelOptions {
            connect_timeout: self.options.connect_timeout,
            keepalive_interval: self.options.keepalive_interval,
            keepalive_timeout: self.options.keepalive_timeout,
            ..ChannelOptions::default()
        };
        (self.dial)(address, &options)
    }

    /// Closes what is idle for too long or too many; false: nothing is left to look after.
    fn sweep(&self) -> bool {
        let now = Instant::now();
        let mut state = self.lock();
        state.open.retain(|_, open| open.calls > 0 || now - open.used < self.options.idle_after);
        let mut idle: Vec<(Instant, String)> = state
            .open
            .iter()
            .filter(|(_, open)| open.calls == 0)
            .map(|(address, open)| (open.used, address.clone()))
            .collect();
        if let Some(surplus) = idle.len().checked_sub(self.options.max_idle).filter(|surplus| *surplus > 0) {
            idle.sort_unstable();
            for (_, address) in idle.into_iter().take(surplus) {
                state.open.remove(&address);
            }
        }
        state.sweeping = !state.open.is_empty();
        state.sweeping
    }
}

impl Channels {
    /// None is open yet.
    pub(super) fn new(options: AgentPoolOptions, dial: Box<Dial>) -> Self {
        Self(Arc::new(Shared { options, dial, state: Mutex::default() }))
    }

    /// How many are open, or about to be.
    pub(super) fn count(&self) -> usize {
        self.0.lock().open.len()
    }

    /// The connection to an address, for one call.
    pub(super) fn get(&self, address: &str) -> Result<(Carrier, InUse), RpcProblem> {
        let mut state = self.0.lock();
        let begin_sweeping = !std::mem::replace(&mut state.sweeping, true);
        let used = Instant::now();
        let (channel, number) = match state.open.get_mut(address) {
            Some(open) => {
                open.calls += 1;
                open.used = used;
                (open.channel.clone(), open.number)
            }
            None => {
                let channel = self.0.channel(address).inspect_err(|_| state.sweeping = !begin_sweeping)?;
                state.made += 1;
                let number = state.made;
                let open = Open { channel: channel.clone(), number, calls: 1, used };
                state.open.insert(address.to_owned(), open);
                (channel, number)
            }
        };
        drop(state);
        if begin_sweeping {
            tokio::spawn(sweep(Arc::downgrade(&self.0)));
        }
        Ok((channel, InUse { shared: Arc::clone(&self.0), address: address.to_owned(), number }))
    }
}

async fn sweep(shared: Weak<Shared>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        match shared.upgrade() {
            Some(shared) if shared.sweep() => {}
            _ => return,
        }
    }
}

impl InUse {
    /// Calls that begin from now on go over another connection; those under way keep this one.
    pub(super) fn give_up(self) {
        let mut state = self.shared.lock();
        if state.open.get(&self.address).is_some_and(|open| open.number == self.number) {
            state.open.remove(&self.address);
        }
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if let Some(open) = state.open.get_mut(&self.address).filter(|open| open.number == self.number) {
            open.calls -= 1;
            open.used = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channels(max_idle: usize, idle_after: Duration) -> Channels {
        let dial =
            |address: &str, options: &ChannelOptions| lockstep_rpc::connect_lazy(address, options).map(Carrier::new);
        Channels::new(AgentPoolOptions { max_idle, idle_after, ..AgentPoolOptions::default() }, Box::new(dial))
    }

    fn address(number: usize) -> String {
        format!("http://127.0.0.1:{}", 7000 + number)
    }

    #[tokio::test]
    async fn an_address_has_one_connection_and_a_wrong_one_none() {
        let channels = channels(8, Duration::from_secs(30));
        let (_first, first) = channels.get(&address(1)).unwrap();
        let (_second, second) = channels.get(&address(1)).unwrap();
        assert_eq!((channels.count(), first.number), (1, second.number));
        assert!(channels.get("nonsense").is_err());
        assert_eq!(channels.count(), 1);
    }

    #[tokio::test]
    async fn only_idle_connections_are_closed_the_longest_unused_first() {
        let channels = channels(2, Duration::from_secs(30));
        let busy = channels.get(&address(0)).unwrap();
        for number in 1..=4 {
            drop(channels.get(&address(number)).unwrap());
        }
        assert!(channels.0.sweep());
        let left: Vec<String> = channels.0.lock().open.keys().cloned().collect();
        assert_eq!(left, [address(0), address(3), address(4)]);
        drop(busy);
    }

    #[tokio::test]
    async fn what_is_idle_for_long_is_closed_and_then_nobody_looks_any_more() {
        let channels = channels(8, Duration::ZERO);
        let busy = channels.get(&address(0)).unwrap();
        drop(channels.get(&address(1)).unwrap());
        assert!(channels.0.sweep());
        assert_eq!(channels.count(), 1, "a call is under way");
        drop(busy);
        assert!(!channels.0.sweep());
        assert_eq!((channels.count(), channels.0.lock().sweeping), (0, false));
    }

    #[tokio::test]
    async fn a_connection_that_was_given_up_is_not_used_again_and_its_calls_count_for_no_other() {
        let channels = channels(8, Duration::from_secs(30));
        let (_channel, hanging) = channels.get(&address(1)).unwrap();
        let (_channel, other) = channels.get(&address(1)).unwrap();
        let number = hanging.number;
        hanging.give_up();
        let (_channel, fresh) = channels.get(&address(1)).unwrap();
        assert_ne!(fresh.number, number);
        drop(other);
        assert_eq!(channels.0.lock().open[&address(1)].calls, 1);
    }
}
