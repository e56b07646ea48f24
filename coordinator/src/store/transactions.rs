//! The seam under [`Store`](super::Store): each method is one transaction, or one statement, and says only what became of *that* one.
//!
//! What is made of an answer that was lost (R6) and who is told of a change stands above it, so it runs on whatever stands below: Postgres, or the
//! in-memory twin that simulations use.

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use lockstep_protocol::{
    commit::CommitRef,
    garbage::Retiring,
    id::{PipelineId, RequestId, RoundId, Term},
    problem::Problem,
    ready::Telling,
    round::CancelRequest,
    schedule::PushSchedule,
    takeover::TakeOver,
    upkeep::{Tally, Upkeep},
};
use tokio::sync::broadcast;
use uuid::Uuid;

use super::{
    Admission, Applied, AuditFilter, AuditRow, Caller, ClaimSettled, CollectionView, Created, DatabaseIdentity,
    DuePushes, DueStandbys, Listed, Marking, NewPipeline, Page, PipelineRow, PipelineSelector, RoundFilter,
    RoundRecord, StandbyRow, StoreError, TakeOverApplied, UpkeepApplied, Verification, VerificationsOf, VerifyBudget,
    apply,
    ask::Request,
    claims::{FenceOut, Settle},
    committed::Committed,
    differences::{Found, Note},
    drive::{Cancel, Claim, Progress},
    losses::{Accept, AcceptedLoss},
    ownership::{Delete, Update},
    ready::SaveTelling,
    schedules::SaveSchedule,
    schema::Schema,
    standbys::{SaveFollowState, Steer},
    take_overs, upkeep,
    verifications::{Keep, SettleMark},
    verify_budget::SaveBudget,
};

/// See the module's documentation. The methods of [`Store`](super::Store) say what each does.
#[async_trait]
pub(super) trait Transactions: fmt::Debug + Send + Sync + 'static {
    /// What stands there; a store without a schema is always of this version.
    async fn schema(&self) -> Result<Schema, StoreError> {
        Ok(Schema::present())
    }
    /// Makes the migrations that are missing in `before`.
    async fn migrate(&self, before: Schema) -> Result<(), Problem>;
    /// Whether a pooler stands in between, so that nobody listens.
    fn is_pooled(&self) -> bool {
        false
    }
    async fn close(&self);
    async fn identity(&self) -> Result<DatabaseIdentity, StoreError>;
    async fn now(&self) -> Result<DateTime<Utc>, StoreError>;

    async fn admit(&self, operation: &'static str, request: Request) -> Result<Admission, StoreError>;
    async fn claim_rounds(&self, claim: Claim) -> Result<Vec<RoundRecord>, StoreError>;
    async fn renew(&self, held: Vec<(RoundId, Term)>, lease: Duration) -> Result<Vec<RoundId>, StoreError>;
    async fn release(&self, held: Vec<(RoundId, Term)>, caller: Caller) -> Result<(), StoreError>;
    async fn apply(&self, change: Arc<apply::Change>) -> Result<Applied, StoreError>;
    /// What became of an `apply` whose answer was lost; none: not written.
    async fn look(&self, change: Arc<apply::Change>) -> Result<Option<Applied>, StoreError>;
    async fn request_cancel(&self, cancel: Cancel) -> Result<RoundRecord, StoreError>;
    async fn pending_cancels(&self, rounds: Vec<RoundId>) -> Result<Vec<(RoundId, CancelRequest)>, StoreError>;
    async fn save_progress(&self, progress: Progress) -> Result<bool, StoreError>;
    async fn get_round(&self, round: RoundId) -> Result<RoundRecord, StoreError>;
    async fn list_rounds(&self, filter: RoundFilter, page: Page) -> Result<Listed<RoundRecord>, StoreError>;
    async fn active_rounds(&self) -> Result<u64, StoreError>;
    async fn list_audit(&self, filter: AuditFilter, page: Page) -> Result<Listed<AuditRow>, StoreError>;

    async fn create_pipeline(&self, new: NewPipeline, caller: Caller) -> Result<Created, StoreError>;
    async fn get_pipeline(&self, selector: PipelineSelector) -> Result<PipelineRow, StoreError>;
    /// The row of this id, whether it was deleted or not; none: there never was one.
    async fn any_pipeline(&self, id: PipelineId) -> Result<Option<PipelineRow>, StoreError>;
    async fn list_pipelines(&self, page: Page) -> Result<Listed<PipelineRow>, StoreError>;
    async fn update_pipeline(&self, update: Update) -> Result<PipelineRow, StoreError>;
    async fn delete_pipeline(&self, delete: Delete) -> Result<PipelineId, StoreError>;
    async fn claim_claiming(&self, replica: String, lease: Duration) -> Result<Vec<PipelineRow>, StoreError>;
    async fn renew_claim(&self, id: PipelineId, term: Term, lease: Duration) -> Result<bool, StoreError>;
    async fn settle_claim(&self, settle: Settle) -> Result<ClaimSettled, StoreError>;
    /// The row after a `settle_claim` whose answer was lost.
    async fn look_at_claim(&self, id: PipelineId) -> Result<PipelineRow, StoreError>;

    async fn fence_out(&self, fence: FenceOut) -> Result<bool, StoreError>;

    async fn note_difference(&self, note: Note) -> Result<bool, StoreError>;
    async fn found_again(&self, found: Found) -> Result<bool, StoreError>;
    async fn accept_loss(&self, accept: Accept) -> Result<AcceptedLoss, StoreError>;
    async fn accepted_losses(&self, pipeline: PipelineId) -> Result<Vec<AcceptedLoss>, StoreError>;
    async fn committed(&self, pipeline: PipelineId) -> Result<Vec<Committed>, StoreError>;

    async fn due_pushes(&self, lease: Duration, at_most: u32) -> Result<DuePushes, StoreError>;
    async fn save_push_schedule(&self, save: SaveSchedule) -> Result<bool, StoreError>;
    async fn push_schedule(&self, id: PipelineId) -> Result<Option<PushSchedule>, StoreError>;

    async fn claim_words(&self, lease: Duration) -> Result<Vec<Telling>, StoreError>;
    async fn save_telling(&self, save: SaveTelling) -> Result<bool, StoreError>;
    async fn word_of(&self, id: PipelineId) -> Result<Option<Telling>, StoreError>;

    async fn due_standbys(&self, lease: Duration, at_most: u32) -> Result<DueStandbys, StoreError>;
    async fn save_follow_state(&self, save: SaveFollowState) -> Result<bool, StoreError>;
    async fn steer_standby(&self, steer: Steer) -> Result<PipelineRow, StoreError>;
    async fn standbys(&self, only: Option<PipelineId>) -> Result<Vec<StandbyRow>, StoreError>;

    async fn admit_take_over(&self, request: take_overs::Request) -> Result<TakeOver, StoreError>;
    async fn claim_take_overs(&self, replica: String, lease: Duration) -> Result<Vec<TakeOver>, StoreError>;
    async fn renew_take_over(&self, id: Uuid, term: Term, lease: Duration) -> Result<bool, StoreError>;
    async fn apply_take_over(&self, change: Arc<take_overs::Move>) -> Result<TakeOverApplied, StoreError>;
    async fn get_take_over(&self, id: Uuid) -> Result<TakeOver, StoreError>;
    async fn newest_take_over(&self, pipeline: PipelineSelector, only: Option<Uuid>) -> Result<TakeOver, StoreError>;

    async fn keep_verification(&self, keep: Keep) -> Result<Verification, StoreError>;
    async fn owed_marks(&self, lease: Duration) -> Result<Vec<Verification>, StoreError>;
    async fn settle_mark(&self, settle: SettleMark) -> Result<bool, StoreError>;
    async fn get_verification(&self, id: Uuid) -> Result<Verification, StoreError>;
    async fn claim_verify_budget(&self, replica: String, lease: Duration) -> Result<Option<VerifyBudget>, StoreError>;
    async fn renew_verify_budget(&self, replica: String, lease: Duration) -> Result<bool, StoreError>;
    async fn save_verify_budget(&self, save: SaveBudget) -> Result<bool, StoreError>;
    async fn verify_turn(&self) -> Result<Option<PipelineId>, StoreError>;
    async fn verifications(&self, of: VerificationsOf) -> Result<Vec<Verification>, StoreError>;

    async fn admit_upkeep(&self, request: upkeep::Request) -> Result<Upkeep, StoreError>;
    async fn claim_upkeep(&self, replica: String, lease: Duration, at_most: u32) -> Result<Vec<Upkeep>, StoreError>;
    async fn renew_upkeep(&self, id: Uuid, term: Term, lease: Duration, tally: Tally) -> Result<bool, StoreError>;
    async fn apply_upkeep(&self, change: Arc<upkeep::Move>) -> Result<UpkeepApplied, StoreError>;
    async fn get_upkeep(&self, id: Uuid) -> Result<Upkeep, StoreError>;
    async fn asked_upkeep(&self, pipeline: PipelineId, request_id: RequestId) -> Result<Option<Upkeep>, StoreError>;
    async fn last_collection(&self, pipeline: PipelineId) -> Result<Option<Upkeep>, StoreError>;
    async fn due_collections(&self, every: Duration, at_most: u32) -> Result<Vec<PipelineId>, StoreError>;

    async fn mark_retired(&self, marking: Marking) -> Result<Vec<Retiring>, StoreError>;
    async fn settle_retirement(&self, pipeline: PipelineId, commit: CommitRef, landed: bool) -> Result<(), StoreError>;
    async fn collection_view(
        &self,
        pipeline: PipelineId,
        rounds: BTreeSet<RoundId>,
    ) -> Result<CollectionView, StoreError>;

    /// Tells other replicas, best effort.
    async fn notify(&self, payloads: Vec<String>) -> Result<(), StoreError>;
    /// Passes on all payloads that are told, also by this replica itself, until that is not possible any more. An empty one: some may be missing.
    async fn follow(&self, heard: broadcast::Sender<String>) -> Result<(), StoreError>;
}
