//! The in-memory twin behaves as Postgres does: random operations on both, everything they answer and everything they then hold compared after each.
//!
//! `LOCKSTEP_SEED=17 cargo test --workspace --test store conformance -- --nocapture` replays a seed; `LOCKSTEP_OPERATIONS` sets how many.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use lockstep_coordinator::{
    chance,
    store::{Applied, AuditFilter, Marking, Page, RoundFilter, RoundKind, RoundRecord, Store, memory::MemoryDatabase},
};
use lockstep_protocol::{
    garbage::Candidates,
    round::{Decision, Event, Round, decide},
    upkeep::{self, Upkeep},
};
use rand::{SeedableRng as _, rngs::StdRng};

use crate::{
    location_operations::{self, Told},
    operations::{Operation, World},
    rig::{Rig, alice, replica},
};

const OPERATIONS: u64 = 2_000;

/// Both sides of each comparison.
struct Pair {
    postgres: Store,
    twin: Store,
    /// Where the audit trail of each was read up to.
    heard: [Option<String>; 2],
}

/// What one side answered and which rounds that told of.
struct Said {
    text: String,
    rounds: Vec<Round>,
    upkeep: Vec<Upkeep>,
    told: Vec<Told>,
}

/// Times are each database's own.
fn without_times(text: &str) -> String {
    let bytes = text.as_bytes();
    let digits = |at: usize, count: usize| (at..at + count).all(|i| bytes.get(i).is_some_and(u8::is_ascii_digit));
    let is = |at: usize, byte: u8| bytes.get(at) == Some(&byte);
    let mut plain = String::with_capacity(text.len());
    let mut at = 0;
    while let Some(char) = text.get(at..).and_then(|rest| rest.chars().next()) {
        let is_time = digits(at, 4) && is(at + 4, b'-') && digits(at + 5, 2) && is(at + 7, b'-') && is(at + 10, b'T');
        if is_time {
            plain.push_str("<time>");
            at += text[at..]
                .find(|c: char| !matches!(c, '0'..='9' | '-' | ':' | '.' | 'T' | 'Z' | '+'))
                .unwrap_or(text.len() - at);
        } else {
            plain.push(char);
            at += char.len_utf8();
        }
    }
    plain
}

/// Text as it is.
struct Plain(String);

impl std::fmt::Debug for Plain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

fn said<T: std::fmt::Debug, E: std::fmt::Debug>(outcome: Result<T, E>, rounds: Vec<Round>) -> Said {
    Said { text: without_times(&format!("{outcome:#?}")), rounds, upkeep: Vec::new(), told: Vec::new() }
}

fn sorted(mut records: Vec<RoundRecord>) -> Vec<RoundRecord> {
    records.sort_by_key(|record| record.round.id);
    records
}

fn rounds_of(records: &[RoundRecord]) -> Vec<Round> {
    records.iter().map(|record| record.round.clone()).collect()
}

/// Events decided one after the other, stored as one, as the driver does.
fn decide_all(round: &Round, events: &[Event], now: DateTime<Utc>) -> Decision {
    let unchanged = Decision { next: round.clone(), transitions: Vec::new(), fence_pipeline: false };
    events.iter().fold(unchanged, |so_far, event| {
        let next = decide(&so_far.next, event, now);
        Decision {
            next: next.next,
            transitions: [so_far.transitions, next.transitions].concat(),
            fence_pipeline: so_far.fence_pipeline || next.fence_pipeline,
        }
    })
}

/// One operation on one side. `known` is what this side said the round was.
async fn run(
    store: &Store,
    operation: &Operation,
    known: Option<&Round>,
    claimed: Option<&Upkeep>,
    now: DateTime<Utc>,
) -> Said {
    match operation {
        Operation::Create(new) => said(store.create_pipeline(new.clone(), &alice()).await, Vec::new()),
        Operation::Update(selector, spec, etag) => {
            said(store.update_pipeline(selector, spec.clone(), etag.as_deref(), &alice()).await, Vec::new())
        }
        Operation::Delete(selector, etag) => {
            said(store.delete_pipeline(selector, etag.as_deref(), &alice()).await, Vec::new())
        }
        Operation::ClaimClaiming(lease) => {
            let mut rows = store.claim_claiming("one", *lease).await.unwrap();
            rows.sort_by_key(|row| row.id);
            said::<_, ()>(Ok(rows), Vec::new())
        }
        Operation::RenewClaim(id, term, lease) => said(store.renew_claim(*id, *term, *lease).await, Vec::new()),
        Operation::SettleClaim(id, version, term, outcome) => {
            said(store.settle_claim(*id, *version, *term, outcome.clone(), &replica()).await, Vec::new())
        }
        Operation::Push(push) => {
            let admitted = store.admit_push(push.clone(), &alice()).await;
            let rounds = admitted.iter().map(|admission| admission.record().round.clone()).collect();
            said(admitted, rounds)
        }
        Operation::Pull(pull) => {
            let admitted = store.admit_pull(pull.clone(), &alice()).await;
            let rounds = admitted.iter().map(|admission| admission.record().round.clone()).collect();
            said(admitted, rounds)
        }
        Operation::Claim(lease, at_most) => {
            let claimed = sorted(store.claim_rounds("one", *lease, *at_most).await.unwrap());
            let rounds = rounds_of(&claimed);
            said::<_, ()>(Ok(claimed), rounds)
        }
        Operation::Renew(held, lease) => {
            let mut kept = store.renew_all(held.clone(), *lease).await.unwrap();
            kept.sort_unstable();
            said::<_, ()>(Ok(kept), Vec::new())
        }
        Operation::Release(held) => said(store.release_all(held.clone(), &replica()).await, Vec::new()),
        Operation::Apply { events, stale_version, stale_term, .. } => {
            let mut before = known.unwrap().clone();
            before.version = before.version.saturating_sub(u64::from(*stale_version));
            if *stale_term {
                before.term = before.term.next();
            }
            let applied = store.apply(&before, &decide_all(&before, &events.of(&before), now), &replica()).await;
            let rounds = match &applied {
                // A decision that changes nothing is not compared with what stands.
                Ok(Applied::Stored(round)) if round.version == before.version => Vec::new(),
                Ok(Applied::Stored(round)) => vec![round.clone()],
                // What it is now, as a driver looks.
                Ok(Applied::Moved | Applied::SourceRetired(_)) => {
                    store.get_round(before.id).await.iter().map(|found| found.round.clone()).collect()
                }
                Err(_) => Vec::new(),
            };
            said(applied, rounds)
        }
        Operation::RequestCancel(id, request) => {
            said(store.request_cancel(*id, request.clone(), &alice()).await, Vec::new())
        }
        Operation::PendingCancel(id) => said(store.pending_cancels(vec![*id]).await, Vec::new()),
        Operation::Progress(id, term, hosts) => said(store.save_progress(*id, *term, hosts).await, Vec::new()),
        Operation::DuePushes(lease) => {
            let mut found = store.due_pushes(*lease, 1000).await.unwrap();
            found.due.sort_by_key(|due| due.pipeline);
            // How long until the next one differs as the clocks do.
            said::<_, ()>(Ok((found.due, found.next.is_some())), Vec::new())
        }
        Operation::SaveSchedule(due, schedule) => {
            let saved = store.save_push_schedule(due, schedule.clone()).await;
            said(saved.map(|saved| (saved, due.pipeline)), Vec::new())
        }
        Operation::AdmitUpkeep(ask) => said(store.admit_upkeep(ask.clone(), &alice()).await, Vec::new()),
        Operation::ClaimUpkeep(lease, at_most) => {
            let mut upkeep = store.claim_upkeep("one", *lease, *at_most).await.unwrap();
            upkeep.sort_by_key(|upkeep| upkeep.id);
            Said { upkeep: upkeep.clone(), ..said::<_, ()>(Ok(upkeep), Vec::new()) }
        }
        Operation::DriveUpkeep { outcome, tally, stale, .. } => {
            let mut before = claimed.unwrap().clone();
            if *stale {
                before.term = before.term.next();
            }
            let after = match outcome {
                None => {
                    let renewed = store.renew_upkeep(before.id, before.term, Duration::ZERO, *tally).await;
                    format!("{renewed:?}")
                }
                Some(outcome) => {
                    let next = upkeep::decide(&before, outcome.clone(), *tally, now);
                    format!("{:#?}", store.apply_upkeep(&before, &next, &replica()).await)
                }
            };
            said::<_, ()>(Ok((after, store.get_upkeep(before.id).await)), Vec::new())
        }
        Operation::DueCollections(every) => said(store.due_collections(*every, 2).await, Vec::new()),
        Operation::Mark(pipeline, generation, commits) => {
            let marking = Marking {
                pipeline: *pipeline,
                generation: *generation,
                candidates: Candidates { retire: commits.clone(), kept: Vec::new() },
                since: store.now().await.unwrap(),
                caller: replica(),
                cause: "of age\0".to_owned(),
            };
            said(store.mark_retired(marking).await, Vec::new())
        }
        Operation::SettleRetirement(pipeline, commit, true) => {
            said(store.retirement_landed(*pipeline, *commit).await, Vec::new())
        }
        Operation::SettleRetirement(pipeline, commit, false) => {
            said(store.take_mark_back(*pipeline, *commit).await, Vec::new())
        }
        Operation::CollectionView(pipeline, rounds) => {
            said(store.collection_view(*pipeline, rounds.iter().copied().collect()).await, Vec::new())
        }
        Operation::DueStandbys(lease) => {
            let mut found = store.due_standbys(*lease, 1000).await.unwrap();
            found.due.sort_by_key(|due| due.following.pipeline());
            said::<_, ()>(Ok((found.due, found.next.is_some())), Vec::new())
        }
        Operation::SaveFollowState(save) => {
            let (due, state) = save.as_ref();
            let saved = store.save_follow_state(due, state.clone()).await;
            said(saved.map(|saved| (saved, due.following)), Vec::new())
        }
        Operation::StartStandby(selector, pinned) => {
            said(store.start_standby(selector, *pinned, &alice()).await, Vec::new())
        }
        Operation::Location(_) => unreachable!("it has a run of its own"),
        Operation::StopStandby(selector) => said(store.stop_standby(selector, &alice()).await, Vec::new()),
        Operation::Get(id) => {
            let got = store.get_round(*id).await;
            let rounds = got.iter().map(|record| record.round.clone()).collect();
            said(got, rounds)
        }
    }
}

/// All rounds of a filter, by small pages.
async fn all_rounds(store: &Store, filter: &RoundFilter, size: u32) -> Vec<RoundRecord> {
    let (mut all, mut token) = (Vec::new(), None);
    loop {
        let listed = store.list_rounds(filter.clone(), Page { size, token }).await.unwrap();
        all.extend(listed.items);
        token = match listed.next {
            Some(next) => Some(next),
            None => return all,
        };
    }
}

async fn all_pipelines(store: &Store) -> String {
    let (mut all, mut token) = (Vec::new(), None);
    loop {
        let listed = store.list_pipelines(Page { size: 2, token }).await.unwrap();
        all.extend(listed.items);
        token = match listed.next {
            Some(next) => Some(next),
            None => return without_times(&format!("{all:#?}")),
        };
    }
}

/// What came to the audit trail since the last look. Lines of one transaction have no order that anything rests on but that of a round's transitions.
async fn new_lines(store: &Store, heard: &mut Option<String>) -> Vec<String> {
    let mut lines = Vec::new();
    loop {
        let page = Page { size: 100, token: heard.clone() };
        let listed = store.list_audit(AuditFilter::default(), page).await.unwrap();
        if let Some(last) = listed.items.last() {
            *heard = Some(last.id.to_string());
        }
        let plain = listed.items.into_iter().map(|mut row| {
            row.id = 0;
            without_times(&format!("{row:?}"))
        });
        lines.extend(plain);
        if listed.next.is_none() {
            lines.sort_unstable();
            return lines;
        }
    }
}

impl Pair {
    async fn compare(&mut self, seed: u64, number: u64, operation: &Operation, world: &mut World) {
        let now = Utc::now();
        let (mut says, mut lines) = (Vec::new(), Vec::new());
        for (side, store) in [&self.postgres, &self.twin].into_iter().enumerate() {
            let known = operation.snapshot().map(|snapshot| world.snapshot(snapshot, side));
            chance::seed(Some(seed ^ number << 20));
            says.push(match operation {
                Operation::Location(operation) => {
                    let open = world.open(side);
                    let (text, told) =
                        location_operations::run(store, operation, (&world.locations, side), &open, now).await;
                    Said { told, ..said::<_, ()>(Ok(Plain(text)), Vec::new()) }
                }
                _ => run(store, operation, known.as_ref(), world.claimed(operation, side), now).await,
            });
            lines.push(new_lines(store, &mut self.heard[side]).await);
        }
        let [postgres, twin] = says.as_slice() else { unreachable!() };
        assert_eq!(postgres.text, twin.text, "operation {number} of seed {seed}: {operation:#?}");
        assert_eq!(lines[0], lines[1], "audit trail after operation {number} of seed {seed}: {operation:#?}");
        world.count(operation, &twin.text);
        for (postgres, twin) in postgres.rounds.iter().zip(&twin.rounds) {
            world.learn([postgres.clone(), twin.clone()]);
        }
        for (postgres, twin) in postgres.told.iter().zip(&twin.told) {
            world.locations.learn([postgres.clone(), twin.clone()]);
        }
        for (postgres, twin) in postgres.upkeep.iter().zip(&twin.upkeep) {
            world.learn_upkeep([postgres.clone(), twin.clone()]);
        }
        world.learn_pipelines(&self.twin).await;
    }

    async fn compare_all(&self, seed: u64, number: u64, world: &World) {
        for id in world.locations.take_overs() {
            let plain = |text: String| without_times(&text);
            let (postgres, twin) = (self.postgres.get_take_over(id).await, self.twin.get_take_over(id).await);
            assert_eq!(
                plain(format!("{postgres:?}")),
                plain(format!("{twin:?}")),
                "take-over after {number} of {seed}"
            );
        }
        let pipelines = &world.pipelines();
        let mut filters = vec![RoundFilter::default(), RoundFilter { active_only: true, ..RoundFilter::default() }];
        filters.extend(pipelines.iter().map(|id| RoundFilter {
            pipeline: Some(*id),
            kind: Some(RoundKind::Pull),
            active_only: false,
        }));
        for (filter, size) in filters.iter().zip([100, 7, 1, 3].into_iter().cycle()) {
            let (postgres, twin) =
                (all_rounds(&self.postgres, filter, size).await, all_rounds(&self.twin, filter, size).await);
            let plain = |rounds: &[RoundRecord]| without_times(&format!("{rounds:#?}"));
            assert_eq!(plain(&postgres), plain(&twin), "after operation {number} of seed {seed}: {filter:?}");
        }
        let (postgres, twin) = (all_pipelines(&self.postgres).await, all_pipelines(&self.twin).await);
        assert_eq!(postgres, twin, "after operation {number} of seed {seed}");
        let (postgres, twin) = (self.postgres.standbys(None).await.unwrap(), self.twin.standbys(None).await.unwrap());
        let plain = |rows| without_times(&format!("{rows:#?}"));
        assert_eq!(plain(&postgres), plain(&twin), "standbys after operation {number} of seed {seed}");
        let active = (self.postgres.active_rounds().await.unwrap(), self.twin.active_rounds().await.unwrap());
        assert_eq!(active.0, active.1, "after operation {number} of seed {seed}");
        for id in pipelines {
            let (postgres, twin) = (self.postgres.word_of(*id).await.unwrap(), self.twin.word_of(*id).await.unwrap());
            assert_eq!(postgres, twin, "word after operation {number} of seed {seed}");
            let (postgres, twin) =
                (self.postgres.get_pipeline(&(*id).into()).await, self.twin.get_pipeline(&(*id).into()).await);
            let plain = |text: String| without_times(&text);
            let (last, twins) = (self.postgres.last_collection(*id).await, self.twin.last_collection(*id).await);
            assert_eq!(plain(format!("{last:?}")), plain(format!("{twins:?}")), "collection of {id} after {number}");
            let (due, twins) = (self.postgres.push_schedule(*id).await, self.twin.push_schedule(*id).await);
            assert_eq!(plain(format!("{due:?}")), plain(format!("{twins:?}")), "schedule of {id} after {number}");
            assert_eq!(plain(format!("{postgres:?}")), plain(format!("{twin:?}")), "pipeline {id} after {number}");
        }
    }
}

fn number_of(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |value| value.parse().unwrap())
}

#[tokio::test]
async fn the_twin_answers_and_holds_what_postgres_does() {
    let seed = number_of("LOCKSTEP_SEED", 1);
    let operations = number_of("LOCKSTEP_OPERATIONS", OPERATIONS);
    println!("seed {seed}, {operations} operations; LOCKSTEP_SEED={seed} replays them");
    let rig = Rig::new().await;
    // Each look at the clock is later than the one before, as a real one's.
    let (begin, ticks) = (Utc::now(), AtomicI64::new(0));
    let twin = MemoryDatabase::new(move || begin + TimeDelta::milliseconds(ticks.fetch_add(1, Ordering::Relaxed)))
        .with_identity(rig.store.identity().await.unwrap());
    let mut pair = Pair { postgres: rig.store.clone(), twin: twin.store(), heard: [None, None] };
    let mut world = World::default();
    let mut rng = StdRng::seed_from_u64(seed);
    for number in 0..operations {
        let operation = world.draw(&mut rng);
        pair.compare(seed, number, &operation, &mut world).await;
        if number % 50 == 49 || number + 1 == operations {
            pair.compare_all(seed, number, &world).await;
        }
    }
    chance::seed(None);
    println!("{:#?}", world.counts());
}
