//! Pulls from resolving to installed: hosts that restart, lose disks or only copies, and fresh starts.

use lockstep_protocol::{
    id::{Attempt, RoundId},
    problem::Reason,
    round::{Effect, Event, HostReport, ParticipantPhase, Phase, Round, Source, check_cancellable, effects},
};

use super::{HOSTS, cancel, commit_of, done, failed, found, present, resolved, run};
use crate::sample;

fn installing() -> Round {
    let mut round = run(
        sample::pull(HOSTS),
        [Event::Resolved { resolved: resolved(Source::Location), hosts: found(0), discard: false }],
    );
    for idx in 0..HOSTS {
        assert_eq!(round.phase, Phase::Transferring);
        round = run(round.clone(), [done(&round, idx, HostReport::Staged)]);
    }
    assert_eq!(round.phase, Phase::Installing, "stored before any install is sent");
    round
}

fn all_installed() -> Round {
    (0..HOSTS).fold(installing(), |round, idx| run(round.clone(), [done(&round, idx, HostReport::Installed)]))
}

#[test]
fn a_pull_goes_from_resolving_to_installed() {
    let round = all_installed();
    assert_eq!(round.phase, Phase::Installing);
    assert_eq!(effects(&round, sample::time(0)), [Effect::Confirm]);
    let confirmed = Event::Confirmed { incarnations: present(&round), jitter: 0 };
    assert_eq!(run(round, [confirmed]).phase, Phase::Installed);
}

/// R20, S12.
#[test]
fn a_host_that_restarted_or_lost_its_disk_after_it_installed_is_asked_again() {
    let round = all_installed();
    let mut incarnations = present(&round);
    incarnations[2] = Some(sample::incarnation(102));
    let round = run(round, [Event::Confirmed { incarnations, jitter: 0 }]);
    assert_eq!((round.phase, round.participants[2].phase), (Phase::Installing, ParticipantPhase::BackingOff));
    let ready = Event::HostReady { host_idx: 2, attempt: Attempt::FIRST, incarnation: sample::incarnation(102) };
    let round = run(round, [ready]);
    assert_eq!(effects(&round, sample::time(0)), [Effect::Install { host_idx: 2, attempt: Attempt::new(2).unwrap() }]);
    let round = run(round.clone(), [failed(&round, 2, Reason::CheckpointNotFound)]);
    let p = &round.participants[2];
    let round = run(
        round.clone(),
        [Event::HostReady { host_idx: 2, attempt: p.attempt, incarnation: sample::incarnation(102) }],
    );
    assert_eq!(
        effects(&round, sample::time(0)),
        [Effect::Transfer { host_idx: 2, attempt: Attempt::new(3).unwrap() }],
        "pull again"
    );
}

#[test]
fn installing_never_gives_up_and_is_not_cancelled() {
    let mut round = installing();
    check_cancellable(&round).expect_err("only forward");
    for _ in 0..12 {
        round =
            run(round.clone(), [failed(&round, 0, Reason::StoreDenied), Event::CancelRequested(cancel()), Event::Tick]);
        let p = &round.participants[0];
        round = run(
            round.clone(),
            [Event::HostReady { host_idx: 0, attempt: p.attempt, incarnation: sample::incarnation(0) }],
        );
        assert_eq!(round.phase, Phase::Installing);
    }
    let by = RoundId::new(sample::uuid(5));
    let superseded = run(round, [Event::Superseded { by }]);
    assert_eq!((superseded.phase, superseded.problem.unwrap().reason), (Phase::Failed, Reason::Superseded));
}

#[test]
fn the_local_source_downloads_nothing() {
    let round = run(
        sample::pull(HOSTS),
        [Event::Resolved { resolved: resolved(Source::Local), hosts: found(0), discard: false }],
    );
    assert_eq!(round.phase, Phase::Installing);
    let now = effects(&round, sample::time(0));
    assert!(now.iter().all(|effect| matches!(effect, Effect::Install { .. })) && now.len() == 3, "{now:?}");
}

#[test]
fn a_host_that_lost_the_only_copy_ends_the_pull() {
    let local = |commit: bool| {
        let mut resolved = resolved(Source::Local);
        resolved.commit = commit.then(|| commit_of(1));
        let round = run(sample::pull(HOSTS), [Event::Resolved { resolved, hosts: found(0), discard: false }]);
        let lost = failed(&round, 1, Reason::CheckpointNotFound);
        run(round, [lost])
    };
    let ended = local(false);
    assert_eq!((ended.phase, ended.problem.unwrap().reason), (Phase::Failed, Reason::CheckpointNotFound));
    let again = local(true);
    assert_eq!(
        (again.phase, again.participants[1].phase),
        (Phase::Installing, ParticipantPhase::BackingOff),
        "its part can be pulled"
    );
}

#[test]
fn a_host_that_lost_its_disk_ends_an_installing_pull_whose_source_is_damaged_by_then() {
    let resolved = Event::Resolved { resolved: resolved(Source::Location), hosts: found(0), discard: false };
    let mut round = run(sample::pull(HOSTS), [resolved]);
    for host_idx in 0..HOSTS {
        round = run(round.clone(), [done(&round, host_idx, HostReport::Staged)]);
    }
    assert_eq!(round.phase, Phase::Installing);
    let lost = failed(&round, 1, Reason::CheckpointNotFound);
    let round = run(round, [lost]);
    assert_eq!((round.phase, round.participants[1].phase), (Phase::Installing, ParticipantPhase::BackingOff));
    let tried = |reason: Reason, times: u32| {
        (0..times).fold(round.clone(), |round, _| {
            let ready = Event::HostReady {
                host_idx: 1,
                attempt: round.participants[1].attempt,
                incarnation: sample::incarnation(1),
            };
            run(round.clone(), [failed(&round, 1, reason), ready])
        })
    };
    let most = round.retry.max_attempts;
    for (reason, times, ends) in [
        (Reason::StoreUnavailable, 3 * most, false),
        (Reason::CheckpointDamaged, 1, true),
        (Reason::Integrity, 1, false),
        (Reason::Integrity, most, true),
    ] {
        let after = tried(reason, times);
        assert_eq!(after.phase, if ends { Phase::Failed } else { Phase::Installing }, "{reason}, {times} times");
        assert_eq!(after.problem.map(|problem| problem.reason), ends.then_some(reason));
    }
}

#[test]
fn a_fresh_start_with_discard_local_is_fresh_only_when_every_host_has_discarded() {
    let asked = Event::Resolved { resolved: resolved(Source::Fresh), hosts: found(0), discard: true };
    let mut round = run(sample::pull(HOSTS), [asked]);
    for idx in 0..HOSTS {
        assert_eq!(round.phase, Phase::Resolving);
        assert!(effects(&round, sample::time(0)).contains(&Effect::Install { host_idx: idx, attempt: Attempt::FIRST }));
        round = run(round.clone(), [done(&round, idx, HostReport::Installed)]);
    }
    assert_eq!(round.phase, Phase::Fresh);
    let plain = run(
        sample::pull(HOSTS),
        [Event::Resolved { resolved: resolved(Source::Fresh), hosts: found(0), discard: false }],
    );
    assert_eq!(plain.phase, Phase::Fresh);
}
