//! Before a commit every part manifest is read and compared with its report, the round and the base (push step 4, S8, S9).

use std::collections::BTreeMap;

use lockstep_protocol::{
    commit::CommitPart,
    planted::{self, Bug},
    problem::{Problem, Reason, Retryable},
    round::{Event, Participant, PushState, Round},
};

use super::{effect::Drive, timeline::SECOND, transfer, world::Sim};

pub(super) async fn check(sim: &Sim, drive: &Drive, round: &Round, push: &PushState) -> Option<Event> {
    loop {
        match check_all(sim, drive, round, push).await {
            Ok(()) => return Some(Event::PartsChecked { writer: "simulation".to_owned(), trace_id: None }),
            Err((_, problem)) if problem.retryable() == Retryable::Yes && problem.reason != Reason::Integrity => {
                sim.sleep(sim.random(SECOND / 5, SECOND)).await;
            }
            Err((host_idx, problem)) => {
                let host = round.participants.get(host_idx as usize)?;
                let jitter = sim.jitter();
                return Some(Event::HostFailed { host_idx, attempt: host.attempt, problem, jitter });
            }
        }
    }
}

async fn check_all(sim: &Sim, drive: &Drive, round: &Round, push: &PushState) -> Result<(), (u32, Problem)> {
    let base = drive.base(sim, push).await.map_err(|problem| (0, problem))?;
    let mut reach = BTreeMap::new();
    for part in base.iter().flat_map(|(_, document)| &document.parts) {
        let manifest = transfer::manifest(sim, part).await.map_err(|problem| (part.host_idx, problem))?;
        reach.extend(manifest.objects.into_iter().map(|object| (object.key, object.size)));
    }
    for participant in &round.participants {
        check_one(sim, round, push, participant, &reach).await.map_err(|problem| (participant.host_idx, problem))?;
    }
    Ok(())
}

async fn check_one(
    sim: &Sim,
    round: &Round,
    push: &PushState,
    participant: &Participant,
    reach: &BTreeMap<String, u64>,
) -> Result<(), Problem> {
    let differs = |what: &str| Problem::new(Reason::Integrity, format!("host {}: {what}", participant.host_idx));
    let part: &CommitPart = participant.part.as_ref().ok_or_else(|| differs("no part was reported"))?;
    let manifest = transfer::manifest(sim, part).await?;
    let fits = manifest.round == round.id
        && (manifest.attempt == participant.attempt || planted::is(Bug::AttemptNotComparedInReports))
        && (Some(manifest.incarnation) == participant.incarnation || planted::is(Bug::IncarnationNotCompared))
        && Some(manifest.local_checkpoint) == participant.local_checkpoint
        && Some(manifest.step) == push.step
        && manifest.fingerprint == push.fingerprint;
    if !fits {
        return Err(differs("the part is not what was reported"));
    }
    manifest.check_closure(|key| reach.get(key).copied(), None)
}
