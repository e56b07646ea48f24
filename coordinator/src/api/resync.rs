//! Making the database know again what the bucket holds: the pipeline's row is made anew where it is gone, and a take-over of the own location follows, since round
//! numbers and places of lost rounds are unknown. The call admits rows that dispatch drives and waits; what it asked for happens whether or not anybody waits.

use std::collections::BTreeSet;

use lockstep_bucket::{Access, Checkpoint, Lookup, ObjectStore};
use lockstep_proto::v1;
use lockstep_protocol::{
    commit::CommitRef,
    fence::{Fence, location_owned},
    id::{PipelineId, RoundId},
    problem::{Problem, Reason},
    round::Kind,
    spec::PipelineSpec,
    takeover::{Phase, Purpose},
};

use super::{Api, request, take_over::still_under_way};
use crate::{
    convert,
    plan::{Right, losses, patiently, place::Place},
    store::{AdmitTakeOver, Caller, NewPipeline, Page, PipelineRow, PipelineSelector, RoundFilter, RoundKind},
};

/// Rounds of the database that are compared with the bucket at a time.
const PAGE: u32 = 500;

/// What the bucket holds and the database doesn't, and the reverse.
#[derive(Default)]
struct Compared {
    found: Vec<Checkpoint>,
    learnt: Vec<RoundId>,
    lost: Vec<RoundId>,
}

impl Api {
    pub(super) async fn do_resync(
        &self,
        caller: Caller,
        message: v1::ResyncRequest,
    ) -> Result<v1::ResyncResponse, Problem> {
        let request_id = request::request_id(&message.request_id)?;
        let selector: PipelineSelector = message.pipeline.parse()?;
        let spec = message.spec.as_ref().map(|spec| convert::pipeline::spec_of(Some(spec))).transpose()?;
        let known = match self.store.get_pipeline(&selector).await.map_err(Problem::from) {
            Ok(row) => Some(row),
            Err(problem) if problem.reason == Reason::PipelineNotFound => None,
            Err(problem) => return Err(problem),
        };
        let spec = match (&known, spec) {
            // What the database knows is what people changed last.
            (Some(row), _) => row.spec.clone(),
            (None, Some(spec)) => spec,
            (None, None) => return Err(spec_needed(&selector)),
        };
        let bucket = self.connector.connect(&spec.location).await?;
        let owner = match lockstep_bucket::owner(bucket.as_ref()).await {
            Lookup::Found(fence) => fence,
            Lookup::Absent => return Err(nothing_there(&spec)),
            Lookup::Unknown(problem) => return Err(problem),
        };
        let compared = match self.compared(bucket.as_ref(), known.as_ref()).await {
            // A taker died between fence and base: the take-over finishes that, and then it is known what counts.
            Err(problem) if problem.reason == Reason::TakeOverInProgress && !message.validate_only => None,
            compared => Some(compared?),
        };
        let found = compared.as_ref().map_or(&[][..], |compared| &compared.found);
        let id = same_pipeline(&selector, known.as_ref(), &spec, &owner, found)?;
        // Until the take-over has adopted the location it owns nothing, as a standby's row; should that never come, it is a stopped one.
        let new = NewPipeline { id, spec, fence_bytes: None, follows: false, request_id: None };
        if known.is_none() {
            self.store.check_made_anew(&new).await?;
        }
        if message.validate_only {
            let compared = compared.unwrap_or_default();
            return self.resynced(known.as_ref(), id, &owner, compared, None).await;
        }
        let row = match &known {
            Some(row) => row.clone(),
            None => self.store.create_pipeline(new, &caller).await?.into_row(),
        };
        let purpose = Purpose::Resync;
        let ask = AdmitTakeOver {
            pipeline: row.id.into(),
            purpose,
            chosen: None,
            request_id,
            seen: None,
            retry: self.options.retry,
        };
        let admitted = self.store.admit_take_over(ask, &caller).await?;
        let now = self.take_over_ended(admitted).await?;
        match (now.phase, &now.problem) {
            (Phase::Done, _) => {
                let row = self.store.get_pipeline(&row.id.into()).await?;
                let compared = match compared {
                    Some(compared) => compared,
                    None => self.compared(bucket.as_ref(), Some(&row)).await?,
                };
                let mut response = self.resynced(Some(&row), id, &owner, compared, Some(now.id)).await?;
                response.created = known.is_none();
                Ok(response)
            }
            (Phase::Failed | Phase::Cancelled, Some(problem)) => Err(problem.clone()),
            _ => Err(still_under_way(&row, &now)),
        }
    }

    async fn compared(&self, bucket: &dyn ObjectStore, row: Option<&PipelineRow>) -> Result<Compared, Problem> {
        let list = || lockstep_bucket::list_checkpoints(bucket, Access::ReadOnly, usize::MAX);
        let found = lockstep_bucket::whole(patiently(self.options.preview.store_patience, list).await?);
        let committed = match row {
            None => Vec::new(),
            Some(row) => self.committed(row.id).await?,
        };
        let known: BTreeSet<RoundId> = committed.iter().map(|commit| commit.round).collect();
        let learnt = found.iter().map(|one| one.commit.round).filter(|round| !known.contains(round)).collect();
        let lost = match row {
            None => Vec::new(),
            Some(row) => self.lost_rounds(row, &found).await?,
        };
        Ok(Compared { found, learnt, lost })
    }

    async fn lost_rounds(&self, row: &PipelineRow, whole: &[Checkpoint]) -> Result<Vec<RoundId>, Problem> {
        let place = Place::open(&self.context(self.options.preview), &row.spec.location, Right::Read).await?;
        let found = losses::compare(place.look(), &self.store, row).await?;
        let over = losses::missing_of(place.look(), &found.listed, whole).await?;
        Ok(losses::together(found.lost, over).iter().map(|one| one.committed.commit.round).collect())
    }

    /// Every commit that the database knows to have stood.
    async fn committed(&self, pipeline: PipelineId) -> Result<Vec<CommitRef>, Problem> {
        let filter = RoundFilter { pipeline: Some(pipeline), active_only: false, kind: Some(RoundKind::Push) };
        let (mut all, mut token) = (Vec::new(), None);
        loop {
            let listed = self.store.list_rounds(filter.clone(), Page { size: PAGE, token }).await?;
            all.extend(listed.items.iter().filter_map(|record| match &record.round.kind {
                Kind::Push(push) => push.committed,
                Kind::Pull(_) => None,
            }));
            token = listed.next;
            if token.is_none() {
                return Ok(all);
            }
        }
    }

    async fn resynced(
        &self,
        row: Option<&PipelineRow>,
        id: PipelineId,
        owner: &Fence,
        compared: Compared,
        take_over: Option<uuid::Uuid>,
    ) -> Result<v1::ResyncResponse, Problem> {
        let Compared { found, learnt, lost } = compared;
        let ids = |rounds: Vec<RoundId>| rounds.iter().map(ToString::to_string).collect();
        let newest = found.iter().find(|one| !one.damaged);
        let generation = match (take_over, row) {
            (Some(_), Some(row)) => row.generation,
            _ => owner.generation.next(),
        };
        Ok(v1::ResyncResponse {
            pipeline: match row {
                Some(row) => Some(self.shown(row).await?),
                None => None,
            },
            pipeline_id: id.to_string(),
            created: row.is_none(),
            take_over: take_over.map(|id| id.to_string()).unwrap_or_default(),
            generation: generation.get(),
            previous_generation: owner.generation.get(),
            checkpoints: u64::try_from(found.len()).unwrap_or(u64::MAX),
            newest: newest.map(|one| convert::checkpoint::checkpoint(&one.commit, &one.document, one.damaged)),
            learnt: ids(learnt),
            lost: ids(lost),
        })
    }
}

/// The id of the pipeline that owns the location, if that is the one which is meant: by its row, by its id, or by a name that its fence or its newest checkpoint bears.
fn same_pipeline(
    selector: &PipelineSelector,
    known: Option<&PipelineRow>,
    spec: &PipelineSpec,
    owner: &Fence,
    found: &[Checkpoint],
) -> Result<PipelineId, Problem> {
    let named = |fence: &Fence| {
        fence.pipeline_name == spec.name
            || found
                .iter()
                .any(|one| one.document.pipeline == fence.pipeline && one.document.pipeline_name == spec.name)
    };
    let same = match (known, selector) {
        (Some(row), _) => row.id == owner.pipeline,
        (None, PipelineSelector::Id(id)) => *id == owner.pipeline,
        (None, PipelineSelector::Name(name)) => *name == spec.name && named(owner),
    };
    if same && !owner.released {
        return Ok(owner.pipeline);
    }
    let id = known.map_or(owner.pipeline, |row| row.id);
    let mut problem = location_owned(&spec.location, id, &spec.name, owner);
    problem.message = format!(
        "a resync is of the pipeline that owns its location: {}; for another one create the pipeline as a standby and take the location over",
        problem.message
    );
    Err(problem)
}

fn spec_needed(selector: &PipelineSelector) -> Problem {
    Problem::new(
        Reason::PipelineNotFound,
        format!(
            "this database knows no pipeline {selector}; to make it anew from its bucket say where that is, with its spec: \
             lockstep resync {selector} -f SPEC.yaml"
        ),
    )
    .with("pipeline", selector)
}

fn nothing_there(spec: &PipelineSpec) -> Problem {
    Problem::new(
        Reason::CheckpointNotFound,
        format!(
            "nobody ever owned {}, so there is nothing to resync from: check bucket and prefix, or create pipeline {} anew",
            spec.location, spec.name
        ),
    )
    .with("location", &spec.location)
    .with("pipeline", &spec.name)
}
