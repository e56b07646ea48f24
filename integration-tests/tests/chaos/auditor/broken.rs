//! One thing broken at a time in evidence that is sound.

use std::time::{Duration, Instant};

use lockstep_integration_tests::auditor::{
    Evidence, Written, audit,
    database::{Event, ParticipantRow, RoundRow},
    history::{Admitted, Latest, Told},
};
use serde_json::Value;
use uuid::Uuid;

/// What is broken, and the rules that must be found broken: these and no others.
type Break = (&'static str, &'static [&'static str], fn(&mut Evidence));

const BREAKS: &[Break] = &[
    ("a data object is gone", &["S1"], |e| drop(e.objects.remove(&key(e, "/data-")))),
    ("a data object is cut short", &["S1"], |e| {
        object(e, "/data-").pop();
    }),
    ("a byte of a data object differs", &["S1"], |e| *object(e, "/data-").last_mut().unwrap() ^= 1),
    ("a part manifest that is used is gone", &["S1"], |e| {
        let manifest = first_part(e)["manifest"].as_str().unwrap().to_owned();
        e.objects.remove(&format!("orders/{manifest}"));
    }),
    ("a full manifest that a delta inherits is gone", &["S1"], |e| drop(e.objects.remove(&inherited(e)))),
    ("a commit's root is another", &["S1", "S4"], |e| rewrite(e, 0, |commit| commit["root"] = "00".into())),
    ("a commit names a host twice", &["S1", "S2", "S4"], |e| {
        rewrite(e, 0, |commit| commit["parts"][1] = commit["parts"][0].clone());
    }),
    ("a commit lacks a host", &["S1", "S2", "S4"], |e| {
        rewrite(e, 0, |commit| drop(commit["parts"].as_array_mut().unwrap().pop()));
    }),
    ("a commit is of another step than its parts", &["S4", "S9"], |e| {
        rewrite(e, 0, |commit| commit["step"] = 11.into())
    }),
    ("a commit is of another program than its parts", &["S4", "S9"], |e| {
        rewrite(e, 0, |commit| commit["fingerprint"] = "7".into());
    }),
    ("a commit decides another place", &["S3", "S4"], |e| rewrite(e, 0, |commit| commit["seq"] = 77.into())),
    ("a commit is of another round", &["S2", "S3", "S4", "S15"], |e| {
        rewrite(e, 0, |commit| commit["round"] = Uuid::new_v4().to_string().into());
    }),
    ("a commit is no JSON", &["S4", "S15", "layout"], |e| {
        let key = commits(e)[0].clone();
        e.objects.insert(key, b"{".to_vec());
    }),
    ("an acknowledged commit is gone", &["S4", "S15"], |e| drop(e.objects.remove(&commits(e)[0].clone()))),
    ("a newer fence excludes acknowledged commits", &["S4", "S15"], |e| {
        e.objects.insert("orders/fences/00000000000000000002.json".to_owned(), b"{}".to_vec());
        e.objects.insert("orders/fences/00000000000000000002.base.json".to_owned(), br#"{"newest":null}"#.to_vec());
    }),
    ("a generation is missing", &["layout"], |e| {
        e.objects.insert("orders/fences/00000000000000000003.json".to_owned(), b"{}".to_vec());
    }),
    ("a part is not of the attempt that its row names", &["S8"], |e| host(e, "committed").attempt += 1),
    ("a part is not of the process that its row names", &["S8"], |e| {
        host(e, "committed").incarnation = Some(Uuid::new_v4());
    }),
    ("a committed row has no commit", &["S4", "S5", "S6"], |e| {
        let cancelled = round(e, "cancelled");
        cancelled.phase = "committed".to_owned();
    }),
    ("a commit stands whose row has failed", &["S4", "S5", "S6"], |e| {
        let committed = round(e, "committed");
        committed.phase = "failed".to_owned();
    }),
    ("a row has other bytes than stand", &["S4"], |e| round(e, "committed").commit_bytes = Some(b"{}".to_vec())),
    ("the newest commit is not known", &["S4"], |e| {
        e.rows.pipelines.values_mut().for_each(|pipeline| pipeline.last = Some((1, 1)));
    }),
    ("a round has not ended", &["L1", "S5", "S6"], |e| {
        let cancelled = round(e, "cancelled");
        cancelled.phase = "committing".to_owned();
    }),
    ("what was pushed is not what the engine made", &["S9"], |e| {
        let part = first_part(e);
        let made = e.history.made.get_mut(&id(&part["local_checkpoint"])).unwrap();
        made.files.get_mut("files/1").unwrap().1 = "another".to_owned();
    }),
    ("a client was told failed and the commit counts", &["S5"], |e| {
        let id = round(e, "committed").id;
        e.history.told.push(told(id, "failed"));
    }),
    ("a client was told committed and it was cancelled", &["S5", "S15"], |e| {
        let id = round(e, "cancelled").id;
        e.history.told.push(told(id, "committed"));
    }),
    ("a client was told of a round that nobody knows", &["S5"], |e| {
        e.history.told.push(told(Uuid::new_v4(), "failed"))
    }),
    ("a request id has two rounds", &["S14"], |e| {
        let Admitted { pipeline, request, .. } = e.history.admitted[0];
        e.history.admitted.push(Admitted { pipeline, request, round: Uuid::new_v4() });
    }),
    ("latest went back", &["S11"], |e| {
        let pipeline = *e.rows.pipelines.keys().next().unwrap();
        let asked = Instant::now() + Duration::from_secs(60);
        e.history.latest.push(Latest { pipeline, place: (1, 1), asked, answered: asked });
    }),
    ("a key has held two contents", &["S7"], |e| {
        let key = key(e, "/data-");
        e.journal.push(Written::Put { key, etag: "another".to_owned() });
    }),
    ("a decision was written twice", &["S3"], |e| {
        let key = commits(e)[0].clone();
        let twice = e.journal.iter().find(|line| matches!(line, Written::Put { key: put, .. } if *put == key)).cloned();
        e.journal.push(twice.unwrap());
    }),
    ("a fence was deleted", &["S3"], |e| {
        e.journal.push(Written::Deleted { key: "orders/fences/00000000000000000001.json".to_owned() });
    }),
    ("a phase was skipped", &["S6"], |e| {
        let at = event(e, |event| event.to.as_deref() == Some("committing"));
        e.rows.events.remove(at);
    }),
    ("a host's phase was skipped", &["S6"], |e| {
        let at = event(e, |event| event.event == "host_phase" && event.to.as_deref() == Some("ordered"));
        e.rows.events.remove(at);
    }),
    ("a phase was written under an old term", &["S6"], |e| {
        let at = event(e, |event| event.to.as_deref() == Some("committing"));
        e.rows.events[at].term = Some(0);
    }),
    ("a phase was written by a replica that had not claimed", &["S6"], |e| {
        let at = event(e, |event| event.to.as_deref() == Some("committing"));
        e.rows.events[at].actor = "replica somebody".to_owned();
    }),
    ("a term was skipped", &["S6"], |e| {
        let at = event(e, |event| event.event == "round_claimed");
        e.rows.events[at].term = Some(9);
    }),
    ("an event is of no round", &["S6"], |e| {
        let at = event(e, |event| event.event == "round_phase");
        e.rows.events[at].round = Some(Uuid::new_v4());
    }),
    ("two rounds were active", &["S13"], |e| {
        // The second admission moves to before the end of the first.
        let at = |e: &Evidence, nth: usize| {
            let events = e.rows.events.iter().enumerate();
            events.filter(|(_, event)| event.event == "round_admitted").nth(nth).unwrap().0
        };
        let (first, second) = (at(e, 0), at(e, 1));
        let admitted = e.rows.events.remove(second);
        e.rows.events.insert(first + 1, admitted);
    }),
    ("a pull is installed and a host is not", &["S6", "S12"], |e| {
        let pull = round(e, "installed").id;
        e.rows.participants.get_mut(&pull).unwrap()[2].phase = "staged".to_owned();
    }),
    ("a host has another checkpoint beside the installed one", &["S12"], |e| {
        let files = e.history.installed[0].hosts[0].values().next().unwrap().clone();
        e.history.installed[0].hosts[0].insert(Uuid::new_v4(), files);
    }),
    ("a host has nothing installed", &["S12"], |e| e.history.installed[0].hosts[2].clear()),
    ("a host has another content installed", &["S12"], |e| {
        let files = e.history.installed[0].hosts[1].values_mut().next().unwrap();
        files.get_mut("files/3").unwrap().1 = "another".to_owned();
    }),
    ("two hosts have each other's checkpoint", &["S12"], |e| e.history.installed[0].hosts.swap(0, 1)),
];

pub(crate) fn each_is_found(sound: &Evidence) {
    let mut wrong = String::new();
    for (what, rules, breaks) in BREAKS {
        let mut evidence = sound.clone();
        breaks(&mut evidence);
        let mut expected = rules.to_vec();
        expected.sort_unstable();
        let audit = audit(&evidence);
        if super::rules(&audit.findings) != expected {
            wrong.push_str(&format!("{what}: expected {expected:?}, found\n{}\n", audit.listed()));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

fn key(evidence: &Evidence, part: &str) -> String {
    // Of the first commit, so that it is reached.
    let round = decision(evidence, 0)["round"].as_str().unwrap().to_owned();
    let mut keys = evidence.objects.keys();
    keys.find(|key| key.contains(part) && key.contains(&round)).unwrap().clone()
}

fn object<'e>(evidence: &'e mut Evidence, part: &str) -> &'e mut Vec<u8> {
    let key = key(evidence, part);
    evidence.objects.get_mut(&key).unwrap()
}

/// Keys of commits and abort records, in order.
fn commits(evidence: &Evidence) -> Vec<String> {
    evidence.objects.keys().filter(|key| key.contains("/commits/")).cloned().collect()
}

fn decision(evidence: &Evidence, nth: usize) -> Value {
    serde_json::from_slice(&evidence.objects[&commits(evidence)[nth]]).unwrap()
}

fn first_part(evidence: &Evidence) -> Value {
    decision(evidence, 0)["parts"][0].clone()
}

fn id(value: &Value) -> Uuid {
    value.as_str().unwrap().parse().unwrap()
}

fn rewrite(evidence: &mut Evidence, nth: usize, change: impl FnOnce(&mut Value)) {
    let key = commits(evidence)[nth].clone();
    let mut document = decision(evidence, nth);
    change(&mut document);
    evidence.objects.insert(key, serde_json::to_vec(&document).unwrap());
}

/// A manifest that some part inherits.
fn inherited(evidence: &Evidence) -> String {
    let manifests = evidence.objects.iter().filter(|(key, _)| key.ends_with("/part.json"));
    let mut inherited = manifests.filter_map(|(_, bytes)| {
        let part: Value = serde_json::from_slice(bytes).unwrap();
        Some(format!("orders/{}", part["inherits"]["key"].as_str()?))
    });
    inherited.next().expect("some part is a delta")
}

fn round<'e>(evidence: &'e mut Evidence, phase: &str) -> &'e mut RoundRow {
    let mut rounds: Vec<_> = evidence.rows.rounds.values_mut().filter(|round| round.phase == phase).collect();
    rounds.sort_by_key(|round| round.round_no);
    rounds.into_iter().next().unwrap()
}

fn host<'e>(evidence: &'e mut Evidence, phase: &str) -> &'e mut ParticipantRow {
    let id = round(evidence, phase).id;
    &mut evidence.rows.participants.get_mut(&id).unwrap()[0]
}

fn event(evidence: &Evidence, like: impl Fn(&Event) -> bool) -> usize {
    evidence.rows.events.iter().position(like).unwrap()
}

fn told(round: Uuid, phase: &str) -> Told {
    Told { round, phase: phase.to_owned(), reason: String::new(), at: Instant::now() }
}
