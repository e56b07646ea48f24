//! Sends the files of a push that the base doesn't have: largest first, small ones in packs at the end, as many at once as memory and requests allow.

use std::{
    cmp::Reverse,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use futures::{FutureExt, TryStreamExt, stream};
use lockstep_failpoint::{Point, reached};
use lockstep_protocol::{
    key::AttemptPath,
    manifest::ObjectEntry,
    problem::{Problem, Reason},
};
use tokio_util::task::TaskTracker;

use super::{
    base::Base,
    large::Large,
    ledger::{Content, Entry, Ledger},
    pack::{self, Queue},
    sizes::{SMALL, Sizes},
    source::{Body, Source},
};
use crate::{
    blocks::Room,
    digests::Digests,
    order::TransferLimits,
    remote::Remote,
    store::{HeldCheckpoint, HeldFile},
    tree::{PieceHasher, TreeDigest},
    work::{DISK_THREADS, Work},
};

/// A file that has to be sent, unless reading it shows that the base has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// Place among the held files.
    pub(super) index: usize,
    pub(super) size: u64,
    /// Its digest is known, and the base hasn't it.
    pub(super) is_new: bool,
}

/// What came of reading a file, or of part of it.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Files that the base has.
    pub(super) known: Vec<(usize, Entry)>,
    /// A file that began like one of the base and is another.
    pub(super) again: Option<Wanted>,
}

/// What all who send share; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Sending {
    pub(super) remote: Remote,
    pub(super) held: Arc<dyn HeldCheckpoint>,
    pub(super) base: Arc<Base>,
    pub(super) digests: Arc<Digests>,
    pub(super) ledger: Ledger,
    pub(super) path: AttemptPath,
    pub(super) numbers: Arc<AtomicU32>,
    /// Requests that must be seen to their end, because nobody knows what they left behind otherwise.
    pub(super) starts: TaskTracker,
}

enum Unit {
    Piece(Arc<Large>, u16),
    /// All pieces are there.
    Complete(Arc<Large>),
    Whole(Wanted),
    Pack(Arc<Queue>, u64),
}

impl Unit {
    /// Bytes of memory it takes.
    fn bytes(&self) -> u64 {
        match self {
            Self::Piece(large, number) => large.range(*number).1,
            Self::Complete(_) => 0,
            Self::Whole(wanted) => wanted.size,
            Self::Pack(_, most) => *most,
        }
    }

    async fn run(self, to: Sending, room: Option<Room>) -> Result<Outcome, Problem> {
        match (self, room) {
            (Self::Piece(large, number), Some(room)) => large.piece(&to, number, room).await,
            (Self::Whole(wanted), Some(room)) => whole(&to, wanted, room).await,
            (Self::Pack(queue, most), Some(room)) => pack(&to, queue, room, most).await,
            (Self::Complete(large), _) => large.complete(&to).await,
            // Room is made for each of these.
            (_, None) => Ok(Outcome::default()),
        }
    }
}

impl Sending {
    pub(super) const fn work(&self) -> &Work {
        self.remote.work()
    }

    /// What the hold says of a file.
    pub(super) fn file(&self, wanted: Wanted) -> Result<HeldFile, Problem> {
        let file = self.held.files().get(wanted.index).cloned();
        // They are numbered as the hold has them.
        file.ok_or_else(|| Problem::new(Reason::AgentPanic, format!("file {} of the hold", wanted.index)))
    }

    /// The key of this attempt's next object.
    pub(super) fn next_key(&self) -> String {
        self.path.data(self.numbers.fetch_add(1, Ordering::Relaxed)).to_string()
    }

    /// Sends these, or finds them in the base. What was sent stands in the ledger; the rest comes back.
    pub(super) async fn send(&self, wanted: Vec<Wanted>) -> Result<Vec<Outcome>, Problem> {
        // Nothing is read that there is no room for.
        let limits = TransferLimits { memory: self.work().blocks.capacity(), ..self.work().limits };
        let units = self.units(wanted, &Sizes::of(&limits))?;
        let (blocks, to) = (self.work().blocks.clone(), self.clone());
        // Room is given in the order of the units, and each unit that has room needs nothing of a later one: none waits for ever.
        stream::try_unfold(units, move |mut units| {
            let blocks = blocks.clone();
            async move {
                let Some(unit) = units.next() else { return Ok(None) };
                let room = match unit.bytes() {
                    0 => None,
                    bytes => Some(blocks.room(bytes).await?),
                };
                Ok(Some(((unit, room), units)))
            }
        })
        .map_ok(move |(unit, room)| unit.run(to.clone(), room).boxed())
        // While some are sent the next ones are read.
        .try_buffer_unordered(limits.concurrency + DISK_THREADS)
        .try_collect()
        .await
    }

    fn units(&self, wanted: Vec<Wanted>, sizes: &Sizes) -> Result<impl Iterator<Item = Unit> + Send + use<>, Problem> {
        let (small, mut others): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|wanted| wanted.size < SMALL);
        others.sort_by_key(|wanted| Reverse(wanted.size));
        let (whole, large): (Vec<_>, Vec<_>) = others.into_iter().partition(|wanted| sizes.is_whole(wanted.size));
        let large: Vec<_> =
            large.into_iter().map(|wanted| Large::new(self, sizes, wanted).map(Arc::new)).collect::<Result<_, _>>()?;
        let pieces = large.into_iter().flat_map(|large| {
            let missing = large.missing();
            let complete = missing.is_empty().then(|| Unit::Complete(Arc::clone(&large)));
            missing.into_iter().map(move |number| Unit::Piece(Arc::clone(&large), number)).chain(complete)
        });
        let total = small.iter().map(|wanted| wanted.size).sum();
        let greatest = small.iter().map(|wanted| wanted.size).max().unwrap_or_default();
        let most = sizes.pack(total);
        // No more than are needed if each is left with room for all but the greatest file. With one too few, files would be left over.
        let packs = if total <= most { u64::from(total > 0) } else { total.div_ceil(most - greatest + 1) };
        let queue = Arc::new(Queue::new(small.into_iter().map(|wanted| (wanted.index, wanted.size))));
        let packs = (0..packs).map(move |_| Unit::Pack(Arc::clone(&queue), most));
        Ok(pieces.chain(whole.into_iter().map(Unit::Whole)).chain(packs))
    }
}

/// Reads a file into memory, and sends it if the base doesn't have it.
async fn whole(to: &Sending, wanted: Wanted, room: Room) -> Result<Outcome, Problem> {
    let Wanted { index, .. } = wanted;
    let file = to.file(wanted)?;
    let (held, expected, digests) = (Arc::clone(&to.held), file.clone(), Arc::clone(&to.digests));
    let (payload, blake3, head) = to
        .work()
        .disk(move |stop| {
            let source = Source::open(held.as_ref(), &expected)?;
            let mut body = Body::new(room);
            let mut hasher = PieceHasher::new(expected.size, 0);
            body.read(&source, (0, expected.size), stop, |slice| hasher.update(slice))?;
            let look = source.check()?;
            let piece = hasher.finish();
            let (head, mut digest) = (piece.head(), TreeDigest::new(expected.size));
            digest.add(piece);
            let blake3 = digest.finish().ok_or_else(|| unread(&expected))?;
            digests.learn(&look, blake3);
            Ok((body.into_payload(), blake3, head))
        })
        .await?;
    if let Some(entry) = to.base.find(file.size, blake3) {
        return Ok(Outcome { known: vec![(index, entry)], again: None });
    }
    let key = to.next_key();
    to.remote.put(&key, payload).await?;
    reached(Point::PushObjectSent);
    to.work().progress.done(file.size);
    to.work().progress.file_done();
    let object = Arc::new(ObjectEntry { key, size: file.size });
    to.ledger.sent([(index, Entry { blake3, head, content: Some(Content { object, offset: 0 }) })]);
    Ok(Outcome::default())
}

/// Reads small files into memory and sends those together that the base doesn't have.
async fn pack(to: &Sending, queue: Arc<Queue>, room: Room, most: u64) -> Result<Outcome, Problem> {
    if queue.is_empty() {
        return Ok(Outcome::default());
    }
    let reading = to.clone();
    let packed = to
        .work()
        .disk(move |stop| {
            pack::build(reading.held.as_ref(), &queue, &reading.base, &reading.digests, (room, most), stop)
        })
        .await?;
    if !packed.files.is_empty() {
        let key = to.next_key();
        let object = Arc::new(ObjectEntry { key, size: packed.payload.length() });
        to.remote.put(&object.key, packed.payload).await?;
        reached(Point::PushObjectSent);
        to.work().progress.done(object.size);
        to.ledger.sent(packed.files.into_iter().map(|(index, blake3, offset)| {
            to.work().progress.file_done();
            let content = Some(Content { object: Arc::clone(&object), offset });
            (index, Entry { blake3, head: None, content })
        }));
    }
    Ok(Outcome { known: packed.known, again: None })
}

/// A file was not read to its end, yet nothing failed.
pub(super) fn unread(file: &HeldFile) -> Problem {
    Problem::new(Reason::LocalIo, format!("{} was not read to its end", file.path)).with("path", &file.path)
}
