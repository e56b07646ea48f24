//! A proxy before Postgres that understands enough of the protocol to cut a connection exactly around the message that commits, and to count round trips.
//!
//! Messages of a client travel in units that end with a message the server answers: `Query` or `Sync`. A unit commits if it says COMMIT, or if it
//! executes a statement while no transaction is open.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU64, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::Notify,
};

/// What becomes of the next unit that commits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cut {
    /// It never reaches the server: nothing is committed.
    Request,
    /// The server commits, and its answer is lost.
    Answer,
    /// The client is cut off at once, the server reads the unit at about the same time.
    Both,
    /// The client is cut off at once, the server reads the unit right before another connection locks or writes, or when it is told to.
    Late,
}

/// What was cut to land late, with the connection it lands by.
struct Held {
    unit: Vec<u8>,
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
}

impl Held {
    /// Over when the server has answered.
    async fn land(mut self) -> io::Result<()> {
        self.to.write_all(&self.unit).await?;
        while message(&mut self.from, true).await?[0] != b'Z' {}
        Ok(())
    }
}

/// What went over the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Count {
    /// That were ended, or were a statement by itself.
    pub(crate) transactions: u64,
    /// Units that the server was to answer, looks whether it is there included.
    pub(crate) round_trips: u64,
}

#[derive(Default)]
struct State {
    upstream: AtomicU16,
    armed: Mutex<Option<Cut>>,
    held: Mutex<Option<Held>>,
    cuts: AtomicU64,
    transactions: AtomicU64,
    round_trips: AtomicU64,
}

impl State {
    async fn land(&self) {
        let held = self.held.lock().unwrap().take();
        if let Some(held) = held {
            // A server that has closed the connection meanwhile has rolled back.
            let _ = held.land().await;
        }
    }
}

/// Listens on a loopback port until it is dropped.
pub(crate) struct Wire {
    state: Arc<State>,
    port: u16,
    stop: tokio::task::JoinHandle<()>,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.abort();
    }
}

impl Wire {
    pub(crate) async fn before(postgres_port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State { upstream: AtomicU16::new(postgres_port), ..State::default() });
        let serving = Arc::clone(&state);
        let stop = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                tokio::spawn(connection(client, Arc::clone(&serving)));
            }
        });
        Self { state, port, stop }
    }

    /// The same URL through the proxy.
    pub(crate) fn url(&self, url: &str) -> String {
        let (before, address) = url.rsplit_once('@').unwrap();
        let (_, database) = address.split_once('/').unwrap();
        format!("{before}@127.0.0.1:{}/{database}", self.port)
    }

    /// The next unit that commits is cut. Hints to other replicas don't count: they write nothing.
    pub(crate) fn arm(&self, cut: Cut) {
        *self.state.armed.lock().unwrap() = Some(cut);
    }

    pub(crate) fn disarm(&self) {
        *self.state.armed.lock().unwrap() = None;
    }

    /// What was cut to land late lands now, unless it has.
    pub(crate) async fn land(&self) {
        self.state.land().await;
    }

    pub(crate) fn cuts(&self) -> u64 {
        self.state.cuts.load(Ordering::SeqCst)
    }

    /// Since the proxy began.
    pub(crate) fn count(&self) -> Count {
        Count {
            transactions: self.state.transactions.load(Ordering::SeqCst),
            round_trips: self.state.round_trips.load(Ordering::SeqCst),
        }
    }

    /// New connections lead to another server.
    pub(crate) fn lead_to(&self, postgres_port: u16) {
        self.state.upstream.store(postgres_port, Ordering::SeqCst);
    }
}

/// What both directions of one connection know.
#[derive(Default)]
struct Shared {
    /// `I`: no transaction is open.
    status: AtomicU8,
    swallow: AtomicBool,
    over: Notify,
}

async fn connection(client: TcpStream, state: Arc<State>) {
    let postgres_port = state.upstream.load(Ordering::SeqCst);
    // Whoever can't be connected is cut off, which is what the client would see without a proxy.
    let Ok(server) = TcpStream::connect(("127.0.0.1", postgres_port)).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut client_read, client_write) = client.into_split();
    let (server_read, mut server_write) = server.into_split();
    let shared = Arc::new(Shared::default());
    let answers = tokio::spawn(answers(server_read, client_write, Arc::clone(&shared)));
    match requests(&mut client_read, &mut server_write, &shared, &state).await.unwrap_or(None) {
        // The server has the unit and will answer it; both ends close only after that.
        Some((Cut::Answer, _)) => drop(answers.await),
        Some((Cut::Late, unit)) => {
            shared.over.notify_one();
            // Held before the client sees that it is cut off, and comes again by another connection.
            if let Ok((from, _client_write)) = answers.await {
                *state.held.lock().unwrap() = Some(Held { unit, from, to: server_write });
            }
        }
        _ => {
            shared.over.notify_one();
            drop(answers.await);
        }
    }
}

async fn message(from: &mut OwnedReadHalf, typed: bool) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; if typed { 5 } else { 4 }];
    from.read_exact(&mut bytes).await?;
    let length: [u8; 4] = bytes[bytes.len() - 4..].try_into().unwrap();
    let begun = bytes.len();
    bytes.resize(begun + usize::try_from(u32::from_be_bytes(length)).unwrap() - 4, 0);
    from.read_exact(&mut bytes[begun..]).await?;
    Ok(bytes)
}

fn text(bytes: &[u8]) -> (&str, &[u8]) {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap();
    (std::str::from_utf8(&bytes[..end]).unwrap(), &bytes[end + 1..])
}

async fn requests(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    shared: &Shared,
    state: &State,
) -> io::Result<Option<(Cut, Vec<u8>)>> {
    to.write_all(&message(from, false).await?).await?;
    let mut prepared: HashMap<String, String> = HashMap::new();
    let (mut unit, mut sql, mut executes) = (Vec::new(), String::new(), false);
    // A transaction that only tells other replicas: it comes at any time, several changes in one.
    let mut hints = false;
    loop {
        let bytes = message(from, true).await?;
        let kind = bytes[0];
        match kind {
            b'P' => {
                let (name, rest) = text(&bytes[5..]);
                prepared.insert(name.to_owned(), text(rest).0.to_owned());
            }
            b'B' => {
                let (_, rest) = text(&bytes[5..]);
                sql = prepared.get(text(rest).0).cloned().unwrap_or_default();
            }
            b'E' => executes = true,
            b'Q' => sql = text(&bytes[5..]).0.to_owned(),
            _ => {}
        }
        unit.extend(bytes);
        if !matches!(kind, b'Q' | b'S' | b'X' | b'p') {
            continue;
        }
        if matches!(kind, b'Q' | b'S') {
            state.round_trips.fetch_add(1, Ordering::SeqCst);
        }
        let idle = shared.status.load(Ordering::SeqCst) == b'I';
        let writes = ["INSERT", "UPDATE", "DELETE"].iter().any(|word| sql.contains(word));
        hints |= sql.contains("pg_notify");
        if ["COMMIT", "ROLLBACK"].contains(&sql.as_str()) || (executes && idle) {
            state.transactions.fetch_add(u64::from(!hints), Ordering::SeqCst);
            hints = false;
        }
        let commits = sql == "COMMIT" || (executes && idle && writes);
        let cut = if commits { state.armed.lock().unwrap().take() } else { None };
        if let Some(cut) = cut {
            state.cuts.fetch_add(1, Ordering::SeqCst);
            if matches!(cut, Cut::Answer | Cut::Both) {
                shared.swallow.store(true, Ordering::SeqCst);
                to.write_all(&unit).await?;
            }
            if cut == Cut::Answer {
                // Kept open until the answer is there: Postgres gives up what it does for a client that it sees leave.
                shared.over.notified().await;
            }
            return Ok(Some((cut, unit)));
        }
        if writes || sql.contains("FOR UPDATE") || sql.contains("pg_advisory") {
            state.land().await;
        }
        to.write_all(&unit).await?;
        unit.clear();
        sql.clear();
        executes = false;
    }
}

async fn answers(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    shared: Arc<Shared>,
) -> (OwnedReadHalf, OwnedWriteHalf) {
    let pump = async {
        loop {
            let Ok(bytes) = message(&mut from, true).await else { return };
            if bytes[0] == b'Z' {
                shared.status.store(bytes[5], Ordering::SeqCst);
            }
            if !shared.swallow.load(Ordering::SeqCst) {
                if to.write_all(&bytes).await.is_err() {
                    return;
                }
            } else if bytes[0] == b'Z' {
                return;
            }
        }
    };
    tokio::select! {
        () = pump => {}
        () = shared.over.notified() => {}
    }
    shared.over.notify_one();
    (from, to)
}
