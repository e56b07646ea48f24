//! All state of the coordinator, in Postgres, and all SQL.
//!
//! - Every write to a round repeats id, version and term; zero rows is [`Applied::Moved`], never an error and never a retry (S6).
//! - What belongs together is one transaction: a decision with its audit trail and with what the pipeline learns from it.
//! - Times are the database's (`clock_timestamp()`), so that replicas with wrong clocks agree on deadlines and leases.
//! - Each method runs in a task of its own (`pool`): a caller may be dropped at any time. A lost answer to a COMMIT is
//!   [`StoreError::UnknownOutcome`]; where the store can find out by itself what became of it, it does (R6).
//!
//! The methods of [`Store`] say what is made of one transaction's outcome, lost answers included; `transactions` is the seam below them, `postgres` what
//! stands there in production.
//!
//! Modules: `pipeline` and `record` are the values; `ownership` creates pipelines, `claims` claims their
//! locations, `differences` notes where these and the database disagree, `committed` what is taken to stand there, `losses` what was given up, `pipelines` reads them; `admit` makes rounds from what is `ask`ed, `apply` moves them, `drive` is for the replica that drives one, `list` and `audit` for those who look;
//! `rows` and `text` translate; `sqlstate` is the one table of database errors; `changes` are hints to look sooner;
//! `ready` is what hosts are told after a pull, `schedules` when pipelines are pushed by themselves, `standbys` what those follow that own nothing, `take_overs` how they get locations that somebody owned, `learnt` the rounds that they know again by one, `upkeep` what is kept, retired and deleted there, with the marks in `retirements`, `verifications` what was found in them, `verify_budget` how much is re-read; `endpoint` is what a URL leads to, `pool` and `session` are how a connection is used,
//! `schema` is what stands in the database.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use lockstep_protocol::{
    id::{RoundId, Term},
    problem::Problem,
    ready::gives_word,
    round::{CancelRequest, Decision, Round},
};

use crate::chance;

mod admit;
mod apply;
mod ask;
mod audit;
mod changes;
mod claims;
mod committed;
mod differences;
mod drive;
mod endpoint;
mod fail_back;
mod identity;
mod learnt;
mod list;
mod losses;
#[cfg(debug_assertions)]
pub mod memory;
mod ownership;
mod pipeline;
mod pipeline_calls;
mod pipelines;
mod pool;
mod postgres;
mod ready;
mod record;
mod retirements;
mod rows;
mod schedules;
mod schema;
mod session;
mod sqlstate;
mod standbys;
mod take_over_cancels;
mod take_overs;
mod text;
mod transactions;
mod upkeep;
mod verifications;
mod verify_budget;

pub use admit::check_pushes;
pub use changes::{Change, Changes};
pub use committed::Committed;
pub use differences::{Difference, not_collected, refuse_behind, refuse_lost};
pub use endpoint::Pooler;
pub use fail_back::is_no_standby;
pub use identity::{DatabaseIdentity, another_database, is_foreign};
pub use learnt::Learnt;
pub use losses::{AcceptLoss, AcceptedLoss};
pub use pipeline::{
    ClaimOutcome, ClaimSettled, ClaimState, Created, LastCommit, Loss, NewPipeline, PipelineRow, PipelineSelector,
};
pub use pool::StoreOptions;
pub use record::{
    Admission, AdmitPull, AdmitPush, Applied, AuditFilter, AuditRow, Caller, FoundCut, HostProgress, Listed, Page,
    RoundFilter, RoundKind, RoundRecord, Trigger,
};
pub use retirements::{CollectionView, Marking};
pub use schedules::{DuePush, DuePushes};
pub use schema::Schema;
pub use sqlstate::StoreError;
pub use standbys::{DueStandby, DueStandbys, StandbyRow};
pub use take_overs::{AdmitTakeOver, Adoption, TakeOverApplied};
pub use upkeep::{AdmitUpkeep, UpkeepApplied};
pub use verifications::{Finding, Verification, VerificationsOf};
pub use verify_budget::{UnderWay, VerifyBudget};

use ask::{Ask, Request};
use changes::{Hints, Reach};
use drive::{Cancel, Claim, Progress};
use pool::Database;
use transactions::Transactions;

/// The database. Clones share one pool.
#[derive(Clone, Debug)]
pub struct Store {
    database: Arc<dyn Transactions>,
    hints: Arc<Hints>,
}

impl Store {
    /// Connects once to see that the server is there. `DATABASE_UNAVAILABLE` names host, port and database, never the password.
    ///
    /// Must be called inside a tokio runtime: it starts the tasks that send and receive hints.
    pub async fn connect(url: &str, options: StoreOptions) -> Result<Self, Problem> {
        Self::connect_around(url, None, options).await
    }

    /// The same where a pooler stands at `url`: `direct` leads around it to the same database, for LISTEN and migrations. With neither a direct way
    /// nor a server at `url`, changes of other replicas are found by polling only, and [`Store::migrate`] refuses where it has something to do.
    pub async fn connect_around(url: &str, direct: Option<&str>, options: StoreOptions) -> Result<Self, Problem> {
        Ok(Self::over(Arc::new(Database::connect(url, direct, &options).await?)))
    }

    fn over(database: Arc<dyn Transactions>) -> Self {
        let hints = Arc::new(Hints::start(&database));
        Self { database, hints }
    }

    /// Which database this is; read each time, since a fail-over may have changed it.
    pub async fn identity(&self) -> Result<DatabaseIdentity, StoreError> {
        self.database.identity().await
    }

    /// The database's clock.
    pub async fn now(&self) -> Result<DateTime<Utc>, StoreError> {
        self.database.now().await
    }

    /// Closes the pool after the calls that are under way.
    pub async fn close(&self) {
        self.database.close().await;
    }

    /// Hints that something changed, here or at another replica. Subscribe before looking.
    pub fn changes(&self) -> Changes {
        self.hints.subscribe()
    }

    // ---- rounds: admission

    /// Push step 1. `REQUEST_ID_REUSED`, `ROUND_IN_PROGRESS`, `FENCED`, `NOT_OWNER`.
    pub async fn admit_push(&self, push: AdmitPush, caller: &Caller) -> Result<Admission, StoreError> {
        self.admit("admit_push", Ask::Push(push), caller).await
    }

    /// Admits a pull; one that is installing is superseded in the same transaction. `REQUEST_ID_REUSED`, `ROUND_IN_PROGRESS`, `FENCED`.
    pub async fn admit_pull(&self, pull: AdmitPull, caller: &Caller) -> Result<Admission, StoreError> {
        self.admit("admit_pull", Ask::Pull(pull), caller).await
    }

    async fn admit(&self, operation: &'static str, ask: Ask, caller: &Caller) -> Result<Admission, StoreError> {
        let request = Request { ask, round: RoundId::new(chance::id()), caller: caller.clone() };
        let admission = settle_twice(|| self.database.admit(operation, request.clone())).await?;
        if let Admission::New(record) = &admission {
            self.hints.tell(Change::Pipeline(record.round.pipeline), Reach::Here);
            self.hints.tell(Change::RoundWaits, Reach::Everywhere);
        }
        Ok(admission)
    }

    // ---- rounds: driving

    /// Takes over one round that nobody drives, the oldest; its term and version rise.
    pub async fn claim_round(&self, replica: &str, lease: Duration) -> Result<Option<RoundRecord>, StoreError> {
        Ok(self.claim_rounds(replica, lease, 1).await?.pop())
    }

    /// Takes over up to `at_most` rounds that nobody drives, in one transaction.
    pub async fn claim_rounds(
        &self,
        replica: &str,
        lease: Duration,
        at_most: u32,
    ) -> Result<Vec<RoundRecord>, StoreError> {
        let claim = Claim { replica: replica.to_owned(), lease, at_most };
        self.database.claim_rounds(claim).await
    }

    /// False: somebody else has claimed the round, or it has ended.
    pub async fn renew(&self, round: RoundId, term: Term, lease: Duration) -> Result<bool, StoreError> {
        Ok(!self.renew_all(vec![(round, term)], lease).await?.is_empty())
    }

    /// Prolongs many leases in one transaction; returns those that are still held.
    pub async fn renew_all(&self, held: Vec<(RoundId, Term)>, lease: Duration) -> Result<Vec<RoundId>, StoreError> {
        self.database.renew(held, lease).await
    }

    /// Hands a round back, for others to claim at once.
    pub async fn release(&self, round: RoundId, term: Term, caller: &Caller) -> Result<(), StoreError> {
        self.release_all(vec![(round, term)], caller).await
    }

    /// Hands rounds back in one transaction.
    pub async fn release_all(&self, held: Vec<(RoundId, Term)>, caller: &Caller) -> Result<(), StoreError> {
        self.database.release(held, caller.clone()).await?;
        self.hints.tell(Change::RoundWaits, Reach::Everywhere);
        Ok(())
    }

    /// Stores a decision on exactly the round it was taken on. Several events may be decided one after the other and stored as one: `decision.next` from
    /// the last, transitions of all. A lost answer is looked up; [`StoreError::UnknownOutcome`] means that even that was not possible.
    pub async fn apply(&self, before: &Round, decision: &Decision, caller: &Caller) -> Result<Applied, StoreError> {
        if !decision.changes(before) && decision.transitions.is_empty() {
            return Ok(Applied::Stored(before.clone()));
        }
        Box::pin(self.apply_change(before, decision, caller, false)).await
    }

    /// The same for what a base has decided: also where another database wrote the pipeline's row, whose rounds nobody else writes (R13).
    pub async fn apply_settled(
        &self,
        before: &Round,
        decision: &Decision,
        caller: &Caller,
    ) -> Result<Applied, StoreError> {
        Box::pin(self.apply_change(before, decision, caller, true)).await
    }

    async fn apply_change(
        &self,
        before: &Round,
        decision: &Decision,
        caller: &Caller,
        settles: bool,
    ) -> Result<Applied, StoreError> {
        let (before, decision) = (before.clone(), decision.clone());
        let change = Arc::new(apply::Change { before, decision, caller: caller.clone(), settles });
        let applied = match self.database.apply(Arc::clone(&change)).await {
            Err(StoreError::UnknownOutcome(problem)) => {
                let look = || self.database.look(Arc::clone(&change));
                let again = || self.database.apply(Arc::clone(&change));
                look_and_apply(problem, look, again, |applied| *applied == Applied::Moved).await?
            }
            applied => applied?,
        };
        if let Applied::Stored(round) = &applied {
            if round.phase.is_terminal() {
                self.hints.tell(Change::Ended(round.id), Reach::Everywhere);
                self.hints.tell(Change::Pipeline(round.pipeline), Reach::Here);
                if gives_word(round) {
                    self.hints.tell(Change::ClaimWaits, Reach::Everywhere);
                }
            } else {
                self.hints.tell(Change::Round(round.id), Reach::Here);
            }
        }
        Ok(applied)
    }

    /// Asks the replica that drives the round to stop it. `ROUND_NOT_FOUND`, `ROUND_NOT_CANCELLABLE`. The first request counts.
    pub async fn request_cancel(
        &self,
        round: RoundId,
        request: CancelRequest,
        caller: &Caller,
    ) -> Result<RoundRecord, StoreError> {
        let cancel = Cancel { round, request, caller: caller.clone() };
        let record = settle_twice(|| self.database.request_cancel(cancel.clone())).await?;
        self.hints.tell(Change::Cancel(round), Reach::Everywhere);
        Ok(record)
    }

    /// Which of these rounds somebody has asked to stop.
    pub async fn pending_cancels(&self, rounds: Vec<RoundId>) -> Result<Vec<(RoundId, CancelRequest)>, StoreError> {
        self.database.pending_cancels(rounds).await
    }

    /// For people who watch. False: the term is not current or the round has ended; nothing was written.
    pub async fn save_progress(&self, round: RoundId, term: Term, hosts: &[HostProgress]) -> Result<bool, StoreError> {
        let progress = Progress { round, term, hosts: hosts.to_vec() };
        let current = self.database.save_progress(progress).await?;
        if current {
            self.hints.tell(Change::Round(round), Reach::Here);
        }
        Ok(current)
    }

    // ---- rounds: looking

    /// `ROUND_NOT_FOUND`.
    pub async fn get_round(&self, id: RoundId) -> Result<RoundRecord, StoreError> {
        self.database.get_round(id).await
    }

    /// Newest first.
    pub async fn list_rounds(&self, filter: RoundFilter, page: Page) -> Result<Listed<RoundRecord>, StoreError> {
        self.database.list_rounds(filter, page).await
    }

    /// How many rounds have not ended.
    pub async fn active_rounds(&self) -> Result<u64, StoreError> {
        self.database.active_rounds().await
    }

    /// Oldest first.
    pub async fn list_audit(&self, filter: AuditFilter, page: Page) -> Result<Listed<AuditRow>, StoreError> {
        self.database.list_audit(filter, page).await
    }
}

/// For transactions that find their own work if they ran before: after a lost answer they simply run again.
async fn settle_twice<T, F>(run: impl Fn() -> F + Send) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>> + Send,
{
    match run().await {
        Err(StoreError::UnknownOutcome(first)) => run().await.map_err(|error| match error {
            // Still in the dark: what the first run did is as unknown as before.
            StoreError::Unavailable(_) => StoreError::UnknownOutcome(first),
            error => error,
        }),
        outcome => outcome,
    }
}

/// For guarded writes whose answer was lost. The first run may be on its way still: as long as no second one is known to have replaced it, what it does is unknown.
///
/// `look` tells what became of the write; none: it was not made.
async fn look_and_apply<T, L, A>(
    lost: Problem,
    look: impl Fn() -> L + Send,
    again: impl Fn() -> A + Send,
    moved: impl Fn(&T) -> bool + Send,
) -> Result<T, StoreError>
where
    L: Future<Output = Result<Option<T>, StoreError>> + Send,
    A: Future<Output = Result<T, StoreError>> + Send,
{
    match look().await {
        Ok(Some(applied)) => return Ok(applied),
        Ok(None) => {}
        Err(_) => return Err(StoreError::UnknownOutcome(lost)),
    }
    match again().await {
        // Perhaps moved by the first run, which landed since the look.
        Ok(applied) if moved(&applied) => match look().await {
            Ok(Some(applied)) => Ok(applied),
            Ok(None) | Err(_) => Err(StoreError::UnknownOutcome(lost)),
        },
        Err(StoreError::Unavailable(_)) => Err(StoreError::UnknownOutcome(lost)),
        applied => applied,
    }
}
