//! The download: segments side by side, each a stream that goes to the disk as it comes and is continued where it broke.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use lockstep_bucket::error::StoreError;
use lockstep_protocol::problem::{Problem, Reason};
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use super::{
    fill::Filler,
    place::{Places, Wrong},
    segment::{self, Segment},
};
use crate::{remote::Remote, work::Work};

/// Memory that a segment in flight may hold: a batch being written, one that comes in, and what the connection has read.
const IN_FLIGHT: u64 = 2 << 20;

/// Bytes that go to a disk thread at once.
const BATCH: usize = 512 << 10;

/// A disk that takes this long for one read's worth of bytes would hold up the connections.
const SLOW: Duration = Duration::from_millis(50);

/// How long a disk is taken for slow after it was.
const SLOW_FOR: Duration = Duration::from_secs(5);

/// Fetches all segments. What it spawns is in `tasks`, and over soon after this is dropped.
pub(super) async fn all(
    remote: &Remote,
    places: &Arc<Places>,
    plan: Vec<Segment>,
    tasks: &TaskTracker,
) -> Result<(), Problem> {
    let limits = remote.work().limits;
    let pace = Arc::new(DiskPace::new());
    let mut waiting = VecDeque::from(plan);
    let mut running = JoinSet::new();
    loop {
        while running.len() < limits.concurrency
            && let Some(segment) = waiting.pop_front()
        {
            let fetch = Fetch {
                remote: remote.clone(),
                places: Arc::clone(places),
                segment: Arc::new(segment),
                tasks: tasks.clone(),
                pace: Arc::clone(&pace),
            };
            running.spawn(tasks.track_future(fetch.run().in_current_span()));
        }
        let Some(ended) = running.join_next().await else { return Ok(()) };
        for wrong in joined(ended)? {
            places.try_again(wrong)?;
            segment::plan(&places.part, &[wrong.file], limits.part_size)
                .into_iter()
                .rev()
                .for_each(|segment| waiting.push_front(segment));
        }
    }
}

fn joined<T>(ended: Result<Result<T, Problem>, JoinError>) -> Result<T, Problem> {
    match ended {
        Ok(outcome) => outcome,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(Problem::new(Reason::Cancelled, "the agent is stopping")),
        },
    }
}

/// Whether the disk keeps up with the connections.
#[derive(Debug)]
struct DiskPace {
    started: Instant,
    /// Milliseconds after the start.
    slow_until: AtomicU64,
}

impl DiskPace {
    fn new() -> Self {
        Self { started: Instant::now(), slow_until: AtomicU64::new(0) }
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn is_slow(&self) -> bool {
        let until = self.slow_until.load(Ordering::Relaxed);
        until > 0 && self.millis() < until
    }

    fn took(&self, time: Duration) {
        if time >= SLOW {
            let until = self.millis().saturating_add(SLOW_FOR.as_millis().try_into().unwrap_or(u64::MAX));
            self.slow_until.store(until, Ordering::Relaxed);
        }
    }
}

/// One segment on its way.
struct Fetch {
    remote: Remote,
    places: Arc<Places>,
    segment: Arc<Segment>,
    tasks: TaskTracker,
    pace: Arc<DiskPace>,
}

impl Fetch {
    async fn run(self) -> Result<Vec<Wrong>, Problem> {
        let work = self.remote.work().clone();
        let _room = work.blocks.room(IN_FLIGHT).await?;
        if self.places.needs_preparation(&self.segment.slices) {
            let (places, segment) = (Arc::clone(&self.places), Arc::clone(&self.segment));
            work.disk(move |_| places.prepare(&segment.slices)).await?;
        }
        let Some(object) = self.places.part.objects.get(self.segment.object) else {
            return Err(Problem::new(Reason::AgentPanic, format!("object {} of a part", self.segment.object)));
        };
        let mut patience = self.remote.patience();
        let mut sink = Sink::new(&self);
        while sink.came < self.segment.length {
            let before = sink.came;
            let error = match self.stream(&object.key, &work, &mut sink).await? {
                Ok(()) => continue,
                Err(error) => error,
            };
            if sink.came > before {
                patience.progressed();
            }
            patience.after(error).await.map_err(|error| self.remote.missing(&object.key, error))?;
        }
        sink.finish(&work).await
    }

    /// One try from where the last one ended. The inner error is the store's, the outer one is ours.
    async fn stream(&self, key: &str, work: &Work, sink: &mut Sink) -> Result<Result<(), StoreError>, Problem> {
        let (offset, left) = (self.segment.offset + sink.came, self.segment.length - sink.came);
        let mut incoming = match self.remote.open(key, offset, left).await {
            Ok(incoming) => incoming,
            Err(error) => return Ok(Err(error)),
        };
        // To its very end: only then the connection can be used again.
        while let Some(chunk) = incoming.next().await {
            match chunk {
                Ok(bytes) => sink.take(bytes, work).await?,
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(Ok(()))
    }
}

/// Where a segment's bytes go. While the disk keeps up they are hashed and written where they are received, hot in the core's cache and without a switch of threads;
/// a slow one gets them in batches on threads of its own, one batch at a time, while the next comes in.
struct Sink {
    tasks: TaskTracker,
    pace: Arc<DiskPace>,
    came: u64,
    writer: Writer,
    batch: Vec<Bytes>,
    batched: usize,
}

enum Writer {
    Here(Filler),
    There(JoinHandle<Result<Filler, Problem>>),
    /// After a failure, which ends the segment.
    Gone,
}

impl Sink {
    fn new(fetch: &Fetch) -> Self {
        Self {
            tasks: fetch.tasks.clone(),
            pace: Arc::clone(&fetch.pace),
            came: 0,
            writer: Writer::Here(Filler::new(Arc::clone(&fetch.places), Arc::clone(&fetch.segment))),
            batch: Vec::new(),
            batched: 0,
        }
    }

    async fn take(&mut self, bytes: Bytes, work: &Work) -> Result<(), Problem> {
        self.came += bytes.len() as u64;
        if let Writer::Here(filler) = &mut self.writer
            && self.batch.is_empty()
            && !self.pace.is_slow()
        {
            let started = Instant::now();
            filler.take(&bytes)?;
            self.pace.took(started.elapsed());
            return Ok(());
        }
        self.batched += bytes.len();
        self.batch.push(bytes);
        if self.batched >= BATCH { self.hand_over(work).await } else { Ok(()) }
    }

    async fn hand_over(&mut self, work: &Work) -> Result<(), Problem> {
        let mut filler = self.filler().await?;
        let batch = std::mem::take(&mut self.batch);
        self.batched = 0;
        let work = work.clone();
        let writing = async move {
            work.disk(move |stop| {
                for bytes in batch {
                    stop.check()?;
                    filler.take(&bytes)?;
                }
                Ok(filler)
            })
            .await
        };
        self.writer = Writer::There(self.tasks.spawn(writing.in_current_span()));
        Ok(())
    }

    /// When it is done with what it has.
    async fn filler(&mut self) -> Result<Filler, Problem> {
        match std::mem::replace(&mut self.writer, Writer::Gone) {
            Writer::Here(filler) => Ok(filler),
            Writer::There(writing) => joined(writing.await),
            Writer::Gone => Err(Problem::new(Reason::AgentPanic, "a segment goes on after it failed")),
        }
    }

    async fn finish(mut self, work: &Work) -> Result<Vec<Wrong>, Problem> {
        if !self.batch.is_empty() {
            self.hand_over(work).await?;
        }
        Ok(self.filler().await?.finish())
    }
}
