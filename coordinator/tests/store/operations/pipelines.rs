//! Drawn operations on pipelines and the claims of their locations.

use lockstep_coordinator::store::{ClaimOutcome, NewPipeline, PipelineSelector};
use lockstep_protocol::{
    id::{Generation, PipelineId},
    problem::{Problem, Reason},
    spec::PipelineSpec,
};
use rand::{Rng as _, rngs::StdRng};
use uuid::Uuid;

use super::{Operation, World, lease, pick, request_id, uuid};

fn spec(rng: &mut StdRng) -> PipelineSpec {
    let name = format!("p{}", rng.random_range(0..6));
    let prefix = *pick(rng, &["a", "b", "c", "a/deep", "d", "e"]).unwrap();
    let mut value = serde_json::json!({
        "name": name, "hosts": rng.random_range(1..4), "agents": "http://agent-{host}:7402",
        "location": {"bucket": "checkpoints", "prefix": prefix},
    });
    if rng.random_bool(0.2) {
        value["initial"] = "standby".into();
    }
    if rng.random_bool(0.5) {
        value["push_interval"] = "2m".into();
    }
    if rng.random_bool(0.3) {
        value["read_location"] = serde_json::json!({"bucket": "archive", "prefix": "old"});
    }
    PipelineSpec::from_value(value).unwrap()
}

impl World {
    pub(super) fn selector(&self, rng: &mut StdRng) -> PipelineSelector {
        match pick(rng, &self.pipelines) {
            Some(row) if rng.random_bool(0.5) => row.id.into(),
            Some(row) if rng.random_bool(0.95) => row.spec.name.clone().into(),
            _ => PipelineId::new(Uuid::from_u128(1)).into(),
        }
    }

    pub(super) fn new_pipeline(&self, rng: &mut StdRng) -> NewPipeline {
        let spec = spec(rng);
        let standby = spec.initial == lockstep_protocol::spec::Initial::Standby;
        let odd = rng.random_bool(0.05);
        NewPipeline {
            id: PipelineId::new(uuid(rng)),
            spec,
            fence_bytes: (standby == odd).then(|| "{\"kind\":\"fence\"}\n".to_owned()),
            follows: rng.random_bool(0.8),
            request_id: request_id(rng),
        }
    }

    pub(super) fn update(&self, rng: &mut StdRng) -> Option<Operation> {
        let row = pick(rng, &self.pipelines)?;
        let mut value = row.spec.to_value();
        match rng.random_range(0..5) {
            0 => value["name"] = format!("p{}", rng.random_range(0..6)).into(),
            1 => value["push_interval"] = "2m".into(),
            2 => value["hosts"] = rng.random_range(1..4).into(),
            3 => value["location"]["prefix"] = "elsewhere".into(),
            _ => {}
        }
        let etag = match rng.random_range(0..4) {
            0 => None,
            1 => Some("1".to_owned()),
            _ => Some(row.etag.clone()),
        };
        Some(Operation::Update(row.id.into(), PipelineSpec::from_value(value).ok()?, etag))
    }

    pub(super) fn settle_claim(&self, rng: &mut StdRng) -> Option<Operation> {
        let claiming: Vec<_> = self.pipelines.iter().filter(|row| row.claim.as_str() == "claiming").collect();
        let row = pick(rng, &claiming)?;
        let problem = Problem::new(Reason::LocationOwned, "somebody\0 else's").with("owner", "x\0y");
        let outcome = match rng.random_range(0..8) {
            0 => ClaimOutcome::Refused(problem),
            1 => ClaimOutcome::Again { problem, after: lease(rng) },
            _ => ClaimOutcome::Owned(Generation::FIRST),
        };
        let stale = u64::from(rng.random_bool(0.1));
        let term = if rng.random_bool(0.1) { row.claim_term.next() } else { row.claim_term };
        Some(Operation::SettleClaim(row.id, row.version - stale, term, outcome))
    }
}
