//! What hosts are told after a pull: a row that was stored with the pull's end, told by any replica until every host has answered. Saying it again changes nothing, so a
//! lease only saves work; the term that rises with each go keeps a replica that was paused from saying what holds no more.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{FutureExt as _, future::join_all};
use lockstep_failpoint::{Point, reached};
use lockstep_protocol::{
    order::OrderHeader,
    problem::{Problem, Reason},
    ready::{self, Telling},
    round::Round,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

use super::{
    Services,
    drive::jitter,
    rows::{self, Pause},
};
use crate::{
    agents::{AgentAnswer, AgentReads, Host, check_identity},
    store::{PipelineRow, StoreError},
};

/// Longest that one host without an answer keeps what the others have said from being stored.
const PATIENCE: Duration = Duration::from_secs(5);

/// Tells what is owed, until it is told to stop.
pub(super) async fn run(services: Arc<Services>, shutdown: CancellationToken) {
    let tasks = TaskTracker::new();
    let look = || look(Arc::clone(&services), tasks.clone()).boxed();
    let failed = "what hosts are to be told could not be read";
    rows::until_stopped(&services, &shutdown, tasks.clone(), failed, Pause::Hint, look).await;
}

async fn look(services: Arc<Services>, tasks: TaskTracker) -> Result<Option<Duration>, StoreError> {
    for telling in services.store.claim_words(services.options.lease + PATIENCE).await? {
        let span = tracing::info_span!("ready", pipeline.id = %telling.pipeline, round.id = %telling.round, role = %telling.role);
        tasks.spawn(tell(Arc::clone(&services), telling).instrument(span));
    }
    Ok(None)
}

/// One go at all hosts that have not answered.
async fn tell(services: Arc<Services>, telling: Telling) {
    reached(Point::ReadyClaimed);
    let told = async {
        let row = services.store.get_pipeline(&telling.pipeline.into()).await?;
        let round = services.store.get_round(telling.round).await?.round;
        let asked = telling.owed().map(|host_idx| {
            tell_host(&services, &row, &round, &telling, host_idx).map(move |answer| (host_idx, answer.done()))
        });
        let answers: BTreeMap<_, _> = join_all(asked.collect::<Vec<_>>()).await.into_iter().collect();
        for (host_idx, problem) in answers.iter().filter_map(|(idx, answer)| Some((idx, answer.as_ref().err()?))) {
            tracing::warn!(host.idx = host_idx, reason = %problem.reason, "a host is not told yet: {}", problem.message);
        }
        let next = telling.after(&answers, services.clock.now(), jitter());
        let outcome = if next.told_at.is_some() { "told" } else { "again" };
        metrics::counter!("lockstep_words_total", "role" => telling.role.as_str(), "outcome" => outcome).increment(1);
        let all = next.told_at.is_some();
        let stored = services.store.save_telling(&telling, next).await?;
        reached(Point::ReadyStored);
        if stored && all {
            tracing::info!("every host is told that its engine may start");
        }
        Ok::<(), StoreError>(())
    };
    if let Err(error) = told.await {
        let problem = error.problem();
        // The lease of this go runs out, and hosts that were told are told the same again.
        tracing::warn!(reason = %problem.reason, "who was told is not stored: {}", problem.message);
    }
}

/// At the address and by the name that the pipeline has now: what it had when the pull was admitted may have been corrected since.
async fn tell_host(
    services: &Services,
    row: &PipelineRow,
    round: &Round,
    telling: &Telling,
    host_idx: u32,
) -> AgentAnswer<()> {
    let (word, slot) = match (ready::word(round, host_idx, telling.role), round.layout.slot(host_idx)) {
        (Ok(word), Ok(slot)) => (word, slot),
        (Err(problem), _) | (_, Err(problem)) => return AgentAnswer::Refused(problem),
    };
    let frozen = usize::try_from(host_idx).ok().and_then(|idx| round.participants.get(idx));
    let Some(participant) = frozen.filter(|_| row.spec.layout == round.layout) else {
        return AgentAnswer::Refused(
            Problem::new(
                Reason::LayoutMismatch,
                format!(
                    "pull {} was made for {}, the pipeline has {} now: pull again",
                    round.id, round.layout, row.spec.layout
                ),
            )
            .with("round", round.id)
            .with("pull", round.layout)
            .with("pipeline", row.spec.layout),
        );
    };
    let host = Host { slot, address: row.spec.agents.of(host_idx) };
    let header = |incarnation| OrderHeader {
        pipeline: row.id,
        pipeline_name: row.spec.name.clone(),
        slot,
        incarnation,
        generation: round.generation,
        round_no: round.round_no,
        term: telling.term,
        round: round.id,
        attempt: participant.attempt,
        own_location: round.location.clone(),
    };
    let send = async |incarnation| {
        reached(Point::ReadyBeforeSent);
        let answer = services.agents.ready(&host, &header(incarnation), &word).await;
        reached(Point::ReadyAnswered);
        answer
    };
    let telling_it = async {
        // The process that ended the pull is asked first: most often it still is the present one.
        if let Some(incarnation) = participant.incarnation.filter(|_| telling.tries == 0) {
            match send(incarnation).await {
                AgentAnswer::Refused(problem) if problem.reason == Reason::IncarnationMismatch => {}
                answer => return answer,
            }
        }
        let described = services.agents.describe(&host).await.and_then(|described| {
            check_identity(&host, row.id, &row.spec.name, &described)?;
            Ok(described.incarnation)
        });
        match described {
            AgentAnswer::Answer(incarnation) => send(incarnation).await,
            AgentAnswer::Refused(problem) => AgentAnswer::Refused(problem),
            AgentAnswer::Unknown(problem) => AgentAnswer::Unknown(problem),
        }
    };
    match tokio::time::timeout(PATIENCE, telling_it).await {
        Ok(answer) => answer,
        Err(_) => AgentAnswer::Unknown(
            Problem::new(
                Reason::AgentUnreachable,
                format!("{slot} at {} did not answer within {} s", host.address, PATIENCE.as_secs()),
            )
            .with("host_idx", host_idx)
            .with("address", &host.address),
        ),
    }
}
