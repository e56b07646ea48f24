//! Pipelines: create, look, change, forget.

use futures::{StreamExt as _, TryStreamExt as _};
use lockstep_bucket::Lookup;
use lockstep_proto::v1;
use lockstep_protocol::{
    fence::{Fence, Writer},
    id::{Generation, PipelineId},
    problem::{Problem, Reason},
    schedule::{Look, look},
    spec::{Initial, PipelineSpec},
};
use uuid::Uuid;

use super::{
    Api,
    request::{self, required},
};
use crate::{
    chance, convert,
    store::{
        Caller, ClaimState, NewPipeline, Page, PipelineRow, PipelineSelector, RoundFilter, RoundKind, RoundRecord,
    },
};

/// Shown is the middle of the times that the next look may choose.
pub(super) const MIDDLE_JITTER: u32 = 500;

impl Api {
    pub(super) async fn do_create_pipeline(
        &self,
        caller: Caller,
        message: v1::CreatePipelineRequest,
    ) -> Result<v1::Pipeline, Problem> {
        let request_id = request::request_id(&message.request_id)?;
        let spec = convert::pipeline::spec_of(message.spec.as_ref())?;
        if message.validate_only {
            return self.plan_pipeline(spec).await;
        }
        let id = PipelineId::new(chance::id());
        let identity = self.store.identity().await?;
        let fence = Fence {
            generation: Generation::FIRST,
            pipeline: id,
            pipeline_name: spec.name.clone(),
            writer: Writer::Database {
                database: identity.database,
                system_identifier: identity.system_identifier,
                timeline: identity.timeline,
            },
            take_over: chance::id(),
            created_at: self.store.now().await?,
            released: false,
        };
        let fence_bytes = String::from_utf8(fence.encode()).map_err(|error| {
            Problem::new(Reason::SpecInvalid, format!("the fence of pipeline {} is no UTF-8: {error}", spec.name))
        })?;
        // A standby owns nothing until it is told to: it writes no fence.
        let fence_bytes = (spec.initial == Initial::Running).then_some(fence_bytes);
        let new = NewPipeline { id, spec, fence_bytes, follows: true, request_id };
        let row = self.store.create_pipeline(new, &caller).await?.into_row();
        // From here on dispatch drives the claim whether or not anybody waits for it.
        let row = self.pipeline_when(row.id, self.options.create_wait, |row| row.claim != ClaimState::Claiming).await?;
        match &row.claim {
            ClaimState::Refused(problem) => Err(problem.clone()),
            ClaimState::Claiming => Err(still_claiming(&row)),
            ClaimState::Owned | ClaimState::Standby => self.shown(&row).await,
        }
    }

    /// Everything a create would refuse, without writing anywhere: the probe of the store, which writes, is left out.
    async fn plan_pipeline(&self, spec: PipelineSpec) -> Result<v1::Pipeline, Problem> {
        match self.store.get_pipeline(&spec.name.clone().into()).await.map_err(Problem::from) {
            Ok(known) => {
                return Err(Problem::new(
                    Reason::PipelineExists,
                    format!("pipeline {} exists already, with id {}", spec.name, known.id),
                )
                .with("name", &spec.name)
                .with("id", known.id));
            }
            Err(problem) if problem.reason == Reason::PipelineNotFound => {}
            Err(problem) => return Err(problem),
        }
        let store = self.connector.connect(&spec.location).await?;
        let id = PipelineId::new(Uuid::nil());
        match lockstep_bucket::owner(store.as_ref()).await {
            Lookup::Absent => {}
            Lookup::Found(_) if spec.initial == Initial::Standby => {}
            Lookup::Found(fence) => {
                return Err(lockstep_bucket::location_owned(&spec.location, id, &spec.name, &fence));
            }
            Lookup::Unknown(problem) => return Err(problem),
        }
        Ok(v1::Pipeline {
            warnings: convert::pipeline::warnings(&spec),
            spec: Some(convert::pipeline::spec(&spec)),
            ..v1::Pipeline::default()
        })
    }

    pub(super) async fn do_get_pipeline(&self, message: v1::GetPipelineRequest) -> Result<v1::Pipeline, Problem> {
        let row = self.pipeline(&message.pipeline).await?;
        self.shown(&row).await
    }

    pub(super) async fn do_list_pipelines(
        &self,
        message: v1::ListPipelinesRequest,
    ) -> Result<v1::ListPipelinesResponse, Problem> {
        let page = request::page(message.page_size, message.page_token)?;
        let listed = self.store.list_pipelines(page).await?;
        // A few at a time: each takes three connections for a moment.
        let shown: Vec<_> = listed.items.iter().map(|row| self.shown(row)).collect();
        let pipelines = futures::stream::iter(shown).buffered(4).try_collect().await?;
        Ok(v1::ListPipelinesResponse { pipelines, next_page_token: listed.next.unwrap_or_default() })
    }

    pub(super) async fn do_update_pipeline(
        &self,
        caller: Caller,
        message: v1::UpdatePipelineRequest,
    ) -> Result<v1::Pipeline, Problem> {
        /// Updates of others that may come between reading and writing.
        const TRIES: u32 = 5;
        let given = (!message.etag.is_empty()).then(|| message.etag.clone());
        let mut tries = 1;
        loop {
            let row = self.pipeline(&message.pipeline).await?;
            let spec = convert::update::masked(&row.spec, message.spec.as_ref(), message.update_mask.as_ref())?;
            if message.validate_only {
                return self.plan_update(row, spec, given).await;
            }
            // What the mask leaves alone was read from this very version, so the write must find it unchanged.
            let etag = given.clone().unwrap_or_else(|| row.etag.clone());
            match self.store.update_pipeline(&row.id.into(), spec, Some(&etag), &caller).await.map_err(Problem::from) {
                Ok(row) => return self.shown(&row).await,
                Err(problem) if problem.reason == Reason::EtagMismatch && given.is_none() && tries < TRIES => {
                    tries += 1
                }
                Err(problem) => return Err(problem),
            }
        }
    }

    /// What an update would refuse for the row and the location.
    async fn plan_update(
        &self,
        row: PipelineRow,
        spec: PipelineSpec,
        etag: Option<String>,
    ) -> Result<v1::Pipeline, Problem> {
        if let Some(etag) = etag.filter(|etag| *etag != row.etag) {
            return Err(Problem::new(
                Reason::EtagMismatch,
                format!(
                    "pipeline {} has etag {}, the request was made for {etag}: read it again",
                    row.spec.name, row.etag
                ),
            )
            .with("pipeline", &row.spec.name)
            .with("etag", &row.etag)
            .with("requested", etag));
        }
        if !spec.location.same_place(&row.spec.location) {
            return Err(Problem::new(
                Reason::SpecInvalid,
                format!(
                    "location {} can't become {} by an update: create another pipeline there and pull with read_location",
                    row.spec.location, spec.location
                ),
            )
            .with("field", "location")
            .with("old", &row.spec.location)
            .with("value", &spec.location));
        }
        self.shown(&PipelineRow { spec, ..row }).await
    }

    pub(super) async fn do_delete_pipeline(
        &self,
        caller: Caller,
        message: v1::DeletePipelineRequest,
    ) -> Result<v1::DeletePipelineResponse, Problem> {
        let selector: PipelineSelector = required("pipeline", &message.pipeline)?;
        let etag = (!message.etag.is_empty()).then_some(message.etag);
        self.store.delete_pipeline(&selector, etag.as_deref(), &caller).await?;
        Ok(v1::DeletePipelineResponse {})
    }

    /// The row that a request names.
    pub(super) async fn pipeline(&self, text: &str) -> Result<PipelineRow, Problem> {
        let selector: PipelineSelector = required("pipeline", text)?;
        Ok(self.store.get_pipeline(&selector).await?)
    }

    /// The row with its rounds.
    pub(super) async fn shown(&self, row: &PipelineRow) -> Result<v1::Pipeline, Problem> {
        let (active, push, pull, push_schedule, collection, standby, ready) = tokio::try_join!(
            self.newest_round(row.id, true, None),
            self.newest_round(row.id, false, Some(RoundKind::Push)),
            self.newest_round(row.id, false, Some(RoundKind::Pull)),
            self.push_schedule(row),
            self.last_collection(row),
            self.standby(row),
            self.ready(row),
        )?;
        Ok(v1::Pipeline {
            id: row.id.to_string(),
            spec: Some(convert::pipeline::spec(&row.spec)),
            etag: row.etag.clone(),
            generation: row.generation.get(),
            fenced: row.fenced.as_ref().map(convert::status::problem),
            behind: row.behind.as_ref().map(convert::status::problem),
            lost: row.lost.as_ref().map(|loss| convert::status::problem(&loss.problem)),
            active_round: active,
            last_push: push,
            last_pull: pull,
            last_committed_step: row.last_commit.as_ref().map(|last| last.step.get()),
            create_time: Some(convert::time::timestamp(row.created_at)),
            update_time: Some(convert::time::timestamp(row.updated_at)),
            warnings: convert::pipeline::warnings(&row.spec),
            push_schedule,
            last_collection: collection,
            standby,
            ready,
        })
    }

    async fn ready(&self, row: &PipelineRow) -> Result<Option<v1::Ready>, Problem> {
        Ok(self.store.word_of(row.id).await?.as_ref().map(convert::ready::ready))
    }

    async fn last_collection(&self, row: &PipelineRow) -> Result<Option<v1::Collection>, Problem> {
        Ok(self.store.last_collection(row.id).await?.as_ref().map(convert::upkeep::collection))
    }

    /// As it will be at the next look: a push that has ended is reckoned in already. Who is fenced, or follows, pushes no more.
    async fn push_schedule(&self, row: &PipelineRow) -> Result<Option<v1::PushSchedule>, Problem> {
        if row.fenced.is_some() || row.claim == ClaimState::Standby {
            return Ok(None);
        }
        let Some(interval) = row.spec.push_interval else { return Ok(None) };
        let Some(schedule) = self.store.push_schedule(row.id).await? else { return Ok(None) };
        let filter = RoundFilter { pipeline: Some(row.id), active_only: false, kind: Some(RoundKind::Push) };
        let listed = self.store.list_rounds(filter, Page { size: 1, token: None }).await?;
        let last = listed.items.first().map(RoundRecord::as_last_push);
        let active = last.as_ref().is_some_and(|last| last.end.is_none());
        let (Look::Push(schedule) | Look::Wait(schedule)) =
            look(schedule, last.as_ref(), interval, self.store.now().await?, MIDDLE_JITTER);
        Ok(Some(convert::pipeline::push_schedule(&schedule, active)))
    }
    async fn newest_round(
        &self,
        pipeline: PipelineId,
        active_only: bool,
        kind: Option<RoundKind>,
    ) -> Result<Option<v1::Round>, Problem> {
        let filter = RoundFilter { pipeline: Some(pipeline), active_only, kind };
        let listed = self.store.list_rounds(filter, Page { size: 1, token: None }).await?;
        Ok(listed.items.first().map(convert::round::round))
    }
}

fn still_claiming(row: &PipelineRow) -> Problem {
    let name = &row.spec.name;
    let location = &row.spec.location;
    let go_on = "the claim goes on, the same call with the same request_id or GetPipeline tells how it ends";
    match &row.claim_problem {
        Some(last) => {
            let mut problem = last.clone();
            problem.reason = Reason::StoreUnavailable;
            problem.retryable_override = None;
            problem.message = format!("pipeline {name} does not own {location} yet ({last}); {go_on}");
            problem.with("pipeline", name).with("id", row.id).with("location", location)
        }
        None => Problem::new(
            Reason::StoreUnavailable,
            format!("pipeline {name} does not own {location} yet, no coordinator has got an answer from it; {go_on}"),
        )
        .with("pipeline", name)
        .with("id", row.id)
        .with("location", location),
    }
}
