//! Before any order: what a push sends and whether it may, where a pull comes from.

use lockstep_protocol::{
    commit::{CommitDocument, CommitPart},
    fence::Successor,
    problem::{Problem, Reason},
    round::{Event, FoundHost, PullState, PushState, Resolved, Round, Source},
    selection::{LocalCheckpoint, Wanted, common_cut},
    spec::PullSelector,
};

use super::{
    effect::{Drive, Host, ask_all},
    reader,
    world::Sim,
};

/// Before any order: nothing stands at this round's key, the location is still ours, and the hosts have a common cut.
pub(super) async fn push(sim: &Sim, drive: &Drive, round: &Round, push: &PushState) -> Result<Event, Problem> {
    let generation = round.generation;
    match reader::fence(sim, generation).await? {
        Some(fence) if fence.pipeline == round.pipeline => {}
        _ => return Err(Problem::new(Reason::NotOwner, format!("generation {generation} is not ours"))),
    }
    match reader::successor(sim, generation).await? {
        Successor::Absent => {}
        Successor::FenceOnly => return Err(Problem::new(Reason::TakeOverInProgress, "a fence without its base")),
        Successor::Base(base) => {
            return Err(Problem::new(Reason::Fenced, format!("by generation {}", base.generation)));
        }
    }
    if let Some((decision, _)) = reader::decision(sim, generation, push.seq).await?
        && decision.round() != round.id
    {
        return Err(Problem::new(Reason::DatabaseBehind, format!("round {} stands at our key", decision.round())));
    }
    let parent = reader::newest(sim).await?.map(|(commit, _)| commit);
    drive.base(sim, push).await?;
    let hosts = ask_all(sim, drive, round).await?;
    let disks: Vec<_> = hosts.iter().map(|(_, disk)| disk.clone()).collect();
    let cut = common_cut(&disks, push.wanted.into())?;
    let found =
        |(host, local): (&Host, &LocalCheckpoint)| FoundHost { incarnation: host.0, local_checkpoint: Some(local.id) };
    let hosts = hosts.iter().zip(&cut.checkpoints).map(found).collect();
    Ok(Event::Planned { hosts, step: cut.step, fingerprint: cut.fingerprint, parent })
}

/// One source for all hosts: their own disks, the location, or nothing.
pub(super) async fn pull(sim: &Sim, drive: &Drive, round: &Round, pull: &PullState) -> Result<Event, Problem> {
    let request = pull.request;
    let hosts = ask_all(sim, drive, round).await?;
    let disks: Vec<_> = hosts.iter().map(|(_, disk)| disk.clone()).collect();
    let wanted = match request.selector {
        PullSelector::Step(step) => Wanted::Step(step),
        _ => Wanted::Newest,
    };
    let local = if request.standby || request.discard_local { None } else { common_cut(&disks, wanted).ok() };
    let found = reader::newest(sim).await?;
    if let Some(cut) = local
        && local_satisfies(sim, round, request.selector).await?
    {
        let made_of_it = |document: &CommitDocument| {
            document.step == cut.step
                && document.parts.iter().zip(&cut.checkpoints).all(|(part, local)| part.local_checkpoint == local.id)
        };
        let (commit, parts) = match found {
            Some((commit, document)) if made_of_it(&document) => (Some(commit), document.parts),
            _ => (None, Vec::new()),
        };
        let found = |(host, local): (&Host, &LocalCheckpoint)| FoundHost {
            incarnation: host.0,
            local_checkpoint: Some(local.id),
        };
        let resolved = Resolved {
            source: Source::Local,
            location: commit.map(|_| round.location.clone()),
            commit,
            step: Some(cut.step),
            fingerprint: cut.fingerprint,
            processed_records: None,
            parts,
        };
        let hosts = hosts.iter().zip(&cut.checkpoints).map(found).collect();
        return Ok(Event::Resolved { resolved, hosts, discard: false });
    }
    if let Some((commit, document)) = found {
        let found = |(host, part): (&Host, &CommitPart)| FoundHost {
            incarnation: host.0,
            local_checkpoint: Some(part.local_checkpoint),
        };
        let hosts = hosts.iter().zip(&document.parts).map(found).collect();
        let resolved = Resolved {
            source: Source::Location,
            location: Some(round.location.clone()),
            commit: Some(commit),
            step: Some(document.step),
            fingerprint: document.fingerprint,
            processed_records: None,
            parts: document.parts,
        };
        return Ok(Event::Resolved { resolved, hosts, discard: false });
    }
    let holds_local = disks.iter().any(|disk| !disk.is_empty());
    if !request.may_start_fresh() || (holds_local && !request.discard_local) {
        return Err(Problem::new(Reason::CheckpointNotFound, "nothing anywhere"));
    }
    let resolved = Resolved {
        source: Source::Fresh,
        location: None,
        commit: None,
        step: None,
        fingerprint: None,
        processed_records: None,
        parts: Vec::new(),
    };
    let hosts = hosts.iter().map(|host| FoundHost { incarnation: host.0, local_checkpoint: None }).collect();
    Ok(Event::Resolved { resolved, hosts, discard: holds_local })
}

/// Local is `latest` only while the location's highest generation is ours.
async fn local_satisfies(sim: &Sim, round: &Round, selector: PullSelector) -> Result<bool, Problem> {
    if selector != PullSelector::Latest {
        return Ok(true);
    }
    let ours = reader::fence(sim, round.generation).await?.is_some_and(|fence| fence.pipeline == round.pipeline);
    Ok(ours && reader::successor(sim, round.generation).await? == Successor::Absent)
}
