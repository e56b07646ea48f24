//! What becomes of an open round whose generation is over, by what stands in the bucket (F4).

use bytes::Bytes;
use lockstep_bucket::{
    DecisionFound, DecisionOutcome, ObjectStore, fences, put_decision, read_decision, retired_commit,
};
use lockstep_protocol::{
    commit::{AbortRecord, CommitDocument, CommitRef, DecisionObject},
    fence::FenceBase,
    finish::AtKey,
    id::{Generation, Seq},
    problem::{Problem, Reason},
    round::{Decision, KeyRead, Kind, Round},
    takeover::{Settlement, learn_commit, settle},
};

use super::Services;
use crate::store::is_foreign;

/// What is decided of the round by `base`, or by that of exactly the generation after its own, with all that its commit tells of it.
pub(super) async fn by_base(
    services: &Services,
    bucket: &dyn ObjectStore,
    round: Round,
    mut base: FenceBase,
) -> Result<(Round, Decision), Problem> {
    let mut key = KeyRead::NotYet;
    let mut undecided = false;
    loop {
        match settle(&round, &base, key, services.clock.now()) {
            Settlement::Settled(mut decision) => {
                if let Some(document) = document_of(bucket, &decision.next).await? {
                    learn_commit(&mut decision, &document);
                }
                return Ok((round, *decision));
            }
            Settlement::NeedsBase(generation) => base = fences::finish_base(bucket, generation).await?,
            Settlement::NeedsKey(generation, seq) => key = read_key(bucket, generation, seq).await?,
            Settlement::Undecided if !undecided && is_driven_by_nobody(services, &round).await? => {
                undecided = true;
                abort(services, bucket, &round).await?;
                key = KeyRead::NotYet;
            }
            Settlement::Undecided => {
                return Err(Problem::new(
                    Reason::RoundInProgress,
                    format!("round {} of pipeline {} is not decided yet", round.id, round.pipeline_name),
                )
                .with("round", round.id)
                .with("pipeline", &round.pipeline_name));
            }
        }
    }
}

async fn read_key(bucket: &dyn ObjectStore, generation: Generation, seq: Seq) -> Result<KeyRead, Problem> {
    Ok(match read_decision(bucket, generation, seq).await.known()? {
        None => KeyRead::Absent,
        // It stood and counted, whoever retired it since: a push that was told to be committed stays so (S5).
        Some(DecisionFound::Retired) => {
            let commit = retired_commit(bucket, generation, seq).await.known()?;
            KeyRead::Holds(commit.map_or(AtKey::Swept, AtKey::Commit))
        }
        // Whatever it was, nobody can show that it is this round's.
        Some(DecisionFound::Unreadable(commit, _)) => KeyRead::Holds(AtKey::Commit(commit)),
        Some(DecisionFound::Decision(DecisionObject::Abort(_), _)) => KeyRead::Holds(AtKey::Abort),
        Some(DecisionFound::Decision(DecisionObject::Commit(document), digest)) => {
            KeyRead::Holds(AtKey::Commit(CommitRef { generation, seq, round: document.round, digest }))
        }
    })
}

/// The document by which a push is committed whose row is from before its bytes were stored. None: the row knows all of it, it is not committed, or the document is retired.
async fn document_of(bucket: &dyn ObjectStore, round: &Round) -> Result<Option<Box<CommitDocument>>, Problem> {
    let Kind::Push(push) = &round.kind else { return Ok(None) };
    let Some(commit) = push.committed.filter(|_| push.commit_bytes.is_none()) else { return Ok(None) };
    Ok(match read_decision(bucket, commit.generation, commit.seq).await.known()? {
        Some(DecisionFound::Decision(DecisionObject::Commit(document), digest)) if digest == commit.digest => {
            Some(document)
        }
        _ => None,
    })
}

/// Another database wrote the pipeline's row, so no replica carries out the round's own effects (R13).
async fn is_driven_by_nobody(services: &Services, round: &Round) -> Result<bool, Problem> {
    let row = services.store.get_pipeline(&round.pipeline.into()).await.map_err(Problem::from)?;
    Ok(is_foreign(&row, &services.store.identity().await.map_err(Problem::from)?))
}

/// Its commit would count if it landed, and its key is empty: an abort record settles which. It can't contradict the database that was lost: a commit that one told of stands at the key,
/// or its tombstone does.
async fn abort(services: &Services, bucket: &dyn ObjectStore, round: &Round) -> Result<(), Problem> {
    let Kind::Push(push) = &round.kind else { return Ok(()) };
    let record = AbortRecord {
        pipeline: round.pipeline,
        generation: round.generation,
        seq: push.seq,
        round: round.id,
        aborted_by: services.caller().actor,
        cause: "the database that drove it is gone, and a later commit stands".to_owned(),
        aborted_at: services.clock.now(),
    };
    match put_decision(bucket, (round.generation, push.seq), Bytes::from(record.encode()), round.id).await {
        DecisionOutcome::Unknown(error) | DecisionOutcome::Refused(error) => Err(error.problem()),
        DecisionOutcome::Unreadable(problem) => Err(problem),
        // Whatever stands there is read next.
        DecisionOutcome::Stands
        | DecisionOutcome::Aborted(_)
        | DecisionOutcome::Committed { .. }
        | DecisionOutcome::OtherRound { .. }
        | DecisionOutcome::Retired => Ok(()),
    }
}
