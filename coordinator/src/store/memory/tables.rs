//! All tables of the twin, each a map by its key. What statements do with them stands in the module of each table.

use std::collections::BTreeMap;

use lockstep_protocol::id::{Generation, PipelineId, RequestId, RoundId, Seq};
use uuid::Uuid;

use super::{
    pipelines::StoredPipeline,
    ready::StoredWord,
    rounds::StoredRound,
    schedules::StoredSchedule,
    standbys::StoredStandby,
    take_overs::StoredTakeOver,
    upkeep::{StoredRetirement, StoredUpkeep},
    verifications::StoredVerification,
    verify_budget::StoredBudget,
};
use crate::store::{AuditRow, DatabaseIdentity, losses::AcceptedLoss};

#[derive(Clone, Debug)]
pub(super) struct Tables {
    pub(super) identity: DatabaseIdentity,
    /// How often the database was lost: requests to the one before are never carried out.
    pub(super) losses: u32,
    pub(super) pipelines: BTreeMap<PipelineId, StoredPipeline>,
    pub(super) rounds: BTreeMap<RoundId, StoredRound>,
    /// Digest of the parameters, and the round that answered.
    pub(super) requests: BTreeMap<(PipelineId, RequestId), (String, RoundId)>,
    pub(super) schedules: BTreeMap<PipelineId, StoredSchedule>,
    pub(super) standbys: BTreeMap<PipelineId, StoredStandby>,
    pub(super) words: BTreeMap<PipelineId, StoredWord>,
    pub(super) take_overs: BTreeMap<Uuid, StoredTakeOver>,
    pub(super) upkeep: BTreeMap<Uuid, StoredUpkeep>,
    pub(super) retirements: BTreeMap<(PipelineId, Generation, Seq), StoredRetirement>,
    pub(super) verifications: BTreeMap<Uuid, StoredVerification>,
    pub(super) verify_budget: StoredBudget,
    pub(super) accepted_losses: Vec<AcceptedLoss>,
    pub(super) audit: Vec<AuditRow>,
}

impl Tables {
    /// As after the first migration.
    pub(super) fn empty(identity: DatabaseIdentity) -> Self {
        Self {
            identity,
            losses: 0,
            pipelines: BTreeMap::new(),
            rounds: BTreeMap::new(),
            requests: BTreeMap::new(),
            schedules: BTreeMap::new(),
            standbys: BTreeMap::new(),
            words: BTreeMap::new(),
            take_overs: BTreeMap::new(),
            upkeep: BTreeMap::new(),
            retirements: BTreeMap::new(),
            verifications: BTreeMap::new(),
            verify_budget: StoredBudget::default(),
            accepted_losses: Vec::new(),
            audit: Vec::new(),
        }
    }
}
