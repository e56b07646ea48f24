//! Pull rounds of one pipeline: agents that restart, lose their disks after they had staged or installed (R20), are unreachable and obey late orders (R19); a
//! newer pull that supersedes one that is installing; replicas that pause, wake and lose answers.
//!
//! Hosts have a disk here: the local checkpoints that their engine would see, and what lies staged. What an agent does with them is played as
//! `agent/src/install.rs` does it, in two steps between which the process may die: made visible, then others removed.

use std::{
    hash::{Hash, Hasher},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use lockstep_protocol::{
    planted::{self, Bug},
    problem::Reason,
    round::{Effect, Kind, Phase},
};

use super::{
    agent::{Answered, Host, Order, State, Transfer, What},
    book::{Book, Entry, Page},
    cast::{Cast, MOST_HOSTS, MOST_INCARNATIONS},
    row::{Copy, Driver, MOST_ROWS, Rows, WriteFault},
    told::{Processes, Told, Trouble},
};
use crate::explore::World;

mod act;
mod check;
mod disk;

pub use super::told::From;
pub use act::Act;
use disk::Disk;

/// Attempts in `Installing` are not counted by the round; a host that got this far is not asked again, which no closed world comes to.
const MOST_ATTEMPTS: u8 = 9;

/// The step that hosts have on their disks in the beginning, beside an older one.
const LOCAL_STEP: u8 = 2;

/// How much of what may happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// 1 to 3.
    pub hosts: u8,
    /// Pulls that are admitted one after the other, 1 or 2: the second supersedes one that is installing. Where each comes from.
    pub sources: [From; MOST_ROWS],
    /// How many of `sources`.
    pub rounds: u8,
    /// Attempts of a host in a round before `Installing`.
    pub attempts: u8,
    /// Claims of one round; two replicas.
    pub claims: u8,
    /// Restarts of agents.
    pub restarts: u8,
    /// Restarts with an empty disk.
    pub lost_disks: u8,
    /// Times that an agent counts as unreachable though it may be at work.
    pub unreachable: u8,
    /// Database writes that are not executed, executed late, or whose answer is lost.
    pub writes: u8,
    /// Orders that arrive late, once more.
    pub late_orders: u8,
    /// Times that the owner of the location retires what is pulled: a newer one is there, and of the retired one something may be gone.
    pub retired: u8,
    /// Somebody asks for a cancel.
    pub cancel: bool,
    /// The deadline may pass.
    pub deadline: bool,
}

impl Bounds {
    /// Nothing goes wrong.
    pub const CALM: Self = Self {
        hosts: 2,
        sources: [From::Location; MOST_ROWS],
        rounds: 1,
        attempts: 2,
        claims: 2,
        restarts: 0,
        lost_disks: 0,
        unreachable: 0,
        writes: 0,
        late_orders: 0,
        retired: 0,
        cancel: false,
        deadline: false,
    };
}

/// An outcome that a world can come to, for the test that no world is empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Reached {
    /// A round is installed.
    Installed = 1,
    /// A round is cancelled.
    Cancelled = 2,
    /// A round failed, superseded or not.
    Failed = 4,
    /// A round was superseded.
    Superseded = 8,
    /// The second round is installed.
    Second = 16,
    /// A host pulls again while others install or have installed.
    PulledAgain = 32,
    /// A host that had installed is found to be another process.
    NotConfirmed = 64,
    /// Attempts met the model's own bound: the world is not what it says.
    Capped = 128,
    /// A round is installed that had to choose another checkpoint, since the first one was retired.
    ChosenAnew = 256,
}

#[derive(Debug)]
struct Setting {
    book: Book,
    bounds: Bounds,
    reached: AtomicU32,
}

/// What a driver is about to do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Task {
    None,
    /// Hosts are described once more, in any order; `torn`: one of them had not what this round installs when it was asked.
    Confirming {
        asked: u8,
        processes: Processes,
        torn: bool,
    },
    /// An event that is not decided on yet.
    Tell {
        told: Told,
        torn: bool,
    },
}

impl Task {
    const fn tell(told: Told) -> Self {
        Self::Tell { told, torn: false }
    }
}

/// What is left of the bounds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Left {
    restarts: u8,
    lost_disks: u8,
    unreachable: u8,
    late_orders: u8,
    retired: u8,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Now {
    rows: Rows<Task>,
    hosts: [Host; MOST_HOSTS],
    disks: [Disk; MOST_HOSTS],
    late_order: Option<Order>,
    left: Left,
    /// Rounds that have changed what an engine would see, one bit each.
    touched: u8,
    /// A round became `Installed` though a host was seen without its checkpoint.
    torn: bool,
    /// An agent was asked for the end of an attempt that was for another checkpoint.
    mixed: bool,
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct Pull {
    set: Arc<Setting>,
    now: Now,
}

impl Hash for Pull {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.now.hash(state);
    }
}

impl Pull {
    /// The first pull was admitted, nobody drives it yet.
    pub fn new(bounds: Bounds) -> Self {
        let book = Book::new(Cast::new(bounds.hosts, bounds.attempts.into()));
        let first = book.enter(book.cast.pull(0));
        let now = Now {
            rows: Rows::new(first, bounds.writes),
            hosts: [Host::new(); MOST_HOSTS],
            disks: [Disk::with(&[LOCAL_STEP - 1, LOCAL_STEP]); MOST_HOSTS],
            late_order: None,
            left: Left {
                restarts: bounds.restarts,
                lost_disks: bounds.lost_disks,
                unreachable: bounds.unreachable,
                late_orders: bounds.late_orders,
                retired: bounds.retired,
            },
            touched: 0,
            torn: false,
            mixed: false,
        };
        Self { set: Arc::new(Setting { book, bounds, reached: AtomicU32::new(0) }), now }
    }

    /// Whether some state that was checked so far had this outcome.
    pub fn has_reached(&self, what: Reached) -> bool {
        self.set.reached.load(Ordering::Relaxed) & what as u32 != 0
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

    /// What a round shall install, once it is resolved.
    fn step_of(entry: &Entry) -> u8 {
        let Kind::Pull(pull) = &entry.round.kind else { return 0 };
        let step = pull.resolved.as_ref().and_then(|resolved| resolved.step);
        step.map_or(0, |step| u8::try_from(step.get()).unwrap_or(0))
    }

    /// The newest commit of the location that a round may choose.
    fn newest(&self, round: u8) -> u8 {
        LOCAL_STEP + 1 + round + self.retirements()
    }

    fn retirements(&self) -> u8 {
        self.set.bounds.retired - self.now.left.retired
    }

    /// Whether the commit of this step has a tombstone.
    fn is_retired(&self, round: u8, step: u8) -> bool {
        self.retirements() > 0 && (LOCAL_STEP..self.newest(round)).contains(&step)
    }

    fn order(driver: &Driver<Task>, entry: &Entry, host: u8, install: bool) -> Order {
        let step = Self::step_of(entry);
        Order {
            host,
            process: entry.process(host),
            round: driver.round,
            attempt: entry.attempt(host),
            term: driver.term,
            what: if install { What::Install(step) } else { What::Pull(step) },
        }
    }
}

impl World for Pull {
    type Action = Act;

    fn actions(&self) -> Vec<Act> {
        self.possible()
    }

    fn after(&self, action: &Act) -> Self {
        let mut next = self.clone();
        next.apply(*action);
        next.now.rows.tidy(&next.set.book);
        next
    }

    fn check(&self) -> Result<(), String> {
        self.note();
        self.check_all()
    }

    fn is_goal(&self) -> bool {
        self.now.rows.active(&self.set.book).is_none() && self.now.rows.admitted() == self.set.bounds.rounds
    }

    fn describe(&self) -> String {
        self.line()
    }
}
