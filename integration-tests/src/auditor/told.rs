//! What clients were told, against what is: no word is taken back (S5, S15), `latest` never goes back (S11), one id, one round (S14).

use std::{collections::BTreeMap, rc::Rc};

use uuid::Uuid;

use super::{Audit, Evidence, history::History, location::LocationView};

type Views = BTreeMap<Uuid, Rc<LocationView>>;

pub(super) fn check(evidence: &Evidence, views: &Views, audit: &mut Audit) {
    check_ends(evidence, views, audit);
    check_requests(evidence, audit);
    for &pipeline in views.keys() {
        check_latest(pipeline, evidence, audit);
    }
}

fn check_ends(evidence: &Evidence, views: &Views, audit: &mut Audit) {
    let mut first: BTreeMap<Uuid, &str> = BTreeMap::new();
    for told in &evidence.history.told {
        let phase = told.phase.as_str();
        let before = *first.entry(told.round).or_insert(phase);
        if before != phase {
            audit.found("S5", format!("round {} was told to be {before} and then {phase}", told.round));
        }
        let Some(row) = evidence.rows.rounds.get(&told.round) else {
            audit.found("S5", format!("round {} was told to be {phase} and is in no database", told.round));
            continue;
        };
        if row.phase != phase {
            audit.found("S5", format!("round {} was told to be {phase} and is {}", told.round, row.phase));
        }
        let place = row.seq.map(|seq| (row.generation, seq));
        let (Some(place), Some(view)) = (place, views.get(&row.pipeline)) else { continue };
        let stands = view.counted(place).is_some_and(|commit| commit.round == told.round);
        if phase == "committed" && !stands && !view.retired.contains(&place) {
            audit.found("S15", format!("round {} was acknowledged and its checkpoint is gone", told.round));
        }
        if phase != "committed" && stands {
            audit.found("S5", format!("round {} was told to be {phase} and its commit counts", told.round));
        }
    }
}

fn check_requests(evidence: &Evidence, audit: &mut Audit) {
    let mut answers: BTreeMap<(Uuid, Uuid), Uuid> = BTreeMap::new();
    let rows = evidence.rows.requests.iter().map(|row| (row.pipeline, row.request, row.round));
    let told = evidence.history.admitted.iter().map(|told| (told.pipeline, told.request, told.round));
    for (pipeline, request, round) in rows.chain(told) {
        let before = *answers.entry((pipeline, request)).or_insert(round);
        if before != round {
            audit.found("S14", format!("request {request} is answered with round {before} and with round {round}"));
        }
    }
}

/// Whoever asks after an answer was there gets that or a newer one.
fn check_latest(pipeline: Uuid, evidence: &Evidence, audit: &mut Audit) {
    let History { latest, told, .. } = &evidence.history;
    let acknowledged = told.iter().filter(|told| told.phase == "committed").filter_map(|told| {
        let row = evidence.rows.rounds.get(&told.round).filter(|row| row.pipeline == pipeline)?;
        Some((told.at, (row.generation, row.seq?)))
    });
    let mut asked: Vec<_> = latest.iter().filter(|answer| answer.pipeline == pipeline).collect();
    let mut known: Vec<_> = acknowledged.chain(asked.iter().map(|answer| (answer.answered, answer.place))).collect();
    known.sort();
    asked.sort_by_key(|answer| answer.asked);
    let (mut newest, mut known) = ((0, 0), known.into_iter().peekable());
    for answer in asked {
        while let Some((_, place)) = known.next_if(|(at, _)| *at < answer.asked) {
            newest = newest.max(place);
        }
        if answer.place < newest {
            audit
                .found("S11", format!("latest of pipeline {pipeline} went back from {newest:?} to {:?}", answer.place));
        }
    }
}
