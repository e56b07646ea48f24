//! One run: push and die, push again with changes, lose every disk, pull and die, compare.

use std::time::Duration;

use lockstep_client::v1::{self, RoundPhase, start_pull_request::Selector};
use lockstep_devkit::RequestRecord;
use lockstep_integration_tests::{
    cluster::{BUCKET, agent_key},
    content::{Identity, differences, identity},
};

use crate::{
    lane::{Crew, Lane},
    plan::{Kill, Moment, Plan},
};

/// How often a moment is looked for.
const LOOK: Duration = Duration::from_millis(2);

/// What became of a round in which somebody was killed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Death {
    /// An agent was killed at all.
    pub(crate) agent: bool,
    /// Its transfer had not ended: it was ordered again.
    pub(crate) in_the_middle: bool,
}

/// What became of a run.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) push: Death,
    pub(crate) pull: Death,
    /// Multipart uploads that processes which were killed left open; theirs to sweep is the garbage collection.
    pub(crate) orphaned_uploads: usize,
}

/// Goes wrong with a panic.
pub(crate) async fn run(lane: &mut Lane, plan: &Plan) -> Outcome {
    let mut crew = Crew::new(lane, plan);
    let first: Vec<_> =
        crew.hosts.iter().enumerate().map(|(idx, host)| host.checkpoint_filled(1, |to| plan.first(idx, to))).collect();
    for idx in 0..crew.hosts.len() {
        crew.start(lane, idx).await;
    }
    lane.client.create_pipeline(crew.spec(lane, plan)).await.expect("the pipeline is created");
    let checkpoint =
        |crew: &Crew| -> Vec<Identity> { crew.hosts.iter().map(|host| identity(&host.folder(newest(host)))).collect() };
    let was_first = checkpoint(&crew);
    let push = v1::StartPushRequest { pipeline: crew.pipeline.clone(), ..v1::StartPushRequest::default() };
    let (pushed, on_push) =
        strike(lane, &mut crew, &plan.push, total(&was_first[plan.push.host]), Asked::Push(push.clone())).await;
    assert_eq!(pushed.phase(), RoundPhase::Committed, "{pushed:?}");
    let mut outcome = Outcome { push: on_push, ..Outcome::default() };
    let mut killed = Vec::new();
    outcome.orphaned_uploads += uploads(lane, &crew, &pushed, &mut killed);

    for (idx, host) in crew.hosts.iter().enumerate() {
        let from = host.folder(first[idx]);
        host.checkpoint_filled(2, |to| plan.second(idx, &from, to));
    }
    let was_second = checkpoint(&crew);
    let again = lane.client.start_push(push).await.expect("the second push is admitted");
    let again = lane.ended(&again.id).await;
    assert_eq!((again.phase(), again.step), (RoundPhase::Committed, Some(2)), "{again:?}");

    crew.lose_disks(lane).await;
    let (selector, wanted) = if plan.pull_first { (Some(Selector::Step(1)), was_first) } else { (None, was_second) };
    let pull = v1::StartPullRequest {
        pipeline: crew.pipeline.clone(),
        standby: Some(false),
        selector,
        ..v1::StartPullRequest::default()
    };
    let (pulled, on_pull) =
        strike(lane, &mut crew, &plan.pull, total(&wanted[plan.pull.host]), Asked::Pull(pull)).await;
    assert_eq!(pulled.phase(), RoundPhase::Installed, "{pulled:?}");
    outcome.pull = on_pull;

    for (host, wanted) in crew.hosts.iter().zip(&wanted) {
        assert_eq!(host.checkpoints().len(), 1, "host {}", host.idx);
        let different = differences(wanted, &identity(&host.folder(newest(host))));
        assert!(different.is_empty(), "host {}: {different:?}", host.idx);
        assert!(host.leftovers().is_empty(), "host {}: {:?}", host.idx, host.leftovers());
        host.without_drafts().await;
    }
    crew.clear(lane);
    outcome
}

fn newest(host: &lockstep_integration_tests::host::Host) -> lockstep_protocol::id::LocalCheckpointId {
    let last = host.checkpoints().pop().expect("the host has a checkpoint");
    last.parse().expect("a checkpoint's folder is its id")
}

fn total(files: &Identity) -> u64 {
    files.values().map(|(size, _)| size).sum()
}

enum Asked {
    Push(v1::StartPushRequest),
    Pull(v1::StartPullRequest),
}

/// Asks for a round, kills whom the plan says when it says, starts them again, and waits for the round's end.
async fn strike(lane: &mut Lane, crew: &mut Crew, kill: &Kill, bytes: u64, asked: Asked) -> (v1::Round, Death) {
    lane.s3.clear_requests();
    let rule = kill.rule().map(|rule| lane.s3.faults().add(rule));
    let round = match asked {
        Asked::Push(request) => lane.client.start_push(request).await,
        Asked::Pull(request) => lane.client.start_pull(request).await,
    }
    .expect("the round is admitted");
    tokio::select! {
        () = moment(lane, kill, rule, bytes) => {}
        // The moment never came: whoever is to die does so after the end.
        _ = lane.ended(&round.id) => {}
    }
    if kill.coordinator {
        lane.kill_coordinator();
    }
    if kill.agent {
        crew.kill(kill.host);
    }
    if let Some(rule) = rule {
        lane.s3.faults().remove(rule);
    }
    if kill.agent {
        crew.start(lane, kill.host).await;
    }
    if kill.coordinator {
        lane.start_coordinator().await;
    }
    let ended = lane.ended(&round.id).await;
    let attempt = ended.participants.get(kill.host).map_or(0, |participant| participant.attempt);
    (ended, Death { agent: kill.agent, in_the_middle: kill.agent && attempt > 1 })
}

/// Returns when it has come.
async fn moment(lane: &Lane, kill: &Kill, rule: Option<u64>, bytes: u64) {
    match (&kill.moment, rule) {
        (Moment::Delay(delay), _) => tokio::time::sleep(*delay).await,
        (Moment::Bytes(share), _) => {
            let key = agent_key(u32::try_from(kill.host).expect("few hosts"));
            let wanted = (bytes as f64 * share) as u64;
            let moved = || {
                let totals = lane.s3.log().totals();
                let own = totals.iter().filter(|total| total.access_key.as_deref() == Some(&key));
                own.map(|total| total.bytes_in + total.bytes_out).sum::<u64>()
            };
            let mut ticks = tokio::time::interval(LOOK);
            while moved() <= wanted {
                ticks.tick().await;
            }
        }
        (Moment::Before(_), Some(rule)) => {
            hit(lane, rule).await;
        }
        (Moment::After(_), Some(rule)) => {
            // An object shows when it was done; of a piece only its bytes show.
            let hit = hit(lane, rule).await;
            let mut ticks = tokio::time::interval(LOOK);
            while let Some(key) = hit.key.as_ref().filter(|_| hit.operation != "UploadPart") {
                if lane.s3.admin().size(BUCKET, key).is_ok() {
                    break;
                }
                ticks.tick().await;
            }
        }
        (Moment::Before(_) | Moment::After(_), None) => unreachable!("a request's moment has a rule"),
    }
}

/// The request that the fault holds, once it is there.
async fn hit(lane: &Lane, rule: u64) -> RequestRecord {
    let mut ticks = tokio::time::interval(LOOK);
    loop {
        ticks.tick().await;
        if lane.s3.faults().hits(rule) > 0 {
            let mut requests = lane.s3.requests().into_iter();
            if let Some(found) = requests.find(|request| request.faults.contains(&rule)) {
                return found;
            }
        }
    }
}

/// Uploads that are open after a round: none may be of a process that lives. Returns how many dead ones left.
fn uploads(lane: &Lane, crew: &Crew, round: &v1::Round, dead: &mut Vec<String>) -> usize {
    let prefix = format!("{}/", crew.pipeline);
    let open = lane.s3.admin().open_uploads(BUCKET).expect("open uploads");
    for (key, _) in open.into_iter().filter(|(key, _)| key.starts_with(&prefix)) {
        let living = round.participants.iter().any(|participant| key.contains(&participant.incarnation));
        assert!(!living, "{key} is an upload that a living agent left open");
        dead.push(key);
    }
    dead.len()
}
