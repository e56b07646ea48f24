//! Push rounds of one pipeline: replicas that pause, wake and lose answers, agents that restart and answer late, a store that executes PUTs late or
//! loses their answers, a cancel, a deadline, a taker, a reader.
//!
//! What is not in the production `protocol` crate is played here as the coordinator and the agent do it: the guarded row ([`super::row`]), the agent's
//! register ([`super::agent`]), the create-only PUT and the order of reads around it (`bucket/src/decide.rs`, `coordinator/src/dispatch/settle.rs`).

use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};

use lockstep_protocol::{
    fence::{Counts, counts, newest_of},
    id::Generation,
    planted::{self, Bug},
    problem::Reason,
    round::{Effect, Kind, ParticipantPhase, Phase},
};

use super::{
    agent::{Answered, Host, Order, State, What},
    book::{Book, Entry, Page, Paper},
    cast::{self, Cast, MOST_HOSTS, MOST_INCARNATIONS, Wrote},
    met::Met,
    row::{Copy, Driver, MOST_ROWS, Rows, WriteFault},
    told::{Known, Next, Processes, Refusal, Told, Trouble},
};
use crate::explore::World;

mod act;
mod check;
mod possible;

pub use possible::Act;

const MOST_ATTEMPTS: u32 = 3;

/// How much of what may happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// 1 to 3.
    pub hosts: u8,
    /// Push rounds that are admitted one after the other, 1 or 2.
    pub rounds: u8,
    /// Attempts of a host in a round, 1 to 3.
    pub attempts: u8,
    /// Claims of one round; two replicas.
    pub claims: u8,
    /// Restarts of agents.
    pub restarts: u8,
    /// Times that an agent counts as unreachable though it may be at work.
    pub unreachable: u8,
    /// Decision PUTs or reads of it that are not executed, executed late, or whose answer is lost.
    pub puts: u8,
    /// Database writes that are not executed, executed late, or whose answer is lost.
    pub writes: u8,
    /// Orders that arrive late, once more.
    pub late_orders: u8,
    /// Reports that arrive late, once more.
    pub late_reports: u8,
    /// Somebody asks for a cancel.
    pub cancel: bool,
    /// The deadline may pass.
    pub deadline: bool,
    /// Another owner takes the location over; it may die between fence and base.
    pub taker: bool,
    /// Somebody reads `latest` again and again.
    pub reader: bool,
}

impl Bounds {
    /// Nothing goes wrong.
    pub const CALM: Self = Self {
        hosts: 2,
        rounds: 1,
        attempts: 2,
        claims: 2,
        restarts: 0,
        unreachable: 0,
        puts: 0,
        writes: 0,
        late_orders: 0,
        late_reports: 0,
        cancel: false,
        deadline: false,
        taker: false,
        reader: false,
    };
}

/// An outcome that a world can come to, for the test that no world is empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Reached {
    /// A round is committed.
    Committed = 1,
    /// A round is cancelled.
    Cancelled = 2,
    /// An abort record stands.
    AbortStands = 4,
    /// A round failed because the location was taken over.
    Fenced = 8,
    /// A round is committed though a taker has come.
    Included = 16,
    /// A round failed for another reason.
    Failed = 32,
    /// The commit of a round stands that a driver doesn't know of.
    CommitUnknown = 64,
    /// The second round is committed.
    Second = 128,
}

#[derive(Debug)]
struct Setting {
    book: Book,
    bounds: Bounds,
    met: Met,
}

/// What a driver is about to do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Task {
    None,
    /// The decision PUT was answered or given up; what follows the generation is read next.
    Decided(Known),
    /// The fence without a base was seen; commits were listed.
    Finishing(Known, Option<u8>),
    /// Planted: what follows was read before the PUT.
    LookedEarly(Option<Next>),
    /// An event that is not decided on yet.
    Tell(Told),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Fence {
    None,
    Only,
    Base(Option<u8>),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Taker {
    Waits,
    Fenced,
    Listed(Option<u8>),
    Gone,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Reader {
    Idle,
    /// Generation 1 was the highest.
    SawFirst,
    Listed(Option<u8>),
}

/// What is left of the bounds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Left {
    restarts: u8,
    unreachable: u8,
    puts: u8,
    late_orders: u8,
    late_reports: u8,
}

/// A broken invariant that only the step shows, not the state after it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Slip {
    Overwritten,
    TwoContents,
    WentBack,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Now {
    rows: Rows<Task>,
    hosts: [Host; MOST_HOSTS],
    /// Which attempts have written their part, see [`Push::bit`].
    written: u128,
    /// By round; 0: empty.
    keys: [Paper; MOST_ROWS],
    late_put: Option<(u8, Paper)>,
    late_order: Option<Order>,
    late_report: Option<(u8, Told)>,
    fence: Fence,
    taker: Taker,
    reader: Reader,
    latest: Option<u8>,
    left: Left,
    slip: Option<Slip>,
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct Push {
    set: Arc<Setting>,
    now: Now,
}

impl Hash for Push {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.now.hash(state);
    }
}

impl Push {
    /// The first round was admitted, nobody drives it yet.
    pub fn new(bounds: Bounds) -> Self {
        let book = Book::new(Cast::new(bounds.hosts, u32::from(bounds.attempts).min(MOST_ATTEMPTS)));
        let first = book.enter(book.cast.push(0));
        let now = Now {
            rows: Rows::new(first, bounds.writes),
            hosts: [Host::new(); MOST_HOSTS],
            written: 0,
            keys: [0; MOST_ROWS],
            late_put: None,
            late_order: None,
            late_report: None,
            fence: Fence::None,
            taker: if bounds.taker { Taker::Waits } else { Taker::Gone },
            reader: Reader::Idle,
            latest: None,
            left: Left {
                restarts: bounds.restarts.min(MOST_INCARNATIONS - 1),
                unreachable: bounds.unreachable,
                puts: bounds.puts,
                late_orders: bounds.late_orders,
                late_reports: bounds.late_reports,
            },
            slip: None,
        };
        Self { set: Arc::new(Setting { book, bounds, met: Met::default() }), now }
    }

    /// Whether some state that was checked so far had this outcome.
    pub fn has_reached(&self, what: Reached) -> bool {
        self.set.met.has(what as u32)
    }

    /// Distinct rounds met so far, and distinct (round, event) pairs that the production code decided.
    pub fn distinct(&self) -> (usize, usize) {
        self.set.book.size()
    }

    fn entry(&self, page: Page) -> &Entry {
        self.set.book.entry(page)
    }

    fn row_entry(&self, round: u8) -> &Entry {
        self.entry(self.now.rows.row(round).page)
    }

    fn hosts(&self) -> std::ops::Range<u8> {
        0..self.set.bounds.hosts
    }

    fn active(&self) -> Option<u8> {
        self.now.rows.active(&self.set.book)
    }

    fn newest_standing(&self) -> Option<u8> {
        let commits = self.now.rows.rounds().filter(|&round| self.stands(round)).map(cast::commit_ref);
        let newest = newest_of(Generation::FIRST, None, commits)?;
        u8::try_from(newest.seq.get() - 1).ok()
    }

    /// Whether a commit stands at a round's key.
    fn stands(&self, round: u8) -> bool {
        let paper = self.now.keys[usize::from(round)];
        paper != 0 && self.set.book.document(paper).is_commit
    }

    const fn next_generation(&self) -> Next {
        match self.now.fence {
            Fence::None => Next::Absent,
            Fence::Only => Next::FenceOnly,
            Fence::Base(newest) => Next::Base(newest),
        }
    }

    fn counts(&self, round: u8) -> Counts {
        counts(Generation::FIRST, cast::seq(round), &self.next_generation().successor())
    }

    /// What the present attempt of a host is ordered.
    fn order_of(&self, driver: &Driver<Task>, host: u8) -> Order {
        let entry = self.entry(driver.page);
        let step = match &entry.round.kind {
            Kind::Push(push) => push.step.map_or(0, |step| u8::try_from(step.get()).unwrap_or(0)),
            Kind::Pull(_) => 0,
        };
        Order {
            host,
            process: entry.process(host),
            round: driver.round,
            attempt: entry.attempt(host),
            term: driver.term,
            what: What::Push(step),
        }
    }
}

impl World for Push {
    type Action = Act;

    fn actions(&self) -> Vec<Act> {
        self.possible()
    }

    fn after(&self, action: &Act) -> Self {
        let mut next = self.clone();
        next.apply(*action);
        next.tidy();
        next
    }

    fn check(&self) -> Result<(), String> {
        self.note();
        self.check_all()
    }

    fn is_goal(&self) -> bool {
        self.active().is_none() && (self.now.rows.admitted() == self.set.bounds.rounds || self.now.rows.pipeline_fenced)
    }

    fn describe(&self) -> String {
        self.line()
    }
}
