//! One host's agent as far as rounds can tell: what it was started with, the highest order it persisted, the one transfer it knows of
//! (`agent/src/admission.rs`, `register.rs`). Every order passes the production checks.

use lockstep_protocol::{
    order::{Admission, KnownTransfer, OrderHeader, admit, check_identity, check_mark},
    problem::Reason,
};

use super::cast::{self, Cast};

/// An order as it travels.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Order {
    pub(super) host: u8,
    /// The incarnation it is for.
    pub(super) process: u8,
    pub(super) round: u8,
    pub(super) attempt: u8,
    pub(super) term: u8,
    pub(super) what: What,
}

/// What is ordered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum What {
    /// This step to S3.
    Push(u8),
    /// This step from S3.
    Pull(u8),
    /// This step is the only one.
    Install(u8),
}

impl What {
    pub(super) const fn step(self) -> u8 {
        match self {
            Self::Push(step) | Self::Pull(step) | Self::Install(step) => step,
        }
    }
}

/// Where the known transfer stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum State {
    Running,
    /// Asked to stop; it may come to its end before it hears.
    Stopping,
    /// Push: the part stands. Pull: staged.
    Done,
    /// Made visible, others not removed yet.
    Installing,
    /// The only one.
    Installed,
    Failed,
    /// An install that found nothing to install.
    NotFound,
    /// A pull that found something of its source missing.
    Gone,
}

impl State {
    pub(super) const fn is_running(self) -> bool {
        matches!(self, Self::Running | Self::Stopping | Self::Installing)
    }
}

/// The one transfer that a process knows of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Transfer {
    pub(super) round: u8,
    pub(super) attempt: u8,
    pub(super) process: u8,
    pub(super) what: What,
    pub(super) state: State,
}

/// A host.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Host {
    pub(super) process: u8,
    /// (round, term); survives restarts.
    pub(super) mark: Option<(u8, u8)>,
    pub(super) known: Option<Transfer>,
}

/// What an order was answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Answered {
    Refused(Reason),
    /// Accepted anew.
    Started,
    /// The same (round, attempt) is known.
    Known(Transfer),
}

impl Host {
    pub(super) const fn new() -> Self {
        Self { process: 1, mark: None, known: None }
    }

    /// Another process in the same place, with the same disk.
    pub(super) const fn restart(&mut self) {
        self.process += 1;
        self.known = None;
    }

    fn header(cast: &Cast, order: &Order) -> OrderHeader {
        cast.header(order.host, order.process, order.round, order.attempt, order.term)
    }

    /// The gate and the admission. A new transfer has to be begun by the caller.
    pub(super) fn order(&mut self, cast: &Cast, order: &Order) -> Answered {
        let header = Self::header(cast, order);
        let checked = check_identity(&header, cast.identity(order.host, self.process), &[cast.own_location()])
            .and_then(|()| check_mark(&header, cast::mark(self.mark)));
        if let Err(problem) = checked {
            return Answered::Refused(problem.reason);
        }
        let known = self.known.map(|known| KnownTransfer {
            round: cast::round_id(known.round),
            attempt: cast::attempt_no(known.attempt),
            running: known.state.is_running(),
        });
        match (admit(&header, known), self.known) {
            (Admission::Refuse(problem), _) => Answered::Refused(problem.reason),
            (Admission::Known, Some(known)) => {
                self.raise(order);
                Answered::Known(known)
            }
            (Admission::CancelRunning(problem), Some(mut known)) => {
                self.raise(order);
                if known.state == State::Running {
                    known.state = State::Stopping;
                }
                self.known = Some(known);
                Answered::Refused(problem.reason)
            }
            (Admission::Start | Admission::Known | Admission::CancelRunning(_), _) => {
                self.raise(order);
                Answered::Started
            }
        }
    }

    pub(super) fn begin(&mut self, order: &Order, state: State) {
        self.known = Some(Transfer {
            round: order.round,
            attempt: order.attempt,
            // As `agent/src/push.rs`: keys carry the incarnation that the order names.
            process: order.process,
            what: order.what,
            state,
        });
    }

    fn raise(&mut self, order: &Order) {
        self.mark = self.mark.max(Some((order.round, order.term)));
    }
}
