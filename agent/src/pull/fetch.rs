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
        let filler = Filler::new(Arc::clone(&self.places), Arc::clone(&self.segment));
        let mut sink = Sink::new(filler, self.tasks.clone(), Arc::clone(&self.pace));
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
    fn new(filler: Filler, tasks: TaskTracker, pace: Arc<DiskPace>) -> Self {
        Self { tasks, pace, came: 0, writer: Writer::Here(filler), batch: Vec::new(), batched: 0 }
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

#[cfg(test)]
mod tests {
    use std::fs;

    use lockstep_protocol::{digest::Digest, manifest::PartManifest};
    use rand::{Rng, SeedableRng, rngs::StdRng};
    use tokio::sync::Semaphore;

    use super::*;
    use crate::{
        digests::Digests,
        order::TransferLimits,
        pull::{segment::tests::part, staging::Staging},
        space::Claim,
        work::DISK_THREADS,
    };

    /// An object with files of all kinds and gaps, and a part that names them.
    fn object(random: &mut StdRng) -> (Vec<u8>, PartManifest) {
        let mut bytes = vec![0; 9 << 20];
        random.fill(bytes.as_mut_slice());
        bytes[2 << 20..5 << 20].fill(0);
        let mut part = part(&[(0, 0, 5000), (0, 5100, 1), (0, 5101, 7 << 20), (0, 8 << 20, 1 << 20)]);
        for file in &mut part.files {
            file.blake3 = Digest::of(&bytes[file.offset as usize..(file.offset + file.size) as usize]);
        }
        (bytes, part)
    }

    fn places(folder: &std::path::Path, part: PartManifest, work: &Work) -> Arc<Places> {
        let part = Arc::new(part);
        let staging = Staging::create(folder, (part.round, part.attempt), &part).unwrap();
        let digests = Arc::new(Digests::load(folder, true));
        Arc::new(Places::new(part, staging, Claim::on(folder).unwrap(), digests, work).unwrap())
    }

    async fn write(places: &Arc<Places>, object: &[u8], slow: bool, work: &Work, random: &mut StdRng) -> Vec<Wrong> {
        let pace = Arc::new(DiskPace::new());
        if slow {
            pace.took(SLOW);
        }
        let files: Vec<usize> = (0..places.part.files.len()).collect();
        let mut wrong = Vec::new();
        for segment in segment::plan(&places.part, &files, 3 << 20) {
            let start = usize::try_from(segment.offset).unwrap();
            let mut left = &object[start..start + usize::try_from(segment.length).unwrap()];
            let filler = Filler::new(Arc::clone(places), Arc::new(segment));
            let mut sink = Sink::new(filler, TaskTracker::new(), Arc::clone(&pace));
            while !left.is_empty() {
                let (chunk, later) = left.split_at(random.random_range(1..=300_000).min(left.len()));
                sink.take(Bytes::copy_from_slice(chunk), work).await.unwrap();
                assert_eq!(matches!(sink.writer, Writer::Here(_)), !slow || sink.came < BATCH as u64);
                left = later;
            }
            wrong.extend(sink.finish(work).await.unwrap());
        }
        wrong
    }

    #[tokio::test]
    async fn bytes_find_their_place_whether_the_disk_keeps_up_or_not_and_a_wrong_file_is_found() {
        let seed: u64 = rand::rng().random();
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        for slow in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let work = Work::new(TransferLimits::default(), Arc::new(Semaphore::new(DISK_THREADS)));
            let (bytes, part) = object(&mut random);
            let places = places(folder.path(), part, &work);
            // One bit of the second file and one of the third are wrong at first.
            let mut flipped = bytes.clone();
            flipped[5100] ^= 1;
            flipped[4 << 20] ^= 1;
            let mut wrong = write(&places, &flipped, slow, &work, &mut random).await;
            wrong.sort_unstable_by_key(|wrong| wrong.file);
            assert_eq!(wrong.iter().map(|wrong| wrong.file).collect::<Vec<_>>(), [1, 2], "slow: {slow}");
            for wrong in wrong {
                places.try_again(wrong).unwrap();
                let file = &places.part.files[wrong.file];
                let at = usize::try_from(file.offset).unwrap();
                let content = &bytes[at..at + usize::try_from(file.size).unwrap()];
                for segment in segment::plan(&places.part, &[wrong.file], 3 << 20) {
                    let start = usize::try_from(segment.offset - file.offset).unwrap();
                    let mut filler = Filler::new(Arc::clone(&places), Arc::new(segment.clone()));
                    filler.take(&content[start..start + usize::try_from(segment.length).unwrap()]).unwrap();
                    assert!(filler.finish().is_empty());
                }
                assert!(places.try_again(wrong).is_err(), "a third time");
            }
            for file in &places.part.files {
                let at = usize::try_from(file.offset).unwrap();
                let staged = fs::read(places.staging.path(&file.path)).unwrap();
                assert!(staged == bytes[at..at + usize::try_from(file.size).unwrap()], "{} slow: {slow}", file.path);
            }
            assert_eq!(work.progress.snapshot().files_done, 4);
            assert_eq!(work.progress.snapshot().bytes_done, places.part.bytes(), "what came twice counts once");
            places.claim.require().unwrap();
        }
    }

    #[test]
    fn a_disk_is_slow_for_a_while_after_it_was() {
        let pace = DiskPace::new();
        pace.took(SLOW / 2);
        assert!(!pace.is_slow());
        pace.took(SLOW);
        assert!(pace.is_slow());
    }
}
