//! The world of take-overs: an old writer that is alive and pushes, takers that die between any two steps, and readers, around the production
//! `takeover::decide` and `settle`, `finish` (F3), `latest` (F2) and `round::decide` for what a writer acknowledges.
//!
//! The bucket's create-only PUTs are late, lost and doubled at once: from when its bytes are stored a PUT may land at any time as long as its key is empty, or never.
//! Processes die by not being heard of again, or lose what they remember and go on from their rows.
//!
//! What a commit needs may be damaged or vanish for good, unnoticed until it is pulled: an activation ends there (ADR 27), and another one of the same database is asked for.
//!
//! - `bucket`: what stands, and what is under way
//! - `writer`: a database's open push, from stored bytes to the acknowledgement
//! - `taker`: a take-over; `reader`: a look for the newest
//! - `facts`: documents and ids

mod bucket;
mod facts;
mod reader;
mod taker;
mod writer;

use std::fmt::Write as _;

use lockstep_protocol::{
    fence::FenceBase,
    finish::{AtKey, Finish},
    latest::Access,
    planted::{self, Bug},
};

use self::{bucket::Bucket, reader::Reader, taker::Taker, writer::Writer};
use crate::{explore::World, interned::Interned};

/// What is asked for, and for which database. One that another take-over of the same database stands in the way of is asked for again once that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ask {
    /// It shall own the location, whoever does now.
    TakeOver(u8),
    /// The standby shall own it, from exactly its base.
    Activate(u8),
    /// The standby shall own it, from an older commit that an operator has chosen.
    ActivateFrom(u8, (u8, u8)),
}

impl Ask {
    const fn database(self) -> u8 {
        match self {
            Self::TakeOver(database) | Self::Activate(database) | Self::ActivateFrom(database, _) => database,
        }
    }
}

/// How large.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bounds {
    /// Pushes of each database, the old writer first. One entry a database.
    pub pushes: [u8; 3],
    /// In the order they are asked for.
    pub takers: &'static [Ask],
    /// Readers, and whether they may finish a base.
    pub readers: &'static [Access],
    /// Whether processes lose what they remember and go on.
    pub crashes: bool,
    /// Whether what commits need is damaged or vanishes.
    pub damage: bool,
}

/// Most pushes of one generation.
const SEQS: u8 = 2;

/// A place in the chain: generation and seq, both from 1.
type Place = (u8, u8);

/// Everything.
#[derive(Clone, Hash, Debug)]
pub struct TakeOvers {
    bounds: Bounds,
    bucket: Bucket,
    writers: [Writer; 3],
    takers: Vec<Taker>,
    readers: Vec<Reader>,
    /// Told to somebody as committed.
    acknowledged: Places,
    /// Told to somebody as failed.
    failed: Places,
    /// Nobody can pull these any more.
    lost: Places,
    /// What a reader answered, and then something older.
    went_back: Option<(Place, Place)>,
}

/// Some places, as bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Places(u16);

impl Places {
    fn bit((generation, seq): Place) -> u16 {
        1 << ((generation - 1) * SEQS + seq - 1)
    }

    fn has(self, place: Place) -> bool {
        self.0 & Self::bit(place) != 0
    }

    fn add(&mut self, place: Place) {
        self.0 |= Self::bit(place);
    }

    fn iter(self) -> impl Iterator<Item = Place> {
        (1..=8).flat_map(|g| (1..=SEQS).map(move |s| (g, s))).take(16).filter(move |place| self.has(*place))
    }
}

/// Something that may happen.
#[derive(Clone, Debug)]
pub enum Action {
    /// A database admits a push, all of whose parts come in; the commit's bytes are stored and put.
    Push(u8),
    /// A writer's next request or decision.
    Writer(u8),
    /// A taker's next request or decision.
    Taker(usize),
    /// A reader's next request.
    Reader(usize),
    /// A writer's driver dies, another goes on from the row.
    WriterDies(u8),
    /// A taker's driver dies, another goes on from the row.
    TakerDies(usize),
    /// A commit's PUT lands.
    CommitLands(Place),
    /// A fence's PUT lands: of which taker.
    FenceLands(u8, u8),
    /// A base's PUT lands: naming what.
    BaseLands(u8, Option<Place>),
    /// What a commit needs is damaged or gone.
    Loses(Place),
}

impl TakeOvers {
    /// The old writer owns generation 1.
    pub fn new(bounds: Bounds) -> Self {
        let taker = |(number, ask): (usize, &Ask)| {
            let waits = bounds.takers[..number].iter().any(|before| before.database() == ask.database());
            Taker::new(number, *ask, waits)
        };
        Self {
            bounds,
            bucket: Bucket::default(),
            writers: [0, 1, 2].map(|database| Writer::new(database, bounds.pushes[usize::from(database)])),
            takers: bounds.takers.iter().enumerate().map(taker).collect(),
            readers: bounds.readers.iter().map(|access| Reader::new(*access)).collect(),
            acknowledged: Places::default(),
            failed: Places::default(),
            lost: Places::default(),
            went_back: None,
        }
    }

    /// F1, spelled out once more: production's own may have a bug planted. None: a fence without its base decides nothing.
    fn counts(&self, (generation, seq): Place) -> Option<bool> {
        if !self.bucket.has_fence(generation + 1) {
            return Some(true);
        }
        let base = self.bucket.base(generation + 1)?;
        Some(base.is_some_and(|(g, s)| g == generation && seq <= s))
    }
}

/// One request of F3 and its answer; requests whose answer can't change any more are answered at once.
fn finish_step(bucket: &mut Bucket, step: &Finish) -> Option<Finish> {
    let mut next = answer(bucket, step.clone())?;
    while is_settled(bucket, &next) {
        next = answer(bucket, next)?;
    }
    Some(next)
}

/// Begins F3; none: there is nothing to finish yet.
fn finish_begin(bucket: &mut Bucket, generation: u8) -> Option<Finish> {
    let mut next = Finish::begin(facts::generation(generation)).ok()?;
    while is_settled(bucket, &next) {
        next = answer(bucket, next)?;
    }
    Some(next)
}

fn is_settled(bucket: &Bucket, step: &Finish) -> bool {
    match step {
        // A fence that stands stands for ever, and so does what the base of the generation before says.
        Finish::ReadFence(read) => bucket.has_fence(facts::number(read.generation())),
        Finish::ReadBefore(read) => bucket.base(facts::number(read.generation())).is_some(),
        // Nothing is retired here; that is the world of garbage.
        Finish::ListRetired(_) | Finish::ReadTombstones(_) | Finish::ReadDecision(_) => true,
        _ => false,
    }
}

fn answer(bucket: &mut Bucket, step: Finish) -> Option<Finish> {
    Some(match step {
        Finish::ReadFence(read) => {
            let stands = bucket.has_fence(facts::number(read.generation()));
            read.answer(stands).ok()?
        }
        Finish::ReadBase(read) => {
            let base = bucket.base_document(facts::number(read.generation()));
            read.answer(base)
        }
        Finish::ReadBefore(read) => {
            let base = bucket.base_document(facts::number(read.generation()));
            read.answer(base)
        }
        Finish::FinishBefore(read) => Finish::begin(read.generation()).ok()?,
        Finish::ListRetired(list) => list.answer([]),
        Finish::ReadTombstones(read) => read.answer(&[]),
        Finish::ListCommits(list) => {
            let seqs = bucket.seqs(facts::number(list.generation()));
            list.answer(seqs)
        }
        Finish::ReadDecision(read) => {
            let (generation, seq) = read.place();
            read.answer(AtKey::Commit(facts::commit((facts::number(generation), facts::seq_number(seq)))))
        }
        Finish::Create(create) => {
            bucket.send_base(create.base());
            create.sent()
        }
        Finish::ReadStanding(read) => {
            let base = bucket.base_document(facts::number(read.generation()));
            read.answer(base)
        }
        Finish::Done(base) => Finish::Done(base),
    })
}

/// Who finishes a base: between two requests, or done.
#[derive(Clone, Hash, Debug)]
enum Finishing {
    At(Interned<Finish>),
    Done(Interned<FenceBase>),
}

impl Finishing {
    fn from(step: Finish) -> Self {
        match step {
            Finish::Done(base) => Self::Done(Interned::new(base)),
            other => Self::At(Interned::new(other)),
        }
    }
}

impl World for TakeOvers {
    type Action = Action;

    fn actions(&self) -> Vec<Action> {
        let mut actions = Vec::new();
        for writer in &self.writers {
            let database = writer.database();
            if writer.may_push() {
                actions.push(Action::Push(database));
            }
            if writer.has_open() {
                actions.push(Action::Writer(database));
                if self.bounds.crashes && writer.remembers() {
                    actions.push(Action::WriterDies(database));
                }
            }
        }
        for (number, taker) in self.takers.iter().enumerate() {
            if self.taker_may_act(number) {
                actions.push(Action::Taker(number));
            }
            if self.bounds.crashes && taker.remembers() {
                actions.push(Action::TakerDies(number));
            }
        }
        actions.extend((0..self.readers.len()).map(Action::Reader));
        self.bucket.landings(&mut actions);
        if self.bounds.damage {
            let whole = self.bucket.commits().iter().filter(|place| !self.lost.has(*place));
            actions.extend(whole.map(Action::Loses));
        }
        actions
    }

    fn after(&self, action: &Action) -> Self {
        let mut next = self.clone();
        match *action {
            Action::Push(database) => next.push(database),
            Action::Writer(database) => next.writer_step(database),
            Action::Taker(number) => next.taker_step(number),
            Action::Reader(number) => next.reader_step(number),
            Action::WriterDies(database) => next.writers[usize::from(database)].forget(),
            Action::TakerDies(number) => next.takers[number].forget(),
            Action::CommitLands(place) => next.bucket.land_commit(place),
            Action::FenceLands(generation, taker) => next.bucket.land_fence(generation, taker),
            Action::BaseLands(generation, newest) => next.bucket.land_base(generation, newest),
            Action::Loses(place) => next.lost.add(place),
        }
        next
    }

    fn check(&self) -> Result<(), String> {
        if let Some(key) = self.bucket.overwritten() {
            return Err(format!("S7: {key} held another content"));
        }
        for place in self.acknowledged.iter() {
            if self.counts(place) == Some(false) || !self.bucket.has_commit(place) {
                return Err(format!("S15: commit {place:?} was acknowledged and does not count"));
            }
            if self.failed.has(place) {
                return Err(format!("S5: push {place:?} was told committed and failed"));
            }
        }
        for place in self.failed.iter() {
            if self.bucket.has_commit(place) && self.counts(place) == Some(true) {
                return Err(format!("S5: push {place:?} was told failed and counts"));
            }
        }
        if let Some((before, after)) = self.went_back {
            return Err(format!("S11: latest was {before:?} and is {after:?}"));
        }
        for reader in &self.readers {
            if reader.seen().is_some_and(|place| self.counts(place) == Some(false)) {
                return Err(format!("S11: {:?} was read as latest and does not count", reader.seen()));
            }
        }
        self.check_takers()
    }

    fn is_goal(&self) -> bool {
        self.takers.iter().all(Taker::is_over)
            && self.writers.iter().all(|writer| !writer.has_open())
            && (2..=4).all(|g| !self.bucket.has_fence(g) || self.bucket.base(g).is_some())
    }

    fn describe(&self) -> String {
        let mut text = self.bucket.describe();
        for writer in &self.writers {
            let _ = write!(text, "; {}", writer.describe());
        }
        for (number, taker) in self.takers.iter().enumerate() {
            let _ = write!(text, "; taker {number} {}", taker.describe());
        }
        for reader in &self.readers {
            let _ = write!(text, "; reader {}", reader.describe());
        }
        let told: Vec<Place> = self.acknowledged.iter().collect();
        let _ = write!(text, "; acknowledged {told:?}");
        if self.bounds.damage {
            let _ = write!(text, "; lost {:?}", self.lost.iter().collect::<Vec<_>>());
        }
        text
    }
}

/// A careless store or client: PUTs that overwrite.
fn overwrites(bug: Bug) -> bool {
    planted::is(bug)
}
