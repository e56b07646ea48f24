//! The transactions in Postgres: each on a connection of the pool, in a task of its own (`pool`).

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
use sqlx::postgres::PgListener;
use tokio::sync::broadcast;
use uuid::Uuid;

use super::{
    Admission, Applied, AuditFilter, AuditRow, Caller, ClaimSettled, CollectionView, Created, DatabaseIdentity,
    DuePushes, DueStandbys, Listed, Marking, NewPipeline, Page, PipelineRow, PipelineSelector, RoundFilter,
    RoundRecord, StandbyRow, StoreError, TakeOverApplied, UpkeepApplied, Verification, VerificationsOf, VerifyBudget,
    admit, apply,
    ask::Request,
    audit,
    changes::CHANNEL,
    claims,
    committed::{self, Committed},
    differences::{self, Found, Note},
    drive::{self, Cancel, Claim, Progress},
    identity, list,
    losses::{self, Accept, AcceptedLoss},
    ownership,
    pipelines::{self, Lock},
    pool::{Access, Database},
    ready::{self, SaveTelling},
    retirements,
    schedules::{self, SaveSchedule},
    schema::{self, Schema},
    sqlstate::Fail,
    standbys, take_over_cancels, take_overs,
    transactions::Transactions,
    upkeep,
    verifications::{self, Keep, SettleMark},
    verify_budget::{self, SaveBudget},
};

#[async_trait]
impl Transactions for Database {
    fn is_pooled(&self) -> bool {
        Self::is_pooled(self)
    }

    async fn schema(&self) -> Result<Schema, StoreError> {
        self.run("schema", Access::Read, (), |connection, ()| Box::pin(schema::read(connection))).await
    }

    async fn migrate(&self, before: Schema) -> Result<(), Problem> {
        let database = self.clone();
        let work = tokio::spawn(async move { schema::migrate(&database, before).await });
        work.await.unwrap_or_else(|error| Err(self.place.problem("migrate", error)))
    }

    async fn close(&self) {
        self.close_pool().await;
    }

    async fn identity(&self) -> Result<DatabaseIdentity, StoreError> {
        self.run("identity", Access::Read, (), |connection, ()| Box::pin(identity::read(connection))).await
    }

    async fn now(&self) -> Result<DateTime<Utc>, StoreError> {
        self.run("now", Access::Read, (), |connection, ()| {
            Box::pin(async move {
                sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(connection).await.map_err(Fail::from)
            })
        })
        .await
    }

    async fn admit(&self, operation: &'static str, request: Request) -> Result<Admission, StoreError> {
        self.run(operation, Access::Write, request, |connection, request| Box::pin(admit::admit(connection, request)))
            .await
    }

    async fn claim_rounds(&self, claim: Claim) -> Result<Vec<RoundRecord>, StoreError> {
        self.run("claim_rounds", Access::Write, claim, |connection, claim| Box::pin(drive::claim(connection, claim)))
            .await
    }

    async fn renew(&self, held: Vec<(RoundId, Term)>, lease: Duration) -> Result<Vec<RoundId>, StoreError> {
        self.run("renew", Access::Write, (held, lease), |connection, arguments| {
            Box::pin(drive::renew(connection, arguments))
        })
        .await
    }

    async fn release(&self, held: Vec<(RoundId, Term)>, caller: Caller) -> Result<(), StoreError> {
        self.run("release", Access::Write, (held, caller), |connection, arguments| {
            Box::pin(drive::release(connection, arguments))
        })
        .await
    }

    async fn apply(&self, change: Arc<apply::Change>) -> Result<Applied, StoreError> {
        self.run("apply", Access::Write, change, |connection, change| {
            Box::pin(apply::apply_settling(connection, change))
        })
        .await
    }

    async fn look(&self, change: Arc<apply::Change>) -> Result<Option<Applied>, StoreError> {
        self.run("look", Access::Read, change, |connection, change| Box::pin(apply::look(connection, change))).await
    }

    async fn request_cancel(&self, cancel: Cancel) -> Result<RoundRecord, StoreError> {
        self.run("request_cancel", Access::Write, cancel, |connection, cancel| {
            Box::pin(drive::request_cancel(connection, cancel))
        })
        .await
    }

    async fn pending_cancels(&self, rounds: Vec<RoundId>) -> Result<Vec<(RoundId, CancelRequest)>, StoreError> {
        self.run("pending_cancels", Access::Read, rounds, |connection, rounds| {
            Box::pin(drive::pending_cancels(connection, rounds))
        })
        .await
    }

    async fn save_progress(&self, progress: Progress) -> Result<bool, StoreError> {
        self.run("save_progress", Access::Write, progress, |connection, progress| {
            Box::pin(drive::save_progress(connection, progress))
        })
        .await
    }

    async fn get_round(&self, round: RoundId) -> Result<RoundRecord, StoreError> {
        self.run("get_round", Access::Read, round, |connection, round| Box::pin(drive::get(connection, round))).await
    }

    async fn list_rounds(&self, filter: RoundFilter, page: Page) -> Result<Listed<RoundRecord>, StoreError> {
        self.run("list_rounds", Access::Read, (filter, page), |connection, arguments| {
            Box::pin(list::list(connection, arguments))
        })
        .await
    }

    async fn active_rounds(&self) -> Result<u64, StoreError> {
        self.run("active_rounds", Access::Read, (), |connection, ()| {
            Box::pin(async move {
                let count: i64 = sqlx::query_scalar("SELECT count(*) FROM rounds WHERE ended_at IS NULL")
                    .fetch_one(connection)
                    .await?;
                Ok(count.unsigned_abs())
            })
        })
        .await
    }

    async fn list_audit(&self, filter: AuditFilter, page: Page) -> Result<Listed<AuditRow>, StoreError> {
        self.run("list_audit", Access::Read, (filter, page), |connection, (filter, page)| {
            Box::pin(audit::list(connection, filter, page))
        })
        .await
    }

    async fn create_pipeline(&self, new: NewPipeline, caller: Caller) -> Result<Created, StoreError> {
        self.run("create_pipeline", Access::Write, (new, caller), |connection, arguments| {
            Box::pin(ownership::create(connection, arguments))
        })
        .await
    }

    async fn get_pipeline(&self, selector: PipelineSelector) -> Result<PipelineRow, StoreError> {
        self.run("get_pipeline", Access::Read, selector, |connection, selector| {
            Box::pin(pipelines::find(connection, selector, Lock::No))
        })
        .await
    }

    async fn any_pipeline(&self, id: PipelineId) -> Result<Option<PipelineRow>, StoreError> {
        self.run("any_pipeline", Access::Read, id, |connection, id| Box::pin(pipelines::any(connection, id))).await
    }

    async fn list_pipelines(&self, page: Page) -> Result<Listed<PipelineRow>, StoreError> {
        self.run("list_pipelines", Access::Read, page, |connection, page| Box::pin(pipelines::list(connection, page)))
            .await
    }

    async fn update_pipeline(&self, update: ownership::Update) -> Result<PipelineRow, StoreError> {
        self.run("update_pipeline", Access::Write, update, |connection, update| {
            Box::pin(ownership::update(connection, update))
        })
        .await
    }

    async fn delete_pipeline(&self, delete: ownership::Delete) -> Result<PipelineId, StoreError> {
        self.run("delete_pipeline", Access::Write, delete, |connection, delete| {
            Box::pin(ownership::delete(connection, delete))
        })
        .await
    }

    async fn claim_claiming(&self, replica: String, lease: Duration) -> Result<Vec<PipelineRow>, StoreError> {
        self.run("claim_claiming", Access::Write, (replica, lease), |connection, arguments| {
            Box::pin(claims::claim_due(connection, arguments))
        })
        .await
    }

    async fn renew_claim(&self, id: PipelineId, term: Term, lease: Duration) -> Result<bool, StoreError> {
        self.run("renew_claim", Access::Write, (id, term, lease), |connection, arguments| {
            Box::pin(claims::renew_claim(connection, arguments))
        })
        .await
    }

    async fn settle_claim(&self, settle: claims::Settle) -> Result<ClaimSettled, StoreError> {
        self.run("settle_claim", Access::Write, settle, |connection, settle| {
            Box::pin(claims::settle(connection, settle))
        })
        .await
    }

    async fn look_at_claim(&self, id: PipelineId) -> Result<PipelineRow, StoreError> {
        self.run("settle_claim", Access::Read, id, |connection, id| Box::pin(claims::look(connection, id))).await
    }

    async fn due_pushes(&self, lease: Duration, at_most: u32) -> Result<DuePushes, StoreError> {
        self.run("due_pushes", Access::Write, (lease, at_most), |connection, arguments| {
            Box::pin(schedules::take(connection, arguments))
        })
        .await
    }

    async fn save_push_schedule(&self, save: SaveSchedule) -> Result<bool, StoreError> {
        self.run("save_push_schedule", Access::Write, save, |connection, save| {
            Box::pin(schedules::save(connection, save))
        })
        .await
    }

    async fn push_schedule(&self, id: PipelineId) -> Result<Option<PushSchedule>, StoreError> {
        self.run("push_schedule", Access::Read, id, |connection, id| Box::pin(schedules::read(connection, *id))).await
    }

    async fn claim_words(&self, lease: Duration) -> Result<Vec<Telling>, StoreError> {
        self.run("claim_words", Access::Write, lease, |connection, lease| Box::pin(ready::claim(connection, lease)))
            .await
    }

    async fn save_telling(&self, save: SaveTelling) -> Result<bool, StoreError> {
        self.run("save_telling", Access::Write, save, |connection, save| Box::pin(ready::save(connection, save))).await
    }

    async fn word_of(&self, id: PipelineId) -> Result<Option<Telling>, StoreError> {
        self.run("word_of", Access::Read, id, |connection, id| Box::pin(ready::read(connection, *id))).await
    }

    async fn due_standbys(&self, lease: Duration, at_most: u32) -> Result<DueStandbys, StoreError> {
        self.run("due_standbys", Access::Write, (lease, at_most), |connection, arguments| {
            Box::pin(standbys::take(connection, arguments))
        })
        .await
    }

    async fn save_follow_state(&self, save: standbys::SaveFollowState) -> Result<bool, StoreError> {
        self.run("save_follow_state", Access::Write, save, |connection, save| {
            Box::pin(standbys::save(connection, save))
        })
        .await
    }

    async fn steer_standby(&self, steer: standbys::Steer) -> Result<PipelineRow, StoreError> {
        self.run("steer_standby", Access::Write, steer, |connection, steer| {
            Box::pin(standbys::steer(connection, steer))
        })
        .await
    }

    async fn standbys(&self, only: Option<PipelineId>) -> Result<Vec<StandbyRow>, StoreError> {
        self.run("standbys", Access::Read, only, |connection, only| Box::pin(standbys::list(connection, *only))).await
    }

    async fn admit_take_over(&self, request: take_overs::Request) -> Result<TakeOver, StoreError> {
        self.run("admit_take_over", Access::Write, request, |connection, request| {
            Box::pin(take_overs::admit(connection, request))
        })
        .await
    }

    async fn claim_take_overs(&self, replica: String, lease: Duration) -> Result<Vec<TakeOver>, StoreError> {
        self.run("claim_take_overs", Access::Write, (replica, lease), |connection, arguments| {
            Box::pin(take_overs::claim(connection, arguments))
        })
        .await
    }

    async fn renew_take_over(&self, id: Uuid, term: Term, lease: Duration) -> Result<bool, StoreError> {
        self.run("renew_take_over", Access::Write, (id, term, lease), |connection, arguments| {
            Box::pin(take_overs::renew(connection, arguments))
        })
        .await
    }

    async fn apply_take_over(&self, change: Arc<take_overs::Move>) -> Result<TakeOverApplied, StoreError> {
        self.run("apply_take_over", Access::Write, change, |connection, change| {
            Box::pin(take_overs::apply(connection, change))
        })
        .await
    }

    async fn get_take_over(&self, id: Uuid) -> Result<TakeOver, StoreError> {
        self.run("get_take_over", Access::Read, id, |connection, id| Box::pin(take_overs::get(connection, *id))).await
    }

    async fn newest_take_over(&self, pipeline: PipelineSelector, only: Option<Uuid>) -> Result<TakeOver, StoreError> {
        self.run("newest_take_over", Access::Read, (pipeline, only), |connection, arguments| {
            Box::pin(take_over_cancels::newest(connection, arguments))
        })
        .await
    }

    async fn keep_verification(&self, keep: Keep) -> Result<Verification, StoreError> {
        self.run("keep_verification", Access::Write, keep, |connection, keep| {
            Box::pin(verifications::keep(connection, keep))
        })
        .await
    }

    async fn owed_marks(&self, lease: Duration) -> Result<Vec<Verification>, StoreError> {
        self.run("owed_marks", Access::Write, lease, |connection, lease| {
            Box::pin(verifications::owed(connection, lease))
        })
        .await
    }

    async fn settle_mark(&self, settle: SettleMark) -> Result<bool, StoreError> {
        self.run("settle_mark", Access::Write, settle, |connection, settle| {
            Box::pin(verifications::settle(connection, settle))
        })
        .await
    }

    async fn get_verification(&self, id: Uuid) -> Result<Verification, StoreError> {
        self.run("get_verification", Access::Read, id, |connection, id| Box::pin(verifications::get(connection, *id)))
            .await
    }

    async fn claim_verify_budget(&self, replica: String, lease: Duration) -> Result<Option<VerifyBudget>, StoreError> {
        self.run("claim_verify_budget", Access::Write, (replica, lease), |connection, arguments| {
            Box::pin(verify_budget::claim(connection, arguments))
        })
        .await
    }

    async fn renew_verify_budget(&self, replica: String, lease: Duration) -> Result<bool, StoreError> {
        self.run("renew_verify_budget", Access::Write, (replica, lease), |connection, arguments| {
            Box::pin(verify_budget::renew(connection, arguments))
        })
        .await
    }

    async fn save_verify_budget(&self, save: SaveBudget) -> Result<bool, StoreError> {
        self.run("save_verify_budget", Access::Write, save, |connection, save| {
            Box::pin(verify_budget::save(connection, save))
        })
        .await
    }

    async fn verify_turn(&self) -> Result<Option<PipelineId>, StoreError> {
        self.run("verify_turn", Access::Write, (), |connection, ()| Box::pin(verify_budget::turn(connection))).await
    }

    async fn verifications(&self, of: VerificationsOf) -> Result<Vec<Verification>, StoreError> {
        self.run("verifications", Access::Read, of, |connection, of| Box::pin(verifications::newest(connection, of)))
            .await
    }

    async fn admit_upkeep(&self, request: upkeep::Request) -> Result<Upkeep, StoreError> {
        self.run("admit_upkeep", Access::Write, request, |connection, request| {
            Box::pin(upkeep::admit(connection, request))
        })
        .await
    }

    async fn claim_upkeep(&self, replica: String, lease: Duration, at_most: u32) -> Result<Vec<Upkeep>, StoreError> {
        self.run("claim_upkeep", Access::Write, (replica, lease, at_most), |connection, arguments| {
            Box::pin(upkeep::claim(connection, arguments))
        })
        .await
    }

    async fn renew_upkeep(&self, id: Uuid, term: Term, lease: Duration, tally: Tally) -> Result<bool, StoreError> {
        self.run("renew_upkeep", Access::Write, (id, term, lease, tally), |connection, arguments| {
            Box::pin(upkeep::renew(connection, arguments))
        })
        .await
    }

    async fn apply_upkeep(&self, change: Arc<upkeep::Move>) -> Result<UpkeepApplied, StoreError> {
        self.run("apply_upkeep", Access::Write, change, |connection, change| {
            Box::pin(upkeep::apply(connection, change))
        })
        .await
    }

    async fn get_upkeep(&self, id: Uuid) -> Result<Upkeep, StoreError> {
        self.run("get_upkeep", Access::Read, id, |connection, id| Box::pin(upkeep::get(connection, *id))).await
    }

    async fn asked_upkeep(&self, pipeline: PipelineId, request_id: RequestId) -> Result<Option<Upkeep>, StoreError> {
        self.run("asked_upkeep", Access::Read, (pipeline, request_id), |connection, asked| {
            Box::pin(upkeep::asked(connection, asked))
        })
        .await
    }

    async fn last_collection(&self, pipeline: PipelineId) -> Result<Option<Upkeep>, StoreError> {
        self.run("last_collection", Access::Read, pipeline, |connection, pipeline| {
            Box::pin(upkeep::last_collection(connection, *pipeline))
        })
        .await
    }

    async fn due_collections(&self, every: Duration, at_most: u32) -> Result<Vec<PipelineId>, StoreError> {
        self.run("due_collections", Access::Read, (every, at_most), |connection, arguments| {
            Box::pin(upkeep::due(connection, arguments))
        })
        .await
    }

    async fn mark_retired(&self, marking: Marking) -> Result<Vec<Retiring>, StoreError> {
        self.run("mark_retired", Access::Write, marking, |connection, marking| {
            Box::pin(retirements::mark(connection, marking))
        })
        .await
    }

    async fn settle_retirement(&self, pipeline: PipelineId, commit: CommitRef, landed: bool) -> Result<(), StoreError> {
        self.run("settle_retirement", Access::Write, (pipeline, commit, landed), |connection, arguments| {
            Box::pin(retirements::settle(connection, arguments))
        })
        .await
    }

    async fn collection_view(
        &self,
        pipeline: PipelineId,
        rounds: BTreeSet<RoundId>,
    ) -> Result<CollectionView, StoreError> {
        self.run("collection_view", Access::Read, (pipeline, rounds), |connection, arguments| {
            Box::pin(retirements::view(connection, arguments))
        })
        .await
    }

    async fn fence_out(&self, fence: claims::FenceOut) -> Result<bool, StoreError> {
        self.run("fence_out", Access::Write, fence, |connection, fence| Box::pin(claims::fence_out(connection, fence)))
            .await
    }

    async fn note_difference(&self, note: Note) -> Result<bool, StoreError> {
        self.run("note_difference", Access::Write, note, |connection, note| {
            Box::pin(differences::note(connection, note))
        })
        .await
    }

    async fn found_again(&self, found: Found) -> Result<bool, StoreError> {
        self.run("found_again", Access::Write, found, |connection, found| {
            Box::pin(differences::found(connection, found))
        })
        .await
    }

    async fn accept_loss(&self, accept: Accept) -> Result<AcceptedLoss, StoreError> {
        self.run("accept_loss", Access::Write, accept, |connection, accept| {
            Box::pin(losses::accept(connection, accept))
        })
        .await
    }

    async fn accepted_losses(&self, pipeline: PipelineId) -> Result<Vec<AcceptedLoss>, StoreError> {
        self.run("accepted_losses", Access::Read, pipeline, |connection, pipeline| {
            Box::pin(losses::list(connection, *pipeline))
        })
        .await
    }

    async fn committed(&self, pipeline: PipelineId) -> Result<Vec<Committed>, StoreError> {
        self.run("committed", Access::Read, pipeline, |connection, pipeline| {
            Box::pin(committed::committed(connection, *pipeline))
        })
        .await
    }

    async fn notify(&self, payloads: Vec<String>) -> Result<(), StoreError> {
        self.run("notify", Access::Read, payloads, |connection, payloads| {
            Box::pin(async move {
                sqlx::query("SELECT pg_notify($1, payload) FROM unnest($2::text[]) AS payload")
                    .bind(CHANNEL)
                    .bind(payloads)
                    .execute(connection)
                    .await?;
                Ok(())
            })
        })
        .await
    }

    async fn follow(&self, heard: broadcast::Sender<String>) -> Result<(), StoreError> {
        // Of one connection, and held as long as it works.
        let Some(pool) = self.listener_pool() else { return std::future::pending().await };
        let followed = async {
            let mut listener = PgListener::connect_with(&pool).await?;
            listener.listen(CHANNEL).await?;
            // What happened before LISTEN stood was not heard.
            let _ = heard.send(String::new());
            loop {
                let notification = listener.try_recv().await?;
                let _ = heard.send(notification.map(|told| told.payload().to_owned()).unwrap_or_default());
            }
        };
        let ended: Result<(), sqlx::Error> = followed.await;
        ended.map_err(|error| self.place.error("listen", &Fail::Statement(error)))
    }
}
