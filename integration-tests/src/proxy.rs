//! A TCP proxy that misbehaves when a test says so. It stands in front of Postgres, of S3 and of gRPC servers, and knows nothing of what they speak.
//!
//! - [`Weather`] lasts until it is changed: new connections are reset, nothing is forwarded, everything is late;
//! - [`FaultProxy::cut`] and [`FaultProxy::cut_some`] reset connections that are open now; which of them, a seed says;
//! - a [`Trap`] waits for bytes of a request, and then loses the request, cuts right behind it, or loses the answer.
//!
//! A refused connection is accepted and reset at once: the port stays taken, so nobody else gets it meanwhile.

mod connection;
mod trap;

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::AbortHandle,
};
use tokio_util::sync::CancellationToken;

use trap::{Snare, Traps};
pub use trap::{Trap, TrapAction};

/// What is not forwarded. Bytes that came in meanwhile go on when it is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stall {
    /// Everything is forwarded.
    #[default]
    Nothing,
    /// Bytes towards the server.
    Requests,
    /// Bytes towards the client.
    Answers,
    /// Both; connections are accepted all the same.
    Everything,
}

/// What goes on until it is changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weather {
    /// New connections are reset.
    pub refuses: bool,
    /// What is not forwarded.
    pub stalls: Stall,
    /// Waits this long before each piece that is forwarded, in each direction.
    pub delay: Duration,
}

impl Weather {
    fn holds_requests(&self) -> bool {
        matches!(self.stalls, Stall::Requests | Stall::Everything)
    }

    fn holds_answers(&self) -> bool {
        matches!(self.stalls, Stall::Answers | Stall::Everything)
    }
}

/// The proxy. Dropping it closes its port and cuts its connections.
#[derive(Debug)]
pub struct FaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: AbortHandle,
}

#[derive(Debug)]
struct Shared {
    upstream: Mutex<SocketAddr>,
    weather: watch::Sender<Weather>,
    traps: Traps,
    open: Mutex<BTreeMap<u64, CancellationToken>>,
    accepted: AtomicU64,
    random: Mutex<StdRng>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FaultProxy {
    /// Listens on a free port of this machine. The seed decides what [`FaultProxy::cut_some`] cuts.
    pub async fn start(upstream: SocketAddr, seed: u64) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            upstream: Mutex::new(upstream),
            weather: watch::Sender::new(Weather::default()),
            traps: Traps::default(),
            open: Mutex::default(),
            accepted: AtomicU64::new(0),
            random: Mutex::new(StdRng::seed_from_u64(seed)),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared))).abort_handle();
        Ok(Self { address, shared, accepting })
    }

    /// Where clients go.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://` and the address.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where connections that are made from now on lead.
    pub fn set_upstream(&self, upstream: SocketAddr) {
        *lock(&self.shared.upstream) = upstream;
    }

    /// What goes on.
    pub fn weather(&self) -> Weather {
        *self.shared.weather.borrow()
    }

    /// Changes what goes on.
    pub fn change(&self, change: impl FnOnce(&mut Weather)) {
        self.shared.weather.send_modify(change);
    }

    /// Good weather, no traps. Connections that are open stay open.
    pub fn clear(&self) {
        self.shared.weather.send_replace(Weather::default());
        self.shared.traps.clear();
    }

    /// Resets every connection that is open; how many.
    pub fn cut(&self) -> usize {
        self.cut_some(1.0)
    }

    /// Resets each open connection with this probability, 0 to 1; how many.
    pub fn cut_some(&self, share: f64) -> usize {
        let mut random = lock(&self.shared.random);
        let open = lock(&self.shared.open);
        let chosen = open.values().filter(|_| random.random::<f64>() < share);
        chosen.inspect(|connection| connection.cancel()).count()
    }

    /// How many connections are open.
    pub fn open(&self) -> usize {
        lock(&self.shared.open).len()
    }

    /// How many connections have been accepted so far, refused ones included.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Acquire)
    }

    /// Sets a trap; its id.
    pub fn set(&self, trap: Trap) -> u64 {
        self.shared.traps.set(trap)
    }

    /// How often a trap has sprung, also after it was used up.
    pub fn sprung(&self, trap: u64) -> u32 {
        self.shared.traps.sprung(trap)
    }

    /// Waits until a trap has sprung at least once; put a timeout around it.
    pub async fn springs(&self, trap: u64) {
        self.shared.traps.springs(trap).await;
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

/// Takes the connection off the list, however it ends.
struct Listed<'s> {
    shared: &'s Shared,
    number: u64,
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        lock(&self.shared.open).remove(&self.number);
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                let number = shared.accepted.fetch_add(1, Ordering::AcqRel);
                if shared.weather.borrow().refuses {
                    reset(&client);
                    continue;
                }
                let cut = CancellationToken::new();
                lock(&shared.open).insert(number, cut.clone());
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    let _listed = Listed { shared: &shared, number };
                    connection::carry(&shared, client, cut).await;
                });
            }
            // Out of file descriptors, most likely: others may give some back.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Makes the drop of this connection a reset. It fails only where the connection is gone already.
fn reset(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}

#[cfg(test)]
mod tests;
