//! What may go: retention, tombstones, sweep, orphans.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use lockstep_protocol::{
    commit::{CommitDocument, CommitRef},
    digest::Digest,
    fence::{FenceBase, TombstoneRef},
    garbage::{
        CommitReach, DatabaseView, HeldUp, Known, LandedTombstone, ListedKey, Locked, OpenUpload, Orphans, Plan,
        Retiring, RoundState, Sweep, TombstoneKnown, WhyKept, candidates, in_use,
    },
    id::{Attempt, Generation, PipelineId, RoundId, Seq},
    key::{AttemptPath, Key},
    manifest::{FileEntry, Inherited, ObjectEntry, PartDocument, PartManifest, RelativePath},
    pin::Pin,
    problem::Reason,
    round::{Kind, Phase, Resolved, Source},
    spec::Retention,
    takeover::PutAnswer,
    tombstone::Tombstone,
};

use crate::sample::{self, incarnation, time, uuid};

const DAY: Duration = Duration::from_secs(86_400);

fn generation(g: u64) -> Generation {
    Generation::new(g).unwrap()
}

fn round(n: u64) -> RoundId {
    RoundId::new(uuid(u128::from(n)))
}

fn commit(s: u64) -> CommitRef {
    CommitRef { generation: generation(1), seq: Seq::new(s).unwrap(), round: round(s), digest: Digest::of(&[1]) }
}

fn path(g: u64, of: u64) -> AttemptPath {
    let slot = sample::layout(1).slot(0).unwrap();
    AttemptPath::new(slot, generation(g), round(of), incarnation(1), Attempt::FIRST)
}

fn known(s: u64, day: i64) -> Known {
    Known { commit: commit(s), created_at: time(day * 86_400), damaged: false, unreadable: false, occupied: false }
}

fn pin(s: u64) -> Pin {
    Pin { name: "audit".to_owned(), id: uuid(1), commit: commit(s), pinned_by: "alice".to_owned(), pinned_at: time(0) }
}

fn locked(in_use: &[u64]) -> Locked {
    Locked {
        pipeline: PipelineId::new(uuid(1)),
        generation: generation(1),
        last: Some(commit(9)),
        in_use: in_use.iter().map(|s| commit(*s)).collect(),
        now: time(9 * 86_400),
    }
}

fn retiring(s: u64) -> Retiring {
    let free = candidates(&[known(9, 9), known(s, 0)], &[], &BTreeSet::new(), limits(1), time(9 * 86_400));
    free.mark(&locked(&[])).remove(0)
}

fn landed(s: u64) -> LandedTombstone {
    match retiring(s).judge(PutAnswer::Created, None, None) {
        TombstoneKnown::Landed(landed) => landed,
        other => panic!("{other:?}"),
    }
}

const fn limits(min_count: u32) -> Retention {
    Retention { min_age: DAY, min_count }
}

#[test]
fn each_reason_to_keep_a_commit_keeps_it() {
    let mut all =
        vec![known(9, 9), known(8, 9), known(7, 9), known(6, 9), known(5, 5), known(4, 4), known(3, 3), known(2, 2)];
    all[0].damaged = true;
    all[7].occupied = true;
    let free = candidates(&all, &[pin(5)], &BTreeSet::from([commit(4)]), limits(2), time(9 * 86_400 + 3600));
    let why: Vec<(u64, WhyKept)> = free.kept.iter().map(|kept| (kept.commit.seq.get(), kept.why)).collect();
    assert_eq!(
        why,
        [
            (9, WhyKept::Newest),
            (8, WhyKept::Newest),
            (7, WhyKept::Count),
            (6, WhyKept::Age),
            (5, WhyKept::Pinned),
            (4, WhyKept::InUse),
            (2, WhyKept::Occupied),
        ]
    );
    assert_eq!(free.retire, [commit(3)]);
}

#[test]
fn damaged_ones_are_not_among_the_newest_that_count() {
    let mut all = vec![known(9, 2), known(8, 2), known(7, 2)];
    all[1].damaged = true;
    assert_eq!(candidates(&all, &[], &BTreeSet::new(), limits(2), time(9 * 86_400)).retire, [commit(8)]);
}

#[test]
fn what_cant_be_read_stays_until_it_was_given_up_and_is_no_good_one() {
    let mut all = vec![known(9, 2), known(8, 2), known(7, 2), known(6, 2)];
    all[1].unreadable = true;
    let free = candidates(&all, &[], &BTreeSet::new(), limits(2), time(9 * 86_400));
    assert_eq!(free.retire, [commit(6)]);
    assert_eq!(free.kept[1].why, WhyKept::Unreadable);
    all[1].damaged = true;
    let retired =
        |pins: &[Pin], in_use: &BTreeSet<_>| candidates(&all, pins, in_use, limits(2), time(9 * 86_400)).retire;
    assert_eq!(retired(&[], &BTreeSet::new()), [commit(6), commit(8)]);
    // A pin, and a round, know it by what it was before.
    let before = CommitRef { round: round(99), digest: Digest::of(b"whole"), ..commit(8) };
    assert_eq!(retired(&[Pin { commit: before, ..pin(8) }], &BTreeSet::new()), [commit(6)]);
    assert_eq!(retired(&[], &BTreeSet::from([before])), [commit(6)]);
    let free = candidates(&all, &[], &BTreeSet::new(), limits(2), time(9 * 86_400));
    let marked = |locked: &Locked| free.mark(locked).len();
    assert_eq!((marked(&locked(&[])), marked(&Locked { last: Some(before), ..locked(&[]) })), (2, 1));
    // And if it is the newest, the one before is the newest that is good.
    let mut all = vec![known(9, 2), known(8, 2), known(7, 2)];
    all[0].unreadable = true;
    assert_eq!(candidates(&all, &[], &BTreeSet::new(), limits(1), time(9 * 86_400)).retire, [commit(7)]);
}

#[test]
fn what_came_into_use_before_the_lock_is_not_marked() {
    let all = [known(9, 9), known(3, 0), known(2, 0)];
    let free = candidates(&all, &[], &BTreeSet::new(), limits(1), time(9 * 86_400));
    let marked = |locked: &Locked| -> Vec<u64> {
        free.mark(locked).iter().map(|retiring| retiring.tombstone().commit.seq.get()).collect()
    };
    assert_eq!(marked(&locked(&[])), [2, 3]);
    assert_eq!(marked(&locked(&[2])), [3]);
    assert_eq!(marked(&Locked { last: Some(commit(3)), ..locked(&[]) }), [2]);
}

#[test]
fn bases_and_sources_of_active_rounds_are_in_use() {
    let mut push = sample::push(1);
    if let Kind::Push(state) = &mut push.kind {
        state.base = Some(commit(2));
    }
    let mut pull = sample::pull(1);
    let resolved = |source| Resolved {
        source,
        location: None,
        commit: Some(commit(3)),
        step: None,
        fingerprint: None,
        processed_records: None,
        parts: Vec::new(),
    };
    if let Kind::Pull(state) = &mut pull.kind {
        state.resolved = Some(resolved(Source::Location));
    }
    let mut foreign = sample::pull(1);
    if let Kind::Pull(state) = &mut foreign.kind {
        state.resolved = Some(resolved(Source::ReadLocation));
    }
    assert_eq!(in_use([&push, &pull]), BTreeSet::from([commit(2), commit(3)]));
    push.phase = Phase::Failed;
    assert_eq!(in_use([&push, &foreign]), BTreeSet::new());
}

#[test]
fn a_tombstone_has_landed_only_when_it_is_known() {
    let mine = retiring(3);
    let stands = mine.tombstone().clone();
    let late = Tombstone { retired_in: generation(1), ..stands.clone() };
    let is_landed = |known: TombstoneKnown| matches!(known, TombstoneKnown::Landed(_));
    assert!(is_landed(mine.judge(PutAnswer::Created, None, None)));
    assert!(is_landed(mine.judge(PutAnswer::Exists, Some(&stands), None)));
    assert!(is_landed(mine.judge(PutAnswer::Unknown, Some(&stands), None)));
    assert_eq!(mine.judge(PutAnswer::Unknown, None, None), TombstoneKnown::Unknown);
    assert_eq!(mine.judge(PutAnswer::Exists, None, None), TombstoneKnown::Unknown);
    let bytes = stands.encode();
    let stored = Retiring::stored(&Key::Retired(generation(1), Seq::new(3).unwrap()).to_string(), &bytes).unwrap();
    assert_eq!(stored, mine);
    // A later owner finds what an earlier one wrote after it was fenced: that doesn't count, unless the base lists it.
    let newer = Tombstone { retired_in: generation(2), ..stands };
    let mine = Retiring::stored(&newer.key().to_string(), &newer.encode()).unwrap();
    let mut base = FenceBase { generation: generation(2), newest: Some(commit(9)), tombstones: Vec::new() };
    assert_eq!(mine.judge(PutAnswer::Exists, Some(&late), Some(&base)), TombstoneKnown::Occupied);
    let listed = TombstoneRef { generation: generation(1), seq: Seq::new(3).unwrap(), digest: Digest::of(&[1]) };
    base.tombstones.push(listed);
    assert!(is_landed(mine.judge(PutAnswer::Exists, Some(&late), Some(&base))));
}

/// A part of round `of` that uses data objects of these rounds.
fn part(of: u64, objects: &[u64]) -> PartManifest {
    let template = sample::part();
    PartManifest {
        slot: sample::layout(1).slot(0).unwrap(),
        generation: generation(1),
        round: round(of),
        incarnation: incarnation(1),
        attempt: Attempt::FIRST,
        objects: objects
            .iter()
            .map(|object| ObjectEntry { key: path(1, *object).data(0).to_string(), size: 100 + object })
            .collect(),
        files: Vec::new(),
        ..template
    }
}

fn document(of: u64) -> CommitDocument {
    let mut document = sample::commit(1);
    document.seq = Seq::new(of).unwrap();
    document.round = round(of);
    document.parts[0].manifest = path(1, of).manifest().to_string();
    document
}

fn reach(of: u64, objects: &[u64]) -> CommitReach {
    CommitReach::of(commit(of), &document(of), &[part(of, objects)]).unwrap()
}

fn data(of: u64) -> String {
    path(1, of).data(0).to_string()
}

fn keys(stage: &[lockstep_protocol::garbage::Doomed]) -> Vec<String> {
    stage.iter().map(|doomed| doomed.key.clone()).collect()
}

fn sweep_to_commits(landed: &[LandedTombstone], pins: &[Pin]) -> Sweep {
    let Sweep::ListPins(list) = Sweep::begin(generation(1), landed, DAY, time(20 * 86_400)) else {
        panic!("a sweep begins with pins")
    };
    list.answer(pins)
}

fn swept(landed: &[LandedTombstone], live: &[CommitReach], retired: &[CommitReach]) -> Plan {
    let Sweep::ReadCommits(read) = sweep_to_commits(landed, &[]) else { panic!("nothing stops it") };
    let counted: Vec<CommitRef> = live.iter().chain(retired).map(|reach| reach.commit).collect();
    let Sweep::ReadSuccessor(read) = read.answer(&counted, live, retired, |_| Some(700)).unwrap() else {
        panic!("the fence is read last")
    };
    assert_eq!(read.generation(), generation(2));
    assert_eq!(read.clone().answer(true).unwrap_err().problem.reason, Reason::Fenced, "a fenced owner sweeps nothing");
    let Sweep::Delete(plan) = read.answer(false).unwrap() else { panic!("nothing stops it") };
    plan
}

#[test]
fn a_sweep_takes_what_only_retired_commits_reach_data_first() {
    let plan = swept(&[landed(2), landed(3)], &[reach(4, &[1, 4])], &[reach(2, &[1, 2]), reach(3, &[2, 3, 4])]);
    assert_eq!(keys(&plan.data), [data(2), data(3)]);
    assert_eq!(keys(&plan.manifests), [path(1, 2).manifest().to_string(), path(1, 3).manifest().to_string()]);
    assert_eq!(keys(&plan.commits), [commit(2).key().to_string(), commit(3).key().to_string()]);
    let totals = plan.totals();
    assert_eq!((totals.objects, totals.bytes, totals.uploads), (6, 102 + 103 + 2 * 700 + 2 * 700, 0));
}

#[test]
fn nothing_is_swept_in_the_grace_period_or_while_it_is_pinned() {
    assert_eq!(Sweep::begin(generation(1), &[landed(2)], DAY, time(9 * 86_400 + 3600)), Sweep::Nothing);
    assert_eq!(Sweep::begin(generation(1), &[], DAY, time(0)), Sweep::Nothing);
    assert_eq!(sweep_to_commits(&[landed(2)], &[pin(2)]), Sweep::Nothing);
    let Sweep::ReadCommits(read) = sweep_to_commits(&[landed(2), landed(3)], &[pin(2)]) else { panic!("3 goes") };
    assert_eq!(*read.retired(), BTreeSet::from([commit(3)]));
    assert_eq!(read.live(&[commit(2), commit(3), commit(4)]), [commit(2), commit(4)], "a pinned one must stay whole");
}

#[test]
fn a_live_commit_that_was_not_read_stops_the_sweep() {
    let Sweep::ReadCommits(read) = sweep_to_commits(&[landed(2)], &[]) else { panic!("nothing stops it") };
    let stop = read.answer(&[commit(2), commit(4)], &[], &[reach(2, &[2])], |_| None).unwrap_err();
    assert_eq!(stop.problem.reason, Reason::CheckpointDamaged);
    let parts_missing = CommitReach::of(commit(4), &document(4), &[]).unwrap_err();
    assert_eq!(parts_missing.reason, Reason::ManifestInvalid);
}

#[test]
fn what_a_crashed_sweep_left_goes_in_the_next_one() {
    // Its data and its manifest are gone, the commit is not; or a late duplicate of its PUT landed (R18).
    let rest = CommitReach::of_retired(commit(2), &document(2), &[None]).unwrap();
    let plan = swept(&[landed(2)], &[reach(4, &[4])], &[rest]);
    assert_eq!((plan.data.len(), plan.manifests.len(), plan.commits.len()), (0, 1, 1));
}

/// A delta of `base`'s full manifest, as it is read back.
fn delta(of: u64, base: &PartManifest, changed: u64) -> PartManifest {
    let named = |manifest: &PartManifest| {
        let bytes = manifest.encode();
        Inherited {
            key: manifest.attempt_path().manifest().to_string(),
            length: u64::try_from(bytes.len()).unwrap(),
            blake3: Digest::of(&bytes),
        }
    };
    let mut part = PartManifest { round: round(of), ..base.clone() };
    part.objects.push(ObjectEntry { key: data(changed), size: 100 + changed });
    part.files[0].object = Some(1);
    part.files[0].blake3 = Digest::of(b"changed");
    part.relate(base, named(base));
    let read = PartDocument::parse(&part.attempt_path().manifest().to_string(), &part.encode()).unwrap();
    read.resolve(|_| Ok(base.encode())).unwrap()
}

fn full(of: u64) -> PartManifest {
    let mut part = part(of, &[of]);
    part.files = (0..64)
        .map(|n| FileEntry {
            path: RelativePath::new(format!("f{n:02}")).unwrap(),
            size: 1,
            blake3: Digest::of(&[n]),
            head: None,
            object: Some(0),
            offset: u64::from(n),
            length: 1,
        })
        .collect();
    part
}

#[test]
fn an_inherited_manifest_stays_as_long_as_one_inherits_it_and_goes_after_those_that_did() {
    let base = full(2);
    let part = delta(3, &base, 3);
    assert!(part.delta.is_some());
    let first = || CommitReach::of(commit(2), &document(2), std::slice::from_ref(&base)).unwrap();
    let second = || CommitReach::of(commit(3), &document(3), std::slice::from_ref(&part)).unwrap();
    // The heir lives: what it inherits stays, with the object it still uses.
    let plan = swept(&[landed(2)], &[second()], &[first()]);
    assert_eq!((plan.data.len(), plan.manifests.len(), plan.inherited.len(), plan.commits.len()), (0, 0, 0, 1));
    // Both go: the heir's manifest first.
    let plan = swept(&[landed(2), landed(3)], &[reach(4, &[4])], &[first(), second()]);
    assert_eq!(keys(&plan.data), [data(2), data(3)]);
    assert_eq!(keys(&plan.manifests), [path(1, 3).manifest().to_string()]);
    assert_eq!(keys(&plan.inherited), [path(1, 2).manifest().to_string()]);
    // Only the heir goes: the full one is its own commit's.
    let plan = swept(&[landed(3)], &[first()], &[second()]);
    assert_eq!((keys(&plan.data), plan.inherited.len()), (vec![data(3)], 0));
}

/// Carries a plan out where the store does not let go of these keys: what is left, in order.
fn left_where_refused(plan: &Plan, refused: &[String]) -> Vec<String> {
    let (mut held, mut left) = (HeldUp::default(), Vec::new());
    for stage in plan.stages() {
        let (due, waiting) = held.stage(stage);
        assert_eq!(due.len() + waiting, stage.len());
        left.extend(keys(stage).into_iter().filter(|key| !due.iter().any(|doomed| doomed.key == *key)));
        for doomed in due.into_iter().filter(|doomed| refused.contains(&doomed.key)) {
            held.left(doomed);
            left.push(doomed.key.clone());
        }
    }
    left
}

#[test]
fn a_refused_delete_holds_up_the_rest_of_its_own_checkpoints_and_nothing_else() {
    let manifest = |of: u64| path(1, of).manifest().to_string();
    let object = |of: u64| commit(of).key().to_string();
    // 2 and 3 share an object, 5 is on its own.
    let plan = swept(
        &[landed(2), landed(3), landed(5)],
        &[reach(9, &[9])],
        &[reach(2, &[1, 2]), reach(3, &[1, 3]), reach(5, &[5])],
    );
    assert_eq!(left_where_refused(&plan, &[]), Vec::<String>::new());
    assert_eq!(left_where_refused(&plan, &[data(5)]), [data(5), manifest(5), object(5)]);
    assert_eq!(
        left_where_refused(&plan, &[data(1)]),
        [data(1), manifest(2), manifest(3), object(2), object(3)],
        "both need their manifests until what they share is gone"
    );
    assert_eq!(left_where_refused(&plan, &[manifest(3)]), [manifest(3), object(3)]);
    assert_eq!(left_where_refused(&plan, &[object(2)]), [object(2)]);
}

#[test]
fn what_a_manifest_inherits_stays_with_it_and_so_does_the_commit_that_it_belongs_to() {
    let base = full(2);
    let part = delta(3, &base, 3);
    let first = CommitReach::of(commit(2), &document(2), std::slice::from_ref(&base)).unwrap();
    let second = CommitReach::of(commit(3), &document(3), std::slice::from_ref(&part)).unwrap();
    let plan = swept(&[landed(2), landed(3), landed(5)], &[reach(9, &[9])], &[first, second, reach(5, &[5])]);
    let manifest = |of: u64| path(1, of).manifest().to_string();
    let object = |of: u64| commit(of).key().to_string();
    // Without the full manifest nobody could read what is left of the third.
    assert_eq!(left_where_refused(&plan, &[data(3)]), [data(3), manifest(3), manifest(2), object(2), object(3)]);
}

fn listed(keys: &[String]) -> Vec<ListedKey> {
    keys.iter().map(|key| ListedKey { key: key.clone(), bytes: 10 }).collect()
}

fn view(rounds: &[(u64, RoundState)]) -> DatabaseView {
    DatabaseView {
        generation: generation(2),
        fenced: false,
        rounds: rounds.iter().map(|(n, state)| (round(*n), *state)).collect::<BTreeMap<_, _>>(),
        in_use: BTreeSet::new(),
    }
}

fn collect(keys: &[String], view: DatabaseView, reach: &[CommitReach]) -> Result<Plan, Reason> {
    let Orphans::ListKeys(list) = Orphans::begin(generation(2)) else { panic!("keys are listed first") };
    let uploads = vec![OpenUpload { key: path(2, 7).data(5).to_string(), upload: "u".to_owned() }];
    let reason = |stop: lockstep_protocol::garbage::Stop| stop.problem.reason;
    let Orphans::ReadDatabase(read) = list.answer(listed(keys), uploads).map_err(reason)? else {
        panic!("then the database is read")
    };
    let Orphans::ReadCommits(read) = read.answer(view).map_err(reason)? else { panic!("then what commits reach") };
    let counted: Vec<CommitRef> = reach.iter().map(|reach| reach.commit).collect();
    let Orphans::ReadSuccessor(read) = read.answer(&counted, reach).map_err(reason)? else {
        panic!("the fence is read last")
    };
    assert_eq!(read.generation(), generation(3));
    assert_eq!(read.clone().answer(true).map_err(reason), Err(Reason::Fenced));
    let Orphans::Delete(plan) = read.answer(false).map_err(reason)? else { panic!("nothing stops it") };
    Ok(plan)
}

#[test]
fn orphans_are_what_dead_rounds_left_and_nothing_reaches() {
    let keys = [
        data(1),
        path(1, 1).data(1).to_string(),
        path(1, 1).manifest().to_string(),
        path(2, 7).data(0).to_string(),
        path(2, 8).data(0).to_string(),
        "host0/notes.txt".to_owned(),
        "commits/00000000000000000001-00000000000000000001.json".to_owned(),
    ];
    let states = [(7, RoundState::Terminal), (8, RoundState::Undecided)];
    let plan = collect(&keys, view(&states), &[reach(1, &[1])]).unwrap();
    assert_eq!(
        plan.data.iter().map(|doomed| &doomed.key).collect::<Vec<_>>(),
        [&keys[1], &keys[3]],
        "the reached, the undecided and the unknown stay"
    );
    assert_eq!((plan.manifests.len(), plan.commits.len(), plan.uploads.len()), (0, 0, 1));
    let undecided = collect(&keys, view(&[(7, RoundState::Undecided), (8, RoundState::Undecided)]), &[reach(1, &[1])]);
    assert_eq!(undecided.unwrap().uploads, []);
}

#[test]
fn what_one_dead_round_can_not_be_freed_of_keeps_the_rest_of_that_round_only() {
    let key = |of: u64, name: &str| match name {
        "part" => path(2, of).manifest().to_string(),
        _ => path(2, of).data(0).to_string(),
    };
    let keys = [key(7, "data"), key(7, "part"), key(8, "data"), key(8, "part")];
    let plan = collect(&keys, view(&[(7, RoundState::Terminal), (8, RoundState::Terminal)]), &[]).unwrap();
    assert_eq!(left_where_refused(&plan, &[key(7, "data")]), [key(7, "data"), key(7, "part")]);
}

#[test]
fn what_the_database_does_not_know_stops_the_collection() {
    let states = [(7, RoundState::Terminal)];
    let unknown = [path(2, 9).data(0).to_string()];
    assert_eq!(collect(&unknown, view(&states), &[]), Err(Reason::DatabaseBehind));
    let newer = [path(3, 9).data(0).to_string()];
    assert_eq!(collect(&newer, view(&states), &[]), Err(Reason::Fenced));
    assert_eq!(collect(&[], DatabaseView { fenced: true, ..view(&states) }, &[]), Err(Reason::Fenced));
    assert_eq!(collect(&[], DatabaseView { generation: generation(3), ..view(&states) }, &[]), Err(Reason::Fenced));
    let used = DatabaseView { in_use: BTreeSet::from([commit(1)]), ..view(&states) };
    assert_eq!(collect(&[], used, &[]), Err(Reason::CheckpointDamaged), "a source whose reach is not known");
}

#[test]
fn a_pin_is_read_back_and_refused_elsewhere() {
    let pin = pin(3);
    let key = pin.key().to_string();
    assert_eq!(Pin::parse(&key, &pin.encode()), Ok(pin.clone()));
    assert_eq!(Pin::parse("pins/x.json", &pin.encode()).unwrap_err().reason, Reason::ManifestInvalid);
    assert_eq!(Pin::parse(&key, b"{}").unwrap_err().reason, Reason::ManifestInvalid);
}
