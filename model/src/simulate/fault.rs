//! What goes wrong. Each seed has its own selection: a run in which everything fails all the time gets nowhere near the rare interleavings.

use rand::Rng;

use super::dice::Dice;

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $least:literal .. $most:literal;)*) => {
        /// One way in which things go wrong, or in which somebody gets in the way.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Fault {
            $($(#[$doc])* $name,)*
        }

        impl Fault {
            /// Every class.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// For tables.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// Between which rates, in thousandths of the occasions, a seed that has this class draws its own.
            const fn rates(self) -> (u32, u32) {
                match self { $(Self::$name => ($least, $most),)* }
            }
        }
    };
}

faults! {
    /// S3 answers 503 and has done nothing.
    StoreRefuses = "s3 refuses", 5..150;
    /// A request to S3 is lost.
    StoreRequestLost = "s3 request lost", 5..100;
    /// S3 has done it, the answer is lost.
    StoreAnswerLost = "s3 answer lost", 5..150;
    /// A request to S3 is done long after the caller has given up.
    StoreLate = "s3 request lands late", 5..100;
    /// A request to S3 is done, and done again later.
    StoreTwice = "s3 request done twice", 5..150;
    /// S3 answers 403.
    StoreForbids = "s3 forbids", 2..50;
    /// The database is not there; nothing was done.
    DatabaseAway = "database away", 5..100;
    /// A transaction never arrives, and nobody knows.
    DatabaseRequestLost = "database request lost", 5..80;
    /// A transaction is committed, the answer is lost.
    DatabaseAnswerLost = "database answer lost", 5..150;
    /// A transaction is committed long after its sender has given up.
    DatabaseLate = "database commit lands late", 5..80;
    /// A call to an agent is lost.
    CallLost = "call lost", 5..200;
    /// An agent's answer is lost.
    CallAnswerLost = "call's answer lost", 5..200;
    /// A call arrives long after the caller has given up.
    CallLate = "call arrives late", 5..150;
    /// A call arrives twice.
    CallTwice = "call arrives twice", 5..300;
    /// An agent restarts at once.
    AgentRestart = "agent restarts", 10..120;
    /// An agent is gone for longer than the coordinator's patience.
    AgentAway = "agent away", 5..60;
    /// A host comes back with an empty disk.
    DiskLost = "disk lost", 5..60;
    /// No call reaches a host for a while.
    HostCutOff = "host cut off", 5..80;
    /// An effect is carried out once more, late, for a round that may have moved on.
    EffectAgain = "effect carried out again", 20..300;
    /// A replica is killed.
    ReplicaKilled = "replica killed", 10..120;
    /// A replica stands still for longer than its lease.
    ReplicaPaused = "replica paused", 10..120;
    /// A replica hands its rounds back.
    ReplicaReleases = "replica hands back", 5..60;
    /// Somebody cancels a round.
    Cancel = "cancel", 50..400;
    /// A newer pull comes while one installs.
    Supersede = "supersede", 100..600;
    /// A round has next to no time.
    ShortDeadline = "short deadline", 50..300;
    /// A request is sent again with the same id.
    RequestAgain = "request repeated", 50..400;
    /// A request comes while a round is active.
    RequestInBetween = "request in between", 50..400;
}

/// The faults of one seed.
#[derive(Debug)]
pub(super) struct Faults {
    /// In thousandths, by class.
    rates: Vec<u32>,
    /// How often each was met.
    pub(super) met: Vec<u32>,
    pub(super) over: bool,
}

impl Faults {
    /// A third of the classes, each at a rate of its own.
    pub(super) fn draw(rng: &mut Dice) -> Self {
        let rates = Fault::ALL.iter().map(|fault| {
            let (least, most) = fault.rates();
            if rng.random_ratio(2, 5) { rng.random_range(least..most) } else { 0 }
        });
        Self { rates: rates.collect(), met: vec![0; Fault::ALL.len()], over: false }
    }

    /// Whether it happens on this occasion.
    pub(super) fn happens(&mut self, fault: Fault, rng: &mut Dice) -> bool {
        let rate = self.rates.get(fault as usize).copied().unwrap_or(0);
        let happens = !self.over && rate > 0 && rng.random_ratio(rate, 1000);
        if happens && let Some(met) = self.met.get_mut(fault as usize) {
            *met += 1;
        }
        happens
    }
}
