//! Others who take the location over: the production steps of a take-over (`takeover`), of finishing a base (`Finish`) and of looking for the newest
//! commit (`Look`), each request of which may fail. Takers are killed between any two requests and go on from what they had stored.

use std::rc::Rc;

use lockstep_protocol::{
    commit::{CommitRef, DecisionObject},
    fence::{Fence, FenceBase, Writer},
    finish::{AtKey, Finish},
    id::{DatabaseId, Generation, PipelineId, PipelineName, Seq, Term},
    key::Key,
    latest::{Access, Look, highest_fence},
    problem::{Problem, Reason},
    round::RetryPolicy,
    takeover::{Effect, Event, Phase, Purpose, PutAnswer, TakeOver, decide, effects, judge_fence},
    tombstone::Tombstone,
};

use super::{
    audit,
    bucket::{self, Bytes, Created, Read},
    fault::Fault,
    reader::{self, unavailable},
    timeline::{MILLISECOND, OUTSIDE, SECOND},
    world::Sim,
};

/// The seqs of a generation that stand in a folder.
async fn seqs(sim: &Sim, prefix: &str, generation: Generation) -> Result<Vec<Seq>, Problem> {
    let keys = bucket::list(sim, prefix).await?;
    let seqs = keys.iter().filter_map(|key| match Key::parse(key) {
        Some(Key::Commit(g, seq) | Key::Retired(g, seq) | Key::Damaged(g, seq)) if g == generation => Some(seq),
        _ => None,
    });
    Ok(seqs.collect())
}

async fn at_key(sim: &Sim, (generation, seq): (Generation, Seq)) -> Result<AtKey, Problem> {
    match reader::decision(sim, generation, seq).await? {
        Some((DecisionObject::Commit(document), digest)) => {
            Ok(AtKey::Commit(CommitRef { generation, seq, round: document.round, digest }))
        }
        Some((DecisionObject::Abort(_), _)) => Ok(AtKey::Abort),
        None => Err(unavailable(Key::Commit(generation, seq))),
    }
}

async fn fences(sim: &Sim) -> Result<Vec<Generation>, Problem> {
    let keys = bucket::list(sim, Key::FENCES).await?;
    let fences = keys.iter().filter_map(|key| match Key::parse(key) {
        Some(Key::Fence(generation)) => Some(generation),
        _ => None,
    });
    Ok(fences.collect())
}

async fn tombstone(sim: &Sim, generation: Generation, seq: Seq) -> Result<Tombstone, Problem> {
    let key = Key::Retired(generation, seq);
    reader::document(sim, &key, Tombstone::parse).await?.ok_or_else(|| unavailable(&key))
}

/// F3. The base that stands in the end.
pub(super) async fn finish(sim: &Sim, begin: Finish) -> Result<FenceBase, Problem> {
    let mut step = begin;
    loop {
        step = match step {
            Finish::ReadFence(ask) => {
                let stands = reader::fence(sim, ask.generation()).await?.is_some();
                ask.answer(stands)?
            }
            Finish::ReadBase(ask) => {
                let base = reader::base(sim, ask.generation()).await?;
                ask.answer(base)
            }
            Finish::ReadBefore(ask) => {
                let base = reader::base(sim, ask.generation()).await?;
                ask.answer(base)
            }
            Finish::FinishBefore(ask) => {
                let base = Box::pin(finish(sim, Finish::begin(ask.generation())?)).await?;
                ask.answer(Some(base))
            }
            Finish::ListRetired(ask) => {
                let keys = bucket::list(sim, Key::RETIRED).await?;
                ask.answer(keys.iter().filter_map(|key| match Key::parse(key) {
                    Some(Key::Retired(generation, seq)) => Some((generation, seq)),
                    _ => None,
                }))
            }
            Finish::ReadTombstones(ask) => {
                let mut read = Vec::new();
                for (generation, seq) in ask.places() {
                    read.push(tombstone(sim, *generation, *seq).await?);
                }
                ask.answer(&read)
            }
            Finish::ListCommits(ask) => {
                let seqs = seqs(sim, Key::COMMITS, ask.generation()).await?;
                ask.answer(seqs)
            }
            Finish::ReadDecision(ask) => {
                let found = at_key(sim, ask.place()).await?;
                ask.answer(found)
            }
            Finish::Create(ask) => {
                let base = ask.base();
                let bytes: Bytes = base.encode().into();
                // Whatever it is answered, what stands is read.
                let _ = bucket::create(sim, &Key::FenceBase(base.generation), &bytes).await;
                ask.sent()
            }
            Finish::ReadStanding(ask) => {
                let base = reader::base(sim, ask.generation()).await?;
                ask.answer(base)
            }
            Finish::Done(base) => return Ok(base),
        };
    }
}

/// F2. The newest commit that counts, none: proven that there is none.
pub(super) async fn newest(sim: &Sim, access: Access) -> Result<Option<CommitRef>, Problem> {
    let began = audit::reading(sim);
    let (mut step, mut found) = (Look::begin(access), None);
    loop {
        step = match step {
            Look::ListFences(ask) => {
                found = None;
                let fences = fences(sim).await?;
                ask.answer(fences)?
            }
            Look::ReadBase(ask) => {
                let base = reader::base(sim, ask.generation()).await?;
                ask.answer(base)?
            }
            Look::FinishBase(ask) => {
                let base = finish(sim, ask.begin()).await?;
                ask.answer(base)
            }
            Look::ListCommits(ask) => {
                let seqs = seqs(sim, &Key::commits_of(ask.generation()), ask.generation()).await?;
                ask.answer(seqs)
            }
            Look::ListMarks(ask) => {
                let retired = seqs(sim, Key::RETIRED, ask.generation()).await?;
                let damaged = seqs(sim, Key::DAMAGED, ask.generation()).await?;
                ask.answer(retired, damaged)
            }
            Look::ReadTombstones(ask) => {
                let mut read = Vec::new();
                for seq in ask.wanted() {
                    read.push(tombstone(sim, ask.generation(), *seq).await?);
                }
                ask.answer(&read)
            }
            Look::ReadCommits(ask) => {
                let generation = ask.generation();
                let mut newest = None;
                for seq in ask.seqs() {
                    if let AtKey::Commit(commit) = at_key(sim, (generation, *seq)).await? {
                        ask.check(&commit)?;
                        newest = Some(commit);
                        break;
                    }
                }
                match newest {
                    Some(commit) => {
                        found = newest;
                        ask.found(commit)
                    }
                    None => ask.exhausted(),
                }
            }
            Look::ReadFollowing(ask) => {
                let base = reader::base(sim, ask.generation()).await?;
                ask.answer(base)?
            }
            Look::ReadOwnBase(ask) => {
                let base = reader::base(sim, ask.generation()).await?;
                ask.answer(base)
            }
            Look::ReadSuccessor(ask) => {
                let stands = reader::fence(sim, ask.generation()).await?.is_some();
                ask.answer(stands)
            }
            Look::Done => {
                audit::read_latest(sim, began, found);
                return Ok(found);
            }
        };
    }
}

/// Somebody takes the location over, now and then, and others read it.
pub(super) async fn rivals(sim: Sim) {
    while !sim.faults.borrow().over {
        sim.sleep(sim.random(SECOND, 3 * SECOND)).await;
        if sim.happens(Fault::TakeOver) {
            begin(&sim);
        }
        if sim.happens(Fault::Reader) {
            let world = Rc::clone(&sim);
            sim.timeline.spawn(OUTSIDE, async move {
                let _ = newest(&world, Access::ReadOnly).await;
            });
        }
    }
}

/// Somebody begins to take the location over.
pub(super) fn begin(sim: &Sim) {
    let number = sim.audit.borrow().rivals + 1;
    sim.audit.borrow_mut().rivals = number;
    let Ok(taker) = take_over(sim, number) else { return };
    let world = Rc::clone(sim);
    sim.timeline.spawn(OUTSIDE, async move { drive(&world, taker).await });
}

fn take_over(sim: &Sim, number: u32) -> Result<TakeOver, Problem> {
    Ok(TakeOver {
        id: sim.uuid(),
        pipeline: PipelineId::new(sim.uuid()),
        pipeline_name: PipelineName::new(format!("rival-{number}"))?,
        writer: Writer::Database {
            database: DatabaseId::new(sim.uuid()),
            system_identifier: "2".to_owned(),
            timeline: 1,
        },
        location: sim.location.clone(),
        purpose: Purpose::TakeOver,
        holds: Generation::NONE,
        version: 1,
        term: Term::NONE.next(),
        phase: Phase::Preparing,
        chosen: None,
        warm: None,
        fence: None,
        base: None,
        problem: None,
        cancel: None,
        tries: 0,
        retry_at: None,
        retry: RetryPolicy {
            max_attempts: 5,
            base: RetryPolicy::default().base,
            max: std::time::Duration::from_secs(10),
        },
    })
}

/// Drives a take-over to its end. What was decided is stored before anything follows from it, so whoever dies goes on from there.
async fn drive(sim: &Sim, mut taker: TakeOver) {
    let name = taker.pipeline_name.clone();
    sim.audit.borrow_mut().takers += 1;
    while !taker.phase.is_terminal() {
        let wanted = effects(&taker, sim.clock());
        if wanted.is_empty() {
            sim.sleep(200 * MILLISECOND).await;
        }
        for effect in wanted {
            // Its process dies, or a lease runs out, with a PUT under way or between a fence and its base (R14).
            if sim.happens(Fault::TakerDies) {
                let away = sim.random(SECOND, 20 * SECOND);
                sim.wrong_until(sim.now() + away);
                sim.sleep(away).await;
            }
            let event = carry_out(sim, &taker, &effect)
                .await
                .unwrap_or_else(|problem| Event::Unknown { problem, jitter: sim.jitter() });
            let decision = decide(&taker, &event, sim.clock());
            for transition in &decision.transitions {
                sim.log(|| format!("{name}: {} -> {}: {}", transition.from, transition.to, transition.cause));
            }
            taker = decision.next;
        }
    }
    sim.audit.borrow_mut().takers -= 1;
}

async fn carry_out(sim: &Sim, taker: &TakeOver, effect: &Effect) -> Result<Event, Problem> {
    match effect {
        Effect::Survey => {
            let Some(highest) = highest_fence(fences(sim).await?)? else {
                return Ok(Event::Surveyed { highest: None });
            };
            if highest > Generation::FIRST {
                finish(sim, Finish::begin(highest)?).await?;
            }
            let fence: Option<Fence> = reader::fence(sim, highest).await?;
            match fence {
                Some(fence) => Ok(Event::Surveyed { highest: Some(fence) }),
                None => Err(unavailable(Key::Fence(highest))),
            }
        }
        Effect::PutFence(generation) => {
            let key = Key::Fence(*generation);
            let mine: Bytes =
                taker.fence.iter().map(|fence| fence.bytes.as_bytes()).collect::<Vec<_>>().concat().into();
            let answer = match bucket::create(sim, &key, &mine).await {
                Created::Done => PutAnswer::Created,
                Created::Exists => PutAnswer::Exists,
                Created::Refused | Created::Unknown => PutAnswer::Unknown,
            };
            let found = match answer {
                PutAnswer::Created => Read::Absent,
                PutAnswer::Exists | PutAnswer::Unknown => bucket::get(sim, &key.to_string()).await,
            };
            let found = match &found {
                Read::Found(bytes) => Some(&**bytes),
                Read::Absent | Read::Unknown => None,
            };
            match judge_fence(&key.to_string(), &mine, answer, found)? {
                Some(known) => {
                    audit::fence_judged(sim, &key, &mine, &known);
                    Ok(Event::Fenced(known))
                }
                None => Err(unavailable(&key)),
            }
        }
        Effect::FinishBase(generation) => Ok(Event::BaseStands(finish(sim, Finish::begin(*generation)?).await?)),
        Effect::Adopt => Ok(Event::Adopted),
        Effect::WarmPull | Effect::Pull(_) => Err(Problem::new(Reason::NotOwner, "nobody activates here")),
    }
}
