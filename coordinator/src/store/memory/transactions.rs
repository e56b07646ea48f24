//! Every transaction of a store, carried out on the twin's tables. Nothing but what goes where: what each does stands in the module of its table.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

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

use super::{link::Link, tables::Tables};
use crate::store::{
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
    pool::Access,
    ready::SaveTelling,
    schedules::SaveSchedule,
    schema::Schema,
    standbys::{SaveFollowState, Steer},
    take_overs as take_overs_of,
    transactions::Transactions,
    upkeep as upkeep_of,
    verifications::{Keep, SettleMark},
    verify_budget::SaveBudget,
};

#[async_trait]
impl Transactions for Link {
    async fn migrate(&self, _: Schema) -> Result<(), Problem> {
        Ok(())
    }

    async fn close(&self) {}

    async fn identity(&self) -> Result<DatabaseIdentity, StoreError> {
        self.run("identity", Access::Read, |tables, _| Ok(tables.identity.clone())).await
    }

    async fn now(&self) -> Result<DateTime<Utc>, StoreError> {
        self.run("now", Access::Read, |_, now| Ok(now)).await
    }

    async fn admit(&self, operation: &'static str, request: Request) -> Result<Admission, StoreError> {
        self.run(operation, Access::Write, move |tables, now| tables.admit(&request, now)).await
    }

    async fn claim_rounds(&self, claim: Claim) -> Result<Vec<RoundRecord>, StoreError> {
        self.run("claim_rounds", Access::Write, move |tables, now| Ok(tables.claim(&claim, now))).await
    }

    async fn renew(&self, held: Vec<(RoundId, Term)>, lease: Duration) -> Result<Vec<RoundId>, StoreError> {
        self.run("renew", Access::Write, move |tables, now| Ok(tables.renew(&held, lease, now))).await
    }

    async fn release(&self, held: Vec<(RoundId, Term)>, caller: Caller) -> Result<(), StoreError> {
        self.run("release", Access::Write, move |tables, now| {
            tables.release(&held, &caller, now);
            Ok(())
        })
        .await
    }

    async fn apply(&self, change: Arc<apply::Change>) -> Result<Applied, StoreError> {
        self.run("apply", Access::Write, move |tables, now| tables.apply(&change, now)).await
    }

    async fn look(&self, change: Arc<apply::Change>) -> Result<Option<Applied>, StoreError> {
        self.run("look", Access::Read, move |tables, _| Ok(tables.look(&change))).await
    }

    async fn request_cancel(&self, cancel: Cancel) -> Result<RoundRecord, StoreError> {
        self.run("request_cancel", Access::Write, move |tables, now| tables.request_cancel(&cancel, now)).await
    }

    async fn pending_cancels(&self, rounds: Vec<RoundId>) -> Result<Vec<(RoundId, CancelRequest)>, StoreError> {
        self.run("pending_cancels", Access::Read, move |tables, _| {
            let request = |id: &RoundId| Some((*id, tables.rounds.get(id)?.record.cancel_requested.clone()?));
            Ok(rounds.iter().filter_map(request).collect())
        })
        .await
    }

    async fn save_progress(&self, progress: Progress) -> Result<bool, StoreError> {
        self.run("save_progress", Access::Write, move |tables, _| Ok(tables.save_progress(&progress))).await
    }

    async fn get_round(&self, round: RoundId) -> Result<RoundRecord, StoreError> {
        self.run("get_round", Access::Read, move |tables, _| tables.get_round(round)).await
    }

    async fn list_rounds(&self, filter: RoundFilter, page: Page) -> Result<Listed<RoundRecord>, StoreError> {
        self.run("list_rounds", Access::Read, move |tables, _| tables.list_rounds(&filter, &page)).await
    }

    async fn active_rounds(&self) -> Result<u64, StoreError> {
        self.run("active_rounds", Access::Read, |tables, _| {
            let active = tables.rounds.values().filter(|stored| stored.record.ended_at.is_none()).count();
            Ok(u64::try_from(active).unwrap_or(u64::MAX))
        })
        .await
    }

    async fn list_audit(&self, filter: AuditFilter, page: Page) -> Result<Listed<AuditRow>, StoreError> {
        self.run("list_audit", Access::Read, move |tables, _| tables.list_audit(&filter, &page)).await
    }

    async fn create_pipeline(&self, new: NewPipeline, caller: Caller) -> Result<Created, StoreError> {
        self.run("create_pipeline", Access::Write, move |tables, now| tables.create_pipeline(&new, &caller, now)).await
    }

    async fn get_pipeline(&self, selector: PipelineSelector) -> Result<PipelineRow, StoreError> {
        self.run("get_pipeline", Access::Read, move |tables, _| tables.shown_pipeline(&selector)).await
    }

    async fn any_pipeline(&self, id: PipelineId) -> Result<Option<PipelineRow>, StoreError> {
        self.run("any_pipeline", Access::Read, move |tables, _| Ok(tables.any_pipeline(id).ok())).await
    }

    async fn list_pipelines(&self, page: Page) -> Result<Listed<PipelineRow>, StoreError> {
        self.run("list_pipelines", Access::Read, move |tables, _| tables.list_pipelines(&page)).await
    }

    async fn update_pipeline(&self, update: Update) -> Result<PipelineRow, StoreError> {
        self.run("update_pipeline", Access::Write, move |tables, now| tables.update_pipeline(&update, now)).await
    }

    async fn delete_pipeline(&self, delete: Delete) -> Result<PipelineId, StoreError> {
        self.run("delete_pipeline", Access::Write, move |tables, now| tables.delete_pipeline(&delete, now)).await
    }

    async fn claim_claiming(&self, _: String, lease: Duration) -> Result<Vec<PipelineRow>, StoreError> {
        self.run("claim_claiming", Access::Write, move |tables, now| Ok(tables.claim_claiming(lease, now))).await
    }

    async fn renew_claim(&self, id: PipelineId, term: Term, lease: Duration) -> Result<bool, StoreError> {
        self.run("renew_claim", Access::Write, move |tables, now| Ok(tables.renew_claim(id, term, lease, now))).await
    }

    async fn settle_claim(&self, settle: Settle) -> Result<ClaimSettled, StoreError> {
        self.run("settle_claim", Access::Write, move |tables, now| tables.settle_claim(&settle, now)).await
    }

    async fn look_at_claim(&self, id: PipelineId) -> Result<PipelineRow, StoreError> {
        self.run("settle_claim", Access::Read, move |tables, _| tables.any_pipeline(id)).await
    }

    async fn due_pushes(&self, lease: Duration, at_most: u32) -> Result<DuePushes, StoreError> {
        self.run("due_pushes", Access::Write, move |tables, now| Ok(tables.due_pushes(lease, at_most, now))).await
    }

    async fn save_push_schedule(&self, save: SaveSchedule) -> Result<bool, StoreError> {
        self.run("save_push_schedule", Access::Write, move |tables, _| tables.save_push_schedule(&save)).await
    }

    async fn push_schedule(&self, id: PipelineId) -> Result<Option<PushSchedule>, StoreError> {
        self.run("push_schedule", Access::Read, move |tables, _| Ok(tables.push_schedule(id))).await
    }

    async fn claim_words(&self, lease: Duration) -> Result<Vec<Telling>, StoreError> {
        self.run("claim_words", Access::Write, move |tables, now| Ok(tables.claim_words(lease, now))).await
    }

    async fn save_telling(&self, save: SaveTelling) -> Result<bool, StoreError> {
        self.run("save_telling", Access::Write, move |tables, _| tables.save_telling(&save)).await
    }

    async fn word_of(&self, id: PipelineId) -> Result<Option<Telling>, StoreError> {
        self.run("word_of", Access::Read, move |tables, _| Ok(tables.word_of(id))).await
    }

    async fn due_standbys(&self, lease: Duration, at_most: u32) -> Result<DueStandbys, StoreError> {
        self.run("due_standbys", Access::Write, move |tables, now| Ok(tables.due_standbys(lease, at_most, now))).await
    }

    async fn save_follow_state(&self, save: SaveFollowState) -> Result<bool, StoreError> {
        self.run("save_follow_state", Access::Write, move |tables, _| tables.save_follow_state(&save)).await
    }

    async fn steer_standby(&self, steer: Steer) -> Result<PipelineRow, StoreError> {
        self.run("steer_standby", Access::Write, move |tables, now| tables.steer_standby(&steer, now)).await
    }

    async fn standbys(&self, only: Option<PipelineId>) -> Result<Vec<StandbyRow>, StoreError> {
        self.run("standbys", Access::Read, move |tables, _| Ok(tables.list_standbys(only))).await
    }

    async fn admit_take_over(&self, request: take_overs_of::Request) -> Result<TakeOver, StoreError> {
        self.run("admit_take_over", Access::Write, move |tables, now| tables.admit_take_over(&request, now)).await
    }

    async fn claim_take_overs(&self, _: String, lease: Duration) -> Result<Vec<TakeOver>, StoreError> {
        self.run("claim_take_overs", Access::Write, move |tables, now| Ok(tables.claim_take_overs(lease, now))).await
    }

    async fn renew_take_over(&self, id: Uuid, term: Term, lease: Duration) -> Result<bool, StoreError> {
        self.run("renew_take_over", Access::Write, move |tables, now| Ok(tables.renew_take_over(id, term, lease, now)))
            .await
    }

    async fn apply_take_over(&self, change: Arc<take_overs_of::Move>) -> Result<TakeOverApplied, StoreError> {
        self.run("apply_take_over", Access::Write, move |tables, now| tables.apply_take_over(&change, now)).await
    }

    async fn get_take_over(&self, id: Uuid) -> Result<TakeOver, StoreError> {
        self.run("get_take_over", Access::Read, move |tables, _| tables.get_take_over(id)).await
    }

    async fn newest_take_over(&self, pipeline: PipelineSelector, only: Option<Uuid>) -> Result<TakeOver, StoreError> {
        self.run("newest_take_over", Access::Read, move |tables, _| tables.newest_take_over(&pipeline, only)).await
    }

    async fn keep_verification(&self, keep: Keep) -> Result<Verification, StoreError> {
        self.run("keep_verification", Access::Write, move |tables, now| tables.keep_verification(&keep, now)).await
    }

    async fn owed_marks(&self, lease: Duration) -> Result<Vec<Verification>, StoreError> {
        self.run("owed_marks", Access::Write, move |tables, now| Ok(tables.owed_marks(lease, now))).await
    }

    async fn settle_mark(&self, settle: SettleMark) -> Result<bool, StoreError> {
        self.run("settle_mark", Access::Write, move |tables, now| tables.settle_mark(&settle, now)).await
    }

    async fn get_verification(&self, id: Uuid) -> Result<Verification, StoreError> {
        self.run("get_verification", Access::Read, move |tables, _| tables.get_verification(id)).await
    }

    async fn claim_verify_budget(&self, replica: String, lease: Duration) -> Result<Option<VerifyBudget>, StoreError> {
        let claim = move |tables: &mut Tables, now| Ok(tables.claim_verify_budget(&replica, lease, now));
        self.run("claim_verify_budget", Access::Write, claim).await
    }

    async fn renew_verify_budget(&self, replica: String, lease: Duration) -> Result<bool, StoreError> {
        let renew = move |tables: &mut Tables, now| Ok(tables.renew_verify_budget(&replica, lease, now));
        self.run("renew_verify_budget", Access::Write, renew).await
    }

    async fn save_verify_budget(&self, save: SaveBudget) -> Result<bool, StoreError> {
        self.run("save_verify_budget", Access::Write, move |tables, now| Ok(tables.save_verify_budget(&save, now)))
            .await
    }

    async fn verify_turn(&self) -> Result<Option<PipelineId>, StoreError> {
        self.run("verify_turn", Access::Write, |tables, now| Ok(tables.verify_turn(now))).await
    }

    async fn verifications(&self, of: VerificationsOf) -> Result<Vec<Verification>, StoreError> {
        self.run("verifications", Access::Read, move |tables, _| Ok(tables.newest_verifications(&of))).await
    }

    async fn admit_upkeep(&self, request: upkeep_of::Request) -> Result<Upkeep, StoreError> {
        self.run("admit_upkeep", Access::Write, move |tables, now| tables.admit_upkeep(&request, now)).await
    }

    async fn claim_upkeep(&self, _: String, lease: Duration, at_most: u32) -> Result<Vec<Upkeep>, StoreError> {
        self.run("claim_upkeep", Access::Write, move |tables, now| Ok(tables.claim_upkeep(lease, at_most, now))).await
    }

    async fn renew_upkeep(&self, id: Uuid, term: Term, lease: Duration, tally: Tally) -> Result<bool, StoreError> {
        let renewal = (id, term, lease, tally);
        self.run("renew_upkeep", Access::Write, move |tables, now| Ok(tables.renew_upkeep(&renewal, now))).await
    }

    async fn apply_upkeep(&self, change: Arc<upkeep_of::Move>) -> Result<UpkeepApplied, StoreError> {
        self.run("apply_upkeep", Access::Write, move |tables, now| tables.apply_upkeep(&change, now)).await
    }

    async fn get_upkeep(&self, id: Uuid) -> Result<Upkeep, StoreError> {
        self.run("get_upkeep", Access::Read, move |tables, _| tables.get_upkeep(id)).await
    }

    async fn asked_upkeep(&self, pipeline: PipelineId, request_id: RequestId) -> Result<Option<Upkeep>, StoreError> {
        self.run("asked_upkeep", Access::Read, move |tables, _| Ok(tables.asked_upkeep(pipeline, request_id))).await
    }

    async fn last_collection(&self, pipeline: PipelineId) -> Result<Option<Upkeep>, StoreError> {
        self.run("last_collection", Access::Read, move |tables, _| Ok(tables.last_collection(pipeline))).await
    }

    async fn due_collections(&self, every: Duration, at_most: u32) -> Result<Vec<PipelineId>, StoreError> {
        self.run("due_collections", Access::Read, move |tables, now| Ok(tables.due_collections(every, at_most, now)))
            .await
    }

    async fn mark_retired(&self, marking: Marking) -> Result<Vec<Retiring>, StoreError> {
        self.run("mark_retired", Access::Write, move |tables, now| tables.mark_retired(&marking, now)).await
    }

    async fn settle_retirement(&self, pipeline: PipelineId, commit: CommitRef, landed: bool) -> Result<(), StoreError> {
        self.run("settle_retirement", Access::Write, move |tables, now| {
            tables.settle_retirement(pipeline, &commit, landed, now);
            Ok(())
        })
        .await
    }

    async fn collection_view(
        &self,
        pipeline: PipelineId,
        rounds: BTreeSet<RoundId>,
    ) -> Result<CollectionView, StoreError> {
        self.run("collection_view", Access::Read, move |tables, now| tables.collection_view(pipeline, &rounds, now))
            .await
    }

    async fn fence_out(&self, fence: FenceOut) -> Result<bool, StoreError> {
        self.run("fence_out", Access::Write, move |tables, now| Ok(tables.fence_out(&fence, now))).await
    }

    async fn note_difference(&self, note: Note) -> Result<bool, StoreError> {
        self.run("note_difference", Access::Write, move |tables, now| tables.note_difference(&note, now)).await
    }

    async fn found_again(&self, found: Found) -> Result<bool, StoreError> {
        self.run("found_again", Access::Write, move |tables, now| Ok(tables.found_again(&found, now))).await
    }

    async fn accept_loss(&self, accept: Accept) -> Result<AcceptedLoss, StoreError> {
        self.run("accept_loss", Access::Write, move |tables, now| tables.accept_loss(&accept, now)).await
    }

    async fn accepted_losses(&self, pipeline: PipelineId) -> Result<Vec<AcceptedLoss>, StoreError> {
        self.run("accepted_losses", Access::Read, move |tables, _| Ok(tables.accepted_losses(pipeline))).await
    }

    async fn committed(&self, pipeline: PipelineId) -> Result<Vec<Committed>, StoreError> {
        self.run("committed", Access::Read, move |tables, _| Ok(tables.committed(pipeline))).await
    }

    async fn notify(&self, payloads: Vec<String>) -> Result<(), StoreError> {
        let told = self.database.0.told.clone();
        self.run("notify", Access::Read, move |_, _| {
            for payload in payloads {
                // Nobody listens: a hint is not owed.
                let _ = told.send(payload);
            }
            Ok(())
        })
        .await
    }

    async fn follow(&self, heard: broadcast::Sender<String>) -> Result<(), StoreError> {
        let mut told = self.database.0.told.subscribe();
        let _ = heard.send(String::new());
        loop {
            let payload = told.recv().await.unwrap_or_default();
            self.gate.pass().await;
            let _ = heard.send(payload);
        }
    }
}
